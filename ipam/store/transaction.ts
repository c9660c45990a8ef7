/** One write of the store: all of it or nothing, and no two at a time. */
import { SqlError, type SqlHandle } from "../../shared/sys/sql.ts";

/**
 * Runs `work` in one BEGIN IMMEDIATE transaction: the write lock is taken at once, so what `work` reads is what its
 * writes are based on. A throw undoes everything.
 */
export function inTransaction<T>(db: SqlHandle, work: () => T): T {
  db.exec("BEGIN IMMEDIATE");
  let result: T;
  try {
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

/** The same, on the disk before it returns: for what must survive a power cut (reservations, cloud intents). */
export function inDurableTransaction<T>(db: SqlHandle, work: () => T): T {
  db.exec("PRAGMA synchronous=FULL");
  try {
    return inTransaction(db, work);
  } finally {
    db.exec("PRAGMA synchronous=NORMAL");
  }
}
