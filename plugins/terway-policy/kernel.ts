/** The kernel's part of the verbs. Decides nothing. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { tryParseIp } from "../../shared/net/ip.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import * as kernel from "../../shared/policy/forget-addresses.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { isErrno, type Sys } from "../../shared/sys/sys.ts";

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
    // In this order: an answer that is on its way begins a connection of the pod's own once the other's is forgotten.
    nft.apply(ips.flatMap((ip) => [deleteConntrack(ip, "reply"), deleteConntrack(ip, "orig")])),
  );
}

/** Takes addresses out of the maps; a kernel without nftables has none. */
export function removeAddresses(sys: Sys, addresses: readonly string[]): void {
  inKernel(`removing ${addresses.join(" ")}`, () => kernel.forgetAddresses(sys, addresses));
}

/** Whether the maps have any of them. */
export function areJudged(sys: Sys, addresses: readonly string[]): boolean {
  return inKernel(`looking for ${addresses.join(" ")}`, () => kernel.areJudged(sys, addresses));
}
