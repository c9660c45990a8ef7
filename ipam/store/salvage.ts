/** Reads what is still readable of a damaged store into a new one, so that no address is handed out twice. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import type { StoreDeps } from "./open.ts";
import { inTransaction } from "./transaction.ts";

/** What protects running pods. ENIs and idle addresses come back from the cloud. */
const TABLES = ["fact", "reservation", "attachment", "address", "range_cursor", "intent"] as const;

/** @returns What was saved, in words. */
export function salvage(deps: StoreDeps, damagedPath: string, into: SqlHandle): string {
  let from: SqlHandle;
  try {
    from = deps.openSql(damagedPath);
  } catch {
    return "nothing could be read of it";
  }
  const saved: string[] = [];
  try {
    for (const table of TABLES) {
      const rows = readable(from, table);
      const kept = inTransaction(into, () => rows.filter((row) => insert(into, table, row)).length);
      saved.push(`${kept} of ${table}`);
    }
  } finally {
    from.close();
  }
  return `saved: ${saved.join(", ")}`;
}

function readable(db: SqlHandle, table: string): readonly SqlRow[] {
  try {
    // Idle cloud addresses are left to the agent: only the cloud knows whether they are still ours.
    return db.all(`SELECT * FROM ${table}${table === "address" ? " WHERE state <> 'idle' OR pool <> 'eni'" : ""}`);
  } catch {
    return [];
  }
}

function insert(db: SqlHandle, table: string, row: SqlRow): boolean {
  const columns = Object.keys(row);
  try {
    const marks = columns.map(() => "?").join(",");
    return db.run(`INSERT OR REPLACE INTO ${table}(${columns.join(",")}) VALUES(${marks})`, Object.values(row)) > 0;
  } catch {
    return false; // a row that breaks a constraint is part of the damage
  }
}
