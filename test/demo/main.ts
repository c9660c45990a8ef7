/**
 * The main job, on one machine: two nodes in two zones of an emulated VPC, agents that keep the pools full, pods that
 * the real plugin binaries attach, real traffic between them, and nothing left at the end.
 *
 *   npm run demo [-- --json] [--mode eniip-veth|vpc|eni-exclusive|eniip-ipvlan|trunk] [--ip-stack ipv4|dual|ipv6] [--pods N]
 *
 * What this kernel cannot do runs in the virtual machine: npm run vm -- node test/demo/main.ts --mode trunk
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { familiesOf } from "../../shared/config/ip-stack.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { percentile } from "../bench/percentile.ts";
import { OUTSIDE_IP, OUTSIDE_IP6 } from "../cloud/fabric.ts";
import { labMode, labStack } from "../lab/modes.ts";
import { type PoolView, poolView } from "../lab/store-view.ts";
import { ping, tcpEcho } from "../lab/traffic.ts";
import { createWorld, type LabMode, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { chainedPods } from "./chained.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    mode: { type: "string", default: "eniip-veth" },
    "ip-stack": { type: "string" },
    "dual-stack": { type: "boolean", default: false },
    pods: { type: "string" },
  },
});

interface Setup {
  readonly instanceType: string;
  /** On each node. */
  readonly pods: number;
  readonly pool: { readonly min: number; readonly max: number };
}

const SHARED: Setup = { instanceType: "ecs.g7.4xlarge", pods: 20, pool: { min: 24, max: 28 } };
const SETUPS: Readonly<Record<LabMode, Setup>> = {
  "eniip-veth": SHARED,
  "eniip-ipvlan": SHARED,
  vpc: { instanceType: "ecs.g7.xlarge", pods: 20, pool: { min: 0, max: 0 } },
  // Seven ENIs for pods.
  "eni-exclusive": { instanceType: "ecs.g7.4xlarge", pods: 2, pool: { min: 3, max: 5 } },
  trunk: { instanceType: "ecs.c7.16xlarge", pods: 8, pool: { min: 5, max: 12 } },
};
const MODE = labMode(values.mode);
const STACK = labStack(values["ip-stack"] ?? (values["dual-stack"] ? "dual" : "ipv4"));
const OUTSIDE = familiesOf(STACK).map((family) => (family === 4 ? OUTSIDE_IP : OUTSIDE_IP6));
const { instanceType, pool: POOL, pods } = SETUPS[MODE];
const PODS = Number(values.pods ?? pods);
const AWAY = 3;

function say(text: string): void {
  (values.json ? process.stderr : process.stdout).write(`${text}\n`);
}

interface Attached {
  readonly node: WorldNode;
  readonly pod: WorldPod;
  /** One of each family. */
  readonly ips: readonly string[];
  readonly addMs: number;
}

const view = (node: WorldNode): PoolView => poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME));

async function warm(node: WorldNode, idle: number): Promise<void> {
  await until(`${node.name}: ${idle} idle addresses`, 30_000, () => {
    try {
      return view(node).idle >= idle;
    } catch {
      return false; // the agent has not made the store yet
    }
  });
}

async function attach(node: WorldNode): Promise<Attached> {
  const pod = node.newPod();
  const { result, ms } = await node.runtime.add(pod);
  return { node, pod, ips: (result.ips ?? []).map((i) => i.address.split("/")[0] ?? ""), addMs: ms };
}

function table(world: World): void {
  for (const node of world.nodes) {
    const v = view(node);
    say(
      `  ${node.name} (${node.zone}): ${v.enis} ENIs, ${v.allocated} allocated, ${v.idle} idle, ${v.cooling} cooling`,
    );
  }
}

/** What must be gone once every pod is deleted: rules and host routes of pods, host interfaces, allocated addresses. */
function leaksOf(node: WorldNode): string[] {
  const name = node.netns.split("/").at(-1) ?? "";
  const ip = (...args: string[]) => spawnSync("ip", ["-n", name, ...args], { encoding: "utf8" }).stdout;
  const v = view(node);
  return [
    ...ip("-o", "link")
      .split("\n")
      .filter((l) => / cal[iu][0-9a-f]+@/.test(l)),
    ...["-4", "-6"].flatMap((family) => [
      ...ip(family, "rule")
        .split("\n")
        .filter((l) => l.startsWith("2048:")),
      ...["17000", "16999"].flatMap((t) =>
        ip(family, "route", "show", "table", t)
          .split("\n")
          .filter((l) => l !== ""),
      ),
    ]),
    ...(v.allocated > 0 ? [`${v.allocated} addresses still allocated`] : []),
    ...(v.attachments > 0 ? [`${v.attachments} attachments still recorded`] : []),
  ];
}

