/**
 * Pods that come and go by the hundred through the shipped conflist, plugins that are killed meanwhile, and the question
 * what is left. Each pod's own failures are told, too: an ADD or DEL that fails, a pod that reaches nobody, a CHECK that
 * complains, something on the node after a DEL that said it went well.
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { CODE } from "../../shared/cni/failure.ts";
import { familiesOf, type IpStack } from "../../shared/config/ip-stack.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { percentile } from "../bench/percentile.ts";
import { OUTSIDE_IP, OUTSIDE_IP6 } from "../cloud/fabric.ts";
import { patient } from "../kernel/patience.ts";
import { CniCallError, type CniRuntime, createRuntime } from "../runtime/cni-runtime.ts";
import { type Baseline, baselineOf, type Leak, leaksOf } from "./leaks.ts";
import { type Cycle, type End, type Kill, planCycles } from "./soak-plan.ts";
import { poolView } from "./store-view.ts";
import { ping } from "./traffic.ts";
import { CNI_PATH, createWorld, type LabMode, until, type World, type WorldNode, type WorldPod } from "./world.ts";

export interface SoakOptions {
  readonly mode: LabMode;
  /** Absent: ipv4. */
  readonly ipStack?: IpStack;
  readonly cycles: number;
  readonly seed: number;
  readonly prefix: string;
  /** Sandboxes under way at one time. */
  readonly atOnce: number;
  /** Dead sandboxes are made old for the agent's sweep, instead of waiting for that. */
  readonly hasten?: boolean;
  readonly say?: (text: string) => void;
}

export interface SoakReport {
  readonly mode: LabMode;
  readonly seed: number;
  readonly cycles: number;
  readonly atOnce: number;
  /** Processes that SIGKILL ended before they were done, by verb; a kill that comes too late is made up for. */
  readonly killed: { readonly ADD: number; readonly DEL: number };
  /** By plugin. */
  readonly killedPlugins: Readonly<Record<string, number>>;
  readonly ends: Readonly<Partial<Record<End, number>>>;
  readonly pings: number;
  readonly checks: number;
  readonly gcCalls: number;
  /** ADDs that were refused with "try again later" and asked again. */
  readonly retries: number;
  /** Rows that the agent freed because neither DEL nor GC came. */
  readonly swept: number;
  /** What went wrong with a pod. */
  readonly failures: readonly string[];
  readonly leaks: readonly Leak[];
  readonly addP50Ms: number;
  readonly delP50Ms: number;
  readonly agent: { readonly rssMiB: readonly [number, number]; readonly fds: readonly [number, number] };
  readonly seconds: number;
  readonly ok: boolean;
}

const POOLS: Readonly<Record<LabMode, { readonly instanceType: string; readonly pool: number }>> = {
  "eniip-veth": { instanceType: "ecs.g7.xlarge", pool: 8 },
  "eniip-ipvlan": { instanceType: "ecs.g7.xlarge", pool: 8 },
  vpc: { instanceType: "ecs.g7.large", pool: 0 },
  "eni-exclusive": { instanceType: "ecs.g7.4xlarge", pool: 5 },
  trunk: { instanceType: "ecs.c7.16xlarge", pool: 5 },
};
const CHAINED = ["terway-policy", "portmap", "terway-bandwidth"];
const COOLDOWN_S = 1;
/** Longer than the grace that GC gives. */
const OLD_MS = 60_000;
const RETRY_MS = 120_000;
const SETTLE_MS = 60_000;
/** File descriptors of the agent move a little with timers and sockets. */
const FD_SLACK = 8;

export async function runSoak(options: SoakOptions): Promise<SoakReport> {
  const { instanceType, pool } = POOLS[options.mode];
  const world = await createWorld({
    prefix: options.prefix,
    nodes: 1,
    mode: options.mode,
    ipStack: options.ipStack ?? "ipv4",
    instanceType,
    poolMin: pool,
    poolMax: pool,
    cooldownSeconds: COOLDOWN_S,
    chained: CHAINED,
  });
  try {
    const [node] = world.nodes;
    if (node === undefined) throw new Error("a node is needed");
    return await soak(world, node, options);
  } finally {
    await world.close();
  }
}

const view = (node: WorldNode) => poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME));

/** What the soak counts. */
function createTally() {
  return {
    killed: { ADD: 0, DEL: 0 },
    killedPlugins: {} as Record<string, number>,
    ends: {} as Partial<Record<End, number>>,
    pings: 0,
    checks: 0,
    gcCalls: 0,
    retries: 0,
    failures: [] as string[],
    addMs: [] as number[],
    delMs: [] as number[],
    /** By verb and plugin: what it took where nobody killed it. */
    usual: new Map<string, number[]>(),
  };
}

