import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { PodLink, Uplink } from "../../shared/datapath/pod-link.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import { runTool } from "../../test/cloud/netns.ts";
import { needs } from "../../test/kernel/features.ts";
import { createUplinkPair, ENI_MAC, linkOver, type UplinkPair } from "../../test/lab/uplink-pair.ts";
import { until } from "../../test/lab/world.ts";
import { clearPod, makeUplink } from "./uplink.ts";

const CHILDREN: readonly (Uplink & { readonly kind: "ipvlan" | "vlan" })[] = [
  { kind: "ipvlan", mac: ENI_MAC, parentMac: ENI_MAC, vethIfname: "veth1", viaNode: [] },
  { kind: "vlan", mac: "00:16:3e:00:00:09", parentMac: ENI_MAC, vlanId: 7, vethIfname: "veth1", viaNode: [] },
];

for (const uplink of CHILDREN)
  describe(`a pod's ${uplink.kind}`, needs(uplink.kind), () => {
    const link = linkOver(uplink);
    let pair: UplinkPair;

    beforeAll(() => {
      pair = createUplinkPair("ul");
      // An eth0 of the node's own: the kernel must not look for the pod's here.
      const eni = ["link", "add", "eth0", "address", ENI_MAC, "type", "veth", "peer", "name", "wire"];
      runTool("ip", ["-n", pair.node.name, ...eni]);
    });
    afterAll(() => pair?.close());

    const links = () =>
      (JSON.parse(runTool("ip", ["-n", pair.pod.name, "-j", "link"])) as { ifname: string }[]).map((l) => l.ifname);

    it("is not taken for the one before: its deletion may come when there is a new one", () => {
      const late: Uint8Array[] = [];
      const slow: Sys = {
        ...nodeSys,
        sendDetached: (_fd, request) => {
          late.push(request.slice());
          return { reportFd: nodeSys.open("/dev/null", O_RDONLY), pid: 0 };
        },
      };
      makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, link, uplink, false);
      clearPod(slow, pair.node.nl, pair.netns, link);
      expect(late).toHaveLength(1);
      expect(links()).toContain("eth0");
      makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, link, uplink, false);
      for (const request of late) {
        const { reportFd } = nodeSys.sendDetached(pair.pod.nl.fd, request);
        nodeSys.read(reportFd, new Uint8Array(4));
        nodeSys.close(reportFd);
      }
      expect(links()).toContain("eth0");
      clearPod(nodeSys, pair.node.nl, pair.netns, link);
    });

    it("is not taken for another network's, which has the same name in the pod", async () => {
      const other: PodLink = { ...link, hostIfname: "calu0123456789b" };
      await until("the end of the one before", 5000, () => !links().includes("eth0"));
      makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, link, uplink, false);
      expect(() => makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, other, uplink, false)).toThrow(
        "eth0 that is not ours",
      );
      clearPod(nodeSys, pair.node.nl, pair.netns, other);
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(links()).toContain("eth0");
      clearPod(nodeSys, pair.node.nl, pair.netns, link);
    });
  });
