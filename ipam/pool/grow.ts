/** Where missing addresses come from: ENIs with room first, then new ENIs. */
import type { EniConstraint } from "../store/eni-constraint.ts";
import { blockOf, isBusy, matchesConstraint, STALE_VSWITCH_MS, slotsTaken, takenOf } from "./counts.ts";
import type { ConditionReason, PoolAction, PoolEni, PoolOperation, PoolState, PoolVSwitch } from "./state.ts";

/** An ENI that just gave addresses back gets none for this long, unless a pod waits: no see-saw (F-52). */
export const QUIET_AFTER_UNASSIGN_MS = 60_000;
/** Calls under way to one vSwitch while nobody knows how much it has: no more than may fail in a minute (F-09). */
const BLIND_CALLS = 2;
/** A look takes about as long. */
const LOOK_MS = 1000;

/** Why something wanted is not done now. */
export interface Obstacle {
  readonly untilMs: number | undefined;
  /** Empty: it passes by itself, soon. */
  readonly reason: string;
  readonly condition?: ConditionReason | undefined;
  /** Of the condition. Absent: the inhibition that this is tells it. */
  readonly about?: string;
}

/** What was decided so far in this round, so that the next choice counts with it. */
export interface Plan {
  readonly actions: PoolAction[];
  readonly obstacles: Obstacle[];
  /** More would be asked for if it were known how much there is. */
  blind: boolean;
}

export function emptyPlan(actions: PoolAction[] = []): Plan {
  return { actions, obstacles: [], blind: false };
}

export interface Want {
  readonly count: number;
  /** A pod waits for it. */
  readonly urgent: boolean;
  readonly only?: EniConstraint | undefined;
}

/** What a vSwitch runs out of is IPv4 addresses: an IPv6-only pool takes one for each ENI, and no more. */
function drawsSecondaries(state: PoolState): boolean {
  return state.config.stack !== "ipv6";
}

/** Adds actions to the plan until the wanted addresses come. @returns How many do not. */
export function grow(state: PoolState, want: Want, plan: Plan, nowMs: number): number {
  const all = blockOf(state, "all", nowMs);
  if (all !== undefined) {
    plan.obstacles.push(all);
    return want.count;
  }
  const left = want.count - fillEnis(state, want, plan, nowMs);
  // An ENI that has room gets its addresses sooner and cheaper than a new one could bring them, even if it has to wait.
  const beyond = left - roomLater(state, want, plan, nowMs);
  return beyond <= 0 ? left : left - addEnis(state, { ...want, count: beyond }, plan, nowMs);
}

/** Room on ENIs that get nothing in this round, but soon: another call runs, or the budget is used up. */
function roomLater(state: PoolState, want: Want, plan: Plan, nowMs: number): number {
  if (blockOf(state, "assign", nowMs) !== undefined) return 0;
  return state.enis.reduce((room, e) => {
    const fits = matchesConstraint(e, want.only ?? {});
    if (e.state !== "ready" || e.foreign === true || !fits || obstacleOn(state, e, want, nowMs) !== undefined)
      return room;
    const vswitch = state.vswitches.find((v) => v.id === e.vswitchId);
    if (drawsSecondaries(state) && vswitch !== undefined && roomIn(state, vswitch, plan, nowMs) === 0) return room;
    const own = (a: { readonly kind: string; readonly count?: number; readonly eniId?: string | undefined }) =>
      a.kind === "assign" && a.eniId === e.id ? (a.count ?? 0) : 0;
    const promised = [...state.operations, ...plan.actions].reduce((n, a) => n + own(a), 0);
    return room + Math.max(0, state.limits.perEni - takenOf(e) - promised);
  }, 0);
}

/** Takes one call out of the budget of its kind; without any left, says when there is one again. */
export function affordable(state: PoolState, kind: PoolAction["kind"], plan: Plan): boolean {
  const budget = state.budgets?.[kind];
  if (budget === undefined || plan.actions.filter((a) => a.kind === kind).length < budget.tokens) return true;
  plan.obstacles.push({ untilMs: budget.nextAtMs, reason: "" });
  return false;
}

