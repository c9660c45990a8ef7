/** Opening the store: creation, migration, reboot, and what to do with a damaged file. */
import { CLOCK_BOOTTIME, CLOCK_REALTIME, LOCK_EX, O_CREAT, O_RDWR } from "../../shared/sys/linux.ts";
import { SqlError, type SqlHandle, type SqlOpen } from "../../shared/sys/sql.ts";
import { decodeUtf8, isErrno, type Sys } from "../../shared/sys/sys.ts";
import { ensureBallast } from "./ballast.ts";
import { forgetBoot } from "./reboot.ts";
import { salvage } from "./salvage.ts";
import { MIGRATIONS } from "./schema.ts";
import { inTransaction } from "./transaction.ts";

export const DEFAULT_STORE = "/var/lib/terway/ipam.db";

export interface Store {
  readonly db: SqlHandle;
  readonly path: string;
  readonly bootId: string;
  /** Said loudly by whoever opened it: what was damaged and what became of it. */
  readonly notice: string | undefined;
}

export interface StoreDeps {
  readonly sys: Sys;
  readonly openSql: SqlOpen;
}

/** The store cannot be used. The message names the file, the cause and the remedy. */
export class StoreError extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause });
    this.name = "StoreError";
  }
}

const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

/** SQLite found the file damaged. */
export function isDamage(error: unknown): boolean {
  return error instanceof SqlError && (error.primary === SQLITE_CORRUPT || error.primary === SQLITE_NOTADB);
}

/** The boot id tells this boot of the kernel from every other. */
export function readBootId(sys: Sys): string {
  return decodeUtf8(sys.readFile("/proc/sys/kernel/random/boot_id", 100)).trim();
}

export function storeNow(sys: Sys): number {
  return sys.clock(CLOCK_BOOTTIME);
}

export function wallClock(sys: Sys): number {
  return Math.round(sys.clock(CLOCK_REALTIME));
}

/**
 * Opens the store, creating it if there is none.
 *
 * @throws {StoreError} When it cannot be opened, or was written by a newer program.
 */
export function openStore(deps: StoreDeps, path: string): Store {
  try {
    return openOnce(deps, path, undefined);
  } catch (error) {
    if (!isDamage(error)) throw asStoreError(error, path);
  }
  try {
    return replaceDamaged(deps, path);
  } catch (error) {
    throw asStoreError(error, path);
  }
}

function asStoreError(error: unknown, path: string): unknown {
  if (error instanceof StoreError) return error;
  if (error instanceof SqlError || isErrno(error, "EACCES", "EROFS", "ENOSPC", "ENOENT", "ENOTDIR", "EISDIR", "EIO")) {
    return new StoreError(
      `the store ${path} cannot be used: ${(error as Error).message}; check the folder's rights and room`,
      error,
    );
  }
  return error;
}

function openOnce(deps: StoreDeps, path: string, notice: string | undefined): Store {
  const { sys, openSql } = deps;
  let db: SqlHandle;
  try {
    db = openSql(path);
  } catch (error) {
    if (!(error instanceof SqlError) || error.primary !== 14 /* SQLITE_CANTOPEN */) throw error;
    makeFolder(sys, path);
    db = openSql(path);
  }
  try {
    migrate(deps, db, path);
    const bootId = readBootId(sys);
    const known = db.get("SELECT value FROM fact WHERE name = 'boot_id'")?.value;
    if (known !== bootId) inTransaction(db, () => forgetBoot(db, bootId));
    return { db, path, bootId, notice };
  } catch (error) {
    db.close();
    throw error;
  }
}

function version(db: SqlHandle): number {
  return Number(db.get("PRAGMA user_version")?.user_version ?? 0);
}

function migrate(deps: StoreDeps, db: SqlHandle, path: string): void {
  const found = version(db);
  if (found === MIGRATIONS.length) return;
  if (found > MIGRATIONS.length) {
    throw new StoreError(
      `the store ${path} has schema ${found}, this program knows ${MIGRATIONS.length}: upgrade the plugins, or move the store away`,
    );
  }
  db.exec("PRAGMA journal_mode=WAL");
  inTransaction(db, () => {
    // Another process may have done it between the look and the lock.
    for (let at = version(db); at < MIGRATIONS.length; at++) db.exec(MIGRATIONS[at] ?? "");
    db.exec(`PRAGMA user_version=${MIGRATIONS.length}`);
  });
  ensureBallast(deps.sys, path);
}

function makeFolder(sys: Sys, path: string): void {
  const parts = path.split("/").slice(1, -1);
  let folder = "";
  for (const part of parts) {
    folder += `/${part}`;
    try {
      sys.mkdir(folder, 0o755);
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw error;
    }
  }
}

/**
 * Sets a damaged file aside under a name with the time, and starts a new one with what can still be read of it.
 * One process does it; the others wait for the lock and then find the new file in order.
 */
function replaceDamaged(deps: StoreDeps, path: string): Store {
  const { sys } = deps;
  const lock = sys.open(`${path}.lock`, O_RDWR | O_CREAT, 0o600);
  try {
    sys.flock(lock, LOCK_EX);
    try {
      return openOnce(deps, path, undefined);
    } catch (error) {
      if (!isDamage(error)) throw error;
    }
    const aside = `${path}.corrupt-${wallClock(sys)}`;
    for (const suffix of ["", "-wal", "-shm"]) {
      try {
        sys.rename(path + suffix, aside + suffix);
      } catch (error) {
        if (!isErrno(error, "ENOENT")) throw error;
      }
    }
    const store = openOnce(deps, path, undefined);
    const saved = salvage(deps, aside, store.db);
    return { ...store, notice: `the store ${path} was damaged: set aside as ${aside}, ${saved}` };
  } finally {
    sys.close(lock);
  }
}
