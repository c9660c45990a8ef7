/** Bringing a store to this program's schema. */
import { hash128 } from "../../shared/net/hash.ts";
import { SqlError, type SqlHandle } from "../../shared/sys/sql.ts";
import { MIGRATIONS, type Migration } from "./schema.ts";
import { inTransaction } from "./transaction.ts";
import { StoreError } from "./types.ts";

export const PAGE_BYTES = 1024;

export function schemaVersion(db: SqlHandle): number {
  return Number(db.get("PRAGMA user_version")?.user_version ?? 0);
}

/**
 * Whether the store is ready for this program: `older` needs {@link migrate} first.
 *
 * @throws {StoreError} When a newer program has changed the store in a way that this one does not understand.
 */
export function compareSchema(db: SqlHandle, path: string, migrations = MIGRATIONS): "ready" | "older" {
  if (db.schemaKnown) return "ready";
  const found = schemaVersion(db);
  const known = migrations.length;
  if (found === known) return "ready";
  if (found < known) return "older";
  const minReader = Number(db.get("SELECT value FROM fact WHERE name = 'min_reader'")?.value ?? found);
  if (minReader <= known) return "ready";
  throw new StoreError(
    `the store ${path} has schema ${found} for programs that know ${minReader} or more, this one knows ${known}: ` +
      "upgrade this program, or move the store away while no pod runs",
  );
}

/** Applies what is missing, all or nothing. The caller holds the store's lock alone. */
export function migrate(db: SqlHandle, migrations: readonly Migration[] = MIGRATIONS): void {
  // Fixed once the file has its first page. Small, because a transaction changes a few bytes in each of some ten pages
  // and writes them whole: at 4096 bytes, pairs of ADD and DEL take half as long again.
  db.exec(`PRAGMA page_size=${PAGE_BYTES}`);
  useWal(db);
  inTransaction(db, () => {
    for (let at = schemaVersion(db); at < migrations.length; at++) {
      const { sql = "", minReader = 0 } = migrations[at] ?? {};
      db.exec(withoutComments(sql));
      db.run(
        "INSERT INTO fact(name, value) VALUES('min_reader', ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
        [String(minReader)],
      );
    }
    db.exec(`PRAGMA user_version=${migrations.length}`);
    db.exec(`PRAGMA application_id=${layoutOf(db, migrations.length)}`);
  });
}

/**
 * Tells stores whose schema is the same, by the same number of migrations, and lies on the same pages from all others:
 * what an executable knows of one since it was built holds for the other. SQLite itself says when a schema changes later
 * (`PRAGMA schema_version`).
 *
 * @returns A positive 31-bit number.
 */
function layoutOf(db: SqlHandle, version: number): number {
  const rows = db.all("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY rowid");
  const [a = 0, b = 0, c = 0, d = 0] = hash128(
    JSON.stringify([version, ...rows.map((r) => [r.type, r.name, r.tbl_name, r.rootpage, r.sql])]),
  );
  return 1 + (((a << 24) | (b << 16) | (c << 8) | d) & 0x3fff_ffff);
}

/** The text of every table is parsed by whoever opens the store and does not know it since the build: keep it short. */
function withoutComments(sql: string): string {
  return sql.replace(/--[^\n]*/g, "").replace(/\s+/g, " ");
}

function useWal(db: SqlHandle): void {
  const mode = db.get("PRAGMA journal_mode=WAL")?.journal_mode;
  if (mode !== "wal")
    throw new SqlError(1, `the file system cannot hold a write-ahead log: journal mode stays ${mode}`);
}
