/** The kernel's part of the verbs. Decides nothing. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { tryParseIp } from "../../shared/net/ip.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { commitDetached } from "../../shared/netlink/nft/commit-detached.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import { type PodVerdict, presentVerdicts, removePodRequests } from "../../shared/policy/pod-program.ts";
import { verdictsOf } from "../../shared/policy/pod-verdicts.ts";
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

/** Ends what the addresses' conntrack entries let pass; the same socket serves both. */
export function forgetConnections(nft: NftSocket, addresses: readonly string[]): void {
  const ips = addresses.flatMap((text) => tryParseIp(text) ?? []);
  inKernel("forgetting connections", () =>
    nft.apply(ips.flatMap((ip) => [deleteConntrack(ip, "orig"), deleteConntrack(ip, "reply")])),
  );
}

const REMOVE_TRIES = 8;

/** Takes addresses out of the maps; what is not there counts as removed. */
export function removeAddresses(sys: Sys, addresses: readonly string[]): void {
  let verdicts: readonly PodVerdict[] = verdictsOf(addresses, undefined);
  inKernel(`removing ${addresses.join(" ")}`, () => {
    for (let i = 0; i < REMOVE_TRIES && verdicts.length > 0; i++) {
      try {
        commitDetached(sys, removePodRequests(verdicts));
        return;
      } catch (error) {
        // All or nothing: one that is missing keeps the others.
        if (!(error instanceof NetlinkError) || error.errno !== "ENOENT") throw error;
      }
      const nft = openNft(sys);
      try {
        verdicts = presentVerdicts(nft, verdicts);
      } finally {
        nft.close();
      }
    }
  });
}
