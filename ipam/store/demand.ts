/** Pods that wait for an address, oldest first. */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import type { EniConstraint } from "./eni-constraint.ts";
import { type AttachmentKey, keyParams } from "./key.ts";

export interface Demand extends AttachmentKey {
  readonly families: "4" | "6" | "46";
  /** Unix datagram name; a datagram to it says "look again", or `no:` and why not. */
  readonly waiter: string;
  /** Which ENIs will do; absent: every shared one. */
  readonly only?: EniConstraint | undefined;
  readonly sinceMs: number;
  readonly deadlineMs: number;
}

export function putDemand(db: SqlHandle, d: Demand): void {
  db.run(
    `INSERT OR REPLACE INTO demand(network, container_id, ifname, families, waiter, only_from, since_ms, deadline_ms)
     VALUES(?,?,?,?,?,?,?,?)`,
    [
      ...keyParams(d),
      d.families,
      d.waiter,
      d.only === undefined ? null : JSON.stringify(d.only),
      d.sinceMs,
      d.deadlineMs,
    ],
  );
}

export function dropDemand(db: SqlHandle, key: AttachmentKey): void {
  db.run("DELETE FROM demand WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
}

/** Whether this waiter's is still there: a DEL takes it away. */
export function isWaiting(db: SqlHandle, key: AttachmentKey, waiter: string): boolean {
  const row = db.get("SELECT waiter FROM demand WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
  return row?.waiter === waiter;
}

/** Those whose waiter has not given up yet. */
export function listDemand(db: SqlHandle, nowMs: number): Demand[] {
  return db.all("SELECT * FROM demand WHERE deadline_ms > ? ORDER BY since_ms", [nowMs]).map((row) => ({
    network: String(row.network),
    containerId: String(row.container_id),
    ifname: String(row.ifname),
    families: row.families === "6" ? "6" : row.families === "46" ? "46" : "4",
    waiter: String(row.waiter),
    only: row.only_from === null ? undefined : (JSON.parse(String(row.only_from)) as EniConstraint),
    sinceMs: Number(row.since_ms),
    deadlineMs: Number(row.deadline_ms),
  }));
}

/** Forgets waiters long gone (killed while they waited). */
export function pruneDemand(db: SqlHandle, nowMs: number): void {
  db.run("DELETE FROM demand WHERE deadline_ms <= ?", [nowMs]);
}
