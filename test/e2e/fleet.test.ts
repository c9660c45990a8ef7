/** Several agents at once, and plugins of others in the chain. */
import { afterAll, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type World, type WorldNode } from "../lab/world.ts";
import { createRuntime, type PluginConf } from "../runtime/cni-runtime.ts";

let world: World;
afterAll(() => world?.close());
const idle = (n: WorldNode) => {
  try {
    return poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME)).idle;
  } catch {
    return -1;
  }
};

describe("five agents on one account (F-13)", inMode("eniip-veth"), () => {
  it("are ready after a mass restart with at most 3 calls each, make none at rest, and serve pods meanwhile", async () => {
    world = await createWorld({
      prefix: `m${process.pid % 10000}`,
      nodes: 5,
      mode: "eniip-veth",
      instanceType: "ecs.g7.large",
      poolMin: 3,
      poolMax: 6,
      spread: true,
    });
    for (const node of world.nodes) await until(`${node.name} warm`, 30_000, () => idle(node) >= 3);
    await until("quiet", 20_000, async () => {
      const before = world.cloud.api.audit.length;
      await new Promise((resolve) => setTimeout(resolve, 1500));
      return world.cloud.api.audit.length === before;
    });
    await Promise.all(world.nodes.map((n) => n.stopAgent("SIGKILL")));
    const before = world.cloud.api.audit.length;
    for (const node of world.nodes) node.startAgent();
    // A node whose addresses are attached starts pods at once.
    const pods = world.nodes.map((n) => ({ n, pod: n.newPod() }));
    const added = await Promise.all(pods.map(({ n, pod }) => n.runtime.add(pod)));
    expect(added.length).toBe(5);
    for (const node of world.nodes)
      await until(`${node.name} ready`, 30_000, () => node.metric("terway_ip_pool_total").then((t) => (t ?? 0) > 0));
    // Five pods were started: what their pools were topped up with does not count.
    const calls = world.cloud.api.audit.slice(before).filter((e) => !/^(Assign|Create|Attach)/.test(e.action));
    expect(calls.length).toBeLessThanOrEqual(3 * 5);
    expect(calls.filter((e) => e.outcome.startsWith("Throttling"))).toEqual([]);
    await new Promise((resolve) => setTimeout(resolve, 2000));
    const atRest = world.cloud.api.audit.length;
    await new Promise((resolve) => setTimeout(resolve, 5000));
    expect(world.cloud.api.audit.length).toBe(atRest);
    for (const { n, pod } of pods) await n.runtime.del(pod);
  }, 120_000);
});

describe("Debian's plugins behind terway-eni (F-48)", inMode("eniip-veth"), () => {
  const chains: Record<string, PluginConf[]> = {
    "tuning that changes the pod's sysctl and MTU": [
      { type: "tuning", sysctl: { "net.core.somaxconn": "500" }, mtu: 1400 },
    ],
    "bandwidth on the host interface": [
      {
        type: "bandwidth",
        ingressRate: 100_000_000,
        ingressBurst: 1_000_000,
        egressRate: 100_000_000,
        egressBurst: 1_000_000,
      },
    ],
  };
  it.each(
    Object.entries(chains).flatMap(([what, plugins]) =>
      ["0.3.1", "0.4.0", "1.0.0"].map((v) => [what, v, plugins] as const),
    ),
  )("%s, in %s", async (_what, cniVersion, plugins) => {
    const [node] = world.nodes;
    if (node === undefined) throw new Error("no node");
    const conflist = { ...node.runtime.conflist, cniVersion, plugins: [...node.runtime.conflist.plugins, ...plugins] };
    const runtime = createRuntime({ conflist, cniPath: CNI_PATH, netns: node.netns });
    const pod = node.newPod();
    const { result } = await runtime.add(pod);
    expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
    expect(result.interfaces?.some((i) => i.name === "eth0")).toBe(true);
    if (cniVersion >= "0.4.0") await runtime.check(pod);
    await runtime.del(pod);
    const host = result.interfaces?.[0]?.name ?? "";
    expect(runTool("ip", ["-n", node.netns.split("/").at(-1) ?? "", "link"])).not.toContain(host);
  });
});
