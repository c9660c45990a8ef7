/**
 * What the pool's decisions are made from. All times are milliseconds of CLOCK_BOOTTIME; the agent reads the store, the
 * clock and the cloud, and hands in values.
 */
import type { IpStack } from "../../shared/config/ip-stack.ts";
import type { EniConstraint } from "../store/eni-constraint.ts";

export interface PoolConfig {
  /** Fewest idle addresses (CON-11). */
  readonly minIdle: number;
  /** Most idle addresses (CON-10). */
  readonly maxIdle: number;
  /** Addresses in one call. The API takes 10. */
  readonly batch: number;
  /** Idle addresses above the floor are given back when they were not needed for this long. */
  readonly idleTtlMs: number;
  readonly stack: IpStack;
  /** Which ENI gets new addresses. */
  readonly fill: "fewest" | "most";
  /** Attach and detach ENIs at all. */
  readonly hotPlug: boolean;
  /** Share of all addresses that stays idle, 0 to 90 (POOL-11). Absent: 0. */
  readonly reservePercent?: number;
  /** ENIs without a pod kept attached (POOL-10). Absent: 0. */
  readonly preAttach?: number;
  /** Addresses in one call when no pod waits (CFG-43). Absent: `batch`. */
  readonly warmupBatch?: number;
  /** Decide again at least this often (CFG-42). Absent: only when something changes. */
  readonly warmupIntervalMs?: number;
  /** Which vSwitch a new ENI goes to. Absent: the one with most free addresses. */
  readonly vswitchPolicy?: "most" | "ordered" | "random";
  /** Waits this long for more pods before it asks for addresses (CFG-55). Absent: 0. */
  readonly batchWindowMs?: number;
  /** As many waiting pods end the wait (CFG-54). */
  readonly batchSize?: number;
  /** How old the picture of the node's ENIs may become (CFG-45, CFG-56, CFG-57). Absent: about a quarter of an hour. */
  readonly reconcileMs?: number;
}

export interface PoolLimits {
  /** ENIs that the pool may have: the instance's maximum less the primary one. */
  readonly enis: number;
  /** Secondary addresses of one ENI, of each family in use. */
  readonly perEni: number;
  /** Each pod has a whole ENI: addresses are not given back by themselves. */
  readonly whole?: boolean;
}

export interface PoolEni {
  readonly id: string;
  readonly state: "attaching" | "ready" | "draining" | "detaching" | "deleting" | "lost";
  readonly vswitchId: string;
  /** Addresses in any state but `releasing`; here and below IPv4 ones where pods have IPv4. */
  readonly total: number;
  readonly allocated: number;
  readonly reserved: number;
  /** Free to be handed out now; the longest idle first. */
  readonly idle: readonly string[];
  readonly cooling: number;
  /** When the first cooling address is free. */
  readonly nextFreeAtMs?: number | undefined;
  /** Moment of the last address given back to the cloud. */
  readonly unassignedAtMs: number | undefined;
  /** Dual stack: the same of IPv6. Absent: as many as of IPv4. */
  readonly total6?: number;
  readonly idle6?: readonly string[];
  /** Only for pods that ask for its vSwitch or groups. */
  readonly dedicated?: boolean;
  /** Sorted. Only compared with what a constraint asks for. */
  readonly securityGroups?: readonly string[];
  /** Cloud says that it is not for us to change (service-managed and the like): never filled, emptied or removed. */
  readonly foreign?: boolean;
}

/** A call that is under way, or whose outcome is not known yet. */
export interface PoolOperation {
  readonly kind: "create" | "assign" | "unassign" | "remove";
  readonly eniId: string | undefined;
  /** Addresses that will come, or go. */
  readonly count: number;
  /** Made for pods that ask for this. */
  readonly only?: EniConstraint | undefined;
  /** Of a new ENI. */
  readonly vswitchId?: string | undefined;
}

export type ConditionReason =
  | "VSwitchExhausted"
  | "EniLimitReached"
  | "QuotaExceeded"
  | "SecurityGroupFull"
  | "CloudAuthFailed"
  | "CloudThrottled"
  | "CloudUnavailable"
  | "ConfigRejected"
  | "UnexpectedAnswer"
  | "HotPlugOff"
  | "PoolExhausted";

export interface Inhibition {
  readonly untilMs: number;
  /** Said to the operator. */
  readonly reason: string;
  /** Absent: nothing that an operator has to know. */
  readonly condition?: ConditionReason;
  readonly sinceMs?: number;
}

export interface PoolVSwitch {
  readonly id: string;
  /** Free addresses when last asked; undefined: not known. A hint: the error of a call is the truth. */
  readonly available: number | undefined;
  /** When it was asked. Absent: taken as of now. */
  readonly atMs?: number;
  /** Only for pods that ask for it. */
  readonly onlyAsked?: boolean;
}

/** How many calls of an operation may be made now, and when the next one after these. */
export interface Budget {
  readonly tokens: number;
  readonly nextAtMs: number;
}

/** Pods that only some ENIs can serve. */
export interface ConstrainedDemand {
  readonly only: EniConstraint;
  readonly waiters: number;
}

