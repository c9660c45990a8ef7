/** Room kept for a full disk: a file that DEL removes when the store cannot grow, so that addresses still come free. */
import { F_OK, O_CREAT, O_EXCL, O_WRONLY } from "../../shared/sys/linux.ts";
import { SqlError } from "../../shared/sys/sql.ts";
import { isErrno, type Sys } from "../../shared/sys/sys.ts";

const BALLAST_BYTES = 512 << 10;

export function ballastPath(storePath: string): string {
  return `${storePath}.ballast`;
}

/** Makes the ballast if it is not there. Without room for it nothing is left behind. */
export function ensureBallast(sys: Sys, storePath: string): void {
  const path = ballastPath(storePath);
  if (sys.access(path, F_OK)) return;
  let fd: number;
  try {
    fd = sys.open(path, O_WRONLY | O_CREAT | O_EXCL, 0o600);
  } catch {
    return; // somebody else was faster, or the disk is full or read-only: the next one tries again
  }
  try {
    // Written and not only reserved: a hole in a file keeps no room.
    sys.writeAll(fd, new Uint8Array(BALLAST_BYTES).fill(0xff));
  } catch {
    sys.unlink(path);
  } finally {
    sys.close(fd);
  }
}

const SQLITE_IOERR = 10; // the wal-index could not grow
const SQLITE_FULL = 13;
const SQLITE_CANTOPEN = 14; // the WAL could not be made

function isFull(error: unknown): boolean {
  if (error instanceof SqlError) return [SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN].includes(error.primary);
  return isErrno(error, "ENOSPC", "EDQUOT");
}

/**
 * Runs `work`; on a full disk gives up the ballast and runs it once more. For what must not fail: DEL, GC. `openStore`
 * puts the ballast back when there is room.
 */
export function withBallast<T>(sys: Sys, storePath: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!isFull(error)) throw error;
    try {
      sys.unlink(ballastPath(storePath));
    } catch {
      throw error;
    }
    return work();
  }
}
