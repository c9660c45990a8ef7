/**
 * The pool's decisions: from what is known at a moment to what should be asked of the cloud. Pure: no clock, no store,
 * no network; the same code runs in the agent, in tests and in the simulation.
 *
 * Meaning of the two bounds (requirements CON-10, CON-11): at least `minIdle` addresses are idle at any time, so that
 * pods start without the cloud; at most `maxIdle` stay idle.
 */
import {
  blockOf,
  type Counts,
  countPool,
  idleFloor,
  matchesConstraint,
  ordinaryOf,
  STALE_VSWITCH_MS,
  slotsTaken,
  usableOf,
} from "./counts.ts";
import {
  affordable,
  chooseVSwitch,
  emptyPlan,
  fullVSwitch,
  grow,
  type Obstacle,
  type Plan,
  type Want,
} from "./grow.ts";
import { initialMemory, remember } from "./memory.ts";
import { type Looks, looksDue, pressed, RESTART_SPREAD_MS } from "./observe.ts";
import { balance, isSpare, makeRoom, retireDedicated, shrink } from "./shrink.ts";
import type { Condition, Decision, PoolMemory, PoolState, PoolVSwitch } from "./state.ts";

export type * from "./state.ts";

const NO_LOOKS: Looks = { now: [], nextAtMs: undefined };
/** Filling up ahead of demand begins this much spread over a fleet that starts at once. */
const FILL_SPREAD_MS = 2 * RESTART_SPREAD_MS;
/** Two calls within this time: pods keep coming. */
const BUSY_MS = 60_000;
/** An obstacle that passes within this time does not make a pod fail: it waits. */
const WORTH_WAITING_MS = 10_000;

export function decide(state: PoolState, nowMs: number): Decision {
  const counts = countPool(ordinaryOf(state));
  const memory = remember(state.memory ?? initialMemory(nowMs, 0, true), state, counts, nowMs);
  if (state.memory !== undefined && !memory.known && memory.observed.enis?.okAtMs === undefined)
    return lookFirst(state, memory, nowMs);
  const plan = emptyPlan();

  // The last one stays: the next ordinary pod must not wait for the cloud.
  if ((state.roomFor ?? 0) > 0 && state.enis.filter((e) => e.state === "ready").length > 1)
    makeRoom(state, plan, nowMs);
  const stuckConstrained = (state.constrained ?? []).map((c) => serveConstrained(state, c, plan, nowMs));
  // Cooling addresses serve the floor soon, but no pod that waits now.
  const waiters = heldBack(state, plan, nowMs) ? 0 : state.waiters;
  const urgent = Math.max(0, waiters - counts.idle - counts.coming);
  const floor = idleFloor(state.config, counts.allocated);
  const short = floor + waiters - counts.idle - counts.cooling - counts.coming;
  // One call for both: what is made for a pod that waits brings the floor along.
  const fills = short > urgent && mayFill(memory, state, counts, floor, plan, nowMs);
  const least = fills ? short : urgent;
  const wanted = least > 0 ? Math.max(least, wholeCall(memory, state, counts, waiters, nowMs)) : 0;
  const missing = wanted > 0 ? grow(state, { count: wanted, urgent: urgent > 0 }, plan, nowMs) : 0;
  const unserved = Math.max(0, urgent - (wanted - missing));
  const stuck = unserved > 0 ? whyStuck(state, plan.obstacles, {}, nowMs) : undefined;
  balance(state, plan, nowMs);
  retireDedicated(state, memory, missing > 0, plan, nowMs);
  preAttach(state, plan, nowMs);
  if (short <= 0 && plan.actions.every((a) => a.kind === "assign" && a.family !== undefined))
    shrink(state, memory, counts, plan, nowMs);

  const lacking = missing > 0 || stuckConstrained.some((s) => s !== undefined);
  afterCooling(state, counts, floor, plan);
  // By our own count of what we took, or by what the cloud said.
  const full = exhausted(state, nowMs).length > 0 || plan.obstacles.some((o) => o.condition === "VSwitchExhausted");
  const lack = { short: full && (lacking || pressed(memory, nowMs)), blind: plan.blind };
  const looks = state.memory === undefined ? NO_LOOKS : looksDue(memory, lack, nowMs, state.config.reconcileMs);
  const interval = state.config.warmupIntervalMs;
  return {
    actions: plan.actions,
    stuck,
    stuckConstrained,
    againAtMs: earliest(
      [...plan.obstacles.map((o) => o.untilMs), looks.nextAtMs, interval === undefined ? undefined : nowMs + interval],
      nowMs,
    ),
    observe: looks.now,
    conditions: conditionsOf(state, memory, plan, counts, lacking, nowMs),
    memory: plan.actions.some((a) => a.kind === "assign" || a.kind === "create")
      ? { ...memory, askedAtMs: nowMs }
      : memory,
  };
}

