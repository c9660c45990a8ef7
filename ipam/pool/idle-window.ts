/** The sliding minimum of the idle count, exact and in a few entries. */
import type { IdleWindow } from "./state.ts";

export function startIdleWindow(nowMs: number): IdleWindow {
  return { sinceMs: nowMs, marks: [] };
}

/** Adds the present count and forgets what ended before the window. */
export function noteIdle(window: IdleWindow, idle: number, ttlMs: number, nowMs: number): IdleWindow {
  const last = window.marks.at(-1);
  const held = window.marks.filter((m) => m.untilMs === undefined || m.untilMs > nowMs - ttlMs);
  if (last?.idle === idle) return held.length === window.marks.length ? window : { ...window, marks: held };
  const marks = held.map((m) => (m === last ? { ...m, untilMs: nowMs } : m));
  // Higher ones can never be the lowest again: the new one is lower, and outlives them.
  while ((marks.at(-1)?.idle ?? -1) >= idle) marks.pop();
  return { ...window, marks: [...marks, { idle, untilMs: undefined }] };
}

/** The lowest count of the whole last `ttlMs`; undefined as long as the window is not that old. */
export function lowestIdle(window: IdleWindow, ttlMs: number, nowMs: number): number | undefined {
  if (nowMs - window.sinceMs < ttlMs) return undefined;
  return window.marks.find((m) => m.untilMs === undefined || m.untilMs > nowMs - ttlMs)?.idle;
}

/** When the lowest count rises because an older mark leaves the window; undefined when it cannot. */
export function nextRise(window: IdleWindow, ttlMs: number, nowMs: number): number | undefined {
  if (nowMs - window.sinceMs < ttlMs) return window.sinceMs + ttlMs;
  const lowest = window.marks.find((m) => m.untilMs === undefined || m.untilMs > nowMs - ttlMs);
  return lowest?.untilMs === undefined ? undefined : lowest.untilMs + ttlMs;
}
