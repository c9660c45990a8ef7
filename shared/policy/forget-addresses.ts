/** Taking the addresses of a pod that is gone out of the kernel's maps. */
import { commitLater } from "../netlink/nft/commit-later.ts";
import { isLinux } from "../sys/kernel-version.ts";
import type { Sys } from "../sys/sys.ts";
import { removePodRequests } from "./pod-program.ts";
import { verdictsOf } from "./pod-verdicts.ts";

/**
 * Some 50 ms from now, by a child process. Nothing depends on it: an ADD that gets the address before puts its own verdict
 * in place of the old one.
 */
export function forgetAddresses(sys: Sys, addresses: readonly string[]): void {
  if (addresses.length > 0) commitLater(sys, removePodRequests(verdictsOf(addresses, undefined), isLinux(sys, 6, 3)));
}
