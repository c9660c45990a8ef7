/** `Sys` and SQLite on Node: the agent, the CLI and the tests. Not for engine-neutral code. */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { WNOHANG } from "./linux.ts";
import type { RawSys } from "./raw.ts";
import { SqlError, type SqlHandle, type SqlOpen, type SqlRow, type SqlValue } from "./sql.ts";
import { createSys, isErrno, type Sys } from "./sys.ts";

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

const sys = createSys(native);

/** Children that nobody waits for: until then each that ended keeps its pid. */
const children = new Set<number>();
const REAP_AFTER_MS = 1000;

function reap(): void {
  for (const pid of children) {
    try {
      if (sys.waitpid(pid, WNOHANG) === undefined) continue;
    } catch (error) {
      if (!isErrno(error, "ECHILD")) throw error; // whoever sent it has waited for it
    }
    children.delete(pid);
  }
  if (children.size > 0) setTimeout(reap, REAP_AFTER_MS).unref();
}

export const nodeSys: Sys = {
  ...sys,
  sendDetached(fd, bytes, options) {
    const sent = sys.sendDetached(fd, bytes, options);
    if (children.size === 0) setTimeout(reap, REAP_AFTER_MS).unref();
    children.add(sent.pid);
    return sent;
  },
};

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

interface Prepared {
  readonly statement: StatementSync;
  readonly toRow: (values: readonly SqlValue[]) => SqlRow;
}

/** Rows come as arrays and are named here: node:sqlite makes a hidden class for each row that it names itself. */
function prepareRows(db: DatabaseSync, sql: string): Prepared {
  const statement = db.prepare(sql);
  statement.setReturnArrays(true);
  const names = statement.columns().map((column) => column.name);
  const toRow = (values: readonly SqlValue[]) => {
    const row: Record<string, SqlValue> = {};
    names.forEach((name, i) => {
      row[name] = values[i] ?? null;
    });
    return row;
  };
  return { statement, toRow };
}

/** SQLite on Node's built-in module. */
export const openNodeSql: SqlOpen = (path) => {
  const db = guard(() => new DatabaseSync(path, { enableForeignKeyConstraints: false, timeout: 5000 }));
  try {
    db.exec("PRAGMA synchronous=NORMAL");
  } catch {
    // It reads the file: a damaged one is left to the first statement to find. Without it SQLite syncs more than needed.
  }
  const statements = new Map<string, Prepared>();
  const prepare = (sql: string) => {
    let prepared = statements.get(sql);
    if (prepared === undefined) {
      prepared = prepareRows(db, sql);
      statements.set(sql, prepared);
    }
    return prepared;
  };
  const all = (sql: string, params: readonly SqlValue[]) => {
    const { statement, toRow } = prepare(sql);
    return (statement.all(...params) as unknown as SqlValue[][]).map(toRow);
  };
  const handle: SqlHandle = {
    schemaKnown: false,
    exec: (sql) => guard(() => db.exec(sql)),
    run: (sql, params = []) => guard(() => Number(prepare(sql).statement.run(...params).changes)),
    // all()[0] and not get(): a statement with RETURNING must run to its end.
    get: (sql, params = []) => guard(() => all(sql, params)[0]),
    all: (sql, params = []) => guard(() => all(sql, params)),
    close() {
      statements.clear();
      db.close();
    },
  };
  return handle;
};
