/** What every role is given. */
import type { Sys } from "../../../shared/sys/sys.ts";
import type { StoreDeps } from "../types.ts";

export interface Role {
  readonly sys: Sys;
  readonly deps: StoreDeps;
  readonly path: string;
  /** Unique among the processes that run at one time; a successor has its predecessor's. */
  readonly id: string;
  /** Whether the test has seen enough. */
  isOver(): boolean;
  readonly logPath: string;
  log(line: string): void;
}

/** Numbers below `n`, from a seed: a run that fails can be repeated. */
export function makeRandom(seed: number): (n: number) => number {
  let state = seed >>> 0 || 1;
  return (n) => {
    // xorshift32 (Marsaglia 2003)
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
}
