import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { PodLink, Uplink } from "../../shared/datapath/pod-link.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import { needs } from "../../test/kernel/features.ts";
import { until } from "../../test/lab/world.ts";
import type { PodNetns } from "./netns.ts";
import { clearPod, makeUplink } from "./uplink.ts";

const PARENT_MAC = "00:16:3e:00:00:01";

function linkOver(uplink: Uplink): PodLink {
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

const CHILDREN: readonly (Uplink & { readonly kind: "ipvlan" | "vlan" })[] = [
  { kind: "ipvlan", mac: PARENT_MAC, parentMac: PARENT_MAC, vethIfname: "veth1", viaNode: [] },
  { kind: "vlan", mac: "00:16:3e:00:00:09", parentMac: PARENT_MAC, vlanId: 7, vethIfname: "veth1", viaNode: [] },
];

for (const uplink of CHILDREN)
  describe(`a pod's ${uplink.kind}`, needs(uplink.kind), () => {
    const link = linkOver(uplink);
    let node: Netns;
    let pod: Netns;
    let netns: PodNetns;

    beforeAll(() => {
      node = createNetns(`ul${process.pid}n`);
      pod = createNetns(`ul${process.pid}p`);
      const { dev, ino } = nodeSys.stat(pod.path) ?? { dev: 0, ino: 0 };
      netns = { path: pod.path, fd: pod.fd, ownFd: nodeSys.open("/proc/thread-self/ns/net", O_RDONLY), dev, ino };
      // An eth0 of the node's own: the kernel must not look for the pod's here.
      const eni = ["link", "add", "eth0", "address", PARENT_MAC, "type", "veth", "peer", "name", "wire"];
      runTool("ip", ["-n", node.name, ...eni]);
    });
    afterAll(() => {
      if (netns) nodeSys.close(netns.ownFd);
      pod?.close();
      node?.close();
    });

    const links = () =>
      (JSON.parse(runTool("ip", ["-n", pod.name, "-j", "link"])) as { ifname: string }[]).map((l) => l.ifname);

    it("is not taken for the one before: its deletion may come when there is a new one", () => {
      const late: Uint8Array[] = [];
      const slow: Sys = {
        ...nodeSys,
        sendDetached: (_fd, request) => {
          late.push(request.slice());
          return { reportFd: nodeSys.open("/dev/null", O_RDONLY), pid: 0 };
        },
      };
      makeUplink(nodeSys, node.nl, pod.nl, netns, link, uplink, false);
      clearPod(slow, node.nl, netns, link);
      expect(late).toHaveLength(1);
      expect(links()).toContain("eth0");
      makeUplink(nodeSys, node.nl, pod.nl, netns, link, uplink, false);
      for (const request of late) {
        const { reportFd } = nodeSys.sendDetached(pod.nl.fd, request);
        nodeSys.read(reportFd, new Uint8Array(4));
        nodeSys.close(reportFd);
      }
      expect(links()).toContain("eth0");
      clearPod(nodeSys, node.nl, netns, link);
    });

    it("is not taken for another network's, which has the same name in the pod", async () => {
      const other: PodLink = { ...link, hostIfname: "calu0123456789b" };
      await until("the end of the one before", 5000, () => !links().includes("eth0"));
      makeUplink(nodeSys, node.nl, pod.nl, netns, link, uplink, false);
      expect(() => makeUplink(nodeSys, node.nl, pod.nl, netns, other, uplink, false)).toThrow("eth0 that is not ours");
      clearPod(nodeSys, node.nl, netns, other);
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(links()).toContain("eth0");
      clearPod(nodeSys, node.nl, netns, link);
    });
  });
