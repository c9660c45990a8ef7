/**
 * A batch that removes something, without the waits. Its commit takes 0.04 ms, but for the 7 to 20 ms in which the kernel
 * then cleans up, whoever closes a netfilter socket waits, with the lock held that every batch of the namespace needs
 * (nft_rcv_nl_event() in net/netfilter/nf_tables_api.c). The plugins that come after in the same DEL close such
 * sockets. So a child process sends the batch when they are done, and closes its own socket when the clean-up is over.
 */
import { AF_NETLINK, SOCK_RAW } from "../../sys/linux.ts";
import type { Sys } from "../../sys/sys.ts";
import type { Request } from "../request.ts";
import { NETLINK_NETFILTER } from "../uapi/netlink.ts";
import { encodeBatch } from "./socket.ts";

const TIMES = { delayMs: 50, lingerMs: 250 };

/** Returns at once; the batch follows. Nobody learns whether it was refused: for what somebody else would mend, too. */
export function commitLater(sys: Sys, requests: readonly Request[]): void {
  if (requests.length === 0) return;
  const fd = sys.socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
  try {
    sys.close(sys.sendDetached(fd, encodeBatch(requests), TIMES).reportFd);
  } finally {
    sys.close(fd);
  }
}
