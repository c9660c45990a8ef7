/** `Sys` and SQLite in the plugins' engine, over the globals that `native/quickjs*.c` define. */
import type { RawSys } from "./raw.ts";
import { SqlError, type SqlHandle, type SqlOpen, type SqlRow, type SqlValue } from "./sql.ts";
import { createSys } from "./sys.ts";

interface RawSql {
  open(path: string): number;
  close(db: number): void;
  exec(db: number, sql: string): void;
  query(db: number, sql: string, params: readonly SqlValue[]): SqlRow[];
  changes(db: number): number;
  schemaKnown(db: number): boolean;
}

interface EngineGlobals {
  readonly terwaySys: RawSys;
  readonly terwaySql: RawSql;
  terwayExitStatus: number;
  terwayMain: () => void;
}

const engine = globalThis as unknown as EngineGlobals;
const sql = engine.terwaySql;

export const quickjsRaw: RawSys = engine.terwaySys;
export const quickjsSys = createSys(engine.terwaySys);

/** The status with which the process will exit once the program has run to its end. */
export function setExitStatus(status: number): void {
  engine.terwayExitStatus = status;
}

/** What the executable calls after everything has been defined, perhaps in another process (see plugins/host/main.c). */
export function setMain(main: () => void): void {
  engine.terwayMain = main;
}

function guard<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { code, message } = error as { code?: number; message: string };
    if (code === undefined) throw error;
    throw new SqlError(code, message);
  }
}

/** SQLite as linked into the plugin. */
export const openQuickjsSql: SqlOpen = (path) => {
  const db = guard(() => sql.open(path));
  const handle: SqlHandle = {
    schemaKnown: sql.schemaKnown(db),
    exec: (text) => guard(() => sql.exec(db, text)),
    run: (text, params = []) =>
      guard(() => {
        sql.query(db, text, params);
        return sql.changes(db);
      }),
    get: (text, params = []) => guard(() => sql.query(db, text, params)[0]),
    all: (text, params = []) => guard(() => sql.query(db, text, params)),
    close: () => sql.close(db),
  };
  return handle;
};
