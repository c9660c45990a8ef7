/** Taking the addresses of a pod that is gone out of the kernel's maps. */
import { closeLater } from "../netlink/nft/close-later.ts";
import { type NftSocket, openNft } from "../netlink/nft/socket.ts";
import { isErrno, type Sys } from "../sys/sys.ts";
import { inForce, removePod } from "./pod-program.ts";
import { verdictsOf } from "./pod-verdicts.ts";

/**
 * Returns when they are out: what comes later would hit the verdicts of whichever pod gets the address next.
 *
 * @throws {NetlinkError}
 */
export function forgetAddresses(sys: Sys, addresses: readonly string[]): void {
  if (addresses.length > 0) withTables(sys, (nft) => removePod(nft, verdictsOf(addresses, undefined)));
}

/** Whether the kernel's maps have any of them. @throws {NetlinkError} */
export function areJudged(sys: Sys, addresses: readonly string[]): boolean {
  let found = false;
  withTables(sys, (nft) => {
    found = inForce(nft, verdictsOf(addresses, undefined)).length > 0;
  });
  return found;
}

function withTables(sys: Sys, work: (nft: NftSocket) => void): void {
  let nft: NftSocket;
  try {
    nft = openNft(sys);
  } catch (error) {
    if (isErrno(error, "EPROTONOSUPPORT", "EAFNOSUPPORT")) return; // a kernel without netfilter has no maps
    throw error;
  }
  try {
    work(nft);
  } finally {
    closeLater(sys, nft.fd);
    nft.close();
  }
}
