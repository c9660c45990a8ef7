import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
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
      clearPod(slow, pair.node.nl, pair.netns, link, true);
      expect(late).toHaveLength(1);
      expect(links()).toContain("eth0");
      makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, link, uplink, false);
      for (const request of late) {
        const { reportFd } = nodeSys.sendDetached(pair.pod.nl.fd, request);
        nodeSys.read(reportFd, new Uint8Array(4));
        nodeSys.close(reportFd);
      }
      expect(links()).toContain("eth0");
      clearPod(nodeSys, pair.node.nl, pair.netns, link, true);
    });

    it("is not taken for another network's, which has the same name in the pod", async () => {
      const other: PodLink = { ...link, hostIfname: "calu0123456789b" };
      await until("the end of the one before", 5000, () => !links().includes("eth0"));
      makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, link, uplink, false);
      expect(() => makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, other, uplink, false)).toThrow(
        "eth0 that is not ours",
      );
      clearPod(nodeSys, pair.node.nl, pair.netns, other, true);
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(links()).toContain("eth0");
      clearPod(nodeSys, pair.node.nl, pair.netns, link, true);
    });
  });

describe("a pod's ENI", () => {
  const uplink: Uplink = {
    kind: "eni",
    mac: ENI_MAC,
    parentMac: ENI_MAC,
    eniIfname: "eni1",
    vethIfname: "veth1",
    viaNode: [],
  };
  const link = linkOver(uplink);
  const OTHER_MAC = "02:00:00:00:00:77";
  let pair: UplinkPair;

  beforeEach(() => {
    pair = createUplinkPair("ue");
    ip("node", "link", "add", "eni1", "address", ENI_MAC, "type", "veth", "peer", "name", "wire");
  });
  afterEach(() => pair?.close());

  const ip = (where: "node" | "pod", ...args: string[]) => runTool("ip", ["-n", pair[where].name, ...args]);
  const macs = (where: "node" | "pod") =>
    Object.fromEntries(
      (JSON.parse(ip(where, "-j", "link")) as { ifname: string; address: string }[]).map((l) => [l.ifname, l.address]),
    );
  const make = () => makeUplink(nodeSys, pair.node.nl, pair.pod.nl, pair.netns, link, uplink, false);
  const addForeign = (mac: string) =>
    ip("pod", "link", "add", "eth0", "address", mac, "type", "veth", "peer", "name", "foreign");
  /** It goes back to the namespace of whoever calls: here not the node's. */
  const toNode: Sys = {
    ...nodeSys,
    sendDetached: (fd, request) => nodeSys.sendDetached(fd, request, { keepFd: pair.node.fd }),
  };
  const clear = (wasBuilt: boolean) => clearPod(toNode, pair.node.nl, pair.netns, link, wasBuilt);

  it("goes back with the MAC that it came with, whatever the pod made of it", async () => {
    make();
    ip("pod", "link", "set", "eth0", "address", OTHER_MAC);
    clear(true);
    await until("the ENI", 5000, () => macs("node").eni1 !== undefined);
    expect(macs("node").eni1).toBe(ENI_MAC);
  });

  it("is not taken for what has its name in a pod that never had it", async () => {
    ip("node", "link", "del", "eni1");
    addForeign(OTHER_MAC);
    clear(false);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(macs("pod").eth0).toBe(OTHER_MAC);
  });

  it("is not taken for a link of a kind that no ENI has", async () => {
    ip("node", "link", "del", "eni1");
    ip("pod", "link", "add", "eth0", "address", OTHER_MAC, "type", "bridge");
    clear(true);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(macs("pod").eth0).toBe(OTHER_MAC);
  });

  it.each([
    ["what has its name in the pod while it is on the node", OTHER_MAC],
    ["the veth's own end", link.podMac],
  ])("is not taken for %s", async (what, mac) => {
    if (mac === link.podMac) ip("node", "link", "del", "eni1");
    addForeign(mac);
    clear(true);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect([what, macs("pod").eth0]).toEqual([what, mac]);
  });
});
