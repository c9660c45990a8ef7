/** Short ways to say a pool's state, for tests. */
import { initialMemory } from "./memory.ts";
import type { PoolEni, PoolMemory, PoolState } from "./state.ts";

export function makeEni(id: string, idle: number, tweaks: Partial<PoolEni> = {}): PoolEni {
  return {
    id,
    state: "ready",
    vswitchId: "vsw-a",
    allocated: 0,
    reserved: 0,
    cooling: 0,
    unassignedAtMs: undefined,
    idle: Array.from({ length: idle }, (_, i) => `${id}-${i}`),
    ...tweaks,
    total: tweaks.total ?? idle + (tweaks.allocated ?? 0) + (tweaks.cooling ?? 0) + (tweaks.reserved ?? 0),
  };
}

export type StateTweaks = Omit<Partial<PoolState>, "config"> & { readonly config?: Partial<PoolState["config"]> };

/** Two ENIs of nine addresses, four to eight idle. */
export function makeState(tweaks: StateTweaks = {}): PoolState {
  return {
    limits: { enis: 2, perEni: 9 },
    enis: [],
    waiters: 0,
    operations: [],
    inhibitions: {},
    surplusSinceMs: undefined,
    vswitches: [{ id: "vsw-a", available: 100 }],
    ...tweaks,
    config: {
      minIdle: 4,
      maxIdle: 8,
      batch: 10,
      idleTtlMs: 1000,
      stack: "ipv4",
      fill: "fewest",
      hotPlug: true,
      ...tweaks.config,
    },
  };
}

/** Of an agent that has run for long and looked at everything at 0. */
export function makeMemory(tweaks: Partial<PoolMemory> = {}): PoolMemory {
  const seen = { okAtMs: 0, notBeforeMs: 0, failures: 0 };
  return { ...initialMemory(-1_000_000, 0, true), observed: { enis: seen, limits: seen }, ...tweaks };
}
