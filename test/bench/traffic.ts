/**
 * What a mode's datapath costs packets: TCP throughput (iperf3) and the time of a turn of request and response, pod to pod,
 * beside the bare thing, in one run and in turn. To another node: beside the nodes' own ENIs without any pod; on one node:
 * beside two namespaces with a veth between them. The emulated VPC is in both, so ratios count. What this kernel
 * cannot do is said and left out.
 *
 *   .ci/node test/bench/traffic.ts [--json] [--mode NAME] [--rounds N] [--seconds N] [--turns N]
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { createNetns, runTool } from "../cloud/netns.ts";
import { throughput } from "../lab/iperf.ts";
import { LAB_MODES, labMode } from "../lab/modes.ts";
import { poolView } from "../lab/store-view.ts";
import { createWorld, type LabMode, until, type WorldNode } from "../lab/world.ts";
import { exec, inNetns } from "../runtime/exec.ts";
import { percentile } from "./percentile.ts";

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    mode: { type: "string" },
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "2" },
    turns: { type: "string", default: "4000" },
  },
});
const ROUNDS = Number(values.rounds);
const SECONDS = Number(values.seconds);
const TURNS = Number(values.turns);
const PORT = 7100;
const peerProgram = fileURLToPath(new URL("turns-peer.ts", import.meta.url));

const POOLS: Readonly<Record<LabMode, { readonly instanceType: string; readonly pool: number }>> = {
  "eniip-veth": { instanceType: "ecs.g7.xlarge", pool: 4 },
  "eniip-ipvlan": { instanceType: "ecs.g7.xlarge", pool: 4 },
  vpc: { instanceType: "ecs.g7.large", pool: 0 },
  "eni-exclusive": { instanceType: "ecs.g7.xlarge", pool: 2 },
  trunk: { instanceType: "ecs.c7.16xlarge", pool: 2 },
};

/** A way between two ends: paths of namespaces, and the server's address. */
interface Way {
  readonly client: string;
  readonly server: string;
  readonly address: string;
}

interface Figures {
  readonly gbit: number;
  readonly turnUs: number;
}

interface Pair {
  readonly pods: Figures;
  readonly bare: Figures;
  /** Pods' throughput as a share of the bare one's, and pods' turn as a multiple of the bare one's. */
  readonly throughput: number;
  readonly turn: number;
}

async function startServer(netns: string): Promise<ChildProcess> {
  const child = inNetns(netns, () =>
    spawn(process.execPath, ["--disable-warning=ExperimentalWarning", peerProgram, "serve", String(PORT)], {
      stdio: ["pipe", "pipe", "inherit"],
    }),
  );
  if (child.stdout === null) throw new Error("no pipe to the server");
  await once(child.stdout, "data");
  return child;
}

/** The median turn, microseconds. */
async function turnOf(way: Way): Promise<number> {
  const server = await startServer(way.server);
  try {
    const args = [
      "--disable-warning=ExperimentalWarning",
      peerProgram,
      "ask",
      way.address,
      String(PORT),
      String(TURNS),
    ];
    const done = await exec({ path: process.execPath, args, env: {}, stdin: "", netns: way.client });
    if (done.status !== 0) throw new Error(`turns to ${way.address}: ${done.stderr}`);
    return (JSON.parse(done.stdout) as { p50Us: number }).p50Us;
  } finally {
    const ended = once(server, "exit");
    server.stdin?.end();
    await ended;
  }
}

async function compare(pods: Way, bare: Way): Promise<Pair> {
  const seen = {
    pods: { bits: [] as number[], us: [] as number[] },
    bare: { bits: [] as number[], us: [] as number[] },
  };
  for (let round = 0; round < ROUNDS; round++) {
    for (const [which, way] of [
      ["pods", pods],
      ["bare", bare],
    ] as const) {
      seen[which].bits.push(await throughput({ ...way, seconds: SECONDS }));
      seen[which].us.push(await turnOf(way));
    }
  }
  const figures = (of: { readonly bits: readonly number[]; readonly us: readonly number[] }): Figures => ({
    gbit: percentile(of.bits, 50) / 1e9,
    turnUs: percentile(of.us, 50),
  });
  const [p, b] = [figures(seen.pods), figures(seen.bare)];
  return { pods: p, bare: b, throughput: p.gbit / b.gbit, turn: p.turnUs / b.turnUs };
}