/** What is attached already is not known: to ask for more now could double it. */
function lookFirst(state: PoolState, memory: PoolMemory, nowMs: number): Decision {
  const looks = looksDue(memory, { short: false, blind: false }, nowMs, state.config.reconcileMs);
  const problem = memory.observed.enis?.problem;
  const stuck = problem === undefined ? undefined : `it is not known which ENIs this node has: ${problem}`;
  return {
    actions: [],
    stuck: state.waiters > 0 ? stuck : undefined,
    stuckConstrained: (state.constrained ?? []).map(() => stuck),
    againAtMs: looks.nextAtMs,
    observe: looks.now,
    conditions: stuck === undefined ? [] : [{ reason: "CloudUnavailable", about: "pool", message: stuck }],
    memory,
  };
}

/**
 * Pods that come one by one would cost a call each. Where the last call was a moment ago, the next one brings as many
 * addresses as it can carry, as far as the ceiling allows.
 */
function wholeCall(memory: PoolMemory, state: PoolState, counts: Counts, waiters: number, nowMs: number): number {
  if (memory.askedAtMs === undefined || nowMs - memory.askedAtMs > BUSY_MS) return 0;
  return Math.min(state.config.batch, waiters + state.config.maxIdle - counts.idle - counts.cooling - counts.coming);
}

/** The end of a cool-down is an event that nobody announces: somebody may wait for it, or it may be one too many. */
function afterCooling(state: PoolState, counts: Counts, floor: number, plan: Plan): void {
  if (counts.cooling === 0 || (state.waiters === 0 && counts.idle + counts.cooling <= floor)) return;
  for (const eni of state.enis)
    if (eni.nextFreeAtMs !== undefined) plan.obstacles.push({ untilMs: eni.nextFreeAtMs, reason: "" });
}

/** The first pods of a burst wait a moment for the others, so that one call serves them all (CFG-53 to 55). */
function heldBack(state: PoolState, plan: Plan, nowMs: number): boolean {
  const { batchWindowMs = 0, batchSize = 1 } = state.config;
  const untilMs = (state.waitingSinceMs ?? Number.NEGATIVE_INFINITY) + batchWindowMs;
  if (state.waiters === 0 || state.waiters >= batchSize || untilMs <= nowMs) return false;
  plan.obstacles.push({ untilMs, reason: "" });
  return true;
}

/**
 * A node that just started, and can start pods, leaves the cloud to those that cannot: the more it has, the longer it
 * waits. One that has nothing begins at once.
 */
function mayFill(
  memory: PoolMemory,
  state: PoolState,
  counts: Counts,
  floor: number,
  plan: Plan,
  nowMs: number,
): boolean {
  if (state.memory === undefined || !memory.known) return true;
  const share = Math.min(1, counts.idle / Math.max(1, floor));
  const untilMs = memory.startedAtMs + memory.seed * FILL_SPREAD_MS * share;
  if (untilMs <= nowMs) return true;
  plan.obstacles.push({ untilMs, reason: "" });
  return false;
}

function serveConstrained(
  state: PoolState,
  demand: { readonly only: NonNullable<Want["only"]>; readonly waiters: number },
  plan: Plan,
  nowMs: number,
): string | undefined {
  const { only } = demand;
  const here = countPool({ ...state, operations: [] }, (e) => matchesConstraint(e, only));
  const coming = state.operations.reduce((n, o) => {
    const on = state.enis.find((e) => e.id === o.eniId);
    const fits = on === undefined ? JSON.stringify(o.only) === JSON.stringify(only) : matchesConstraint(on, only);
    return fits && (o.kind === "create" || o.kind === "assign") ? n + o.count : n;
  }, 0);
  const count = demand.waiters - here.idle - coming;
  if (count <= 0) return undefined;
  const local = emptyPlan(plan.actions);
  const left = grow(state, { count, urgent: true, only }, local, nowMs);
  const creates = plan.actions.filter((a) => a.kind === "create").length;
  const full = slotsTaken(state) + creates >= state.limits.enis;
  if (left > 0 && full && only.eniIds === undefined && makeRoom(state, local, nowMs)) return undefined;
  plan.obstacles.push(...local.obstacles);
  plan.blind ||= local.blind;
  return left > 0 ? whyStuck(state, local.obstacles, only, nowMs) : undefined;
}

/** ENIs without a pod are kept attached, up to `preAttach`: the next burst saves the seconds that attaching takes. */
function preAttach(state: PoolState, plan: Plan, nowMs: number): void {
  const wanted = state.config.preAttach ?? 0;
  if (wanted === 0 || !state.config.hotPlug || blockOf(state, "create", nowMs) || blockOf(state, "all", nowMs)) return;
  const planned = plan.actions.filter((a) => a.kind === "create").length;
  const spare =
    state.enis.filter(isSpare).length +
    state.operations.filter((o) => o.kind === "create" && !state.enis.some((e) => e.id === o.eniId)).length;
  let missing = Math.min(wanted - spare, state.limits.enis - slotsTaken(state)) - planned;
  for (; missing > 0; missing--) {
    const vswitch = chooseVSwitch(state, undefined, plan, nowMs);
    if (vswitch === undefined || !affordable(state, "create", plan)) return;
    plan.actions.push({ kind: "create", vswitchId: vswitch.id, count: 0 });
  }
}

