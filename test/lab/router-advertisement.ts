/** A router advertisement on the wire, and who heard it. */

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { runTool } from "../cloud/netns.ts";
import { inNetns } from "../runtime/exec.ts";
import { until } from "./world.ts";

/** Prefix of which it tells everybody to make an address, and route into the link. */
export const ADVERTISED_PREFIX = "2001:db8:bad::";

/**
 * To all nodes of the link (RFC 4861 4.2): a default router for 1800 s, and one prefix. Perl is in every Debian, and Node
 * has no raw sockets; the kernel adds the checksum of a raw ICMPv6 socket.
 */
const SEND = `
use Socket qw(:DEFAULT inet_pton);
my ($ifindex, $prefix) = @ARGV;
socket(my $s, AF_INET6, SOCK_RAW, 58) or die "socket: $!";
setsockopt($s, 41, 18, pack("i", 255)) or die "IPV6_MULTICAST_HOPS: $!";
setsockopt($s, 41, 17, pack("i", $ifindex)) or die "IPV6_MULTICAST_IF: $!";
my $header = pack("CCnCCnNN", 134, 0, 0, 64, 0, 1800, 0, 0);
my $option = pack("CCCCNNN", 3, 4, 64, 0xc0, 86400, 14400, 0) . inet_pton(AF_INET6, $prefix);
my $to = pack("SnNa16L", AF_INET6, 0, 0, inet_pton(AF_INET6, "ff02::1"), $ifindex);
defined(send($s, $header . $option, 0, $to)) or die "send: $!";
`;

const nsName = (netns: string) => netns.split("/").at(-1) ?? "";

/**
 * Sends one by a link and waits until it is heard.
 *
 * @param listener The namespace at the link's other end.
 */
export async function advertise(netns: string, ifname: string, listener: string): Promise<void> {
  const name = nsName(netns);
  // Receivers take none from another address than a link-local one.
  const own = runTool("ip", ["-n", name, "-6", "addr", "show", "dev", ifname, "scope", "link"]);
  if (!own.includes("fe80:")) runTool("ip", ["-n", name, "addr", "add", "fe80::bad/64", "dev", ifname, "nodad"]);
  const [link] = JSON.parse(runTool("ip", ["-n", name, "-j", "link", "show", "dev", ifname])) as { ifindex: number }[];
  const before = advertisementsHeard(listener);
  await until(`a router advertisement on ${ifname}`, 10_000, () => {
    // A link that just came up cannot send yet.
    spawnSync("nsenter", [`--net=${netns}`, "perl", "-e", SEND, String(link?.ifindex), ADVERTISED_PREFIX]);
    return advertisementsHeard(listener) > before;
  });
}

/** How many router advertisements have come to a namespace. */
function advertisementsHeard(netns: string): number {
  const text = inNetns(netns, () => readFileSync("/proc/thread-self/net/snmp6", "utf8"));
  return Number(/^Icmp6InRouterAdvertisements\s+(\d+)/m.exec(text)?.[1] ?? 0);
}

/** What an advertisement could change: routes of every table, and addresses; not the link-local ones, which come late. */
export function ipv6State(netns: string): string[] {
  const ip = (...args: string[]) => runTool("ip", ["-n", nsName(netns), "-6", "-o", ...args]).split("\n");
  return [...ip("route", "show", "table", "all"), ...ip("addr", "show")]
    .map((line) => line.replace(/ *\\? *(expires|valid_lft|preferred_lft) \S+/g, "").trim())
    .filter((line) => line !== "" && !/^(fe80:|(local|anycast|multicast) f)|inet6 fe80:/.test(line))
    .sort();
}