interface Soak {
  readonly world: World;
  readonly node: WorldNode;
  readonly options: SoakOptions;
  readonly tally: ReturnType<typeof createTally>;
  /** GC came with 1.1.0, which Debian's portmap does not know: it is called without. */
  readonly collector: CniRuntime;
  /** What the runtime lists in GC. */
  readonly listed: Set<WorldPod>;
  readonly netnsInodes: Set<number>;
  /** Kills that came too late; another cycle gets them. */
  readonly owed: Kill[];
}

async function soak(world: World, node: WorldNode, options: SoakOptions): Promise<SoakReport> {
  const started = performance.now();
  const { say = () => undefined } = options;
  const s: Soak = {
    world,
    node,
    options,
    tally: createTally(),
    collector: collectorOf(node),
    listed: new Set(),
    netnsInodes: new Set(),
    owed: [],
  };
  await until("a warm pool", 60_000, () => {
    try {
      return view(node).idle >= POOLS[options.mode].pool && view(node).intents === 0;
    } catch {
      return false; // the agent has not made the store yet
    }
  });
  if (options.mode === "vpc")
    await until("the VPC's routes to the node's pods", 60_000, () => {
      const ready = [...world.cloud.model.routes.values()].filter((r) => r.status === "Available");
      return ready.length >= familiesOf(options.ipStack ?? "ipv4").length;
    });
  // The agent's sweep goes by the node's cool-down, not by the conflist's.
  withStore(node, (db) =>
    db.run("INSERT OR REPLACE INTO fact(name, value) VALUES('cooldown_ms', ?)", [String(COOLDOWN_S * 1000)]),
  );
  // A pod that makes what stays on a node from its first one on: tables of nftables, portmap's chains.
  await cycle(s, { number: -1, kill: undefined, end: "delete", check: true, limited: true, hostPort: true });
  await settled(s, undefined);
  const before = baselineOf(world, node);
  const agentBefore = agentOf(node);

  const plan = planCycles(options.seed, options.cycles);
  let next = 0;
  /** By the plan, and then as long as kills are owed. */
  const take = (): Cycle | undefined => {
    const number = next++;
    const extra: Cycle = { number, kill: undefined, end: "delete", check: false, limited: true, hostPort: false };
    return plan[number] ?? (s.owed.length > 0 && number < 2 * plan.length ? extra : undefined);
  };
  const worker = async () => {
    for (let c = take(); c !== undefined; c = take()) {
      await cycle(s, c).catch((error: unknown) => s.tally.failures.push(`cycle ${c.number}: ${wordsOf(error)}`));
      if (c.number % 20 === 19 && c.number < plan.length) say(`${c.number + 1} of ${plan.length} cycles`);
    }
  };
  await Promise.all(Array.from({ length: options.atOnce }, worker));
  say("waiting for what happens later: cool-downs, ENIs on their way, the agent's sweep");
  const leaks = await settled(s, before);
  const agentAfter = agentOf(node);
  if (agentAfter.fds > agentBefore.fds + FD_SLACK)
    leaks.push({ kind: "process", what: `the agent has ${agentAfter.fds} open files, ${agentBefore.fds} before` });
  const { addMs, delMs, usual: _usual, ...tally } = s.tally;
  return {
    mode: options.mode,
    seed: options.seed,
    cycles: options.cycles,
    atOnce: options.atOnce,
    ...tally,
    swept: sweptOf(node),
    leaks,
    addP50Ms: round(percentile(addMs, 50)),
    delP50Ms: round(percentile(delMs, 50)),
    agent: { rssMiB: [agentBefore.rssMiB, agentAfter.rssMiB], fds: [agentBefore.fds, agentAfter.fds] },
    seconds: Math.round((performance.now() - started) / 1000),
    ok: tally.failures.length === 0 && leaks.length === 0,
  };
}

function collectorOf(node: WorldNode): CniRuntime {
  const { conflist } = node.runtime;
  const plugins = conflist.plugins.filter((p) => p.type.startsWith("terway-"));
  return createRuntime({
    conflist: { ...conflist, cniVersion: "1.1.0", plugins },
    cniPath: CNI_PATH,
    netns: node.netns,
  });
}

