/** What the agent's parts share. */
import type { IpStack } from "../../shared/config/ip-stack.ts";
import { CLOCK_BOOTTIME, CLOCK_REALTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { CloudApi, InstanceLimits } from "../cloud/cloud-api.ts";
import type { EniNetwork, Self } from "../cloud/metadata.ts";
import type { Budget, PoolAction, PoolConfig, PoolLimits } from "../pool/decide.ts";
import { appendJournal } from "../store/journal.ts";
import { isDamage, type Store, StoreReplacedError } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AgentMetrics } from "./metrics.ts";

/** What a pool keeps: addresses of shared ENIs, or whole ENIs, one for each pod. */
export type PoolKind = "shared" | "exclusive" | "member";

export interface PoolSpec {
  readonly kind: PoolKind;
  readonly pool: PoolConfig;
  readonly limits: PoolLimits;
}

/** The configuration, as far as this instance can follow it. */
export interface AgentConfig {
  /** The first is the one that the configuration's sizes are about; the others serve what pods ask for. */
  readonly pools: readonly PoolSpec[];
  readonly ipStack: IpStack;
  /** ENIs that can be attached besides the primary one, members of a trunk not counted. */
  readonly eniSlots: number;
  readonly vswitchIds: readonly string[];
  readonly securityGroups: readonly string[];
  readonly eniTags: Readonly<Record<string, string>>;
  readonly mode: "shared" | "vpc" | "exclusive" | "trunk";
  /** What a pod gets that asks for an ENI of its own and does not say which. */
  readonly ownKind: "exclusive" | "member";
  /** CIDRs that pods with an uplink reach through the node. */
  readonly viaNode: readonly string[];
  readonly orphanTtlMs: number;
  readonly vswitchCacheTtlMs: number;
}

/** What happened to ENIs lately, by id, in milliseconds of {@link nowMs}. Lost with the process, which does no harm. */
export interface Lately {
  /** The last call that changed it, or may have, ended. */
  readonly changed: Map<string, number>;
  /** It gave addresses back. */
  readonly unassigned: Map<string, number>;
  /** First seen attached nowhere, with nobody who waits for it. */
  readonly orphaned: Map<string, number>;
}

export function emptyLately(): Lately {
  return { changed: new Map(), unassigned: new Map(), orphaned: new Map() };
}

export interface AgentContext {
  readonly store: Store;
  readonly cloud: CloudApi;
  readonly self: Self;
  /** In force now; an answer about the instance type may change it. */
  readonly config: AgentConfig;
  readonly metrics: AgentMetrics;
  readonly lately: Lately;
  /** What the guest is told of an attached ENI's network, waited for; undefined: nothing, or not of all families in use. */
  toldNetwork(mac: string): Promise<EniNetwork | undefined>;
  /** What our own brake allows at the moment. */
  budgets(nowMs: number): Readonly<Partial<Record<PoolAction["kind"], Budget>>>;
  /** The instance type's limits, asked again. */
  relimit(limits: InstanceLimits): void;
  /** A line for the operator, once for each change of what it says. */
  log(level: "info" | "warn" | "error", msg: string, fields?: Readonly<Record<string, unknown>>): void;
  /** Asks for another decision soon. */
  wake(): void;
  /** Who decides. */
  onWake(soon: () => void): void;
  /** The store is damaged, or is another file by now: the program starts anew. */
  storeLost(error: unknown): never;
  /** Tests kill the process at named points. */
  reached(point: string): void;
}

export function isStoreLost(error: unknown): boolean {
  return error instanceof StoreReplacedError || isDamage(error);
}

export function nowMs(): number {
  return nodeSys.clock(CLOCK_BOOTTIME);
}

export function wallMs(): number {
  return Math.round(nodeSys.clock(CLOCK_REALTIME));
}

/** One line in the store's journal, in a transaction of its own. */
export function journal(
  ctx: Pick<AgentContext, "store">,
  op: string,
  outcome: string,
  detail: string,
  durationMs?: number,
): void {
  inTransaction(ctx.store.db, () =>
    appendJournal(ctx.store.db, { at: wallMs(), actor: "agent", op, outcome, detail, durationMs }),
  );
}
