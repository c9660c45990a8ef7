/** Pods that wait for an address, oldest first. */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { type AttachmentKey, keyParams } from "./key.ts";

export interface Demand extends AttachmentKey {
  readonly families: "4" | "6" | "46";
  readonly waiter: string;
  readonly sinceMs: number;
  readonly deadlineMs: number;
}

export function putDemand(db: SqlHandle, d: Demand): void {
  db.run("INSERT OR REPLACE INTO demand VALUES(?,?,?,?,?,?,?)", [
    ...keyParams(d),
    d.families,
    d.waiter,
    d.sinceMs,
    d.deadlineMs,
  ]);
}

export function dropDemand(db: SqlHandle, key: AttachmentKey): void {
  db.run("DELETE FROM demand WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
}

/** Those whose waiter has not given up yet. */
export function listDemand(db: SqlHandle, nowMs: number): Demand[] {
  return db.all("SELECT * FROM demand WHERE deadline_ms > ? ORDER BY since_ms", [nowMs]).map((row) => ({
    network: String(row.network),
    containerId: String(row.container_id),
    ifname: String(row.ifname),
    families: row.families === "6" ? "6" : row.families === "46" ? "46" : "4",
    waiter: String(row.waiter),
    sinceMs: Number(row.since_ms),
    deadlineMs: Number(row.deadline_ms),
  }));
}

/** Forgets waiters long gone (killed while they waited). */
export function pruneDemand(db: SqlHandle, nowMs: number): void {
  db.run("DELETE FROM demand WHERE deadline_ms <= ?", [nowMs]);
}
