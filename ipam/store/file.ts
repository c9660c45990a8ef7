/**
 * The store's files beside each other: `<path>` with SQLite's `-wal` and `-shm`, `<path>.lock` and `<path>.ballast`.
 *
 * Who opens the store holds the lock file shared until SQLite has all three of its files open; who creates, migrates or
 * replaces them holds it alone. So nobody ever has one file of the old store and another of the new.
 */
import { LOCK_EX, LOCK_NB, LOCK_SH, O_CREAT, O_EXCL, O_RDWR } from "../../shared/sys/linux.ts";
import { isErrno, type Sys } from "../../shared/sys/sys.ts";
import { StoreError } from "./types.ts";

/** Patience for other processes' locks, as long as SQLite's own. */
export const LOCK_WAIT_MS = 5000;
const NAP_MS = 1;

/** Offset of SQLite's write lock in `-shm` (wal.c: WAL_LOCK(WAL_WRITE_LOCK)). */
export const WAL_WRITE_LOCK_OFFSET = 120;

/** Calls `attempt` until it succeeds. @returns Whether it did in time. */
export function waitFor(sys: Sys, attempt: () => boolean): boolean {
  for (let waitedMs = 0; ; waitedMs += NAP_MS) {
    if (attempt()) return true;
    if (waitedMs >= LOCK_WAIT_MS) return false;
    sys.pollIn([], NAP_MS);
  }
}

/**
 * Takes the lock file, making it and its folder if need be.
 *
 * @returns A descriptor to close; undefined when there is no lock file and none can be made (full or read-only disk):
 *   then nobody creates or replaces anything either.
 */
export function lockStore(sys: Sys, path: string, how: "shared" | "alone"): number | undefined {
  const fd = openLock(sys, `${path}.lock`);
  if (fd === undefined) return undefined;
  const operation = (how === "alone" ? LOCK_EX : LOCK_SH) | LOCK_NB;
  const taken = waitFor(sys, () => {
    try {
      sys.flock(fd, operation);
      return true;
    } catch (error) {
      if (isErrno(error, "EAGAIN")) return false;
      throw error;
    }
  });
  if (taken) return fd;
  sys.close(fd);
  throw new StoreError(
    `the store ${path} is being opened, created or repaired by another process for more than ${LOCK_WAIT_MS / 1000} s: ` +
      `see who holds ${path}.lock in /proc/locks`,
  );
}

function openLock(sys: Sys, lockPath: string): number | undefined {
  try {
    return sys.open(lockPath, O_RDWR | O_CREAT, 0o600);
  } catch (error) {
    if (!isErrno(error, "ENOENT")) return undefined;
  }
  makeFolder(sys, lockPath);
  return sys.open(lockPath, O_RDWR | O_CREAT, 0o600);
}

function makeFolder(sys: Sys, path: string): void {
  let folder = "";
  for (const part of path.split("/").slice(1, -1)) {
    folder += `/${part}`;
    try {
      sys.mkdir(folder, 0o755);
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw error;
    }
  }
}

/** An empty file that only root reads; SQLite gives `-wal` and `-shm` the same mode. The caller holds the lock alone. */
export function createFile(sys: Sys, path: string): void {
  try {
    sys.close(sys.open(path, O_RDWR | O_CREAT | O_EXCL, 0o600));
  } catch (error) {
    if (!isErrno(error, "EEXIST")) throw error;
  }
}

/** Renames a database with its side files. Those that are not there are left out. */
export function renameDatabase(sys: Sys, from: string, to: string): void {
  // The main file first: from then on nobody can open the old database any more.
  for (const suffix of ["", "-wal", "-shm"]) {
    try {
      sys.rename(from + suffix, to + suffix);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
  }
}

export function removeDatabase(sys: Sys, path: string): void {
  for (const suffix of ["", "-wal", "-shm"]) {
    try {
      sys.unlink(path + suffix);
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
    }
  }
}
