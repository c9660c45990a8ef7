/** Configurations that do not fit the instance or the cloud: what the agent says, what a pod is told, what is left. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { inMode } from "../kernel/features.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type World, type WorldNode } from "../lab/world.ts";
import { createRuntime } from "../runtime/cni-runtime.ts";

/** What each node's eni_conf says, and what becomes of it. */
const CASES = {
  "wrong mode for the type": { network_mode: "Trunk" },
  "no vSwitch of the zone": { vswitches: { "cn-elsewhere": ["vsw-pod-0"] } },
  "only a vSwitch of another zone": { vswitches: { "cn-emulated-a": ["vsw-pod-1"] } },
  "one of another zone and one of its own": { vswitches: { "cn-emulated-a": ["vsw-pod-1", "vsw-pod-0"] } },
  "good, with another mode's conflist": {},
} as const;
type Name = keyof typeof CASES;

let world: World;
const nodes = {} as Record<Name, WorldNode>;

beforeAll(async () => {
  world = await createWorld({
    prefix: `b${process.pid % 10000}`,
    // Every other one is of the first zone.
    nodes: 2 * Object.keys(CASES).length - 1,
    mode: "eniip-veth",
    instanceType: "ecs.g7.xlarge",
    poolMin: 2,
    poolMax: 4,
    agents: false,
  });
  for (const [i, [name, conf]] of Object.entries(CASES).entries()) {
    const node = world.nodes[2 * i] as WorldNode;
    nodes[name as Name] = node;
    const path = join(node.dir, "eni_conf");
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...conf }));
    node.startAgent();
  }
});
afterAll(() => world?.close());

const logOf = (node: WorldNode) => readFileSync(node.agentLog, "utf8");
const enisOf = (node: WorldNode) =>
  [...world.cloud.model.enis.values()].filter((e) => e.tags.get("terway:instance") === node.instance.id);

/** How the agent ends, when it cannot run. */
function lastWords(node: WorldNode): Promise<string> {
  return until("the end of the agent", 20_000, () => (node.agent?.exitCode ?? 0) !== 0 && logOf(node));
}

/** What a pod is told, once the agent answers. */
async function told(node: WorldNode, runtime = node.runtime): Promise<string> {
  await until("the agent", 20_000, () => logOf(node).includes('"msg":"ready: '));
  return runtime.add(node.newPod()).then(
    () => "it was attached",
    (error: Error) => error.message,
  );
}

describe("a node whose eni_conf does not fit", inMode("eniip-veth"), () => {
  it("of a mode that the instance type cannot do: the agent says which, and what to do", async () => {
    const node = nodes["wrong mode for the type"];
    expect(await lastWords(node)).toContain(
      "terway-agent cannot run: eni_conf: network_mode Trunk needs an instance type with trunk ENIs, which ecs.g7.xlarge is not: use ENIIP, or another type",
    );
    await expect(node.runtime.add(node.newPod())).rejects.toThrow(/terway-agent has never run here/);
    expect(enisOf(node)).toEqual([]);
  });

  it("without a vSwitch of the node's zone: the agent says whose there are", async () => {
    const node = nodes["no vSwitch of the zone"];
    expect(await lastWords(node)).toContain(
      "vswitches has no vSwitch of this node's zone cn-emulated-a, only of cn-elsewhere: add one",
    );
    expect(enisOf(node)).toEqual([]);
  });

  it("with a vSwitch of another zone under its own: nothing is made, the pod is told", async () => {
    const node = nodes["only a vSwitch of another zone"];
    const words = await until("the refusal", 20_000, async () => {
      const words = await told(node);
      return words.includes("eni_conf does not fit") && words;
    });
    expect(words).toContain("vSwitch vsw-pod-1 is in zone cn-emulated-b, this node in cn-emulated-a");
    expect(words).toContain("list it in eni_conf under its own zone");
    expect(enisOf(node)).toEqual([]);
  });

  it("with one of another zone beside one of its own: pods get the other's addresses", async () => {
    const node = nodes["one of another zone and one of its own"];
    const pod = node.newPod();
    await until("a pod", 20_000, () =>
      node.runtime.add(pod).then(
        () => true,
        () => false,
      ),
    );
    expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
    expect(new Set(enisOf(node).map((e) => e.vswitchId))).toEqual(new Set(["vsw-pod-0"]));
  });

  it("and a conflist of a mode that the node is not in: the pod is told at once", async () => {
    const node = nodes["good, with another mode's conflist"];
    const places = { store: node.store, logDir: node.dir };
    const trunk = { type: "terway-trunk", ...places, ipam: { type: "terway-ipam", ...places } };
    const runtime = createRuntime({
      conflist: { cniVersion: "1.1.0", name: "terway", plugins: [trunk] },
      cniPath: CNI_PATH,
      netns: node.netns,
    });
    const words = await until("the answer", 20_000, async () => {
      const words = await told(node, runtime);
      return words.includes("keeps no") && words;
    });
    expect(words).toContain(
      "this node is in mode shared and keeps no member ENIs: take the conflist of this mode, or change network_mode in eni_conf",
    );
  });
});
