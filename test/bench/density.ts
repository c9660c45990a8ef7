/**
 * As many members on one trunk as the instance type carries: how long the agent takes, what it asks of the cloud, what it
 * costs, and whether addresses still come fast.
 *
 *   node test/bench/density.ts [--members N] [--real]
 *
 * Without --real the control side alone: the cloud's API, the agent, terway-ipam; members have no wire. With it (a kernel
 * with 802.1Q, or npm run vm --) every member gets a pod of terway-trunk, which pings.
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type WorldNode, type WorldPod } from "../lab/world.ts";
import { createRuntime } from "../runtime/cni-runtime.ts";
import { percentile } from "./percentile.ts";

/** Most of what the type table has: 200 members besides 15 ENIs. */
const DENSE_TYPE = "ecs.g7ne.24xlarge";

export interface DensityOptions {
  readonly members: number;
  readonly real: boolean;
  readonly prefix: string;
}

export interface DensityReport {
  readonly members: number;
  readonly vlanIds: number;
  /** From the agent's start to the last member in the pool. */
  readonly fillSeconds: number;
  readonly apiCalls: Readonly<Record<string, number>>;
  /** Of the agent, until the pool was full, and of its second life, from a full store. */
  readonly agentCpuSeconds: number;
  readonly restartCpuSeconds: number;
  /** Calls that the restarted agent made before it was ready. */
  readonly restartCalls: number;
  readonly agentRssMiB: number;
  /** ADD of the first and of the last twenty pods. */
  readonly addFirstMs: number;
  readonly addLastMs: number;
  readonly delMs: number;
  readonly reached: number;
  /** What one more is told. */
  readonly oneMore: string;
  readonly violations: readonly string[];
}

const idleOf = (node: WorldNode) => {
  try {
    return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle;
  } catch {
    return 0; // the agent has not made the store yet
  }
};

/** User and system time of the agent. */
function cpuSeconds(node: WorldNode): number {
  const fields = readFileSync(`/proc/${node.agent?.pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

function rssMiB(node: WorldNode): number {
  const kib = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${node.agent?.pid}/status`, "utf8"))?.[1];
  return Math.round(Number(kib) / 1024);
}

export async function measureDensity({ members, real, prefix }: DensityOptions): Promise<DensityReport> {
  const world = await createWorld({
    prefix,
    nodes: 1,
    mode: "trunk",
    instanceType: DENSE_TYPE,
    poolMin: members,
    poolMax: members,
    cooldownSeconds: 0,
    agents: false,
    cloud: { membersUnplugged: !real },
    // The account's own limits stay: this node is alone on it.
    eniConf: { rate_limit: { eni_create_qps: 50, eni_delete_qps: 50, burst_size: 100 } },
  });
  try {
    const [node] = world.nodes as [WorldNode];
    const calls = () => Object.values(world.cloud.api.counts()).reduce((a, b) => a + b, 0);
    const started = performance.now();
    node.startAgent();
    await until(`${members} members`, 240_000, () => idleOf(node) >= members);
    const fillSeconds = (performance.now() - started) / 1000;
    const apiCalls = { ...world.cloud.api.counts() };
    const agentCpuSeconds = cpuSeconds(node);
    const agentRssMiB = rssMiB(node);

    await node.stopAgent("SIGKILL");
    const callsBefore = calls();
    node.startAgent();
    await until(
      "the restarted agent",
      60_000,
      async () => (await node.metric("terway_ip_pool_available")) !== undefined,
    );
    const restartCpuSeconds = cpuSeconds(node);
    const restartCalls = calls() - callsBefore;

    const ipam = { type: "terway-ipam", store: node.store, logDir: node.dir, cooldownSeconds: 0, eniKind: "member" };
    const runtime = real
      ? node.runtime
      : createRuntime({
          conflist: {
            cniVersion: "1.1.0",
            name: "terway",
            plugins: [{ type: "terway-ipam", store: node.store, logDir: node.dir, ipam }],
          },
          cniPath: CNI_PATH,
          netns: node.netns,
        });
    const pods: WorldPod[] = [];
    const addMs: number[] = [];
    const addresses = new Set<string>();
    let reached = 0;
    for (let i = 0; i < members; i++) {
      const pod = node.newPod();
      pods.push(pod);
      const { result, ms } = await runtime.add(pod);
      addMs.push(ms);
      addresses.add(result.ips?.[0]?.address ?? "");
      if (real ? await ping(pod.netns, OUTSIDE_IP) : addresses.size === pods.length) reached += 1;
    }
    const oneMore = await runtime.add(node.newPod()).then(
      () => "it was attached",
      (error: Error) => error.message,
    );
    const delMs: number[] = [];
    for (const pod of pods) {
      delMs.push((await runtime.del(pod)).ms);
      pod.destroy();
    }
    const vlans = [...world.cloud.model.enis.values()].flatMap((e) => e.trunk?.vlanId ?? []);
    return {
      members,
      vlanIds: new Set(vlans).size,
      fillSeconds,
      apiCalls,
      agentCpuSeconds,
      restartCpuSeconds,
      restartCalls,
      agentRssMiB,
      addFirstMs: percentile(addMs.slice(0, 20), 50),
      addLastMs: percentile(addMs.slice(-20), 50),
      delMs: percentile(delMs, 50),
      reached,
      oneMore,
      violations: world.cloud.model.violations(),
    };
  } finally {
    await world.close();
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { members: { type: "string", default: "200" }, real: { type: "boolean", default: false } },
  });
  const report = await measureDensity({
    members: Number(values.members),
    real: values.real,
    prefix: `den${process.pid % 1000}`,
  });
  process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
}
