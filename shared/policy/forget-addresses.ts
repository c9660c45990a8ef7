/** Taking the addresses of a pod that is gone out of the kernel's maps. */
import { commitLater } from "../netlink/nft/commit-later.ts";
import { decodeUtf8, type Sys } from "../sys/sys.ts";
import { removePodRequests } from "./pod-program.ts";
import { verdictsOf } from "./pod-verdicts.ts";

/**
 * Some 50 ms from now, by a child process. Nothing depends on it: an ADD that gets the address before puts its own verdict
 * in place of the old one.
 */
export function forgetAddresses(sys: Sys, addresses: readonly string[]): void {
  if (addresses.length > 0) commitLater(sys, removePodRequests(verdictsOf(addresses, undefined), isLinux(sys, 6, 3)));
}

/** The running kernel is of this version or later. */
function isLinux(sys: Sys, major: number, minor: number): boolean {
  const [a = 0, b = 0] = decodeUtf8(sys.readFile("/proc/sys/kernel/osrelease", 256)).split(".").map(Number);
  return a > major || (a === major && b >= minor);
}
