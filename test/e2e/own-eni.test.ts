/** Pods with an ENI of their own, the agent keeping ENIs ready: mode exclusive, and trunk where the kernel has VLANs. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { listEnis } from "../../ipam/store/enis.ts";
import { openStore } from "../../ipam/store/open.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { poolView } from "../lab/store-view.ts";
import { ping, tcpEcho } from "../lab/traffic.ts";
import { createWorld, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";

interface Case {
  readonly mode: "eni-exclusive" | "trunk";
  readonly instanceType: string;
  /** Pods that a node can have. */
  readonly pods: number;
}

const CASES: readonly Case[] = [
  { mode: "eni-exclusive", instanceType: "ecs.g7.xlarge", pods: 3 },
  { mode: "trunk", instanceType: "ecs.c7.16xlarge", pods: 6 },
];

/** Bytes; where an instance has jumbo frames. */
const JUMBO = 8500;

const view = (n: WorldNode) => poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME));
const idle = (n: WorldNode) => {
  try {
    return view(n).idle;
  } catch {
    return 0; // the agent has not made the store yet
  }
};

async function attach(node: WorldNode): Promise<{ readonly pod: WorldPod; readonly ip: string }> {
  const pod = node.newPod();
  const { result } = await node.runtime.add(pod);
  return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
}

function enisOf(node: WorldNode) {
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, node.store, { mustExist: true });
  try {
    return listEnis(store.db);
  } finally {
    store.db.close();
  }
}

function suite(c: Case): void {
  let world: World;
  let node: WorldNode;
  let other: WorldNode;

  beforeAll(async () => {
    world = await createWorld({
      prefix: `o${process.pid % 10000}`,
      nodes: 2,
      mode: c.mode,
      instanceType: c.instanceType,
      poolMin: 1,
      poolMax: 2,
      cooldownSeconds: 1,
      cloud: { mtuBytes: JUMBO },
    });
    [node, other] = world.nodes as [WorldNode, WorldNode];
    await until("an ENI ready on each node", 30_000, () => idle(node) >= 1 && idle(other) >= 1);
  }, patient(60_000));
  afterAll(() => world?.close());

  it(
    "pods reach each other and the outside, each by its own ENI, which comes back",
    async () => {
      const [a, b, far] = [await attach(node), await attach(node), await attach(other)];
      expect([
        await ping(a.pod.netns, b.ip),
        await ping(a.pod.netns, far.ip),
        await ping(far.pod.netns, b.ip),
        await ping(a.pod.netns, OUTSIDE_IP),
        await ping(node.netns, a.ip),
      ]).toEqual([true, true, true, true, true]);
      expect(await tcpEcho(far.pod.netns, far.ip, a.pod.netns)).toBe(true);
      // Whole packets between the nodes, by the MTU that the agent found on the ENIs (F-41).
      const whole = ["-c1", "-W2", "-M", "do", "-s", String(JUMBO - 28), far.ip];
      expect(runTool("nsenter", [`--net=${a.pod.netns}`, "ping", ...whole])).toContain("1 received");
      const taken = enisOf(node).filter((e) => e.primary4 === a.ip || e.primary4 === b.ip);
      expect(taken.length).toBe(2);
      await node.runtime.check(a.pod);
      for (const x of [a, b]) await node.runtime.del(x.pod);
      await other.runtime.del(far.pod);
      expect(view(node).allocated).toBe(0);
      expect(world.cloud.fabric?.spoofed()).toBe(0);
    },
    patient(60_000),
  );

  it(
    "as many as the instance carries start, one more fails with the reason, and the ENIs are reused",
    async () => {
      const pods = [];
      for (let i = 0; i < Math.min(3, c.pods); i++) pods.push(await attach(node));
      expect(new Set(pods.map((p) => p.ip)).size).toBe(pods.length);
      if (c.pods === 3) await expect(node.runtime.add(node.newPod())).rejects.toThrow(/no free address.*ENIs/s);
      for (const { pod } of pods) await node.runtime.del(pod);
      const again = await attach(node);
      expect(await ping(again.pod.netns, OUTSIDE_IP)).toBe(true);
      await node.runtime.del(again.pod);
    },
    patient(60_000),
  );

  it(
    "survive the agent's death: pods keep their ENI, new ones start, nothing is doubled",
    async () => {
      const kept = await attach(node);
      await until("another ENI ready", 20_000, () => idle(node) >= 1);
      await node.stopAgent("SIGKILL");
      const late = await attach(node);
      expect([await ping(kept.pod.netns, OUTSIDE_IP), await ping(late.pod.netns, OUTSIDE_IP)]).toEqual([true, true]);
      node.startAgent();
      await until("the agent knows its ENIs", 20_000, () => idle(node) >= 1);
      expect([await ping(kept.pod.netns, late.ip)]).toEqual([true]);
      await node.runtime.del(kept.pod);
      await node.runtime.del(late.pod);
      const ids = (enis: readonly { readonly id: string }[]) =>
        enis
          .map((e) => e.id)
          .sort()
          .join(" ");
      // The pool shrinks at this moment: the agent deletes ENIs, in the cloud first.
      await until("store and cloud know the same ENIs", 20_000, () => {
        const inCloud = world.cloud.model.attachedTo(node.instance.id).filter((e) => e.type !== "Primary");
        return ids(inCloud) === ids(enisOf(node));
      });
    },
    patient(60_000),
  );

  it(
    "whose namespace dies without DEL give the ENI back",
    async () => {
      const lost = await attach(node);
      lost.pod.destroy();
      await until("the sweep", 40_000, () => view(node).allocated === 0);
      const next = await attach(node);
      expect(await ping(next.pod.netns, OUTSIDE_IP)).toBe(true);
      await node.runtime.del(next.pod);
    },
    patient(60_000),
  );
}

for (const c of CASES) describe(c.mode, inMode(c.mode), () => suite(c));
