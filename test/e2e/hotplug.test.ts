/** ENIs that the cloud calls attached before the guest has their link, and links that are called otherwise (F-29). */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import type { EniRecord } from "../cloud/model.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode, tryFeature } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { createWorld, until, type World, type WorldNode } from "../lab/world.ts";

let world: World;
let node: WorldNode;
/** In the order in which they were attached. */
const enis: EniRecord[] = [];
/** Milliseconds. */
const DELAYS = [300, 5000, "never"] as const;

const ip = (...args: string[]) => runTool("ip", ["-n", node.netns.split("/").at(-1) ?? "", ...args]);
const idle = () => {
  try {
    return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle;
  } catch {
    return 0; // the agent has not made the store yet
  }
};
function stateOf(eni: EniRecord | undefined): unknown {
  const db = openNodeSql(node.store);
  try {
    return db.get("SELECT state FROM eni WHERE id = ?", [eni?.id ?? ""])?.state;
  } finally {
    db.close();
  }
}

beforeAll(async () => {
  world = await createWorld({
    prefix: `h${process.pid % 10000}`,
    nodes: 1,
    mode: "eniip-veth",
    instanceType: "ecs.g7.xlarge",
    // Three ENIs with 14 addresses for pods each.
    poolMin: 40,
    poolMax: 42,
    cooldownSeconds: 1,
    agents: false,
  });
  [node] = world.nodes as [WorldNode];
});
afterAll(() => world?.close());

describe("an ENI that is attached", inMode("eniip-veth"), () => {
  it(
    "serves when its link is there and set up, keeps no other waiting, and is given back when it never comes (F-29)",
    async () => {
      const { fabric, model } = world.cloud;
      if (fabric === undefined) throw new Error("no fabric");
      fabric.hotplug.delayMs = (eni) => {
        // Other links with the MAC address come before its own.
        if (enis.push(eni) === 2) ip("link", "add", "twin0", "address", eni.mac, "type", "bridge");
        return DELAYS[enis.length - 1] ?? 0;
      };
      node.startAgent();
      await until("the first link", 30_000, () => idle() >= 14);
      const [first, second, third] = enis;
      expect([stateOf(first), stateOf(third)]).toEqual(["ready", "attaching"]);
      const early = node.newPod();
      await node.runtime.add(early);
      expect(await ping(early.netns, OUTSIDE_IP)).toBe(true);

      // udev has its own ideas, twice.
      for (const name of ["ens9", "eno0"]) {
        fabric.renameLink(first?.id ?? "", name);
        await node.runtime.check(early);
        expect(await ping(early.netns, OUTSIDE_IP)).toBe(true);
      }
      if (tryFeature("ipvlan").there) ip("link", "add", "twin1", "link", "eno0", "type", "ipvlan", "mode", "l2");

      await until("the second link", 30_000, () => idle() >= 27);
      expect(stateOf(second)).toBe("ready");
      const pods = [];
      for (let i = 0; i < 16; i++) {
        const pod = node.newPod();
        await node.runtime.add(pod);
        pods.push(pod);
      }
      expect(await Promise.all(pods.map((pod) => ping(pod.netns, OUTSIDE_IP)))).toEqual(pods.map(() => true));

      // The third comes never; the one that takes its place comes at once.
      await until("the third is given back", 60_000, () => third && !model.enis.has(third.id));
      expect(readFileSync(node.agentLog, "utf8")).toContain(
        `ENI ${third?.id} (${third?.mac}) is attached, but the node has no link with that MAC: it is given back`,
      );
      await until("another in its place", 60_000, () => idle() >= 25);
      expect(stateOf(third)).toBeUndefined();
      expect(await ping(early.netns, OUTSIDE_IP)).toBe(true);
      for (const pod of [early, ...pods]) await node.runtime.del(pod);
      expect(world.cloud.fabric?.spoofed()).toBe(0);
    },
    patient(150_000),
  );
});