const idleOf = (node: WorldNode) => {
  try {
    return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle;
  } catch {
    return 0; // the agent has not made the store yet
  }
};

async function measure(mode: LabMode): Promise<{ readonly otherNode: Pair; readonly sameNode: Pair }> {
  const { instanceType, pool } = POOLS[mode];
  const prefix = `tb${process.pid % 1000}`;
  const world = await createWorld({ prefix, nodes: 2, mode, instanceType, poolMin: pool, poolMax: pool });
  const ends = [createNetns(`${prefix}-bare0`), createNetns(`${prefix}-bare1`)] as const;
  try {
    const [here, there] = world.nodes as [WorldNode, WorldNode];
    const attach = async (node: WorldNode) => {
      await until("an idle address", 60_000, () => idleOf(node) >= Math.min(1, pool));
      const pod = node.newPod();
      const { result } = await until("a pod", 60_000, () => node.runtime.add(pod).catch(() => undefined));
      return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
    };
    const [a, b, far] = [await attach(here), await attach(here), await attach(there)];
    if (mode === "vpc")
      await until("the routes", 60_000, () => {
        const routes = [...world.cloud.model.routes.values()];
        return routes.length === world.nodes.length && routes.every((r) => r.status === "Available");
      });
    const [x, y] = ends;
    runTool("ip", ["-n", x.name, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", y.name]);
    for (const [i, end] of ends.entries()) {
      runTool("ip", ["-n", end.name, "addr", "add", `192.0.2.${i + 1}/24`, "dev", "v0"]);
      runTool("ip", ["-n", end.name, "link", "set", "v0", "up"]);
    }
    const nodeIp = (node: WorldNode) => world.cloud.model.eniOf(node.instance.primaryEniId).primaryIp;
    const otherNode = await compare(
      { client: a.pod.netns, server: far.pod.netns, address: far.ip },
      { client: here.netns, server: there.netns, address: nodeIp(there) },
    );
    const sameNode = await compare(
      { client: a.pod.netns, server: b.pod.netns, address: b.ip },
      { client: x.path, server: y.path, address: "192.0.2.2" },
    );
    for (const [node, { pod }] of [
      [here, a],
      [here, b],
      [there, far],
    ] as const)
      await node.runtime.del(pod);
    return { otherNode, sameNode };
  } finally {
    for (const end of ends) end.close();
    await world.close();
  }
}

const out = values.json ? process.stderr : process.stdout;
out.write(`pod to pod beside the bare link, ${ROUNDS} rounds in turn, medians; Gbit/s, and microseconds a turn\n\n`);
out.write("mode           to             pods  bare  ratio  |  turn  bare  ratio\n");
const results: unknown[] = [];
for (const mode of LAB_MODES.filter((m) => values.mode === undefined || m === values.mode)) {
  try {
    labMode(mode);
  } catch (error) {
    out.write(`${mode.padEnd(14)} ${(error as Error).message}\n`);
    results.push({ mode, skipped: (error as Error).message });
    continue;
  }
  const { otherNode, sameNode } = await measure(mode);
  for (const [to, p] of [
    ["other node", otherNode],
    ["same node", sameNode],
  ] as const) {
    const n = (x: number, digits: number) => x.toFixed(digits).padStart(5);
    out.write(
      `${mode.padEnd(14)} ${to.padEnd(12)} ${n(p.pods.gbit, 2)} ${n(p.bare.gbit, 2)}  ${n(p.throughput, 2)}  | ${n(p.pods.turnUs, 0)} ${n(p.bare.turnUs, 0)}  ${n(p.turn, 2)}\n`,
    );
  }
  results.push({ mode, otherNode, sameNode });
}
if (values.json) process.stdout.write(`${JSON.stringify(results)}\n`);
