/** `Sys` and SQLite on Node: the agent, the CLI and the tests. Not for engine-neutral code. */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import type { RawSys } from "./raw.ts";
import { SqlError, type SqlHandle, type SqlOpen, type SqlRow } from "./sql.ts";
import { createSys } from "./sys.ts";

interface NativeModule extends RawSys {
  watch(fd: number, onReadable: () => void): () => void;
}

function load(): NativeModule {
  const path = fileURLToPath(new URL("../../dist/native/sys.node", import.meta.url));
  if (!existsSync(path))
    throw new Error(`${path} is missing: the syscall addon was not built; run: sh shared/sys/native/build.sh`);
  return createRequire(import.meta.url)(path) as NativeModule;
}

const native = load();

export const nodeSys = createSys(native);

/** The native table itself, for the contract test. */
export const nodeRaw: RawSys = native;

/**
 * Calls `onReadable` from the event loop whenever `fd` is readable. Level-triggered: read until EAGAIN.
 *
 * @returns A function that stops it. Call it before closing `fd`.
 */
export function watchFd(fd: number, onReadable: () => void): () => void {
  return native.watch(fd, onReadable);
}

interface NodeSqliteError {
  readonly errcode?: number;
  readonly message: string;
}

function guard<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { errcode, message } = error as NodeSqliteError;
    if (errcode === undefined) throw error;
    throw new SqlError(errcode, message);
  }
}

/** SQLite on Node's built-in module. */
export const openNodeSql: SqlOpen = (path) => {
  const db = guard(() => new DatabaseSync(path, { enableForeignKeyConstraints: false, timeout: 5000 }));
  try {
    db.exec("PRAGMA synchronous=NORMAL");
  } catch {
    // It reads the file: a damaged one is left to the first statement to find. Without it SQLite syncs more than needed.
  }
  const statements = new Map<string, ReturnType<DatabaseSync["prepare"]>>();
  const prepare = (sql: string) => {
    let statement = statements.get(sql);
    if (statement === undefined) {
      statement = db.prepare(sql);
      statements.set(sql, statement);
    }
    return statement;
  };
  const handle: SqlHandle = {
    exec: (sql) => guard(() => db.exec(sql)),
    run: (sql, params = []) => guard(() => Number(prepare(sql).run(...params).changes)),
    // all()[0] and not get(): a statement with RETURNING must run to its end.
    get: (sql, params = []) => guard(() => prepare(sql).all(...params)[0] as SqlRow | undefined),
    all: (sql, params = []) => guard(() => prepare(sql).all(...params) as unknown as readonly SqlRow[]),
    close() {
      statements.clear();
      db.close();
    },
  };
  return handle;
};
