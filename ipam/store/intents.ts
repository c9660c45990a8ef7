/**
 * What the agent is about to ask of the cloud, written to disk before it asks: killed at any instant, its successor
 * finds the intent, repeats the call with the same ClientToken or looks what became of it, and nothing is leaked.
 */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { textOf } from "./row.ts";
import { inDurableTransaction, type StoreHandle } from "./transaction.ts";

export type IntentKind =
  | "create-eni"
  | "attach-eni"
  | "detach-eni"
  | "delete-eni"
  | "assign"
  | "unassign"
  | "create-route"
  | "delete-route";

export interface Intent {
  readonly id: string;
  readonly kind: IntentKind;
  readonly eniId: string | undefined;
  readonly clientToken: string | undefined;
  /** JSON of the action. */
  readonly payload: string;
  /** Where the executor stands: `asked` before the call, then its own words. */
  readonly step: string;
  readonly sinceMs: number;
}

/** Writes or overwrites it, on the disk when this returns. Not inside a transaction. */
export function putIntent(db: StoreHandle, intent: Intent, at: number): void {
  inDurableTransaction(db, () => recordIntent(db, intent, at));
}

/**
 * The same inside a transaction, so that what the call needs (addresses marked as releasing) is there with the intent or
 * not at all. Use {@link inDurableTransaction}.
 */
export function recordIntent(db: SqlHandle, intent: Intent, at: number): void {
  db.run(
    "INSERT OR REPLACE INTO intent(id, kind, eni_id, client_token, payload, step, since_ms, at) VALUES(?,?,?,?,?,?,?,?)",
    [
      intent.id,
      intent.kind,
      intent.eniId ?? null,
      intent.clientToken ?? null,
      intent.payload,
      intent.step,
      intent.sinceMs,
      at,
    ],
  );
}

/** Inside the transaction that records the outcome, so that both are there or neither. */
export function dropIntent(db: SqlHandle, id: string): void {
  db.run("DELETE FROM intent WHERE id = ?", [id]);
}

export function listIntents(db: SqlHandle): Intent[] {
  return db.all("SELECT * FROM intent ORDER BY since_ms, id").map((row) => ({
    id: String(row.id),
    kind: String(row.kind) as IntentKind,
    eniId: textOf(row.eni_id),
    clientToken: textOf(row.client_token),
    payload: String(row.payload),
    step: String(row.step),
    sinceMs: Number(row.since_ms),
  }));
}