function fillEnis(state: PoolState, want: Want, plan: Plan, nowMs: number): number {
  const block = blockOf(state, "assign", nowMs);
  if (block !== undefined) {
    plan.obstacles.push(block);
    return 0;
  }
  const perCall = want.urgent
    ? state.config.batch
    : Math.min(state.config.batch, state.config.warmupBatch ?? state.config.batch);
  let brought = 0;
  for (const eni of candidates(state, want, plan)) {
    if (brought >= want.count) break;
    const obstacle = obstacleOn(state, eni, want, nowMs);
    if (obstacle !== undefined) {
      plan.obstacles.push(obstacle);
      continue;
    }
    const vswitch = state.vswitches.find((v) => v.id === eni.vswitchId);
    const room = !drawsSecondaries(state) ? Number.POSITIVE_INFINITY : vswitch && roomIn(state, vswitch, plan, nowMs);
    if (room === 0) {
      plan.obstacles.push(fullVSwitch(eni.vswitchId, nowMs));
      continue;
    }
    if (room === undefined && tooBlind(state, eni.vswitchId, plan, nowMs)) continue;
    if (!affordable(state, "assign", plan)) break;
    const count = Math.min(want.count - brought, state.limits.perEni - takenOf(eni), perCall, room ?? perCall);
    plan.actions.push({ kind: "assign", eniId: eni.id, count });
    brought += count;
  }
  return brought;
}

function candidates(state: PoolState, want: Want, plan: Plan): PoolEni[] {
  const { only } = want;
  const whole = Math.min(want.count, state.config.batch);
  const fits = (eni: PoolEni) => state.limits.perEni - takenOf(eni) >= whole;
  return state.enis
    .filter(
      (e) =>
        e.state === "ready" &&
        e.foreign !== true &&
        takenOf(e) < state.limits.perEni &&
        !isBusy(state, e.id) &&
        !plan.actions.some((a) => "eniId" in a && a.eniId === e.id) &&
        matchesConstraint(e, only ?? {}),
    )
    .sort(
      (a, b) =>
        // One that takes all of it saves a call.
        Number(fits(b)) - Number(fits(a)) ||
        (state.config.fill === "fewest" ? takenOf(a) - takenOf(b) : takenOf(b) - takenOf(a)) ||
        (a.id < b.id ? -1 : 1),
    );
}

function obstacleOn(state: PoolState, eni: PoolEni, want: Want, nowMs: number): Obstacle | undefined {
  const vswitch = blockOf(state, `vswitch:${eni.vswitchId}`, nowMs);
  const full = vswitch?.condition === "VSwitchExhausted" && !drawsSecondaries(state);
  const block = blockOf(state, `eni:${eni.id}`, nowMs) ?? (full ? undefined : vswitch);
  if (block !== undefined) return block;
  const quietUntil = (eni.unassignedAtMs ?? Number.NEGATIVE_INFINITY) + QUIET_AFTER_UNASSIGN_MS;
  return !want.urgent && nowMs < quietUntil ? { untilMs: quietUntil, reason: "" } : undefined;
}

function addEnis(state: PoolState, want: Want, plan: Plan, nowMs: number): number {
  // Nothing new can be one of these.
  if (want.only?.eniIds !== undefined) return 0;
  let slots = state.limits.enis - slotsTaken(state) - plan.actions.filter((a) => a.kind === "create").length;
  if (slots <= 0) return 0;
  if (!state.config.hotPlug) {
    plan.obstacles.push({
      untilMs: undefined,
      reason: "hot_plug is false in eni_conf: no ENI is attached while the instance runs",
      condition: "HotPlugOff",
      about: "pool",
    });
    return 0;
  }
  const block = blockOf(state, "create", nowMs);
  if (block !== undefined) {
    plan.obstacles.push(block);
    return 0;
  }
  let brought = 0;
  while (slots > 0 && brought < want.count) {
    const vswitch = chooseVSwitch(state, want.only, plan, nowMs);
    if (vswitch === undefined || !affordable(state, "create", plan)) break;
    // The ENI's primary address comes out of the same vSwitch.
    const room = roomIn(state, vswitch, plan, nowMs);
    if (room === undefined && tooBlind(state, vswitch.id, plan, nowMs)) break;
    const count = Math.min(
      want.count - brought,
      state.limits.perEni,
      state.config.batch,
      drawsSecondaries(state) ? Math.max(0, (room ?? Number.POSITIVE_INFINITY) - 1) : Number.POSITIVE_INFINITY,
    );
    if (count === 0 || room === 0) {
      plan.obstacles.push(fullVSwitch(vswitch.id, nowMs));
      break;
    }
    plan.actions.push({ kind: "create", vswitchId: vswitch.id, count, ...(want.only && { only: want.only }) });
    brought += count;
    slots -= 1;
  }
  return brought;
}

