/** What tells the agent that something changed: the store's file, and the kernel. */
import { type FSWatcher, watch } from "node:fs";
import { NETLINK_ROUTE } from "../../shared/netlink/uapi/netlink.ts";
import * as R from "../../shared/netlink/uapi/rtnetlink.ts";
import { AF_NETLINK, MSG_DONTWAIT, SOCK_NONBLOCK, SOCK_RAW } from "../../shared/sys/linux.ts";
import { nodeSys as sys, watchFd } from "../../shared/sys/node.ts";
import { isErrno } from "../../shared/sys/sys.ts";

const STORE_SETTLE_MS = 50;
const REPAIR_AFTER_MS = 200;

/**
 * Plugins need not say that they took an address: every commit writes the WAL, and inotify says that. Our own writes
 * come back too; a step that changes nothing writes nothing, so that ends by itself.
 */
export function watchStore(path: string, onChange: () => void): FSWatcher {
  let timer: NodeJS.Timeout | undefined;
  const watcher = watch(`${path}-wal`, () => {
    timer ??= setTimeout(() => {
      timer = undefined;
      onChange();
    }, STORE_SETTLE_MS);
    timer.unref();
  });
  watcher.on("error", () => undefined); // the periodic look remains
  return watcher;
}

const WATCHED =
  R.RTMGRP_LINK |
  R.RTMGRP_IPV4_ROUTE |
  R.RTMGRP_IPV4_RULE |
  R.RTMGRP_IPV6_ROUTE |
  R.RTMGRP_IPV6_RULE |
  R.RTMGRP_IPV4_NETCONF |
  R.RTMGRP_IPV6_NETCONF |
  R.RTMGRP_NEIGH;

/** Calls `onChange` soon after anything changed in links, routes or rules; what changed is found by comparing. */
export function watchNetlink(onChange: () => void): () => void {
  const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
  sys.bindNetlink(fd, WATCHED);
  const buffer = new Uint8Array(64 << 10);
  let timer: NodeJS.Timeout | undefined;
  const stop = watchFd(fd, () => {
    for (;;) {
      try {
        sys.recv(fd, buffer, MSG_DONTWAIT);
      } catch (error) {
        if (isErrno(error, "ENOBUFS")) continue; // events were lost: comparing finds them all the same
        break;
      }
    }
    // Not put off by further events: under churn it still runs every REPAIR_AFTER_MS.
    timer ??= setTimeout(() => {
      timer = undefined;
      onChange();
    }, REPAIR_AFTER_MS);
  });
  return () => {
    clearTimeout(timer);
    stop();
    sys.close(fd);
  };
}
