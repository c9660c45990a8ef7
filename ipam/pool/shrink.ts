/** What goes back to the vSwitch: idle addresses above the ceiling, and those that nobody needed for a long time. */
import { blockOf, type Counts, idleFloor, isBusy, matchesConstraint, usableOf } from "./counts.ts";
import { affordable, type Plan } from "./grow.ts";
import { lowestIdle, nextRise } from "./idle-window.ts";
import type { PoolEni, PoolMemory, PoolState } from "./state.ts";

/** A pod that got no address is tried again about as soon. */
const COME_BACK_MS = 10_000;

/** Adds releases to the plan. Never below the floor, never an address that is not idle, never an ENI with a pod. */
export function shrink(state: PoolState, memory: PoolMemory, counts: Counts, plan: Plan, nowMs: number): void {
  if (blockOf(state, "all", nowMs) !== undefined) return;
  const floor = idleFloor(state.config, counts.allocated);
  const idle = counts.idle - counts.going;
  const unneeded = unneededFor(state, memory, counts, floor, nowMs);
  again(state, memory, counts, floor, plan, nowMs);
  // What cools will be idle soon: counted as kept, so that a burst of deletions is not answered with calls at once.
  const above = idle - state.config.maxIdle;
  // More of them come free in a moment: one call for all. And pods that were sent away a moment ago come back.
  const backUntilMs = (memory.pressedAtMs ?? Number.NEGATIVE_INFINITY) + COME_BACK_MS;
  const soon = counts.cooling > 0 || nowMs < backUntilMs;
  const partial = state.memory !== undefined && above < state.config.batch && soon;
  if (partial && above > 0 && nowMs < backUntilMs) plan.obstacles.push({ untilMs: backUntilMs, reason: "" });
  let excess = Math.max(partial ? 0 : above, Math.min(unneeded, idle - floor));
  // Without memory there is no telling how long an ENI has been empty: as soon as it is.
  const restedSince = state.memory === undefined ? Number.POSITIVE_INFINITY : nowMs - state.config.idleTtlMs;
  const givers = state.enis.filter((e) => {
    const touched = isBusy(state, e.id) || plan.actions.some((a) => "eniId" in a && a.eniId === e.id);
    return e.state === "ready" && e.foreign !== true && !e.dedicated && !touched && isOpen(state, e, nowMs);
  });
  let spare = state.enis.filter(isSpare).length;
  for (const eni of emptiestFirst(givers)) {
    // A whole ENI is what an address is elsewhere: it need not have rested to be one too many.
    const rested = state.limits.whole || (memory.emptySinceMs[eni.id] ?? Number.POSITIVE_INFINITY) <= restedSince;
    const whole =
      isEmpty(eni) && rested && usableOf(eni) <= Math.max(0, excess) && spare > (state.config.preAttach ?? 0);
    if (whole && removable(state, plan, nowMs)) {
      plan.actions.push({ kind: "remove", eniId: eni.id });
      excess -= usableOf(eni);
      spare -= 1;
      continue;
    }
    if (state.limits.whole) continue;
    const addresses = eni.idle.slice(0, Math.max(0, Math.min(excess, usableOf(eni), state.config.batch)));
    if (
      addresses.length === 0 ||
      blockOf(state, "unassign", nowMs) !== undefined ||
      !affordable(state, "unassign", plan)
    )
      continue;
    plan.actions.push({
      kind: "unassign",
      eniId: eni.id,
      addresses: [...addresses, ...(eni.idle6?.slice(0, addresses.length) ?? [])],
    });
    excess -= addresses.length;
  }
}

/** Kept attached for the next pod, whoever it is. */
export function isSpare(e: PoolEni): boolean {
  return (e.state === "ready" || e.state === "attaching") && e.allocated === 0 && !e.dedicated;
}

/** A pod that got its ENI too late comes back for it within this time. */
const DEDICATED_REST_MS = 60_000;

/**
 * ENIs that were made for pods with wishes of their own go when they have been empty for a while; at once, when their slot
 * is wanted.
 */
export function retireDedicated(
  state: PoolState,
  memory: PoolMemory,
  slotWanted: boolean,
  plan: Plan,
  nowMs: number,
): void {
  const restMs = state.limits.whole ? Math.min(state.config.idleTtlMs, DEDICATED_REST_MS) : state.config.idleTtlMs;
  for (const eni of state.enis) {
    if (!eni.dedicated || !mayGo(state, eni, plan, nowMs) || isAwaited(state, eni)) continue;
    const untilMs = (memory.emptySinceMs[eni.id] ?? nowMs) + restMs;
    if (untilMs > nowMs && !slotWanted) plan.obstacles.push({ untilMs, reason: "" });
    else if (removable(state, plan, nowMs)) plan.actions.push({ kind: "remove", eniId: eni.id });
  }
}