async function run(world: World) {
  const [first, second] = world.nodes;
  if (first === undefined || second === undefined) throw new Error("the demo needs two nodes");
  say("warming the pools");
  await Promise.all(world.nodes.map((n) => warm(n, POOL.min)));
  if (MODE === "vpc")
    await until(
      "a route to each node",
      20_000,
      () =>
        [...world.cloud.model.routes.values()].filter((r) => r.status === "Available").length >=
        world.nodes.length * OUTSIDE.length,
    );
  table(world);

  say(`attaching ${PODS} pods on each node with the plugin binaries`);
  const attached: Attached[] = [];
  for (let i = 0; i < PODS; i++) for (const node of world.nodes) attached.push(await attach(node));
  table(world);

  say("pods ping each other, the outside, and exchange TCP");
  const reachable = new Set<Attached>();
  const unreachable: string[] = [];
  for (const [i, a] of attached.entries()) {
    // One on the same node, one on the other, and the way out: over all pods every pair of ENIs comes up.
    const same = attached[(i + 2 * (1 + (i % 7))) % attached.length];
    const other = attached[(i + 1 + 2 * (i % 5)) % attached.length];
    const targets = [...(same?.ips ?? []), ...(other?.ips ?? []), ...OUTSIDE];
    const failed: string[] = [];
    for (const target of targets) if (!(await ping(a.pod.netns, target))) failed.push(target);
    for (const ip of other?.ips ?? [])
      if (other && !(await tcpEcho(other.pod.netns, ip, a.pod.netns))) failed.push(`tcp ${ip}`);
    if (failed.length === 0) reachable.add(a);
    else unreachable.push(`${a.pod.name} (${a.ips.join(" ")}) does not reach ${failed.join(", ")}`);
  }
  for (const line of unreachable) say(`  ${line}`);
  say(`  ${reachable.size} of ${attached.length} pods reach all their targets`);

  if (POOL.min > 0) await warm(first, AWAY);
  say(`killing the agent of ${first.name}; pods still start from the pool`);
  await first.stopAgent("SIGKILL");
  const away: Attached[] = [];
  for (let i = 0; i < AWAY; i++) away.push(await attach(first));
  let awayReachable = 0;
  for (const a of away) {
    const reached = await Promise.all((attached[1]?.ips ?? []).map((ip) => ping(a.pod.netns, ip)));
    if (reached.length > 0 && reached.every((good) => good)) awayReachable += 1;
  }
  say(`  ${away.length} pods attached without an agent, ${awayReachable} reach a pod on ${second.name}`);
  first.startAgent();

  say("three pods under a NetworkPolicy, one with a limit of its bandwidth");
  const chained = await chainedPods(second);
  say(
    `  client to web ${chained.allowed ? "allowed" : "NOT allowed"}, stranger to web ${chained.denied ? "denied" : "NOT denied"}; ` +
      `limited to ${chained.limitMbit} Mbit/s, sends ${chained.measuredMbit} Mbit/s`,
  );
  const limitHolds = chained.measuredMbit > 0 && chained.measuredMbit <= chained.limitMbit * 1.1;

  say("deleting every pod");
  const delMs: number[] = [];
  for (const a of [...attached, ...away]) {
    delMs.push((await a.node.runtime.del(a.pod)).ms);
    a.pod.destroy();
  }
  say("waiting for the pools to shrink and drained ENIs to go back");
  await Promise.all(
    world.nodes.map((n) =>
      until(`${n.name}: pool shrunk`, 40_000, () => {
        const v = view(n);
        return v.idle <= POOL.max && v.cooling === 0 && v.intents === 0 && v.allocated === 0;
      }),
    ),
  );
  table(world);
  const leaks = [...world.nodes.flatMap(leaksOf), ...world.cloud.model.violations()];
  for (const leak of leaks) say(`  leak: ${leak}`);
  const addMs = [...attached, ...away].map((a) => a.addMs);
  return {
    mode: MODE,
    ipStack: STACK,
    ok:
      unreachable.length === 0 &&
      leaks.length === 0 &&
      away.length === AWAY &&
      awayReachable === AWAY &&
      chained.allowed &&
      chained.denied &&
      limitHolds,
    nodes: world.nodes.length,
    podsAttached: addMs.length,
    podsReachable: reachable.size + awayReachable,
    addWhileAgentDown: away.length,
    ...chained,
    addP50Ms: round(percentile(addMs, 50)),
    addP99Ms: round(percentile(addMs, 99)),
    delP50Ms: round(percentile(delMs, 50)),
    delP99Ms: round(percentile(delMs, 99)),
    apiCalls: world.cloud.api.counts(),
    leaks: leaks.length,
  };
}

function round(n: number): number {
  return Math.round(n * 100) / 100;
}

async function main(): Promise<void> {
  if (!existsSync(join(root, "dist/cni/terway-eni"))) {
    say("building the plugins");
    const built = spawnSync(process.execPath, [join(root, "plugins/host/build.ts")], {
      stdio: ["ignore", values.json ? "ignore" : "inherit", "inherit"],
    });
    if (built.status !== 0) throw new Error("the plugins could not be built: see above");
  }
  say(`starting an emulated VPC with two nodes in two zones, mode ${MODE}, ${STACK}`);
  const world = await createWorld({
    prefix: `demo${process.pid % 1000}`,
    nodes: 2,
    mode: MODE,
    ipStack: STACK,
    instanceType,
    poolMin: POOL.min,
    poolMax: POOL.max,
    cooldownSeconds: 2,
    chained: ["terway-policy", "terway-bandwidth"],
    eniConf: { resource_gc: { enable: true, idle_ip_ttl_seconds: 300 } },
  });
  let report: Awaited<ReturnType<typeof run>>;
  try {
    report = await run(world);
  } finally {
    await world.close();
  }
  say("");
  say(`pods attached      ${report.podsAttached}, reachable ${report.podsReachable}`);
  say(
    `ADD                p50 ${report.addP50Ms} ms, p99 ${report.addP99Ms} ms (process start to end, seen from a Node runtime)`,
  );
  say(`DEL                p50 ${report.delP50Ms} ms, p99 ${report.delP99Ms} ms`);
  say(
    `cloud API calls    ${Object.entries(report.apiCalls)
      .map(([k, n]) => `${k} ${n}`)
      .join(", ")}`,
  );
  say(`leaks              ${report.leaks}`);
  say(report.ok ? "all went well" : "NOT everything went well");
  if (values.json) process.stdout.write(`${JSON.stringify(report)}\n`);
  process.exitCode = report.ok ? 0 : 1;
}

await main();
