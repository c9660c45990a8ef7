/** Pods with several interfaces, each of a conflist of its own, all on one store (F-54). */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { type CniRuntime, createRuntime } from "../runtime/cni-runtime.ts";

let world: World;
let node: WorldNode;
let other: WorldNode;
let second: CniRuntime;

const view = (n: WorldNode) => poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME));
const ipOf = (result: { readonly ips?: readonly { readonly address: string }[] }, family = 0) =>
  result.ips?.[family]?.address.split("/")[0] ?? "";
const inPod = (pod: WorldPod, ...args: string[]) => runTool("ip", ["-n", pod.netns.split("/").at(-1) ?? "", ...args]);

interface Both {
  readonly pod: WorldPod;
  readonly eth0: string;
  readonly net1: string;
  /** IPv6 addresses of the same. */
  readonly six: readonly [eth0: string, net1: string];
}

async function attachBoth(): Promise<Both> {
  const pod = node.newPod();
  const { result: first } = await node.runtime.add(pod);
  const { result: other } = await second.add({ ...pod, ifname: "net1" });
  return { pod, eth0: ipOf(first), net1: ipOf(other), six: [ipOf(first, 1), ipOf(other, 1)] };
}

beforeAll(async () => {
  world = await createWorld({
    prefix: `m${process.pid % 10000}`,
    nodes: 2,
    mode: "eniip-veth",
    instanceType: "ecs.g7.xlarge",
    poolMin: 6,
    poolMax: 30,
    cooldownSeconds: 1,
    ipStack: "dual",
  });
  const [a, b] = world.nodes;
  if (a === undefined || b === undefined) throw new Error("two nodes are needed");
  [node, other] = [a, b];
  second = createRuntime({
    conflist: { ...node.runtime.conflist, name: "terway-second" },
    cniPath: CNI_PATH,
    netns: node.netns,
  });
  await until("warm pools", 20_000, () => {
    try {
      return view(node).idle >= 6 && view(other).idle >= 6;
    } catch {
      return false;
    }
  });
});
afterAll(() => world?.close());

describe("a pod with two interfaces", inMode("eniip-veth"), () => {
  it("is reached on both, and replies leave by the interface that was asked", async () => {
    const { pod, eth0, net1, six } = await attachBoth();
    const peer = other.newPod();
    await other.runtime.add(peer);
    const before = world.cloud.fabric?.spoofed();
    expect([await ping(peer.netns, eth0), await ping(peer.netns, net1)]).toEqual([true, true]);
    expect([await ping(node.netns, eth0), await ping(node.netns, net1)]).toEqual([true, true]);
    const transmitted = (name: string) =>
      (JSON.parse(inPod(pod, "-j", "-s", "link", "show", name)) as [{ stats64: { tx: { packets: number } } }])[0]
        .stats64.tx.packets;
    expect([await ping(peer.netns, six[0]), await ping(node.netns, six[0])]).toEqual([true, true]);
    for (const address of [net1, six[1]]) {
      const [eth0Before, net1Before] = [transmitted("eth0"), transmitted("net1")];
      // Each interface may also send a little of its own accord (MLD and the like).
      for (let i = 0; i < 10; i++) expect(await ping(peer.netns, address)).toBe(true);
      expect(transmitted("net1") - net1Before).toBeGreaterThanOrEqual(10);
      expect(transmitted("eth0") - eth0Before).toBeLessThan(10);
    }
    expect(world.cloud.fabric?.spoofed()).toBe(before);
    await node.runtime.check(pod);
    await second.check({ ...pod, ifname: "net1" });
    await second.del({ ...pod, ifname: "net1" });
    await node.runtime.check(pod);
    expect(await ping(peer.netns, eth0)).toBe(true);
    expect(inPod(pod, "rule") + inPod(pod, "-6", "rule")).not.toMatch(new RegExp(`${net1}|${six[1]}`));
    await node.runtime.del(pod);
    await other.runtime.del(peer);
  });

  it("keeps the first when the second cannot be made", async () => {
    const pod = node.newPod();
    const eth0 = ipOf((await node.runtime.add(pod)).result);
    inPod(pod, "link", "add", "net1", "type", "veth", "peer", "name", "foreign");
    const net1 = { ...pod, ifname: "net1" };
    await expect(second.add(net1)).rejects.toThrow(/already has an interface net1 that is not ours/);
    await second.del(net1);
    await node.runtime.check(pod);
    expect(await ping(node.netns, eth0)).toBe(true);
    await node.runtime.del(pod);
  });

  it("loses by GC only what the runtime no longer lists", async () => {
    const { pod, eth0, net1 } = await attachBoth();
    // Both are older than the list: GC leaves alone what is young.
    const { openStore } = await import("../../ipam/store/open.ts");
    const { openNodeSql } = await import("../../shared/sys/node.ts");
    const store = openStore({ sys: nodeSys, openSql: openNodeSql }, node.store);
    store.db.run("UPDATE attachment SET created_ms = created_ms - 60000");
    store.db.run("UPDATE address SET since_ms = since_ms - 60000");
    store.db.close();
    await second.gc([]);
    await node.runtime.gc([{ containerID: pod.containerId, ifname: "eth0" }]);
    await node.runtime.check(pod);
    expect(await ping(node.netns, eth0)).toBe(true);
    expect(await ping(node.netns, net1, 1)).toBe(false);
    await node.runtime.del(pod);
  });
});
