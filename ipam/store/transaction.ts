/** One write of the store: all of it or nothing, and no two at a time. */
import { SqlError, type SqlHandle } from "../../shared/sys/sql.ts";

const SQLITE_BUSY = 5;

/** A handle as `openStore` gives it. A bare {@link SqlHandle} will do where nobody replaces the file. */
export interface StoreHandle extends SqlHandle {
  readonly guard?: {
    /** Runs with the write lock held, before the work. @throws {StoreReplacedError} */
    checkFile(): void;
    /** The error for a lock that did not come free in time: it names who holds it. */
    explainBusy(error: SqlError): SqlError;
  };
}

/**
 * Runs `work` in one BEGIN IMMEDIATE transaction: the write lock is taken at once, so what `work` reads is what its
 * writes are based on. A throw undoes everything.
 *
 * @throws {SqlError} With SQLITE_BUSY when another process kept the lock for 5 s; the message names its pid.
 * @throws {StoreReplacedError} When the file was set aside meanwhile.
 */
export function inTransaction<T>(db: StoreHandle, work: () => T): T {
  begin(db);
  let result: T;
  try {
    db.guard?.checkFile();
    result = work();
    db.exec("COMMIT");
  } catch (error) {
    try {
      db.exec("ROLLBACK");
    } catch (rollback) {
      // SQLite has rolled back by itself after some errors (full disk, I/O): then there is nothing to undo.
      if (!(rollback instanceof SqlError)) throw rollback;
    }
    throw error;
  }
  return result;
}

function begin(db: StoreHandle): void {
  try {
    db.exec("BEGIN IMMEDIATE");
  } catch (error) {
    throw error instanceof SqlError && error.primary === SQLITE_BUSY && db.guard ? db.guard.explainBusy(error) : error;
  }
}

/** The same, on the disk before it returns: for what must survive a power cut (reservations, cloud intents). */
export function inDurableTransaction<T>(db: StoreHandle, work: () => T): T {
  db.exec("PRAGMA synchronous=FULL");
  try {
    return inTransaction(db, work);
  } finally {
    db.exec("PRAGMA synchronous=NORMAL");
  }
}