const round = (n: number) => Math.round(n * 100) / 100;
const wordsOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** One sandbox, from its namespace to its end. */
async function cycle(s: Soak, c: Cycle): Promise<void> {
  const { node, tally } = s;
  const kill = c.kill ?? (c.end === "delete" && !c.hostPort ? s.owed.shift() : undefined);
  const pod: WorldPod = {
    ...node.newPod(),
    runtimeConfig: {
      ...(c.limited ? { bandwidth: { ingressRate: 50_000_000, ingressBurst: 5_000_000 } } : {}),
      ...(c.hostPort
        ? { portMappings: [{ hostPort: 20_000 + (c.number % 1000), containerPort: 80, protocol: "tcp" }] }
        : {}),
    },
  };
  const ino = nodeSys.stat(pod.netns)?.ino;
  if (ino !== undefined) s.netnsInodes.add(ino);
  s.listed.add(pod);
  tally.ends[c.end] = (tally.ends[c.end] ?? 0) + (c.number < 0 ? 0 : 1);
  try {
    const killedInAdd = kill?.verb === "ADD" && (await killed(s, kill, (call) => node.runtime.add(pod, call)));
    if (!killedInAdd || c.end === "again") {
      const ip = await add(s, pod);
      if (!(await ping(pod.netns, ip.includes(":") ? OUTSIDE_IP6 : OUTSIDE_IP)))
        throw new Error(`${pod.name} (${ip}) reaches nobody\n${lookAround(node, pod)}`);
      tally.pings += 1;
      if (c.check && !c.hostPort) {
        // The CHECK of Debian's portmap asks for IPv6 rules that its ADD did not make.
        await node.runtime.check(pod);
        tally.checks += 1;
      }
    }
    if (kill?.verb === "DEL") await killed(s, kill, (call) => node.runtime.del(pod, call));
    await end(s, pod, c);
  } catch (error) {
    // Whatever went wrong, the runtime goes on to delete.
    await node.runtime.del(pod).catch(() => undefined);
    throw error;
  } finally {
    s.listed.delete(pod);
    pod.destroy();
  }
}