export interface PoolState {
  readonly config: PoolConfig;
  readonly limits: PoolLimits;
  readonly enis: readonly PoolEni[];
  /** Pods that wait for an address of any ENI. */
  readonly waiters: number;
  /** Since when the first of them waits. Absent: long enough. */
  readonly waitingSinceMs?: number | undefined;
  readonly constrained?: readonly ConstrainedDemand[];
  /** ENIs too many: pods that need a whole ENI wait for their slots. Absent: 0. */
  readonly roomFor?: number;
  /** Another pool gives a slot up. */
  readonly roomComing?: boolean;
  readonly operations: readonly PoolOperation[];
  /** The node's vSwitches in order of preference. */
  readonly vswitches: readonly PoolVSwitch[];
  /** By `vswitch:ID`, `eni:ID`, `create`, `assign`, `unassign`, `remove`, `all`. */
  readonly inhibitions: Readonly<Record<string, Inhibition>>;
  /** Since when more than `minIdle` are idle; only looked at without `memory`. */
  readonly surplusSinceMs: number | undefined;
  /** What earlier decisions and outcomes left behind; carry `Decision.memory` over. Absent: nothing is remembered. */
  readonly memory?: PoolMemory | undefined;
  /** By the action's kind. Absent: unlimited. */
  readonly budgets?: Readonly<Partial<Record<PoolAction["kind"], Budget>>>;
}

/**
 * The lowest idle counts of the last `idleTtlMs`: from the lowest of all to the present one, each held until the next count
 * began. What lies above the lowest was not needed in all that time.
 */
export interface IdleWindow {
  readonly sinceMs: number;
  /** `untilMs` is undefined for the present count, the last in the list. */
  readonly marks: readonly { readonly idle: number; readonly untilMs: number | undefined }[];
}

/** Small, and harmless to lose: the agent keeps it in RAM. */
export interface PoolMemory {
  readonly startedAtMs: number;
  /** 0 to 1, different on every node: nodes that start together must not call together. */
  readonly seed: number;
  /** The store knew the node's ENIs when the agent started: pods can start, and looking at the cloud can wait. */
  readonly known: boolean;
  /** How many addresses were idle lately. */
  readonly idle: IdleWindow;
  /** By ENI, since when it has no pod. */
  readonly emptySinceMs: Readonly<Record<string, number>>;
  /** By inhibition key, when it failed lately. */
  readonly failedAtMs: Readonly<Record<string, readonly number[]>>;
  /** When pods last waited. */
  readonly pressedAtMs: number | undefined;
  /** By vSwitch, addresses that we took out of it lately: what was seen before then is that much less now. */
  readonly taken: Readonly<Record<string, readonly { readonly atMs: number; readonly count: number }[]>>;
  /** When addresses were last asked for. */
  readonly askedAtMs: number | undefined;
  readonly observed: Readonly<Partial<Record<Observation, Observed>>>;
  /** By ENI, "" for the instance itself: since when something does not fit what we believe of it. Look soon. */
  readonly suspects: Readonly<Record<string, number>>;
}

/** What may be asked of the cloud without changing it. */
export type Observation = "enis" | "vswitches" | "limits";

export interface Observed {
  /** Of the last answer. */
  readonly okAtMs: number | undefined;
  /** After a failure: not before. */
  readonly notBeforeMs: number;
  readonly failures: number;
  /** Why the last look brought no answer. */
  readonly problem?: string | undefined;
}

export type PoolAction =
  | {
      readonly kind: "create";
      readonly vswitchId: string;
      /** Secondary addresses, of each family in use; may be 0. */
      readonly count: number;
      /** Made for pods that ask for this: its security groups go on the ENI. Absent: the node's own. */
      readonly only?: EniConstraint;
    }
  | {
      readonly kind: "assign";
      readonly eniId: string;
      readonly count: number;
      /** Dual stack, one family lags behind. Absent: of each family in use. */
      readonly family?: 4 | 6;
    }
  | { readonly kind: "unassign"; readonly eniId: string; readonly addresses: readonly string[] }
  /** Detach and delete; every address of it is idle. */
  | { readonly kind: "remove"; readonly eniId: string };

/** Something that an operator can act on, as long as it holds. */
export interface Condition {
  readonly reason: ConditionReason;
  /** What it is about: `vswitch:ID`, `eni:ID`, an action's kind, `all` or `pool`. One reason and subject, one condition. */
  readonly about: string;
  /** One line: the thing, the cause, the remedy. It may change while the condition holds. */
  readonly message: string;
}

export interface Decision {
  readonly actions: readonly PoolAction[];
  /** Why pods that wait cannot be served now; undefined when they can, or none waits. */
  readonly stuck: string | undefined;
  /** The same for pods with a constraint, in the order of `constrained`. */
  readonly stuckConstrained: readonly (string | undefined)[];
  /** When to decide again although nothing happened; undefined: no need to. */
  readonly againAtMs: number | undefined;
  /** What to look at in the cloud now, with the reason for the log. */
  readonly observe: readonly { readonly what: Observation; readonly reason: string }[];
  readonly conditions: readonly Condition[];
  readonly memory: PoolMemory;
}
