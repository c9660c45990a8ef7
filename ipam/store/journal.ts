/** A bounded record of what was done, for metrics, the CLI and post-mortems. */
import type { SqlHandle, SqlValue } from "../../shared/sys/sql.ts";

export interface JournalEntry {
  /** Wall clock, ms. */
  readonly at: number;
  /** terway-ipam, terway-eni, agent … */
  readonly actor: string;
  /** ADD, DEL, assign-ip … */
  readonly op: string;
  readonly network?: string | undefined;
  readonly containerId?: string | undefined;
  readonly ifname?: string | undefined;
  /** namespace/name */
  readonly pod?: string | undefined;
  /** `ok`, or what went wrong. */
  readonly outcome: string;
  readonly code?: number | undefined;
  readonly durationMs?: number | undefined;
  readonly detail?: string | undefined;
}

const KEEP_ROWS = 10_000;
const TRIM_EVERY = 256;

export function appendJournal(db: SqlHandle, e: JournalEntry): void {
  const orNull = (value: SqlValue | undefined): SqlValue => value ?? null;
  db.run(
    "INSERT INTO journal(at, actor, op, network, container_id, ifname, pod, outcome, code, duration_ms, detail) VALUES(?,?,?,?,?,?,?,?,?,?,?)",
    [
      e.at,
      e.actor,
      e.op,
      orNull(e.network),
      orNull(e.containerId),
      orNull(e.ifname),
      orNull(e.pod),
      e.outcome,
      orNull(e.code),
      orNull(e.durationMs),
      orNull(e.detail),
    ],
  );
  const id = Number(db.get("SELECT last_insert_rowid() AS id")?.id ?? 0);
  if (id % TRIM_EVERY === 0) db.run("DELETE FROM journal WHERE id <= ?", [id - KEEP_ROWS]);
}

export interface JournalRow extends JournalEntry {
  readonly id: number;
}

export interface JournalFilter {
  readonly last?: number;
  readonly afterId?: number;
  readonly pod?: string;
  readonly onlyFailures?: boolean;
}

/** Newest last. */
export function readJournal(db: SqlHandle, filter: JournalFilter = {}): JournalRow[] {
  const rows = db.all(
    `SELECT * FROM (SELECT * FROM journal WHERE id > ?1 AND (?2 IS NULL OR pod = ?2 OR pod LIKE '%/' || ?2) AND (?3 = 0 OR outcome <> 'ok')
       ORDER BY id DESC LIMIT ?4) ORDER BY id`,
    [filter.afterId ?? 0, filter.pod ?? null, filter.onlyFailures ? 1 : 0, filter.last ?? 1000],
  );
  const optional = (value: SqlValue | undefined) => (value === null || value === undefined ? undefined : String(value));
  return rows.map((row) => ({
    id: Number(row.id),
    at: Number(row.at),
    actor: String(row.actor),
    op: String(row.op),
    network: optional(row.network),
    containerId: optional(row.container_id),
    ifname: optional(row.ifname),
    pod: optional(row.pod),
    outcome: String(row.outcome),
    code: row.code === null || row.code === undefined ? undefined : Number(row.code),
    durationMs: row.duration_ms === null || row.duration_ms === undefined ? undefined : Number(row.duration_ms),
    detail: optional(row.detail),
  }));
}
