/** For tests: a node and a pod without a store, and a link between them to make. */

import type { PodNetns } from "../../plugins/interface/netns.ts";
import type { PodLink, Uplink } from "../../shared/datapath/pod-link.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { createNetns, type Netns } from "../cloud/netns.ts";

export const ENI_MAC = "00:16:3e:00:00:01";

export function linkOver(uplink: Uplink): PodLink {
  return {
    version: 1,
    hostIfname: "calu0123456789a",
    hostMac: "00:16:3e:00:00:02",
    podIfname: "eth0",
    podMac: "00:16:3e:00:00:03",
    mtuBytes: 1500,
    addresses: [],
    nodeIps: [],
    uplink,
  };
}

export interface UplinkPair {
  readonly node: Netns;
  readonly pod: Netns;
  /** The pod's, as the plugins open it. */
  readonly netns: PodNetns;
  close(): void;
}

export function createUplinkPair(prefix: string): UplinkPair {
  const node = createNetns(`${prefix}${process.pid}n`);
  const pod = createNetns(`${prefix}${process.pid}p`);
  const { dev, ino } = nodeSys.stat(pod.path) ?? { dev: 0, ino: 0 };
  const ownFd = nodeSys.open("/proc/thread-self/ns/net", O_RDONLY);
  return {
    node,
    pod,
    netns: { path: pod.path, fd: pod.fd, ownFd, dev, ino },
    close() {
      nodeSys.close(ownFd);
      pod.close();
      node.close();
    },
  };
}
