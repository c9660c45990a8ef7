/** Housekeeping that the agent does now and then, so that no plugin has to do it on a pod's time. */
import type { Sys } from "../../shared/sys/sys.ts";
import { ensureBallast } from "./ballast.ts";
import { pruneDemand } from "./demand.ts";
import { inTransaction } from "./transaction.ts";
import type { Store } from "./types.ts";

/** Below this a checkpoint is not worth its disk syncs. Plugins do one of their own at 512 frames. */
const CHECKPOINT_FRAMES = 128;

/** A waiter looks once more at its deadline, and takes it for deleted when its row is gone. */
const PRUNE_AFTER_MS = 5000;

/**
 * Copies the WAL into the database without making anyone wait, puts the ballast back after a full disk, and forgets
 * waiters that were killed. To be called about once a second; costs next to nothing when there is nothing to do.
 */
export function maintainStore(sys: Sys, store: Store, nowMs: number): void {
  const { db } = store;
  const before = nowMs - PRUNE_AFTER_MS;
  if (db.get("SELECT 1 AS due FROM demand WHERE deadline_ms <= ? LIMIT 1", [before]) !== undefined)
    inTransaction(db, () => pruneDemand(db, before));
  ensureBallast(sys, store.path);
  const { log = 0, checkpointed = 0 } = db.get("PRAGMA wal_checkpoint(NOOP)") ?? {};
  if (Number(log) - Number(checkpointed) < CHECKPOINT_FRAMES) return;
  db.get("PRAGMA wal_checkpoint(PASSIVE)");
  // The first write after a complete checkpoint begins the WAL anew and syncs it: not on a pod's time either.
  inTransaction(db, () =>
    db.run(
      "INSERT INTO fact(name, value) VALUES('checkpoint_ms', ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
      [String(Math.round(nowMs))],
    ),
  );
}