/** The vSwitch for a new ENI: open, with room, by policy; the least used of this round first. */
export function chooseVSwitch(
  state: PoolState,
  only: EniConstraint | undefined,
  plan: Plan,
  nowMs: number,
): PoolVSwitch | undefined {
  const open = state.vswitches.filter((v) => {
    if (only?.vswitchIds === undefined ? v.onlyAsked : !only.vswitchIds.includes(v.id)) return false;
    const block = blockOf(state, `vswitch:${v.id}`, nowMs);
    if (block !== undefined) {
      plan.obstacles.push(block);
      return false;
    }
    // An ENI alone takes one address.
    if ((roomIn(state, v, plan, nowMs) ?? 1) > 0) return true;
    plan.obstacles.push(fullVSwitch(v.id, nowMs));
    return false;
  });
  const planned = (id: string) => plan.actions.filter((a) => a.kind === "create" && a.vswitchId === id).length;
  switch (state.config.vswitchPolicy ?? "most") {
    case "ordered":
      return open[0];
    case "random": {
      const turn = (state.memory?.seed ?? 0) * state.vswitches.length + slotsTaken(state) + plan.actions.length;
      return open[Math.floor(turn) % Math.max(1, open.length)];
    }
    case "most":
      return [...open].sort((a, b) => planned(a.id) - planned(b.id) || (b.available ?? 0) - (a.available ?? 0))[0];
  }
}

/**
 * Free addresses when last seen, less what we took since, what is under way and what this round asks for; undefined when
 * not known, or known too long ago.
 */
function roomIn(state: PoolState, vswitch: PoolVSwitch, plan: Plan, nowMs: number): number | undefined {
  const seenAtMs = vswitch.atMs ?? nowMs;
  if (vswitch.available === undefined || nowMs - seenAtMs > STALE_VSWITCH_MS) return undefined;
  const taken = (state.memory?.taken[vswitch.id] ?? []).reduce((n, t) => (t.atMs > seenAtMs ? n + t.count : n), 0);
  const underWay = state.operations.reduce((n, o) => n + drawnBy(state, o, vswitch.id), 0);
  const asked = plan.actions.reduce((n, a) => n + drawnBy(state, a, vswitch.id), 0);
  return Math.max(0, vswitch.available - taken - underWay - asked);
}

/** What one call takes out of a vSwitch; a new ENI takes its primary address besides. */
function drawnBy(state: PoolState, call: PoolAction | PoolOperation, vswitchId: string): number {
  const secondaries = drawsSecondaries(state);
  if (call.kind === "create")
    return call.vswitchId === vswitchId && !("eniId" in call && call.eniId) ? 1 + (secondaries ? call.count : 0) : 0;
  if (call.kind !== "assign" || !secondaries) return 0;
  return state.enis.find((e) => e.id === call.eniId)?.vswitchId === vswitchId ? call.count : 0;
}

function tooBlind(state: PoolState, vswitchId: string, plan: Plan, nowMs: number): boolean {
  const vswitchOf = (eniId: string | undefined) => state.enis.find((e) => e.id === eniId)?.vswitchId;
  const underWay = state.operations.filter((o) => {
    if (o.kind !== "create" && o.kind !== "assign") return false;
    // An ENI that is there has its addresses: the call that can fail is over.
    return o.kind === "create" ? o.eniId === undefined && o.vswitchId === vswitchId : vswitchOf(o.eniId) === vswitchId;
  });
  const planned = plan.actions.filter((a) => {
    if (a.kind === "create") return a.vswitchId === vswitchId;
    return a.kind === "assign" && vswitchOf(a.eniId) === vswitchId;
  });
  if (underWay.length + planned.length < BLIND_CALLS) return false;
  plan.blind = true;
  plan.obstacles.push({ untilMs: nowMs + LOOK_MS, reason: "" });
  return true;
}

export function fullVSwitch(id: string, nowMs: number): Obstacle {
  return {
    untilMs: nowMs + STALE_VSWITCH_MS,
    reason: `vSwitch ${id} has 0 free addresses: free some, or add a vSwitch of this zone to eni_conf`,
    condition: "VSwitchExhausted",
    about: `vswitch:${id}`,
  };
}
