/** Housekeeping that the agent does now and then, so that no plugin has to do it on a pod's time. */
import type { Sys } from "../../shared/sys/sys.ts";
import { ensureBallast } from "./ballast.ts";
import { pruneDemand } from "./demand.ts";
import { inTransaction } from "./transaction.ts";
import type { Store } from "./types.ts";

/**
 * Copies the WAL into the database without making anyone wait, puts the ballast back after a full disk, and forgets
 * waiters that were killed. Every few seconds is often enough: a plugin only checkpoints at 256 pages.
 */
export function maintainStore(sys: Sys, store: Store, nowMs: number): void {
  if (store.db.get("SELECT 1 AS due FROM demand WHERE deadline_ms <= ? LIMIT 1", [nowMs]) !== undefined)
    inTransaction(store.db, () => pruneDemand(store.db, nowMs));
  store.db.get("PRAGMA wal_checkpoint(PASSIVE)");
  ensureBallast(sys, store.path);
}
