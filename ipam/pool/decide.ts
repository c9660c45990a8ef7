/**
 * The pool's decisions: from what is known at a moment to what should be asked of the cloud. Pure: no clock, no store,
 * no network; the same code runs in the agent, in tests and in the simulation.
 *
 * Meaning of the two bounds (requirements CON-10, CON-11): at least `minIdle` addresses are idle at any time, so that
 * pods start without the cloud; at most `maxIdle` stay idle.
 */

export interface PoolConfig {
  readonly minIdle: number;
  readonly maxIdle: number;
  /** Addresses in one call. The API takes 10. */
  readonly batch: number;
  /** Idle addresses above `minIdle` are given back after this long without demand. */
  readonly idleTtlMs: number;
  readonly dualStack: boolean;
  /** Which ENI gets new addresses. */
  readonly fill: "fewest" | "most";
  /** Attach and detach ENIs at all. */
  readonly hotPlug: boolean;
}

export interface PoolLimits {
  /** ENIs that the pool may have: the instance's maximum less the primary one. */
  readonly enis: number;
  /** Secondary addresses of one ENI. */
  readonly perEni: number;
}

export interface PoolEni {
  readonly id: string;
  readonly state: "attaching" | "ready" | "draining" | "detaching" | "deleting" | "lost";
  readonly vswitchId: string;
  /** IPv4 (or IPv6 where there is no IPv4) addresses in any state but `releasing`. */
  readonly total: number;
  readonly allocated: number;
  readonly reserved: number;
  /** Free to be handed out now; the longest idle first. */
  readonly idle: readonly string[];
  readonly cooling: number;
  /** Moment of the last address given back to the cloud. */
  readonly unassignedAtMs: number | undefined;
}

/** A call that is under way. */
export interface PoolOperation {
  readonly kind: "create" | "assign" | "unassign" | "remove";
  readonly eniId: string | undefined;
  /** Addresses that will come, or go. */
  readonly count: number;
}

export interface Inhibition {
  readonly untilMs: number;
  /** Said to the operator. */
  readonly reason: string;
}

export interface PoolState {
  readonly config: PoolConfig;
  readonly limits: PoolLimits;
  readonly enis: readonly PoolEni[];
  /** Pods that wait for an address. */
  readonly waiters: number;
  readonly operations: readonly PoolOperation[];
  /** The node's vSwitches in order of preference, with what they have free as far as known. */
  readonly vswitches: readonly { readonly id: string; readonly available: number | undefined }[];
  /** By `vswitch:ID`, `create`, `assign`, `all`. */
  readonly inhibitions: Readonly<Record<string, Inhibition>>;
  /** Since when more than `minIdle` are idle; undefined when not. */
  readonly surplusSinceMs: number | undefined;
}

export type PoolAction =
  | { readonly kind: "create"; readonly vswitchId: string; readonly count: number }
  | { readonly kind: "assign"; readonly eniId: string; readonly count: number }
  | { readonly kind: "unassign"; readonly eniId: string; readonly addresses: readonly string[] }
  /** Detach and delete; every address of it is idle. */
  | { readonly kind: "remove"; readonly eniId: string };

export interface Decision {
  readonly actions: readonly PoolAction[];
  /** Why pods that wait cannot be served now; undefined when they can, or none waits. */
  readonly stuck: string | undefined;
  /** When to decide again although nothing happened; undefined: no need to. */
  readonly againAtMs: number | undefined;
}

/** An ENI that just gave addresses back gets none for this long, unless a pod waits: no see-saw. */
const QUIET_AFTER_UNASSIGN_MS = 60_000;

function inhibition(state: PoolState, key: string, nowMs: number): Inhibition | undefined {
  const found = state.inhibitions[key];
  return found !== undefined && found.untilMs > nowMs ? found : undefined;
}

export function decide(state: PoolState, nowMs: number): Decision {
  const counts = count(state);
  // Cooling addresses serve the floor soon, but no pod that waits now.
  const missing = Math.max(
    state.waiters - counts.idle - counts.coming,
    state.config.minIdle - counts.idle - counts.cooling - counts.coming,
  );
  if (missing > 0) return grow(state, missing, nowMs);
  return shrink(state, counts, nowMs);
}

interface Counts {
  readonly idle: number;
  readonly cooling: number;
  /** Under way from the cloud. */
  readonly coming: number;
  readonly going: number;
}

function count(state: PoolState): Counts {
  const ready = state.enis.filter((e) => e.state === "ready");
  const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);
  return {
    idle: sum(ready.map((e) => e.idle.length)),
    cooling: sum(ready.map((e) => e.cooling)),
    coming: sum(state.operations.filter((o) => o.kind === "create" || o.kind === "assign").map((o) => o.count)),
    going: sum(state.operations.filter((o) => o.kind === "unassign").map((o) => o.count)),
  };
}

/** One call at a time for an ENI: the cloud answers a second one with a conflict. */
function isBusy(state: PoolState, eniId: string): boolean {
  return state.operations.some((o) => o.eniId === eniId);
}

