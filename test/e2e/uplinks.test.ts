/**
 * Pods with a way of their own into the VPC, on two nodes of the emulated cloud. ENIs are put into the stores by hand,
 * as the agent would: the plugins alone are looked at here.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { getAttachment } from "../../ipam/store/attachments.ts";
import { type EniKind, listEnis } from "../../ipam/store/enis.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { connections, ping, serve, tcpEcho } from "../lab/traffic.ts";
import { type LabMode, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";

async function attach(node: WorldNode): Promise<{ readonly pod: WorldPod; readonly ip: string }> {
  const pod = node.newPod();
  const { result } = await node.runtime.add(pod);
  return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
}

const nsName = (path: string) => path.split("/").at(-1) ?? "";
const links = (netns: string) =>
  (JSON.parse(runTool("ip", ["-n", nsName(netns), "-j", "link"])) as { ifname: string; address: string }[]).map(
    (l) => `${l.ifname} ${l.address}`,
  );

interface Case {
  readonly mode: LabMode;
  readonly kind: EniKind;
  readonly instanceType: string;
  readonly enis: number;
  readonly secondary: number;
}

const CASES: readonly Case[] = [
  { mode: "eni-exclusive", kind: "exclusive", instanceType: "ecs.g7.xlarge", enis: 2, secondary: 0 },
  { mode: "eniip-ipvlan", kind: "shared", instanceType: "ecs.g7.xlarge", enis: 2, secondary: 1 },
  { mode: "trunk", kind: "member", instanceType: "ecs.c7.16xlarge", enis: 2, secondary: 0 },
];

for (const { mode, kind, instanceType, enis, secondary } of CASES)
  describe(mode, inMode(mode), () => {
    let world: World;
    let here: Prepared;
    let there: Prepared;

    beforeAll(async () => {
      world = await createIdleWorld({
        prefix: `u${process.pid % 10000}`,
        nodes: 2,
        mode,
        instanceType,
      });
      const [a, b] = world.nodes;
      if (a === undefined || b === undefined) throw new Error("two nodes are needed");
      here = await prepareByHand(world, a, kind, enis, secondary);
      there = await prepareByHand(world, b, kind, enis, secondary);
    });
    afterAll(async () => {
      here?.store.db.close();
      there?.store.db.close();
      await world?.close();
    });

    it("carries packets between pods, nodes and the world outside, and leaves nothing behind", async () => {
      const before = links(here.node.netns);
      const [a, b, c] = [await attach(here.node), await attach(here.node), await attach(there.node)];
      const nodeIp = world.cloud.model.eniOf(here.node.instance.primaryEniId).primaryIp;
      const otherIp = world.cloud.model.eniOf(there.node.instance.primaryEniId).primaryIp;
      expect({
        sameNode: await ping(a.pod.netns, b.ip),
        otherNode: await ping(a.pod.netns, c.ip),
        back: await ping(c.pod.netns, b.ip),
        outside: await ping(a.pod.netns, OUTSIDE_IP),
        fromOutside: await ping(world.cloud.fabric?.outside.path ?? "", a.ip),
        ownNode: await ping(a.pod.netns, nodeIp),
        fromOwnNode: await ping(here.node.netns, a.ip),
        otherNodeIp: await ping(a.pod.netns, otherIp),
        fromOtherNode: await ping(there.node.netns, a.ip),
        tcp: await tcpEcho(c.pod.netns, c.ip, a.pod.netns),
      }).toEqual({
        sameNode: true,
        otherNode: true,
        back: true,
        outside: true,
        fromOutside: true,
        ownNode: true,
        fromOwnNode: true,
        otherNodeIp: true,
        fromOtherNode: true,
        tcp: true,
      });
      await here.node.runtime.check(a.pod);
      const first = await here.node.runtime.add(a.pod);
      expect(first.result.ips?.[0]?.address.split("/")[0]).toBe(a.ip);
      for (const [n, x] of [
        [here, a],
        [here, b],
        [there, c],
      ] as const) {
        await n.node.runtime.del(x.pod);
        await n.node.runtime.del(x.pod);
        await until("an empty pod", 2000, () => links(x.pod.netns).length === 1);
      }
      await until("the node as before", 2000, () => links(here.node.netns).sort().join() === before.sort().join());
      expect(runTool("ip", ["-n", nsName(here.node.netns), "route", "show", "table", "16999"])).toBe("");
      expect(world.cloud.fabric?.spoofed()).toBe(0);
    });

    it(
      "reaches Services through the node, with backends on this node and on another",
      async () => {
        const [a, b, c] = [await attach(here.node), await attach(here.node), await attach(there.node)];
        const reached: number[] = [];
        for (const backend of [b, c]) {
          const server = await serve(backend.pod.netns);
          // As kube-proxy has it for a Service's address.
          const script = `table ip kube-proxy
        delete table ip kube-proxy
        table ip kube-proxy { chain pre { type nat hook prerouting priority dstnat; ip daddr 172.16.0.10 tcp dport 80 dnat to ${backend.ip}:${server.port}; }; }`;
          runTool("nsenter", [`--net=${here.node.netns}`, "nft", "-f", "-"], script);
          reached.push(await connections(a.pod.netns, "172.16.0.10", 80, 20));
          server.close();
        }
        expect(reached).toEqual([20, 20]);
        for (const [n, x] of [
          [here, a],
          [here, b],
          [there, c],
        ] as const)
          await n.node.runtime.del(x.pod);
      },
      patient(60_000),
    );

    it("has CHECK name what was changed", async () => {
      const { pod } = await attach(here.node);
      runTool("ip", ["-n", nsName(pod.netns), "route", "del", "default"]);
      await expect(here.node.runtime.check(pod)).rejects.toThrow(
        /route is missing in the pod: .*default|0\.0\.0\.0\/0/,
      );
      await here.node.runtime.del(pod);
      expect(
        getAttachment(here.store.db, { network: "terway", containerId: pod.containerId, ifname: "eth0" }),
      ).toBeUndefined();
      expect(listEnis(here.store.db).every((e) => e.state === "ready")).toBe(true);
    });
  });
