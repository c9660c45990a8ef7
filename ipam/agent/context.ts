/** What the agent's parts share. */
import { CLOCK_BOOTTIME, CLOCK_REALTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { CloudApi, InstanceLimits } from "../cloud/cloud-api.ts";
import type { Self } from "../cloud/metadata.ts";
import type { Inhibition, PoolConfig } from "../pool/decide.ts";
import { appendJournal } from "../store/journal.ts";
import type { Store } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AgentMetrics } from "./metrics.ts";

export interface AgentConfig {
  readonly pool: PoolConfig;
  readonly vswitchIds: readonly string[];
  readonly securityGroups: readonly string[];
  readonly eniTags: Readonly<Record<string, string>>;
  readonly mode: "shared" | "vpc";
  readonly orphanTtlMs: number;
}

export interface AgentContext {
  readonly store: Store;
  readonly cloud: CloudApi;
  readonly self: Self;
  readonly limits: InstanceLimits;
  readonly config: AgentConfig;
  readonly metrics: AgentMetrics;
  readonly inhibitions: Record<string, Inhibition>;
  /** A line for the operator, once for each change of what it says. */
  log(level: "info" | "warn" | "error", msg: string, fields?: Readonly<Record<string, unknown>>): void;
  /** Asks for another decision soon. */
  wake(): void;
  /** Tests kill the process at named points. */
  reached(point: string): void;
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
