/** The kernel's part of the verbs. Decides nothing. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { tryParseIp } from "../../shared/net/ip.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { commitLater } from "../../shared/netlink/nft/commit-later.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import { removePodRequests } from "../../shared/policy/pod-program.ts";
import { verdictsOf } from "../../shared/policy/pod-verdicts.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { decodeUtf8, isErrno, type Sys } from "../../shared/sys/sys.ts";

/** Runs `work` and says a kernel's refusal as a CNI failure. */
export function inKernel<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof NetlinkError)
      throw new CniFailure(
        CODE.kernel,
        `${what}: the kernel refused "${error.message}"`,
        "see what `nft list table inet terway-policy` says, and whether the kernel has nf_tables",
        error,
      );
    if (isErrno(error, "EPROTONOSUPPORT", "EAFNOSUPPORT"))
      throw new CniFailure(
        CODE.kernel,
        `${what}: this kernel has no netfilter netlink (${(error as Error).message})`,
        "use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET, or take terway-policy out of the conflist",
        error,
      );
    throw error;
  }
}

export function openTables(sys: Sys): NftSocket {
  return inKernel("nftables", () => openNft(sys));
}

/** The tables of the pod's own namespace. */
export function openTablesOf(sys: Sys, netns: string): NftSocket {
  const [netnsFd, ownNetnsFd] = [sys.open(netns, O_RDONLY), sys.open("/proc/self/ns/net", O_RDONLY)];
  return inKernel(`nftables of ${netns}`, () => openNft(sys, { netnsFd, ownNetnsFd }));
}

/** Ends what the addresses' conntrack entries let pass; the same socket serves both. */
export function forgetConnections(nft: NftSocket, addresses: readonly string[]): void {
  const ips = addresses.flatMap((text) => tryParseIp(text) ?? []);
  inKernel("forgetting connections", () =>
    nft.apply(ips.flatMap((ip) => [deleteConntrack(ip, "orig"), deleteConntrack(ip, "reply")])),
  );
}

/**
 * Takes addresses out of the maps, some 50 ms from now. Nothing depends on it: an ADD that gets the address before puts
 * its own verdict in place of the old one, and the agent removes what no pod has.
 */
export function removeAddresses(sys: Sys, addresses: readonly string[]): void {
  const requests = removePodRequests(verdictsOf(addresses, undefined), isLinux(sys, 6, 3));
  inKernel(`removing ${addresses.join(" ")}`, () => commitLater(sys, requests));
}

/** The running kernel is of this version or later. */
function isLinux(sys: Sys, major: number, minor: number): boolean {
  const [a = 0, b = 0] = decodeUtf8(sys.readFile("/proc/sys/kernel/osrelease", 256)).split(".").map(Number);
  return a > major || (a === major && b >= minor);
}
