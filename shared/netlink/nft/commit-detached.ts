/**
 * A batch that removes something, without the wait: the commit takes 0.04 ms, and then closing the socket sleeps until no
 * CPU can still see what was removed (7 to 20 ms). So a child process sends it and closes the socket.
 */
import { errnoName } from "../../sys/errno.ts";
import { AF_NETLINK, SOCK_RAW } from "../../sys/linux.ts";
import type { Sys } from "../../sys/sys.ts";
import type { Request } from "../request.ts";
import { NetlinkError } from "../socket.ts";
import { NETLINK_NETFILTER } from "../uapi/netlink.ts";
import { encodeBatch } from "./socket.ts";

const TIMEOUT_MS = 20_000;

/** Returns when the batch is in force. @throws {NetlinkError} When the kernel refuses it, or says nothing for 20 s. */
export function commitDetached(sys: Sys, requests: readonly Request[]): void {
  if (requests.length === 0) return;
  const fd = sys.socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
  let reportFd: number;
  try {
    reportFd = sys.sendDetached(fd, encodeBatch(requests)).reportFd;
  } finally {
    sys.close(fd); // before the child is done: the last to close it waits
  }
  const verdict = new Int32Array(1);
  try {
    const ready = sys.pollIn([reportFd], TIMEOUT_MS).length > 0;
    const complete = ready && sys.read(reportFd, new Uint8Array(verdict.buffer)) === 4;
    const errno = complete ? -(verdict[0] ?? 0) : ready ? 5 /* EIO: the child died */ : 110; /* ETIMEDOUT */
    if (errno === 0) return;
    throw new NetlinkError({
      errno: errnoName(errno),
      extack: "",
      offset: undefined,
      request: requests[0]?.describe() ?? "nft batch",
    });
  } finally {
    sys.close(reportFd);
  }
}
