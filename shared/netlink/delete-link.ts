/**
 * Deleting a link without the wait. RTM_DELLINK has the link off every list within a millisecond and announces it, and
 * then keeps its caller asleep for an RCU barrier of 15 to 40 ms (netdev_run_todo() in net/core/dev.c). So a child
 * process makes the request, and this one waits for the announcement.
 */
import { errnoName } from "../sys/errno.ts";
import { AF_NETLINK, SOCK_RAW } from "../sys/linux.ts";
import { isErrno, type Sys } from "../sys/sys.ts";
import { delLink, getLink, linkIndexOf } from "./rtnl/link.ts";
import { encodeRequests, NetlinkError, type NetlinkSocket, receiveBuffer } from "./socket.ts";
import { NETLINK_ROUTE } from "./uapi/netlink.ts";
import { RTM_DELLINK, RTMGRP_LINK } from "./uapi/rtnetlink.ts";
import { parseMessages } from "./wire/reader.ts";

const TIMEOUT_MS = 20_000;

/**
 * Returns when the kernel has said that the link is gone, or that there was none.
 *
 * @param keepFd Stays open, if there was one, until the kernel is done with it.
 * @returns Whether there was one.
 * @throws {NetlinkError} When the kernel refuses, or says nothing for 20 s.
 */
export function deleteLink(sys: Sys, nl: NetlinkSocket, name: string, keepFd = -1): boolean {
  const [found] = nl.transact([getLink({ name })]);
  if (found === undefined || !found.ok) {
    if (found?.refusal.errno === "ENODEV") return false;
    throw found ? new NetlinkError(found.refusal) : new Error("no answer");
  }
  const index = linkIndexOf(found.replies[0] ?? new Uint8Array(16));
  const request = delLink({ index });
  const monitor = sys.socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  const asking = sys.socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  let reportFd = -1;
  try {
    sys.bindNetlink(monitor, RTMGRP_LINK); // before the request: the announcement must not be missed
    reportFd = sys.sendDetached(asking, encodeRequests([request]), { keepFd }).reportFd;
    sys.close(asking);
    const errno = waitForEnd(sys, monitor, reportFd, index);
    if (errno !== 0 && errno !== 19 /* ENODEV: somebody else was faster */) {
      throw new NetlinkError({
        errno: errnoName(errno),
        extack: "",
        offset: undefined,
        request: `ip link del dev ${name}`,
      });
    }
    return true;
  } finally {
    sys.close(monitor);
    if (reportFd >= 0) sys.close(reportFd);
    else sys.close(asking);
  }
}

/** @returns 0, or the errno that the child was told. */
function waitForEnd(sys: Sys, monitor: number, reportFd: number, index: number): number {
  const buffer = receiveBuffer();
  const deadline = sys.clock(1) + TIMEOUT_MS;
  for (;;) {
    const left = deadline - sys.clock(1);
    if (left <= 0) return 110; // ETIMEDOUT
    for (const ready of sys.pollIn([monitor, reportFd], left)) {
      if (ready === 1) {
        const verdict = new Int32Array(1);
        const n = sys.read(reportFd, new Uint8Array(verdict.buffer));
        return n === 4 ? -(verdict[0] ?? 0) : 5; // EIO: the child died
      }
      try {
        const messages = parseMessages(buffer.subarray(0, sys.recv(monitor, buffer)));
        if (messages.some((m) => m.type === RTM_DELLINK && linkIndexOf(m.payload) === index)) return 0;
      } catch (error) {
        // ENOBUFS: a burst overran the socket and the announcement may be lost. The child's report still comes.
        if (!isErrno(error, "ENOBUFS")) throw error;
      }
    }
  }
}
