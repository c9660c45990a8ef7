/**
 * The pool's decisions with their memory: what the agent's loop talks to. Still without clock, store and network; the
 * agent (and the simulation) tell it the time, how things stand, and what became of what it asked for.
 */
import type { IpStack } from "../../shared/config/ip-stack.ts";
import { decide } from "./decide.ts";
import type { Failure } from "./inhibit.ts";
import { initialMemory } from "./memory.ts";
import { noteAnswer, noteFailure } from "./observe.ts";
import { applyOutcome } from "./outcome.ts";
import type {
  Condition,
  Decision,
  Inhibition,
  Observation,
  PoolAction,
  PoolEni,
  PoolState,
  PoolVSwitch,
} from "./state.ts";

/** A condition that was not there for this long is over: not every gap between two tries is news (F-50). */
const OVER_AFTER_MS = 30_000;

/** How things stand, as far as the store, the limiter and the configuration tell. */
export type PoolView = Omit<PoolState, "inhibitions" | "memory" | "vswitches" | "surplusSinceMs"> & {
  /** The node's vSwitches in order of preference. */
  readonly vswitchIds: readonly string[];
  /** Those that only pods may use that ask for them. */
  readonly otherVSwitchIds?: readonly string[];
};

export interface KeptDecision extends Decision {
  /** Conditions that hold now and did not before: one event each. */
  readonly began: readonly Condition[];
  /** Conditions that held before and do not now. */
  readonly ended: readonly Condition[];
}

/** What a look brought, as far as it matters here. */
export interface Seen {
  readonly vswitches?: readonly { readonly id: string; readonly available: number }[] | undefined;
  /** ENIs of which it says nothing: they had just changed. */
  readonly unsettled?: ReadonlySet<string> | undefined;
}

export interface PoolKeeper {
  decide(view: PoolView, nowMs: number): KeptDecision;
  /** An action went well. */
  done(action: PoolAction, enis: readonly PoolEni[], nowMs: number): void;
  /** An action failed, for now or for good. `jitter` is a new random number, 0 to 1. */
  failed(action: PoolAction, failure: Failure, enis: readonly PoolEni[], nowMs: number, jitter: number): void;
  /** A look at the cloud, begun at `askedMs`, brought an answer. */
  saw(what: Observation, askedMs: number, seen?: Seen): void;
  /** A look at the cloud brought none, and why. */
  sawNothing(what: Observation, nowMs: number, retryAfterMs?: number, problem?: string): void;
  /** What is not tried at the moment, and why: for `terway-cli` and metrics. */
  inhibitions(): Readonly<Record<string, Inhibition>>;
  /** What holds, or held a moment ago. */
  conditions(): readonly Condition[];
}

/**
 * @param seed 0 to 1, different on every node.
 * @param known The store knew this node's ENIs when the agent started: looking at the cloud can wait.
 */
export function createPoolKeeper(nowMs: number, seed: number, known: boolean): PoolKeeper {
  let memory = initialMemory(nowMs, seed, known);
  let inhibitions: Readonly<Record<string, Inhibition>> = {};
  let seen: ReadonlyMap<string, PoolVSwitch> = new Map();
  let stack: IpStack = "ipv4";
  let held: ReadonlyMap<string, { readonly condition: Condition; readonly atMs: number }> = new Map();

  /** Takes over what holds now. @returns What is new, and what is over. */
  function note(conditions: readonly Condition[], now: number): { began: Condition[]; ended: Condition[] } {
    const keyOf = (c: Condition) => `${c.reason} ${c.about}`;
    const began = conditions.filter((c) => !held.has(keyOf(c)));
    const still = [...held].filter(([, h]) => h.atMs > now - OVER_AFTER_MS);
    const next = new Map([...still, ...conditions.map((c) => [keyOf(c), { condition: c, atMs: now }] as const)]);
    const ended = [...held].filter(([key]) => !next.has(key)).map(([, h]) => h.condition);
    held = next;
    return { began, ended };
  }

  return {
    decide({ vswitchIds, otherVSwitchIds = [], ...view }, now) {
      const vswitches: PoolVSwitch[] = [
        ...vswitchIds.map((id) => seen.get(id) ?? { id, available: undefined }),
        ...otherVSwitchIds.map((id) => ({ id, available: undefined, onlyAsked: true })),
      ];
      const decision = decide({ ...view, vswitches, inhibitions, memory, surplusSinceMs: undefined }, now);
      memory = decision.memory;
      stack = view.config.stack;
      const { began, ended } = note(decision.conditions, now);
      // Somebody has to be there when a condition ends.
      const overAtMs = Math.min(...[...held.values()].map((h) => h.atMs + OVER_AFTER_MS));
      const againAtMs = Math.min(decision.againAtMs ?? Number.POSITIVE_INFINITY, overAtMs);
      return { ...decision, againAtMs: Number.isFinite(againAtMs) ? againAtMs : undefined, began, ended };
    },
    done(action, enis, now) {
      ({ inhibitions, memory } = applyOutcome({ inhibitions, memory, enis, stack }, action, { kind: "done" }, now, 0));
    },
    failed(action, failure, enis, now, jitter) {
      const outcome = { kind: "failed", failure } as const;
      ({ inhibitions, memory } = applyOutcome({ inhibitions, memory, enis, stack }, action, outcome, now, jitter));
    },
    saw(what, askedMs, { vswitches, unsettled } = {}) {
      memory = noteAnswer(memory, what, askedMs, unsettled);
      if (vswitches !== undefined) seen = new Map(vswitches.map((v) => [v.id, { ...v, atMs: askedMs }]));
    },
    sawNothing(what, now, retryAfterMs, problem) {
      memory = noteFailure(memory, what, now, { retryAfterMs, problem });
    },
    inhibitions: () => inhibitions,
    conditions: () => [...held.values()].map((h) => h.condition),
  };
}