function grow(state: PoolState, missing: number, nowMs: number): Decision {
  const actions: PoolAction[] = [];
  const obstacles: Inhibition[] = [];
  let left = missing;
  const all = inhibition(state, "all", nowMs);
  if (all !== undefined) return { actions, stuck: state.waiters > 0 ? all.reason : undefined, againAtMs: all.untilMs };

  const assignBlock = inhibition(state, "assign", nowMs);
  if (assignBlock) obstacles.push(assignBlock);
  for (const eni of candidates(state)) {
    if (left <= 0 || assignBlock) break;
    const block = inhibition(state, `vswitch:${eni.vswitchId}`, nowMs);
    if (block !== undefined) {
      obstacles.push(block);
      continue;
    }
    if (
      state.waiters === 0 &&
      eni.unassignedAtMs !== undefined &&
      nowMs < eni.unassignedAtMs + QUIET_AFTER_UNASSIGN_MS
    ) {
      obstacles.push({ untilMs: eni.unassignedAtMs + QUIET_AFTER_UNASSIGN_MS, reason: "" });
      continue;
    }
    const n = Math.min(left, state.limits.perEni - eni.total, state.config.batch);
    if (n > 0) actions.push({ kind: "assign", eniId: eni.id, count: n });
    left -= Math.max(0, n);
  }
  if (left > 0) left -= addEnis(state, left, nowMs, actions, obstacles);
  return { actions, stuck: stuckReason(state, left, obstacles), againAtMs: earliest(obstacles) };
}

function candidates(state: PoolState): PoolEni[] {
  const open = state.enis.filter((e) => e.state === "ready" && e.total < state.limits.perEni && !isBusy(state, e.id));
  return open.sort(
    (a, b) => (state.config.fill === "fewest" ? a.total - b.total : b.total - a.total) || (a.id < b.id ? -1 : 1),
  );
}

/** @returns How many addresses the new ENIs will bring. */
function addEnis(
  state: PoolState,
  wanted: number,
  nowMs: number,
  actions: PoolAction[],
  obstacles: Inhibition[],
): number {
  const creating = state.operations.filter((o) => o.kind === "create" && o.eniId === undefined).length;
  const have = state.enis.filter((e) => e.state !== "lost").length + creating;
  let slots = state.config.hotPlug ? state.limits.enis - have : 0;
  const block = inhibition(state, "create", nowMs);
  if (slots > 0 && block !== undefined) {
    obstacles.push(block);
    return 0;
  }
  let brought = 0;
  while (slots > 0 && brought < wanted) {
    const vswitchId = chooseVSwitch(state, nowMs, actions, obstacles);
    if (vswitchId === undefined) break;
    const n = Math.min(wanted - brought, state.limits.perEni, state.config.batch);
    actions.push({ kind: "create", vswitchId, count: n });
    brought += n;
    slots -= 1;
  }
  return brought;
}

/** The first vSwitch with room, least used by what was decided a moment ago. */
function chooseVSwitch(
  state: PoolState,
  nowMs: number,
  actions: readonly PoolAction[],
  obstacles: Inhibition[],
): string | undefined {
  const open = state.vswitches.filter((v) => {
    const block = inhibition(state, `vswitch:${v.id}`, nowMs);
    if (block !== undefined) obstacles.push(block);
    return block === undefined && v.available !== 0;
  });
  const planned = (id: string) => actions.filter((a) => a.kind === "create" && a.vswitchId === id).length;
  return [...open].sort((a, b) => planned(a.id) - planned(b.id) || (b.available ?? 0) - (a.available ?? 0))[0]?.id;
}

function stuckReason(state: PoolState, left: number, obstacles: readonly Inhibition[]): string | undefined {
  if (left <= 0 || state.waiters === 0) return undefined;
  const reasons = [...new Set(obstacles.map((o) => o.reason).filter((r) => r !== ""))];
  if (reasons.length > 0) return reasons.join("; ");
  const attached = state.enis.filter((e) => e.state !== "lost").length;
  // Something is under way: not stuck yet.
  if (state.operations.length > 0 || state.enis.some((e) => e.state === "attaching")) return undefined;
  const full = state.vswitches.filter((v) => v.available === 0).map((v) => `vSwitch ${v.id} has 0 free addresses`);
  if (attached < state.limits.enis && full.length > 0) return full.join("; ");
  return `all ${attached} of ${state.limits.enis} ENIs of this instance type have their ${state.limits.perEni} addresses`;
}

function earliest(obstacles: readonly Inhibition[]): number | undefined {
  return obstacles.length === 0 ? undefined : Math.min(...obstacles.map((o) => o.untilMs));
}

function shrink(state: PoolState, counts: Counts, nowMs: number): Decision {
  const { minIdle, maxIdle, idleTtlMs } = state.config;
  const idle = counts.idle - counts.going;
  const rested = state.surplusSinceMs !== undefined && nowMs >= state.surplusSinceMs + idleTtlMs;
  // What cools will be idle soon: counted as kept, so that a burst of deletions is not answered with calls at once.
  const keep = rested ? minIdle : maxIdle;
  let excess = idle - keep;
  const againAtMs =
    state.surplusSinceMs !== undefined && !rested && idle > minIdle ? state.surplusSinceMs + idleTtlMs : undefined;
  if (excess <= 0 || inhibition(state, "all", nowMs)) return { actions: [], stuck: undefined, againAtMs };
  const actions: PoolAction[] = [];
  // From the emptiest ENI first, so that whole ENIs come free.
  const ready = state.enis
    .filter((e) => e.state === "ready" && !isBusy(state, e.id))
    .sort(
      (a, b) => a.allocated + a.reserved - (b.allocated + b.reserved) || a.total - b.total || (a.id < b.id ? 1 : -1),
    );
  for (const eni of ready) {
    if (excess <= 0) break;
    const empty = eni.allocated === 0 && eni.reserved === 0 && eni.cooling === 0;
    if (empty && state.config.hotPlug && eni.idle.length <= excess) {
      actions.push({ kind: "remove", eniId: eni.id });
      excess -= eni.idle.length;
      continue;
    }
    const addresses = eni.idle.slice(0, Math.min(excess, state.config.batch));
    if (addresses.length > 0) actions.push({ kind: "unassign", eniId: eni.id, addresses });
    excess -= addresses.length;
  }
  return { actions, stuck: undefined, againAtMs };
}
