/** Reads what is still readable of a damaged store into a new one, so that no address is handed out twice. */
import { O_WRONLY } from "../../shared/sys/linux.ts";
import { SqlError, type SqlHandle, type SqlRow, type SqlValue } from "../../shared/sys/sql.ts";
import { PAGE_BYTES } from "./migrate.ts";
import { inTransaction } from "./transaction.ts";
import type { StoreDeps } from "./types.ts";

interface Table {
  readonly name: string;
  readonly key: readonly string[];
  /** Rows that are worth it. */
  readonly where?: string;
}

/** What protects running pods, the dearest first. */
const TABLES: readonly Table[] = [
  { name: "reservation", key: ["pool", "address"] },
  // Idle cloud addresses are left to the agent: only the cloud knows whether they are still ours.
  { name: "address", key: ["pool", "address"], where: "state <> 'idle' OR pool <> 'eni'" },
  { name: "attachment", key: ["network", "container_id", "ifname"] },
  { name: "eni", key: ["id"] },
  { name: "shaping", key: ["network", "container_id", "ifname"] },
  { name: "policy_address", key: ["address"] },
  { name: "policy_pod", key: ["namespace", "name"] },
  { name: "policy_profile", key: ["id"] },
  { name: "policy_set", key: ["kind", "id"] },
  { name: "intent", key: ["id"] },
  { name: "fact", key: ["name"] },
  { name: "range_cursor", key: ["pool", "slot"] },
  { name: "pod_fact", key: ["namespace", "name"] },
];

const CHUNK_ROWS = 64;

/**
 * @param copy A copy of the damaged database with its WAL; it is written to.
 * @param sound A whole new store of the same schema: its first page says where the tables begin, should the copy's be gone.
 * @returns What was saved, in words.
 */
export function salvage(deps: StoreDeps, copy: string, into: SqlHandle, sound: Uint8Array): string {
  const saved = saveAll(deps, copy, into);
  if (saved.some((n) => n > 0)) return inWords(saved);
  if (!transplantFirstPage(deps, copy, sound)) return "nothing could be read of it";
  return inWords(saveAll(deps, copy, into));
}

function inWords(saved: readonly number[]): string {
  return `saved: ${TABLES.map((table, i) => `${saved[i]} of ${table.name}`).join(", ")}`;
}

function saveAll(deps: StoreDeps, copy: string, into: SqlHandle): number[] {
  let from: SqlHandle;
  try {
    from = deps.openSql(copy);
  } catch {
    return [];
  }
  try {
    return TABLES.map((table) => {
      const rows = readableRows(from, table);
      return inTransaction(into, () => rows.filter((row) => insert(into, table.name, row)).length);
    });
  } finally {
    from.close();
  }
}

/** Reads from the front up to the damage, then from the back. */
function readableRows(db: SqlHandle, table: Table): SqlRow[] {
  const rows = new Map<string, SqlRow>();
  for (const direction of ["ASC", "DESC"] as const) {
    if (readUntilDamage(db, table, direction, rows)) break;
  }
  return [...rows.values()];
}

/** @returns Whether it came to the end. */
function readUntilDamage(db: SqlHandle, table: Table, direction: "ASC" | "DESC", rows: Map<string, SqlRow>): boolean {
  const key = table.key.join(",");
  const order = table.key.map((column) => `${column} ${direction}`).join(",");
  const marks = table.key.map(() => "?").join(",");
  let last: readonly SqlValue[] | undefined;
  let limit = CHUNK_ROWS;
  for (;;) {
    const beyond = last === undefined ? "1" : `(${key}) ${direction === "ASC" ? ">" : "<"} (${marks})`;
    const sql = `SELECT * FROM ${table.name} WHERE ${beyond} AND (${table.where ?? "1"}) ORDER BY ${order} LIMIT ${limit}`;
    let chunk: readonly SqlRow[];
    try {
      chunk = db.all(sql, last ?? []);
    } catch (error) {
      if (!(error instanceof SqlError)) throw error;
      if (limit === 1) return false;
      limit = 1; // up to the very row
      continue;
    }
    const before = rows.size;
    for (const row of chunk) {
      const id = JSON.stringify(table.key.map((column) => row[column]));
      if (rows.has(id) && direction === "DESC") return true; // met what was read from the front
      rows.set(id, row);
    }
    const end = chunk[chunk.length - 1];
    if (end === undefined) return true;
    // Order is part of what may be damaged: without progress this would never end.
    if (rows.size === before) return false;
    last = table.key.map((column) => end[column] ?? null);
  }
}

function insert(into: SqlHandle, table: string, row: SqlRow): boolean {
  const columns = Object.keys(row);
  try {
    const marks = columns.map(() => "?").join(",");
    // OR IGNORE: what was written into the new store itself (min_reader) is right.
    return into.run(`INSERT OR IGNORE INTO ${table}(${columns.join(",")}) VALUES(${marks})`, Object.values(row)) > 0;
  } catch (error) {
    if (error instanceof SqlError) return false; // a row that breaks a constraint is part of the damage
    throw error;
  }
}

/**
 * The first page says where every table begins. All stores of one schema are made by the same statements, so they
 * begin at the same pages, and a new store's first page opens an old store whose own is gone.
 */
function transplantFirstPage(deps: StoreDeps, copy: string, sound: Uint8Array): boolean {
  const { sys } = deps;
  const size = sys.stat(copy)?.size ?? 0;
  if (size <= PAGE_BYTES || sound.length < PAGE_BYTES) return false;
  const page = sound.slice(0, PAGE_BYTES);
  const view = new DataView(page.buffer);
  view.setUint32(28, Math.floor(size / PAGE_BYTES)); // database size in pages (file format section 1.3)
  view.setUint32(32, 0); // no free pages
  view.setUint32(36, 0);
  const fd = sys.open(copy, O_WRONLY);
  try {
    sys.writeAll(fd, page);
  } finally {
    sys.close(fd);
  }
  return true;
}
