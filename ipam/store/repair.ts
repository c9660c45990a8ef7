/**
 * Replacing a damaged store. The caller holds the store's lock alone, so nobody opens it meanwhile; writers that have
 * it open are kept out by SQLite's own write lock, and find in their next transaction that the file is another one.
 */
import { formatTime } from "../../shared/log/log.ts";
import { O_CREAT, O_RDWR, O_TRUNC, O_WRONLY } from "../../shared/sys/linux.ts";
import { SqlError, type SqlHandle } from "../../shared/sys/sql.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import { LOCK_WAIT_MS, removeDatabase, renameDatabase, WAL_WRITE_LOCK_OFFSET, waitFor } from "./file.ts";
import { appendJournal } from "./journal.ts";
import { migrate } from "./migrate.ts";
import { salvage } from "./salvage.ts";
import { type StoreDeps, StoreError } from "./types.ts";

const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;
const MAX_STORE_BYTES = 256 << 20;

/** SQLite found the file damaged. */
export function isDamage(error: unknown): boolean {
  return error instanceof SqlError && (error.primary === SQLITE_CORRUPT || error.primary === SQLITE_NOTADB);
}

/**
 * Sets a damaged store aside as `<path>.corrupt-<time>`, with a new one in its place that has what can still be read.
 *
 * @param at Wall clock.
 * @returns What was done, in words; undefined when the store is in order (another process was first).
 */
export function replaceDamaged(deps: StoreDeps, path: string, at: number): string | undefined {
  const { sys } = deps;
  finishReplacement(sys, path, at);
  if (sys.stat(path) === undefined || isSound(deps, path)) return undefined;
  const shm = sys.open(`${path}-shm`, O_RDWR | O_CREAT, 0o600);
  try {
    if (!waitFor(sys, () => sys.tryLockByte(shm, WAL_WRITE_LOCK_OFFSET))) {
      const pid = sys.lockHolder(`${path}-shm`, WAL_WRITE_LOCK_OFFSET);
      throw new StoreError(
        `the store ${path} is damaged, and process ${pid} has it locked for more than ${LOCK_WAIT_MS / 1000} s: end that process`,
      );
    }
    const aside = asideName(path, at);
    const saved = buildReplacement(deps, path, aside, at);
    renameDatabase(sys, path, aside);
    sys.rename(readyPath(path), path);
    return `the store ${path} was damaged: set aside as ${aside}, ${saved}`;
  } finally {
    sys.close(shm);
  }
}

/** Ends what a process that was killed between the last two renames began. */
export function finishReplacement(sys: Sys, path: string, at: number): void {
  if (sys.stat(path) !== undefined || sys.stat(readyPath(path)) === undefined) return;
  renameDatabase(sys, path, asideName(path, at)); // the side files of the one that is gone
  sys.rename(readyPath(path), path);
}

function readyPath(path: string): string {
  return `${path}.ready`;
}

function asideName(path: string, at: number): string {
  return `${path}.corrupt-${formatTime(at).replace(/[-:]/g, "").replace(/\..*/, "Z")}`;
}

function isSound(deps: StoreDeps, path: string): boolean {
  let db: SqlHandle | undefined;
  try {
    db = deps.openSql(path);
    return db.get("PRAGMA integrity_check(1)")?.integrity_check === "ok";
  } catch (error) {
    if (isDamage(error)) return false;
    throw error;
  } finally {
    db?.close();
  }
}

/** Makes `<path>.ready`: one file, complete, on the disk. */
function buildReplacement(deps: StoreDeps, path: string, aside: string, at: number): string {
  const { sys } = deps;
  const [copy, fresh] = [`${path}.salvage`, `${path}.new`];
  removeDatabase(sys, copy);
  removeDatabase(sys, fresh);
  try {
    // Read from a copy: SQLite writes into what it opens, and the evidence should stay as it is.
    for (const suffix of ["", "-wal"]) copyFile(sys, path + suffix, copy + suffix);
    const db = deps.openSql(fresh);
    let saved: string;
    try {
      migrate(db);
      checkpointWhole(db); // salvage may borrow its first page
      saved = salvage(deps, copy, db, sys.readFile(fresh, MAX_STORE_BYTES));
      appendJournal(db, { at, actor: "store", op: "repair", outcome: "damaged", detail: `${aside}: ${saved}` });
      checkpointWhole(db);
    } finally {
      db.close();
    }
    const fd = sys.open(fresh, O_RDWR);
    sys.fsync(fd);
    sys.close(fd);
    sys.rename(fresh, readyPath(path));
    return saved;
  } finally {
    removeDatabase(sys, copy);
    removeDatabase(sys, fresh);
  }
}

function checkpointWhole(db: SqlHandle): void {
  db.get("PRAGMA wal_checkpoint(TRUNCATE)");
}

function copyFile(sys: Sys, from: string, to: string): void {
  if (sys.stat(from) === undefined) return;
  const fd = sys.open(to, O_WRONLY | O_CREAT | O_TRUNC, 0o600);
  try {
    sys.writeAll(fd, sys.readFile(from, MAX_STORE_BYTES));
  } finally {
    sys.close(fd);
  }
}
