/** terway-policy behind terway-eni on two emulated nodes: pods of one node, of two, and the agent away. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStore } from "../../ipam/store/open.ts";
import { listPolicyAddresses, putCompiled } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import { readTable } from "../../shared/policy/read.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { runTool } from "../cloud/netns.ts";
import { type PodProcess, startPodProcess } from "../lab/pod-process.ts";
import { ONLY_80 } from "../lab/policy-node.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { type CniRuntime, createRuntime } from "../runtime/cni-runtime.ts";
import { inNetns } from "../runtime/exec.ts";

let world: World;
const processes: PodProcess[] = [];

beforeAll(async () => {
  world = await createWorld({
    prefix: `q${process.pid % 10000}`,
    nodes: 2,
    mode: "eniip-veth",
    instanceType: "ecs.g7.xlarge",
    poolMin: 4,
    poolMax: 10,
    cooldownSeconds: 1,
  });
  await until("addresses", 30_000, () =>
    world.nodes.every((n) => {
      try {
        return poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME)).idle >= 4;
      } catch {
        return false;
      }
    }),
  );
});
afterAll(async () => {
  for (const p of processes) await p.close();
  await world?.close();
});

function withPolicy(node: WorldNode): CniRuntime {
  const { conflist } = node.runtime;
  const policy = { type: "terway-policy", store: node.store, logDir: node.dir };
  return createRuntime({
    conflist: { ...conflist, plugins: [...conflist.plugins, policy] },
    cniPath: CNI_PATH,
    netns: node.netns,
  });
}

async function attach(
  node: WorldNode,
  name: string,
): Promise<{ readonly pod: WorldPod; readonly ip: string; readonly process: PodProcess; readonly by: CniRuntime }> {
  const pod = { ...node.newPod(), name };
  const by = withPolicy(node);
  const { result } = await by.add(pod);
  const process = await startPodProcess(pod.netns);
  processes.push(process);
  await process.serve([80]);
  return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "", process, by };
}

describe("terway-policy after terway-eni", () => {
  it("judges pods of the same node and of another, also while the agent is away", async () => {
    const [a, b] = world.nodes;
    if (a === undefined || b === undefined) throw new Error("two nodes are needed");
    const store = openStore({ sys: nodeSys, openSql: openNodeSql }, a.store);
    inTransaction(store.db, () => putCompiled(store.db, ONLY_80));
    store.db.close();
    await a.stopAgent("SIGKILL");
    const [web, near, far] = [await attach(a, "web"), await attach(a, "near"), await attach(b, "far")];
    const nft = inNetns(a.netns, () => openNft(nodeSys));
    // Both are known by their links too, and those have no link-local address on the node that pods could reach.
    const links =
      readTable(nft)
        ?.sets.get("from-link")
        ?.elements.map((e) => e.split(" ")[0]?.slice(1) ?? "") ?? [];
    expect(links.length).toBe(2);
    for (const link of links)
      expect(runTool("nsenter", [`--net=${a.netns}`, "ip", "-6", "addr", "show", "dev", link])).toBe("");
    const seen = await Promise.all([
      near.process.reaches("tcp", web.ip, 80),
      far.process.reaches("tcp", web.ip, 80),
      near.process.probe("udp", web.ip, 80),
      far.process.probe("udp", web.ip, 80),
      ping(near.pod.netns, web.ip, 0.3),
      ping(far.pod.netns, web.ip, 0.3),
      ping(web.pod.netns, far.ip),
      web.process.reaches("udp", near.ip, 80),
      ping(a.netns, web.ip),
    ]);
    expect(seen).toEqual([true, true, false, false, false, false, true, true, true]);
    await web.by.check(web.pod);
    for (const x of [web, near, far]) await x.by.del(x.pod);
    await until("an empty map", 5000, () => readTable(nft)?.sets.get("to4")?.elements.length === 0);
    nft.close();
  });

  it.each([
    ["in the same process", {}],
    ["run as a program", { exec: true }],
  ])(
    "leaves nothing behind when it is taken out of the conflist while a pod lives, with terway-ipam %s",
    async (_how, ipam) => {
      const [a] = world.nodes;
      if (a === undefined) throw new Error("a node is needed");
      const { pod, ip } = await attach(a, "web");
      const nft = inNetns(a.netns, () => openNft(nodeSys));
      const toPods = () => readTable(nft)?.sets.get("to4")?.elements ?? [];
      expect(toPods().filter((e) => e.startsWith(`${ip} `)).length).toBe(1);
      const { conflist } = a.runtime;
      const plugins = conflist.plugins.map((p) => (p.ipam ? { ...p, ipam: { ...p.ipam, ...ipam } } : p));
      await createRuntime({ conflist: { ...conflist, plugins }, cniPath: CNI_PATH, netns: a.netns }).del(pod);
      expect(toPods()).toEqual([]);
      nft.close();
      const store = openStore({ sys: nodeSys, openSql: openNodeSql }, a.store);
      expect(listPolicyAddresses(store.db)).toEqual([]);
      store.db.close();
    },
  );
});
