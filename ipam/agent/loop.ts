/** A step that runs when asked, and again at the moment that it names. */
import { type AgentContext, isStoreLost, nowMs } from "./context.ts";
import { pauseAfter } from "./pause.ts";

const SOON_MS = 5;
const SHORTEST_PAUSE_MS = 50;
const AFTER_FAILURE_MS = 1000;
/** Longer ones would overflow the timer. */
const LONGEST_PAUSE_MS = 600_000;

export interface Loop {
  /** Several wake-ups within a few milliseconds are one: pods of a burst come together. */
  soon(): void;
  stop(): void;
}

/**
 * @param step Returns when to run again although nobody asks, by {@link nowMs}.
 * @param failed Told of a step that threw; the loop goes on.
 */
export function createLoop(step: () => number | undefined, failed: (error: Error) => void): Loop {
  let timer: NodeJS.Timeout | undefined;
  let dueMs = Number.POSITIVE_INFINITY;
  let stopped = false;

  function schedule(atMs: number): void {
    if (stopped || atMs >= dueMs) return;
    dueMs = atMs;
    clearTimeout(timer);
    timer = setTimeout(run, Math.min(LONGEST_PAUSE_MS, Math.max(0, atMs - nowMs())));
  }

  function run(): void {
    dueMs = Number.POSITIVE_INFINITY;
    try {
      const againAtMs = step();
      if (againAtMs !== undefined) schedule(Math.max(againAtMs, nowMs() + SHORTEST_PAUSE_MS));
    } catch (error) {
      failed(error as Error);
      schedule(nowMs() + AFTER_FAILURE_MS);
    }
  }

  return {
    soon: () => schedule(nowMs() + SOON_MS),
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}

/** A failure of one turn is told and does not end the others. @returns What ends it. */
export function every(ms: number, work: () => unknown, failed: (error: Error) => void): () => void {
  let running = false;
  const timer = setInterval(async () => {
    if (running) return;
    running = true;
    try {
      await work();
    } catch (error) {
      failed(error as Error);
    } finally {
      running = false;
    }
  }, ms);
  return () => clearInterval(timer);
}

export interface Kept {
  /** Does it now; once more where that is under way. */
  soon(): void;
  stop(): void;
}

/**
 * Does at once and again what the cloud may refuse: after a failure ever more seldom.
 *
 * @param failing What is told with each failure's cause.
 * @param pauseMs Until the next turn, after one that went well.
 */
export function keep(
  ctx: Pick<AgentContext, "log" | "storeLost">,
  failing: string,
  pauseMs: () => number,
  work: () => Promise<void>,
): Kept {
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  let running = false;
  let again = false;
  let failures = 0;
  const run = async () => {
    clearTimeout(timer);
    running = true;
    again = false;
    let next = pauseMs();
    try {
      await work();
      failures = 0;
    } catch (error) {
      if (stopped) return;
      if (isStoreLost(error)) return ctx.storeLost(error);
      ctx.log("error", `${failing}: ${(error as Error).message}`);
      next = pauseAfter(error, ++failures, Math.random());
    } finally {
      running = false;
    }
    if (!stopped) timer = setTimeout(run, again ? 0 : next);
  };
  void run();
  return {
    soon() {
      if (running) again = true;
      else if (!stopped) void run();
    },
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}
