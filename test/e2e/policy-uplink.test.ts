/** NetworkPolicy where packets pass no hook of the node: pods with an ENI of their own, or an IPvlan child of one. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEnforcer } from "../../ipam/policy/enforcer.ts";
import { putCompiled } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { type PodProcess, startPodProcess } from "../lab/pod-process.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, type LabMode, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { type CniRuntime, createRuntime } from "../runtime/cni-runtime.ts";
import { inNetns } from "../runtime/exec.ts";

const ONLY_80: CompiledPolicy = {
  revision: 1,
  sets: [],
  endpointSets: [],
  profiles: [
    {
      id: "only-80",
      direction: "ingress",
      admin: [],
      policies: [
        {
          verdict: "accept",
          ports: [{ protocol: "tcp", first: 80, last: 80 }],
          origin: "NetworkPolicy default/web ingress[0]",
        },
      ],
      baseline: [],
    },
  ],
  pods: [{ namespace: "default", name: "web", ingress: "only-80" }],
};

interface Attached {
  readonly pod: WorldPod;
  readonly ip: string;
  readonly process: PodProcess;
  readonly by: CniRuntime;
}

function suite(mode: LabMode, secondary: number): void {
  let world: World;
  let here: Prepared;
  let there: Prepared;
  const processes: PodProcess[] = [];

  beforeAll(async () => {
    world = await createWorld({
      prefix: `w${process.pid % 10000}`,
      nodes: 2,
      mode,
      instanceType: "ecs.g7.xlarge",
      poolMin: 0,
      poolMax: 0,
      cooldownSeconds: 0,
      agents: false,
    });
    const kind = mode === "eni-exclusive" ? "exclusive" : "shared";
    const [a, b] = world.nodes as [WorldNode, WorldNode];
    here = await prepareByHand(world, a, kind, 2, secondary);
    there = await prepareByHand(world, b, kind, 1, secondary);
    inTransaction(here.store.db, () => putCompiled(here.store.db, ONLY_80));
  }, 60_000);
  afterAll(async () => {
    for (const p of processes) await p.close();
    here?.store.db.close();
    there?.store.db.close();
    await world?.close();
  });

  async function attach(node: WorldNode, name: string, posture = "allow"): Promise<Attached> {
    const { conflist } = node.runtime;
    const policy = { type: "terway-policy", store: node.store, logDir: node.dir, default: posture };
    const by = createRuntime({
      conflist: { ...conflist, plugins: [...conflist.plugins, policy] },
      cniPath: CNI_PATH,
      netns: node.netns,
    });
    const pod = { ...node.newPod(), name };
    const { result } = await by.add(pod);
    const process = await startPodProcess(pod.netns);
    processes.push(process);
    await process.serve([80]);
    return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "", process, by };
  }

  it("is in force in the pod before its first packet, and follows changes", async () => {
    const [web, near, far] = [
      await attach(here.node, "web"),
      await attach(here.node, "near"),
      await attach(there.node, "far"),
    ];
    const seen = async () => [
      await near.process.probe("tcp", web.ip, 80),
      await far.process.probe("tcp", web.ip, 80),
      await near.process.probe("udp", web.ip, 80),
      await far.process.probe("udp", web.ip, 80),
      await ping(far.pod.netns, web.ip, 0.3),
      await web.process.probe("udp", far.ip, 80),
      await ping(here.node.netns, web.ip),
    ];
    expect(await seen()).toEqual([true, true, false, false, false, true, true]);
    await web.by.check(web.pod);
    // The profile goes: everything is allowed again, and the table in the pod says so.
    const nft = inNetns(here.node.netns, () => openNft(nodeSys));
    try {
      const enforcer = createEnforcer(here.store, nft);
      const { changed } = enforcer.bring({ ...ONLY_80, revision: 2, profiles: [], pods: [] });
      expect(changed.some((line) => line.startsWith("in pod default/web"))).toBe(true);
      expect(await far.process.probe("udp", web.ip, 80)).toBe(true);
      enforcer.bring({ ...ONLY_80, revision: 3 });
      expect(await far.process.probe("udp", web.ip, 80)).toBe(false);
      // A foreign hand inside the pod is noticed by CHECK and put right.
      runTool("nsenter", [`--net=${web.pod.netns}`, "nft", "flush", "ruleset"]);
      await expect(web.by.check(web.pod)).rejects.toThrow(/in the pod: /);
      expect(enforcer.mend().length).toBeGreaterThan(0);
      await web.by.check(web.pod);
    } finally {
      nft.close();
    }
    for (const x of [web, near, far]) await x.by.del(x.pod);
  }, 60_000);

  it("denies a pod that nobody knows, where that is the posture", async () => {
    const [unknown, far] = [await attach(here.node, "unknown", "deny"), await attach(there.node, "far")];
    expect([
      await far.process.probe("tcp", unknown.ip, 80),
      await unknown.process.probe("tcp", far.ip, 80),
      await ping(here.node.netns, unknown.ip),
    ]).toEqual([false, false, true]);
    for (const x of [unknown, far]) await x.by.del(x.pod);
  }, 60_000);
}

describe("terway-policy in mode exclusive", inMode("eni-exclusive"), () => suite("eni-exclusive", 0));
describe("terway-policy behind IPvlan", inMode("eniip-ipvlan"), () => suite("eniip-ipvlan", 2));
