/** A small instance whose ENIs are all shared ones, ready for pods to come: one of them gives way to a pod that needs its own. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { createWorld, until, type World, type WorldNode } from "../lab/world.ts";

let world: World;
let node: WorldNode;
const idle = () => {
  try {
    return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle;
  } catch {
    return 0; // the agent has not made the store yet
  }
};
/** Attached by the pools, by what they are for. */
const attached = () =>
  world.cloud.model
    .attachedTo(node.instance.id)
    .filter((e) => e.type !== "Primary")
    .map((e) => e.tags.get("terway:pool") ?? "shared")
    .sort();

beforeAll(async () => {
  world = await createWorld({
    prefix: `z${process.pid % 10000}`,
    nodes: 1,
    mode: "eniip-veth",
    instanceType: "ecs.g7.large",
    poolMin: 10,
    poolMax: 12,
    cooldownSeconds: 0,
    manifests: true,
  });
  [node] = world.nodes as [WorldNode];
  await until("a full pool", 30_000, () => idle() >= 10);
}, patient(60_000));
afterAll(() => world?.close());

describe("slots of an instance", inMode("eniip-veth"), () => {
  it(
    "go to a pod that needs an ENI of its own, and back",
    async () => {
      expect(attached()).toEqual(["shared", "shared"]);
      const plain = node.newPod();
      await node.runtime.add(plain);
      const pods = [node.newPod(), node.newPod()];
      const [own, late] = pods;
      if (own === undefined || late === undefined) throw new Error("two pods");
      const resources = { limits: { "aliyun/eni": "1" } };
      const manifest = ({ name, uid }: (typeof pods)[number]) => ({
        apiVersion: "v1",
        kind: "Pod",
        metadata: { name, namespace: "default", uid },
        spec: { containers: [{ name: "c", resources }] },
      });
      node.manifest("own.json", ...pods.map(manifest));
      const added = await until("its ENI", 30_000, async () => {
        const { result } = await node.runtime.add(own);
        // Before its facts were there it would have been one of the others.
        if (result.interfaces?.some((i) => i.name === "veth1")) return result;
        await node.runtime.del(own);
        return undefined;
      });
      expect(added.ips?.[0]?.address).toMatch(/\/20$/);
      expect([await ping(own.netns, OUTSIDE_IP), await ping(plain.netns, OUTSIDE_IP)]).toEqual([true, true]);
      expect(attached()).toEqual(["exclusive", "shared"]);
      // The last shared ENI has a pod: there is no more to give.
      await expect(node.runtime.add(late)).rejects.toThrow(/all 1 of 1 ENIs/);
      await node.runtime.del(own);
      await until("a full pool again", 30_000, () => attached().join() === "shared,shared" && idle() >= 10);
      await node.runtime.del(plain);
    },
    patient(90_000),
  );
});
