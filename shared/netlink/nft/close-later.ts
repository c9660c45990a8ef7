/**
 * Closing a netfilter socket without the wait. A batch that removes something is in force at once, but for the 7 to 20 ms
 * in which the kernel then cleans up, whoever closes a netfilter socket of the namespace waits, with the lock held that
 * every batch needs (nft_rcv_nl_event() in net/netfilter/nf_tables_api.c).
 */
import type { Sys } from "../../sys/sys.ts";

const CLEAN_UP_MS = 250;

/** A child process keeps the socket open until the clean-up is over; closing it here is free then. */
export function closeLater(sys: Sys, fd: number): void {
  sys.close(sys.sendDetached(fd, new Uint8Array(0), { lingerMs: CLEAN_UP_MS }).reportFd);
}