/** Takes an empty ENI away for a pod that none of the ENIs can serve, when there is no slot left. @returns Whether it does. */
export function makeRoom(state: PoolState, plan: Plan, nowMs: number): boolean {
  const going = (a: { readonly kind: string }) => a.kind === "remove";
  if (state.operations.some(going) || plan.actions.some(going)) return true;
  const [victim] = state.enis
    .filter((e) => mayGo(state, e, plan, nowMs) && !isAwaited(state, e))
    .sort((a, b) => Number(b.dedicated ?? false) - Number(a.dedicated ?? false) || (a.id < b.id ? -1 : 1));
  if (victim === undefined || !removable(state, plan, nowMs)) return false;
  plan.actions.push({ kind: "remove", eniId: victim.id });
  return true;
}

function mayGo(state: PoolState, e: PoolEni, plan: Plan, nowMs: number): boolean {
  const touched = isBusy(state, e.id) || plan.actions.some((a) => "eniId" in a && a.eniId === e.id);
  return e.state === "ready" && e.foreign !== true && isEmpty(e) && !touched && isOpen(state, e, nowMs);
}

/** A pod waits that it can serve. */
function isAwaited(state: PoolState, eni: PoolEni): boolean {
  if (state.waiters > 0 && matchesConstraint(eni, {})) return true;
  return (state.constrained ?? []).some((c) => c.waiters > 0 && matchesConstraint(eni, c.only));
}

/** Idle addresses that were above the floor for all of the idle timeout. */
function unneededFor(state: PoolState, memory: PoolMemory, counts: Counts, floor: number, nowMs: number): number {
  const { idleTtlMs } = state.config;
  if (state.memory === undefined) {
    const since = state.surplusSinceMs;
    return since !== undefined && nowMs >= since + idleTtlMs ? counts.idle - counts.going - floor : 0;
  }
  return Math.max(0, (lowestIdle(memory.idle, idleTtlMs, nowMs) ?? 0) - floor - counts.going);
}

/** When the same look may find more to give back. */
function again(state: PoolState, memory: PoolMemory, counts: Counts, floor: number, plan: Plan, nowMs: number): void {
  const later = (untilMs: number | undefined) => {
    if (untilMs !== undefined && untilMs > nowMs) plan.obstacles.push({ untilMs, reason: "" });
  };
  const { idleTtlMs } = state.config;
  if (counts.idle - counts.going > floor) {
    if (state.memory !== undefined) later(nextRise(memory.idle, idleTtlMs, nowMs));
    else if (state.surplusSinceMs !== undefined) later(state.surplusSinceMs + idleTtlMs);
  }
  if (state.memory !== undefined) for (const since of Object.values(memory.emptySinceMs)) later(since + idleTtlMs);
}

function isOpen(state: PoolState, eni: PoolEni, nowMs: number): boolean {
  return blockOf(state, `eni:${eni.id}`, nowMs) === undefined;
}

function isEmpty(eni: PoolEni): boolean {
  return eni.allocated === 0 && eni.reserved === 0 && eni.cooling === 0;
}

function removable(state: PoolState, plan: Plan, nowMs: number): boolean {
  return state.config.hotPlug && blockOf(state, "remove", nowMs) === undefined && affordable(state, "remove", plan);
}

/** From the emptiest ENI first, so that whole ENIs come free. */
function emptiestFirst(enis: readonly PoolEni[]): PoolEni[] {
  return [...enis].sort(
    (a, b) => a.allocated + a.reserved - (b.allocated + b.reserved) || a.total - b.total || (a.id < b.id ? 1 : -1),
  );
}

/** Dual stack: brings the family that lags behind up to the other one, or takes the surplus back where it cannot. */
export function balance(state: PoolState, plan: Plan, nowMs: number): void {
  if (state.config.stack !== "dual") return;
  for (const eni of state.enis) {
    if (eni.state !== "ready" || eni.foreign === true || eni.total6 === undefined || eni.total === eni.total6) continue;
    if (isBusy(state, eni.id) || plan.actions.some((a) => "eniId" in a && a.eniId === eni.id)) continue;
    const behind = eni.total6 < eni.total ? 6 : 4;
    const count = Math.min(Math.abs(eni.total - eni.total6), state.config.batch);
    if (blockOf(state, "all", nowMs) !== undefined || !isOpen(state, eni, nowMs)) continue;
    const block = blockOf(state, "assign", nowMs) ?? blockOf(state, `vswitch:${eni.vswitchId}`, nowMs);
    if (block === undefined) {
      if (affordable(state, "assign", plan))
        plan.actions.push({ kind: "assign", eniId: eni.id, count, family: behind });
      continue;
    }
    plan.obstacles.push({ untilMs: block.untilMs, reason: "" });
    const surplus = (behind === 6 ? eni.idle : (eni.idle6 ?? [])).slice(0, count);
    if (surplus.length > 0 && blockOf(state, "unassign", nowMs) === undefined && affordable(state, "unassign", plan))
      plan.actions.push({ kind: "unassign", eniId: eni.id, addresses: surplus });
  }
}
