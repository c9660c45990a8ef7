/** Numbers about the pool that several decisions need. */
import { type EniConstraint, isSpecial } from "../store/eni-constraint.ts";
import type { Inhibition, PoolConfig, PoolEni, PoolState } from "./state.ts";

export interface Counts {
  /** Can be handed out now; in dual stack, pairs. */
  readonly idle: number;
  readonly cooling: number;
  readonly allocated: number;
  /** Under way from the cloud. */
  readonly coming: number;
  /** Under way to the cloud. */
  readonly going: number;
}

/** Addresses that the ENI could hand out now: in dual stack a pod takes one of each family. */
export function usableOf(eni: PoolEni): number {
  return eni.idle6 === undefined ? eni.idle.length : Math.min(eni.idle.length, eni.idle6.length);
}

/** Slots taken on the ENI, by the family that has more. */
export function takenOf(eni: PoolEni): number {
  return Math.max(eni.total, eni.total6 ?? 0);
}

export function countPool(state: PoolState, matches: (eni: PoolEni) => boolean = () => true): Counts {
  let [idle, cooling, allocated, coming, going] = [0, 0, 0, 0, 0];
  const ids = new Set<string>();
  for (const eni of state.enis) {
    if (!matches(eni)) continue;
    ids.add(eni.id);
    allocated += eni.allocated;
    if (eni.state !== "ready") continue;
    idle += usableOf(eni);
    cooling += eni.cooling;
  }
  for (const o of state.operations) {
    if (o.eniId !== undefined && !ids.has(o.eniId)) continue;
    if (o.kind === "create" || o.kind === "assign") coming += o.count;
    else if (o.kind === "unassign") going += o.count;
  }
  return { idle, cooling, allocated, coming, going };
}

/** What ordinary pods have of the pool. */
export function ordinaryOf(state: PoolState): PoolState {
  const dedicated = new Set(state.enis.filter((e) => e.dedicated).map((e) => e.id));
  if (dedicated.size === 0 && !state.operations.some((o) => isSpecial(o.only ?? {}))) return state;
  return {
    ...state,
    enis: state.enis.filter((e) => !e.dedicated),
    operations: state.operations.filter((o) => !isSpecial(o.only ?? {}) && !dedicated.has(o.eniId ?? "")),
  };
}

/** Idle addresses that the pool keeps: the configured floor, or the reserve if that is more; never above the ceiling. */
export function idleFloor(config: PoolConfig, allocated: number): number {
  const percent = config.reservePercent ?? 0;
  const reserve = percent === 0 ? 0 : Math.ceil((allocated * percent) / (100 - percent));
  return Math.max(config.minIdle, Math.min(config.maxIdle, reserve));
}

/** One call at a time for an ENI: the cloud answers a second one with a conflict. */
export function isBusy(state: PoolState, eniId: string): boolean {
  return state.operations.some((o) => o.eniId === eniId);
}

/** ENIs that take a slot of the instance, those under way included. */
export function slotsTaken(state: PoolState): number {
  const creating = state.operations.filter((o) => o.kind === "create" && !state.enis.some((e) => e.id === o.eniId));
  return state.enis.filter((e) => e.state !== "lost").length + creating.length;
}

export function matchesConstraint(eni: PoolEni, only: EniConstraint): boolean {
  if (eni.dedicated && !isSpecial(only) && only.eniIds === undefined) return false;
  if (only.eniIds !== undefined && !only.eniIds.includes(eni.id)) return false;
  if (only.vswitchIds !== undefined && !only.vswitchIds.includes(eni.vswitchId)) return false;
  if (only.kinds !== undefined && !only.kinds.includes("shared")) return false;
  return only.securityGroups === undefined || sameGroups(only.securityGroups, eni.securityGroups ?? []);
}

export function sameGroups(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && [...a].sort().join() === [...b].sort().join();
}

/** What was seen of a vSwitch this long ago says little about now. */
export const STALE_VSWITCH_MS = 60_000;
/** How long failures of one vSwitch are counted: at most two of them in this time (F-09). */
export const FAILURE_WINDOW_MS = 60_000;

/**
 * The inhibition in force under a key.
 *
 * A vSwitch that was full is open again as soon as somebody looked and found room, unless that was believed once already
 * within the minute and was wrong.
 */
export function blockOf(state: PoolState, key: string, nowMs: number): Inhibition | undefined {
  const found = state.inhibitions[key];
  if (found === undefined || found.untilMs <= nowMs) return undefined;
  const vswitch = state.vswitches.find((v) => key === `vswitch:${v.id}`);
  if (vswitch?.available === undefined || vswitch.atMs === undefined || found.sinceMs === undefined) return found;
  const failures = (state.memory?.failedAtMs[key] ?? []).filter((at) => at > nowMs - FAILURE_WINDOW_MS);
  const lifted = vswitch.available > 0 && vswitch.atMs > found.sinceMs && failures.length < 2;
  return lifted ? undefined : found;
}
