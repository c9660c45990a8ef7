/**
 * A process of the store's tests, on the plugins' engine because that is what really runs. ROLE says which; STORE is the
 * store's path. What it does to addresses goes into LOG, a line per event, with one write(2) each: what is in there has
 * happened, also when the process is killed.
 */
import { CLOCK_MONOTONIC, F_OK, O_APPEND, O_CREAT, O_WRONLY } from "../../../shared/sys/linux.ts";
import { openQuickjsSql, setExitStatus, quickjsSys as sys } from "../../../shared/sys/quickjs.ts";
import type { SqlHandle, SqlOpen } from "../../../shared/sys/sql.ts";
import { encodeUtf8 } from "../../../shared/sys/sys.ts";
import { openStore } from "../open.ts";
import { agent } from "./agent-role.ts";
import { churn, contend } from "./churn-role.ts";
import { addOnce, del } from "./plugin.ts";
import type { Role } from "./role.ts";

const SIGSTOP = 19;
const env = sys.environ();

/** Stops this process at its n-th point (1, 2, …): there is one before and one after every call of SQLite. */
function stoppingAt(n: number): SqlOpen {
  let points = 0;
  const point = () => {
    points += 1;
    if (points === n) sys.kill(sys.getpid(), SIGSTOP);
  };
  const counted = <A extends unknown[], R>(call: (...args: A) => R) => {
    return (...args: A): R => {
      point();
      const result = call(...args);
      point();
      return result;
    };
  };
  return (path) => {
    const db: SqlHandle = openQuickjsSql(path);
    return {
      schemaKnown: db.schemaKnown,
      exec: counted(db.exec),
      run: counted(db.run),
      get: counted(db.get),
      all: counted(db.all),
      close: db.close,
    };
  };
}

const logFd = env.LOG === undefined ? 2 : sys.open(env.LOG, O_WRONLY | O_CREAT | O_APPEND, 0o600);
const role: Role = {
  sys,
  deps: { sys, openSql: env.STOP_AT === undefined ? openQuickjsSql : stoppingAt(Number(env.STOP_AT)) },
  path: env.STORE ?? "",
  id: env.ID ?? "p",
  isOver: () => sys.access(`${env.STORE}.over`, F_OK),
  logPath: env.LOG ?? "",
  log: (line) => sys.writeAll(logFd, encodeUtf8(`${line}\n`)),
};

const ROLES: Readonly<Record<string, (role: Role) => unknown>> = {
  /** Opens the store, and says what notice there was. */
  open: (r) => openStore(r.deps, r.path).notice ?? "opened",
  /** One ADD. */
  add: addOnce,
  /** One DEL; the addresses that came free. */
  del: (r) => del(r, r.id),
  /** One ADD and one DEL; what ADD gave. */
  pair: (r) => {
    const got = addOnce(r);
    del(r, r.id);
    return got;
  },
  churn,
  contend,
  agent,
};

const startedMs = sys.clock(CLOCK_MONOTONIC);
let answer: unknown;
try {
  answer = ROLES[env.ROLE ?? ""]?.(role);
} catch (error) {
  answer = `${(error as Error).name}: ${(error as Error).message}`;
}
const tookMs = sys.clock(CLOCK_MONOTONIC) - startedMs;
sys.writeAll(1, encodeUtf8(`${JSON.stringify({ answer, tookMs })}\n`));
setExitStatus(0);