/** @returns undefined when waiting is worth while: something is under way, or the obstacle passes soon. */
function whyStuck(
  state: PoolState,
  obstacles: readonly Obstacle[],
  only: NonNullable<Want["only"]>,
  nowMs: number,
): string | undefined {
  const lasting = obstacles.filter((o) => o.reason !== "" && !passesSoon(o, nowMs));
  const reasons = [...new Set(lasting.map((o) => o.reason))];
  if (reasons.length > 0) return reasons.join("; ");
  if (obstacles.length > 0 || state.roomComing) return undefined;
  // Something is under way: not stuck yet.
  if (state.operations.length > 0 || state.enis.some((e) => e.state === "attaching")) return undefined;
  const nextFree = Math.min(...state.enis.map((e) => e.nextFreeAtMs ?? Number.POSITIVE_INFINITY));
  if (nextFree - nowMs <= WORTH_WAITING_MS / 2) return undefined;
  if (state.vswitches.length === 0) return "eni_conf names no vSwitch of this node's zone: add one under vswitches";
  const matching = state.enis.filter((e) => matchesConstraint(e, only));
  if (only.eniIds !== undefined)
    return `ENI ${only.eniIds.join(", ")} has no address left: ${matching.length} of them on this node`;
  return allTaken(state, nowMs);
}

function passesSoon(o: Obstacle, nowMs: number): boolean {
  const transient = o.condition === "CloudThrottled" || o.condition === "CloudUnavailable";
  return transient && o.untilMs !== undefined && o.untilMs - nowMs <= WORTH_WAITING_MS;
}

function allTaken(state: PoolState, nowMs: number): string {
  const attached = slotsTaken(state);
  const cooling = state.enis.reduce((n, e) => n + e.cooling, 0);
  const nextFree = Math.min(...state.enis.map((e) => e.nextFreeAtMs ?? Number.POSITIVE_INFINITY));
  const next = Number.isFinite(nextFree) ? `, the next one free in ${Math.ceil((nextFree - nowMs) / 1000)} s` : "";
  return `all ${attached} of ${state.limits.enis} ENIs of this instance type have their ${state.limits.perEni} addresses (${cooling} cooling down${next}): use a larger type or more nodes`;
}

/** vSwitches that were full when last asked, or seen. */
function exhausted(state: PoolState, nowMs: number): string[] {
  const full = (v: PoolVSwitch) => v.available === 0 && nowMs - (v.atMs ?? nowMs) <= STALE_VSWITCH_MS;
  return state.vswitches
    .filter((v) => full(v) || blockOf(state, `vswitch:${v.id}`, nowMs)?.condition === "VSwitchExhausted")
    .map((v) => v.id);
}

function conditionsOf(
  state: PoolState,
  memory: PoolMemory,
  plan: Plan,
  counts: Counts,
  lacking: boolean,
  nowMs: number,
): Condition[] {
  const found = new Map<string, Condition>();
  const add = (o: Obstacle, about: string | undefined) => {
    const key = `${o.condition} ${about}`;
    if (o.condition !== undefined && about !== undefined && !found.has(key))
      found.set(key, { reason: o.condition, about, message: o.reason });
  };
  for (const key of Object.keys(state.inhibitions)) {
    const block = blockOf(state, key, nowMs);
    if (block !== undefined) add(block, key);
  }
  for (const o of plan.obstacles) add(o, o.about);
  // Between two tries of the same pods, too.
  if (pressed(memory, nowMs)) for (const id of exhausted(state, nowMs)) add(fullVSwitch(id, nowMs), `vswitch:${id}`);
  const noRoom =
    slotsTaken(state) >= state.limits.enis &&
    state.enis.every((e) => e.state === "lost" || Math.max(e.total, e.total6 ?? 0) >= state.limits.perEni);
  const usable = state.enis.reduce((n, e) => n + (e.state === "ready" ? usableOf(e) : 0), 0);
  if (noRoom && lacking && usable + counts.coming === 0)
    add({ untilMs: undefined, reason: allTaken(state, nowMs), condition: "PoolExhausted" }, "pool");
  return [...found.values()];
}

function earliest(times: readonly (number | undefined)[], nowMs: number): number | undefined {
  const later = times.filter((t) => t !== undefined && t > nowMs) as number[];
  return later.length === 0 ? undefined : Math.min(...later);
}
