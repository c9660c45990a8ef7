/**
 * What IPv6 wants of a namespace. Addresses must be usable at once, and only what we wrote may route: a link-local address
 * that waits for duplicate detection sends no neighbour solicitation, and a router advertisement would add addresses and
 * a default route beside ours.
 */
import { getLink, parseLink } from "../netlink/rtnl/link.ts";
import { getRoutes, parseRoute } from "../netlink/rtnl/route.ts";
import { NetlinkError, type NetlinkSocket } from "../netlink/socket.ts";
import { readSysctl, setSysctl, writeSysctl } from "../netlink/sysctl.ts";
import { RTPROT_RA } from "../netlink/uapi/rtnetlink.ts";
import { isErrno, type Sys } from "../sys/sys.ts";

const FORWARDING = { 4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding" } as const;

const QUIET = ["accept_dad", "accept_ra"] as const;

/** @returns The value before; undefined where there is no IPv6, or no such link. */
function write(sys: Sys, link: string, name: string, value: string): string | undefined {
  return unlessAbsent(() => writeSysctl(sys, `net/ipv6/conf/${link}/${name}`, value));
}

function unlessAbsent<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
}

/** For links that come to be in this namespace, a pod's, from now on. */
export function quietPod(sys: Sys): void {
  for (const name of QUIET) unlessAbsent(() => setSysctl(sys, `net/ipv6/conf/default/${name}`, "0"));
}

/**
 * For one link, before it comes up.
 *
 * @returns What was otherwise, one line each.
 */
export function quietLink(sys: Sys, link: string): string[] {
  return QUIET.flatMap((name) => {
    const before = write(sys, link, name, "0");
    return before === undefined || before === "0" ? [] : [`net/ipv6/conf/${link}/${name} was ${before}`];
  });
}

/** In a pod: some runtimes make sandboxes without IPv6. For its links, and those that come to be from now on. */
export function allowIpv6(sys: Sys, links: readonly string[]): void {
  for (const link of ["default", "lo", ...links]) write(sys, link, "disable_ipv6", "0");
}

/** The kernel refused an address on a link without IPv6. */
export function isIpv6Off(error: unknown): boolean {
  return error instanceof NetlinkError && error.errno === "EACCES" && error.request.startsWith("ip addr add");
}

/**
 * Lets the node forward. A node that forwards takes no router advertisement and forgets what it learned by one: where
 * the node has its own default route so, its link is told to go on listening.
 *
 * @returns What was otherwise, one line each.
 */
export function enableForwarding(sys: Sys, nl: Pick<NetlinkSocket, "dump">, families: readonly (4 | 6)[]): string[] {
  return families.flatMap((family) => {
    const name = FORWARDING[family];
    const before = readSysctl(sys, name);
    if (before === "1") return [];
    const kept = family === 6 ? keepAdvertisedRoutes(sys, nl) : [];
    writeSysctl(sys, name, "1");
    return [...kept, `${name} was ${before}`];
  });
}

function keepAdvertisedRoutes(sys: Sys, nl: Pick<NetlinkSocket, "dump">): string[] {
  const learned = nl
    .dump(getRoutes(6))
    .map(parseRoute)
    .filter((r) => r.protocol === RTPROT_RA && r.dst.prefixLength === 0);
  if (learned.length === 0) return [];
  const links = nl.dump(getLink()).map(parseLink);
  return [...new Set(learned.map((r) => r.linkIndex))].flatMap((index) => {
    const link = links.find((l) => l.index === index);
    const before = link && write(sys, link.name, "accept_ra", "2");
    return before === undefined || before === "2" ? [] : [`net/ipv6/conf/${link?.name}/accept_ra was ${before}`];
  });
}