/** As kubelet: again while the answer is "try again later". */
async function add(s: Soak, pod: WorldPod): Promise<string> {
  const deadline = performance.now() + patient(RETRY_MS);
  for (;;) {
    try {
      const done = await s.node.runtime.add(pod, timed(s, "ADD"));
      s.tally.addMs.push(done.ms);
      return done.result.ips?.[0]?.address.split("/")[0] ?? "";
    } catch (error) {
      if (!(error instanceof CniCallError) || error.code !== CODE.tryAgainLater || performance.now() > deadline)
        throw error;
      s.tally.retries += 1;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

async function end(s: Soak, pod: WorldPod, c: Cycle): Promise<void> {
  const { node } = s;
  switch (c.end) {
    case "again":
    case "delete":
      return del(s, pod);
    case "late delete":
      pod.destroy();
      return del(s, pod);
    case "collect":
      s.listed.delete(pod);
      makeOld(node, pod);
      s.tally.gcCalls += 1;
      await s.collector.gc([...s.listed].map((p) => ({ containerID: p.containerId, ifname: p.ifname })));
      return expectGone(node, pod, "GC");
    case "sweep":
      if (s.options.hasten) makeOld(node, pod);
      return;
    default:
      c.end satisfies never;
  }
}

async function del(s: Soak, pod: WorldPod): Promise<void> {
  s.tally.delMs.push((await s.node.runtime.del(pod, timed(s, "DEL"))).ms);
  expectGone(s.node, pod, "DEL");
}

const timed = (s: Soak, verb: Kill["verb"]) => ({
  timed: (plugin: string, ms: number) => {
    const of = s.tally.usual.get(`${verb} ${plugin}`) ?? [];
    s.tally.usual.set(`${verb} ${plugin}`, [...of.slice(-20), ms]);
  },
});

/** @returns Whether SIGKILL came before the plugin was done. */
async function killed(
  s: Soak,
  kill: Kill,
  call: (options: { readonly killAfterMs: number; readonly killOnly: string }) => Promise<unknown>,
): Promise<boolean> {
  // Debian's plugins keep their own promises.
  const ours = s.node.runtime.conflist.plugins.map((p) => p.type).filter((type) => type.startsWith("terway-"));
  // The interface plugin does most of the work.
  const killOnly = kill.place < 0.5 ? ours[0] : ours[Math.floor(kill.place * ours.length)];
  if (killOnly === undefined) throw new Error("an empty conflist");
  const killAfterMs = kill.moment * percentile(s.tally.usual.get(`${kill.verb} ${killOnly}`) ?? [10], 50);
  try {
    await call({ killAfterMs, killOnly });
  } catch (error) {
    const code = error instanceof CniCallError ? error.code : undefined;
    if (code === 999) {
      s.tally.killed[kill.verb] += 1;
      s.tally.killedPlugins[killOnly] = (s.tally.killedPlugins[killOnly] ?? 0) + 1;
      return true;
    }
    // The node was full at that moment, and the call over before the kill.
    if (code !== CODE.tryAgainLater) throw error;
  }
  s.owed.push({ ...kill, moment: kill.moment / 2 });
  return false;
}

function withStore(node: WorldNode, work: (db: ReturnType<typeof openNodeSql>) => void): void {
  const db = openNodeSql(node.store);
  try {
    db.exec("PRAGMA busy_timeout = 5000");
    work(db);
  } finally {
    db.close();
  }
}

function makeOld(node: WorldNode, pod: WorldPod): void {
  withStore(node, (db) => {
    db.run("UPDATE attachment SET created_ms = created_ms - ? WHERE container_id = ?", [OLD_MS, pod.containerId]);
    db.run("UPDATE address SET since_ms = since_ms - ? WHERE container_id = ?", [OLD_MS, pod.containerId]);
    db.run("UPDATE policy_address SET since_ms = since_ms - ? WHERE container_id = ?", [OLD_MS, pod.containerId]);
    db.run("UPDATE shaping SET created_ms = created_ms - ? WHERE container_id = ?", [OLD_MS, pod.containerId]);
  });
}

/**
 * What DEL and GC promise when they say that all went well. Who waited for an address and was killed is forgotten after a
 * time, without either.
 */
function expectGone(node: WorldNode, pod: WorldPod, verb: string): void {
  withStore(node, (db) => {
    for (const table of ["attachment", "address", "shaping", "policy_address"]) {
      const n = Number(db.get(`SELECT count(*) AS n FROM ${table} WHERE container_id = ?`, [pod.containerId])?.n);
      if (n > 0) throw new Error(`${pod.name} has ${n} rows of ${table} in the store after ${verb}`);
    }
  });
}

/** For a pod that reaches nobody. */
function lookAround(node: WorldNode, pod: WorldPod): string {
  const show = (netns: string) =>
    ["addr", "rule", "route show table all", "neigh"]
      .map((what) => spawnSync("nsenter", [`--net=${netns}`, "ip", ...what.split(" ")], { encoding: "utf8" }).stdout)
      .join("\n");
  return `in the pod:\n${show(pod.netns)}\non the node:\n${show(node.netns)}`;
}

/** Waits until nothing is left, or no longer. Without a baseline: until the store holds nothing. */
async function settled(s: Soak, before: Baseline | undefined): Promise<Leak[]> {
  const deadline = performance.now() + patient(SETTLE_MS);
  for (;;) {
    const leaks = before
      ? leaksOf(s.world, s.node, before, s.netnsInodes)
      : view(s.node).cooling + view(s.node).intents > 0 || view(s.node).idle < POOLS[s.options.mode].pool
        ? [{ kind: "store" as const, what: "not settled" }]
        : [];
    if (leaks.length === 0 || performance.now() > deadline) return leaks;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function agentOf(node: WorldNode): { readonly rssMiB: number; readonly fds: number } {
  const pid = node.agent?.pid;
  if (pid === undefined || node.agent?.exitCode !== null) throw new Error(`the agent has ended: see ${node.agentLog}`);
  const kib = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return { rssMiB: Math.round(Number(kib) / 1024), fds: readdirSync(`/proc/${pid}/fd`).length };
}

function sweptOf(node: WorldNode): number {
  let n = 0;
  withStore(node, (db) => {
    n = Number(db.get("SELECT count(*) AS n FROM journal WHERE op = 'sweep'")?.n);
  });
  return n;
}

/** For people. */
export function describeSoak(r: SoakReport): string {
  const counts = (of: Readonly<Record<string, number | undefined>>) =>
    Object.entries(of)
      .map(([what, n]) => `${n} ${what}`)
      .join(", ");
  return [
    `mode ${r.mode}, seed ${r.seed}: ${r.cycles} cycles in ${r.seconds} s, ${r.atOnce} at once`,
    `  killed      ${r.killed.ADD} in ADD, ${r.killed.DEL} in DEL (${counts(r.killedPlugins)})`,
    `  ended by    ${counts(r.ends)}; the agent swept ${r.swept}`,
    `  pods        ${r.pings} reached the outside, ${r.checks} CHECKs, ${r.gcCalls} GCs, ${r.retries} asked again`,
    `  ADD, DEL    p50 ${r.addP50Ms} and ${r.delP50Ms} ms, whole chain`,
    `  agent       ${r.agent.rssMiB.join(" → ")} MiB, ${r.agent.fds.join(" → ")} open files`,
    `  failures    ${r.failures.length}`,
    ...r.failures.map((f) => `    ${f}`),
    `  leaks       ${r.leaks.length}`,
    ...r.leaks.map((l) => `    ${l.kind}: ${l.what}`),
  ].join("\n");
}
