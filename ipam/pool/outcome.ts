/** What the outcome of an action leaves behind for the next decisions. Pure. */
import type { IpStack } from "../../shared/config/ip-stack.ts";
import type { CloudErrorClass } from "../cloud/classify.ts";
import { FAILURE_WINDOW_MS } from "./counts.ts";
import { blockedBy, type Failure } from "./inhibit.ts";
import { initialMemory } from "./memory.ts";
import type { Inhibition, PoolAction, PoolMemory, PoolState } from "./state.ts";

export type Outcome = { readonly kind: "done" } | { readonly kind: "failed"; readonly failure: Failure };

export interface Aftermath {
  readonly inhibitions: Readonly<Record<string, Inhibition>>;
  readonly memory: PoolMemory;
}

/** Refusals that do not fit what we believe of the ENI, or of the instance. */
const LOOKS_WRONG: ReadonlySet<CloudErrorClass> = new Set(["capacity", "eni-limit", "state", "gone"]);

/** @param jitter 0 to 1, a new one for each call. */
export function applyOutcome(
  state: Pick<PoolState, "inhibitions" | "memory" | "enis"> & { readonly stack?: IpStack },
  action: PoolAction,
  outcome: Outcome,
  nowMs: number,
  jitter: number,
): Aftermath {
  const memory = state.memory ?? initialMemory(nowMs, jitter, true);
  const inhibitions = Object.fromEntries(Object.entries(state.inhibitions).filter(([, i]) => i.untilMs > nowMs));
  const eniId = action.kind === "create" ? undefined : action.eniId;
  const vswitchId =
    action.kind === "create" ? action.vswitchId : (state.enis.find((e) => e.id === eniId)?.vswitchId ?? "");
  const concerned = [action.kind, "all", `vswitch:${vswitchId}`, `eni:${eniId}`];
  if (outcome.kind === "done") {
    // What just worked is not blocked, whatever was thought before.
    const worked =
      action.kind === "create" || action.kind === "assign" ? concerned : [action.kind, "all", `eni:${eniId}`];
    for (const key of worked) delete inhibitions[key];
    const failedAtMs = Object.fromEntries(Object.entries(memory.failedAtMs).filter(([key]) => !worked.includes(key)));
    const secondaries = state.stack !== "ipv6" && "count" in action ? action.count : 0;
    const drawn = (action.kind === "create" ? 1 : 0) + secondaries;
    const before = memory.taken[vswitchId] ?? [];
    const taken =
      drawn > 0 ? { ...memory.taken, [vswitchId]: [...before, { atMs: nowMs, count: drawn }] } : memory.taken;
    return { inhibitions, memory: { ...memory, failedAtMs, taken } };
  }
  const { failure } = outcome;
  // How often in a row is told by the key it will block; which that is does not depend on the number.
  const probe = blockedBy(failure, action.kind, vswitchId, nowMs, 1, 0, eniId);
  const suspects = { ...memory.suspects, [eniId ?? ""]: nowMs };
  if (probe === undefined) return { inhibitions, memory: { ...memory, suspects } };
  const before = memory.failedAtMs[probe.key] ?? [];
  const last = before.at(-1);
  const recent = last !== undefined && last > nowMs - FAILURE_WINDOW_MS ? last : undefined;
  const blocked = blockedBy(failure, action.kind, vswitchId, nowMs, before.length + 1, jitter, eniId, recent) ?? probe;
  const looksWrong = LOOKS_WRONG.has(failure.class);
  const { limits, ...others } = memory.observed;
  return {
    inhibitions: { ...inhibitions, [blocked.key]: blocked.inhibition },
    memory: {
      ...memory,
      failedAtMs: { ...memory.failedAtMs, [blocked.key]: [...before, nowMs].slice(-16) },
      suspects: looksWrong ? suspects : memory.suspects,
      // The type's limits may have changed (a resize): read them again, too.
      observed: failure.class === "capacity" || limits === undefined ? others : { ...others, limits },
    },
  };
}
