/**
 * A link that moves to another namespace keeps its name, unless somebody there has it; then it gets the one it is asked to
 * have in the move itself. Otherwise a change of name follows: before Linux 6.9 an RCU grace period with rtnl_lock held,
 * some 20 ms (dev_change_name()). So while an ENI moves into a pod, the pod's veth has the ENI's name beside its own.
 */
import { type PodLink, vethEndOf } from "../../shared/datapath/pod-link.ts";
import { delAltName, newAltName } from "../../shared/netlink/rtnl/link.ts";
import { encodeRequests, type NetlinkSocket } from "../../shared/netlink/socket.ts";
import { isLinux } from "../../shared/sys/kernel-version.ts";
import type { Sys } from "../../shared/sys/sys.ts";

/** @returns Whether {@link freeName} has to be called: a kernel before 5.5 refuses, which only makes it slower. */
export function takeName(sys: Sys, pod: NetlinkSocket, link: PodLink, name: string): boolean {
  if (name === link.podIfname || isLinux(sys, 6, 9)) return false;
  return pod.transact([newAltName({ name: vethEndOf(link), altName: name })])[0]?.ok === true;
}

/**
 * The name is free as soon as the request is made; that waits for a grace period too, so a child process makes it. Call
 * it when nothing is left to do in the pod: the child has rtnl_lock meanwhile.
 */
export function freeName(sys: Sys, pod: NetlinkSocket, link: PodLink, name: string): void {
  const request = delAltName({ name: vethEndOf(link), altName: name });
  sys.close(sys.sendDetached(pod.fd, encodeRequests([request])).reportFd);
}
