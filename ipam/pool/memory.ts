/** What is remembered from one decision to the next. */
import { type Counts, FAILURE_WINDOW_MS, STALE_VSWITCH_MS } from "./counts.ts";
import { noteIdle, startIdleWindow } from "./idle-window.ts";
import type { PoolMemory, PoolState } from "./state.ts";

/**
 * @param seed 0 to 1, different on every node, e.g. from a hash of the instance id.
 * @param known The store knew this node's ENIs at the start (it was not lost, and no reboot moved them).
 */
export function initialMemory(nowMs: number, seed: number, known: boolean): PoolMemory {
  return {
    startedAtMs: nowMs,
    seed,
    known,
    idle: startIdleWindow(nowMs),
    emptySinceMs: {},
    failedAtMs: {},
    pressedAtMs: undefined,
    taken: {},
    askedAtMs: undefined,
    observed: {},
    suspects: {},
  };
}

/** Takes note of how things stand now. */
export function remember(memory: PoolMemory, state: PoolState, counts: Counts, nowMs: number): PoolMemory {
  const empty: Record<string, number> = {};
  for (const eni of state.enis)
    if (eni.state === "ready" && eni.allocated + eni.reserved + eni.cooling === 0)
      empty[eni.id] = memory.emptySinceMs[eni.id] ?? nowMs;
  const failed: Record<string, readonly number[]> = {};
  for (const [key, times] of Object.entries(memory.failedAtMs)) {
    // In a row, however long ago: a success empties the list.
    const lately = times.filter((at) => at > nowMs - 20 * FAILURE_WINDOW_MS);
    if (lately.length > 0) failed[key] = lately;
  }
  const taken: Record<string, PoolMemory["taken"][string]> = {};
  for (const [id, takings] of Object.entries(memory.taken)) {
    const lately = takings.filter((t) => t.atMs > nowMs - STALE_VSWITCH_MS);
    if (lately.length > 0) taken[id] = lately;
  }
  const waiting = state.waiters > 0 || (state.constrained ?? []).some((c) => c.waiters > 0);
  return {
    ...memory,
    idle: noteIdle(memory.idle, counts.idle + counts.cooling, state.config.idleTtlMs, nowMs),
    emptySinceMs: empty,
    failedAtMs: failed,
    taken,
    pressedAtMs: waiting ? nowMs : memory.pressedAtMs,
  };
}
