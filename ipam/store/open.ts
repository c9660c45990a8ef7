/** Opening the store: creation, migration, reboot, and what to do with a damaged file. */
import { CLOCK_BOOTTIME, CLOCK_REALTIME, O_RDONLY } from "../../shared/sys/linux.ts";
import { SqlError, type SqlHandle } from "../../shared/sys/sql.ts";
import { decodeUtf8, type FileStat, isErrno, type Sys } from "../../shared/sys/sys.ts";
import { ballastPath, ensureBallast, withBallast } from "./ballast.ts";
import { createFile, LOCK_WAIT_MS, lockStore, removeDatabase, WAL_WRITE_LOCK_OFFSET } from "./file.ts";
import { compareSchema, migrate, schemaVersion } from "./migrate.ts";
import { forgetBoot } from "./reboot.ts";
import { finishReplacement, isDamage, replaceDamaged } from "./repair.ts";
import { inTransaction, type StoreHandle } from "./transaction.ts";
import { type Store, type StoreDeps, StoreError, StoreReplacedError } from "./types.ts";

export { isDamage } from "./repair.ts";
export { type Store, type StoreDeps, StoreError, StoreReplacedError } from "./types.ts";

export const DEFAULT_STORE = "/var/lib/terway/ipam.db";

export interface OpenOptions {
  /** Do not create a store where there is none (for those who only look). */
  readonly mustExist?: boolean;
  /** For DEL: on a full disk give up the ballast already for opening. */
  readonly spendBallast?: boolean;
}

const SQLITE_BUSY = 5;

/** The boot id tells this boot of the kernel from every other. */
export function readBootId(sys: Sys): string {
  const fd = sys.open("/proc/sys/kernel/random/boot_id", O_RDONLY);
  try {
    const text = new Uint8Array(64); // proc gives it in one read, 36 characters and a newline
    return decodeUtf8(text.subarray(0, sys.read(fd, text))).trim();
  } finally {
    sys.close(fd);
  }
}

/** Milliseconds of CLOCK_BOOTTIME: what every deadline and cool-down in the store counts. */
export function storeNow(sys: Sys): number {
  return sys.clock(CLOCK_BOOTTIME);
}

/** Milliseconds since 1970, for columns that people read. */
export function wallClock(sys: Sys): number {
  return Math.round(sys.clock(CLOCK_REALTIME));
}

/**
 * Opens the store, creating it if there is none. A damaged one is replaced, which the store's `notice` says.
 *
 * @throws {StoreError} When it cannot be opened, or a newer program has changed it beyond our understanding.
 */
export function openStore(deps: StoreDeps, path: string, options: OpenOptions = {}): Store {
  const open = () => openExisting(deps, path) ?? openMissing(deps, path, options);
  try {
    const store = options.spendBallast ? withBallast(deps.sys, path, open) : open();
    // Spent by a DEL on a full disk; whoever comes when there is room puts it back.
    if (!options.spendBallast) ensureBallast(deps.sys, path);
    return store;
  } catch (error) {
    if (!isDamage(error)) throw asStoreError(error, path);
  }
  return repairStore(deps, path);
}

/**
 * Replaces the store after {@link isDamage} said so of an error in use. Close the old handle first, then go on with the
 * one returned. If another process was faster, it is simply the new store.
 *
 * @throws {StoreError}
 */
export function repairStore(deps: StoreDeps, path: string): Store {
  try {
    const lock = lockStore(deps.sys, path, "alone");
    try {
      const notice = withBallast(deps.sys, path, () => replaceDamaged(deps, path, wallClock(deps.sys)));
      const store = openHere(deps, path);
      if (store === undefined) throw new StoreError(`the store ${path} vanished while it was repaired: try again`);
      return { ...store, notice };
    } finally {
      if (lock !== undefined) deps.sys.close(lock);
    }
  } catch (error) {
    throw asStoreError(error, path);
  }
}

function asStoreError(error: unknown, path: string): unknown {
  if (error instanceof StoreError) return error;
  if (error instanceof SqlError && error.primary === SQLITE_BUSY) return error;
  if (error instanceof SqlError || isErrno(error, "EACCES", "EROFS", "ENOSPC", "ENOENT", "ENOTDIR", "EISDIR", "EIO")) {
    return new StoreError(
      `the store ${path} cannot be used: ${(error as Error).message}; check the folder's rights and room`,
      error,
    );
  }
  return error;
}

/** undefined when it must be created or migrated first. */
function openExisting(deps: StoreDeps, path: string): Store | undefined {
  const lock = lockStore(deps.sys, path, "shared");
  try {
    return openHere(deps, path);
  } finally {
    if (lock !== undefined) deps.sys.close(lock);
  }
}

function openMissing(deps: StoreDeps, path: string, options: OpenOptions): Store {
  const { sys } = deps;
  if (options.mustExist && sys.stat(path) === undefined)
    throw new StoreError(`there is no store ${path}: the first plugin or terway-agent that runs here creates it`);
  const lock = lockStore(sys, path, "alone");
  try {
    finishReplacement(sys, path, wallClock(sys));
    // What lies beside a file that was removed or emptied belongs to those who still have that one open: not touched.
    if ((sys.stat(path)?.size ?? 0) === 0) removeDatabase(sys, path);
    createFile(sys, path);
    const db = deps.openSql(path);
    let lost = false;
    try {
      // The ballast was made with the first store.
      lost = schemaVersion(db) === 0 && sys.stat(ballastPath(path)) !== undefined;
      migrate(db);
    } finally {
      db.close();
    }
    const store = openHere(deps, path);
    if (store === undefined) throw new StoreError(`the store ${path} was removed while it was created: try again`);
    return lost ? { ...store, notice: `the store ${path} was missing or empty, but there was one before: new` } : store;
  } finally {
    if (lock !== undefined) sys.close(lock);
  }
}

/** The caller holds the store's lock. undefined when there is no store of this program's schema. */
function openHere(deps: StoreDeps, path: string): Store | undefined {
  const { sys, openSql } = deps;
  const file = sys.stat(path);
  if (file === undefined) return undefined;
  const handle = openSql(path);
  try {
    if (compareSchema(handle, path) === "older") {
      handle.close();
      return undefined;
    }
    const db = withGuard(sys, handle, path, file);
    const bootId = readBootId(sys);
    const known = db.get("SELECT value FROM fact WHERE name = 'boot_id'")?.value;
    if (known !== bootId) inTransaction(db, () => forgetBoot(db, bootId));
    return { db, path, bootId, notice: undefined };
  } catch (error) {
    handle.close();
    throw error;
  }
}

function withGuard(sys: Sys, handle: SqlHandle, path: string, file: FileStat): StoreHandle {
  return {
    ...handle,
    guard: {
      checkFile() {
        const now = sys.stat(path);
        if (now === undefined || now.ino !== file.ino || now.dev !== file.dev) throw new StoreReplacedError(path);
      },
      explainBusy(error) {
        const pid = sys.lockHolder(`${path}-shm`, WAL_WRITE_LOCK_OFFSET);
        const who = pid > 0 ? `process ${pid}` : "another process";
        return new SqlError(error.code, `the store ${path} is locked by ${who} for more than ${LOCK_WAIT_MS / 1000} s`);
      },
    },
  };
}
