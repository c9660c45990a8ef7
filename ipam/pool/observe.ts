/**
 * When to look at the cloud. Rarely: the store is what pods live from, and a fleet that looks all at once is throttled
 * all at once (F-13).
 */
import type { Observation, Observed, PoolMemory } from "./state.ts";

/** An agent whose store knew its ENIs takes its first look within this time after its start. */
export const RESTART_SPREAD_MS = 300_000;
/** An agent that knows nothing has to look before it can do anything. */
const UNKNOWN_SPREAD_MS = 2000;
export const RECONCILE_MS = 900_000;
/** An answer may be older than this when it arrives, and what was just changed may be missing in it. */
export const SETTLE_MS = 5000;
/** While pods lack addresses because a vSwitch is full: how soon room is seen. Recovery takes less than 15 s (F-09). */
const EXHAUSTED_LOOK_MS = 8000;
const EXHAUSTED_QUIET_LOOK_MS = 60_000;
/** Pods that waited this long ago may come back: kubelet tries again. */
const PRESSED_FOR_MS = 120_000;

/** Pods waited a moment ago. */
export function pressed(memory: PoolMemory, nowMs: number): boolean {
  return memory.pressedAtMs !== undefined && nowMs - memory.pressedAtMs < PRESSED_FOR_MS;
}

export interface Looks {
  readonly now: readonly { readonly what: Observation; readonly reason: string }[];
  readonly nextAtMs: number | undefined;
}

export interface Lack {
  /** Addresses are wanted and not had because of full vSwitches. */
  readonly short: boolean;
  /** More would be asked for if it were known how much the vSwitches have. */
  readonly blind: boolean;
}

/** @param reconcileMs How old the picture of the node's ENIs may become. */
export function looksDue(memory: PoolMemory, lack: Lack, nowMs: number, reconcileMs = RECONCILE_MS): Looks {
  const now: { what: Observation; reason: string }[] = [];
  let nextAtMs: number | undefined;
  for (const what of ["enis", "limits", "vswitches"] as const) {
    const due = dueAt(what, memory, lack, nowMs, reconcileMs);
    if (due === undefined) continue;
    const atMs = Math.max(due.atMs, memory.observed[what]?.notBeforeMs ?? 0);
    if (atMs <= nowMs) now.push({ what, reason: due.reason });
    else nextAtMs = Math.min(nextAtMs ?? atMs, atMs);
  }
  return { now, nextAtMs };
}

function dueAt(
  what: Observation,
  memory: PoolMemory,
  lack: Lack,
  nowMs: number,
  reconcileMs: number,
): { readonly atMs: number; readonly reason: string } | undefined {
  const { seed, startedAtMs, known, suspects } = memory;
  const last = memory.observed[what]?.okAtMs;
  switch (what) {
    case "enis": {
      const doubts = Object.values(suspects).map((sinceMs) =>
        // Looked at and not judged: it had just changed.
        last !== undefined && last > sinceMs ? last + SETTLE_MS + 1000 : sinceMs + 1000 * (1 + seed),
      );
      if (doubts.length > 0)
        return { atMs: Math.min(...doubts), reason: "an answer of the cloud does not fit what we know" };
      if (last === undefined) {
        // Where nothing is known, a pod that waits is served after this look only.
        const blind = pressed(memory, nowMs) ? 0 : UNKNOWN_SPREAD_MS;
        const spread = known ? Math.min(RESTART_SPREAD_MS, reconcileMs) : blind;
        return { atMs: startedAtMs + seed * spread, reason: "start" };
      }
      // Different again every time, so that no two nodes stay in step.
      const turn = Math.abs((seed + last / 1e6) * 618.0339887) % 1;
      return { atMs: last + reconcileMs * (0.85 + 0.3 * turn), reason: "periodic" };
    }
    case "limits":
      // Twice the spread: the budget of DescribeInstanceTypes is half that of the ENIs.
      return last !== undefined
        ? undefined
        : { atMs: startedAtMs + seed * (known ? 2 * RESTART_SPREAD_MS : UNKNOWN_SPREAD_MS), reason: "start" };
    case "vswitches": {
      if (lack.blind) return { atMs: nowMs, reason: "it is not known how much the vSwitches have" };
      if (!lack.short) return undefined;
      const every = (pressed(memory, nowMs) ? EXHAUSTED_LOOK_MS : EXHAUSTED_QUIET_LOOK_MS) * (0.8 + 0.4 * seed);
      return { atMs: (last ?? Number.NEGATIVE_INFINITY) + every, reason: "a vSwitch is full" };
    }
  }
}

/**
 * Takes note of an answer.
 *
 * @param askedMs When it was asked for.
 * @param unsettled ENIs of which the answer says nothing.
 */
export function noteAnswer(
  memory: PoolMemory,
  what: Observation,
  askedMs: number,
  unsettled: ReadonlySet<string> = new Set(),
): PoolMemory {
  const observed = noted(memory, what, { okAtMs: askedMs, notBeforeMs: askedMs, failures: 0, problem: undefined });
  if (what !== "enis") return { ...memory, observed };
  const left = Object.entries(memory.suspects).filter(([id, sinceMs]) => sinceMs >= askedMs || unsettled.has(id));
  return { ...memory, observed, suspects: Object.fromEntries(left) };
}

/** Takes note of a failure to get one: asked again with growing pauses. */
export function noteFailure(
  memory: PoolMemory,
  what: Observation,
  nowMs: number,
  {
    retryAfterMs = 0,
    problem,
  }: { readonly retryAfterMs?: number | undefined; readonly problem?: string | undefined } = {},
): PoolMemory {
  const before = memory.observed[what];
  const failures = (before?.failures ?? 0) + 1;
  const pause = Math.max(retryAfterMs, Math.min(60_000, 2000 * 2 ** failures) * (0.5 + memory.seed));
  const observed = noted(memory, what, { okAtMs: before?.okAtMs, notBeforeMs: nowMs + pause, failures, problem });
  return { ...memory, observed };
}

function noted(memory: PoolMemory, what: Observation, now: Observed): PoolMemory["observed"] {
  return { ...memory.observed, [what]: now };
}
