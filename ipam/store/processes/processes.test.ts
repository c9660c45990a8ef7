/** The store under many processes that stop, die and fight. They run on the plugins' engine (program.ts). */
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../../shared/sys/node.ts";
import { listAddresses } from "../addresses.ts";
import { releaseAttachment } from "../attachments.ts";
import { makeEni, makeKey, putEni, said, take } from "../contract/kit.ts";
import { openStore } from "../open.ts";
import { inTransaction } from "../transaction.ts";
import type { Store } from "../types.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-store-processes-"));
const program = join(folder, "program");
const deps = { sys: nodeSys, openSql: openNodeSql };
const children = new Set<ChildProcess>();

beforeAll(() => {
  const entry = "ipam/store/processes/program.ts";
  const built = spawnSync(process.execPath, ["plugins/host/build.ts", "--entry", entry, "--out", program], {
    encoding: "utf8",
  });
  expect(built.stderr).toBe("");
});

afterAll(() => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
});

interface Ended {
  /** What the role returned; undefined when the process was killed. */
  readonly answer: unknown;
  readonly tookMs: number;
}

interface Started {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
}

function start(role: string, store: string, env: Readonly<Record<string, string>> = {}): Started {
  const child = spawn(program, [], { env: { ROLE: role, STORE: store, ...env }, stdio: ["ignore", "pipe", "inherit"] });
  children.add(child);
  let text = "";
  child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
    text += chunk;
  });
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", () => {
      children.delete(child);
      resolve(text === "" ? { answer: undefined, tookMs: 0 } : (JSON.parse(text) as Ended));
    });
  });
  return { child, ended };
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const bootMs = () => nodeSys.clock(CLOCK_BOOTTIME);

let stores = 0;
function newStore(enis: number, perEni: number): { readonly store: Store; readonly path: string } {
  const path = join(folder, `${stores++}.db`);
  const store = openStore(deps, path);
  for (let n = 1; n <= enis; n++) {
    putEni(
      store,
      makeEni(n),
      Array.from({ length: perEni }, (_, i) => `10.0.${n}.${10 + i}`),
    );
  }
  return { store, path };
}

/** Waits until the process has stopped itself; false when it has ended instead. */
async function stopped(child: ChildProcess): Promise<boolean> {
  for (let i = 0; i < 1000; i++) {
    if (child.exitCode !== null) return false;
    if (/^State:\s+T/m.test(readFileSync(`/proc/${child.pid}/status`, "utf8"))) return true;
    await pause(5);
  }
  throw new Error(`process ${child.pid} did not stop`);
}

describe("opening", () => {
  it("by 40 processes at once creates one store, whole, for root only, with its folder", async () => {
    const path = join(folder, "deep", "er", "new.db");
    const all = Array.from({ length: 40 }, () => start("open", path));
    expect(await Promise.all(all.map(async (s) => (await s.ended).answer))).toEqual(Array(40).fill("opened"));
    const listing = spawnSync("stat", ["-c", "%a %n", ...readdirSync(join(folder, "deep", "er"))], {
      cwd: join(folder, "deep", "er"),
      encoding: "utf8",
    });
    expect(listing.stdout.trim().split("\n").sort()).toEqual(
      ["", "-shm", "-wal", ".ballast", ".lock"].map((suffix) => `600 new.db${suffix}`).sort(),
    );
    const store = openStore(deps, path);
    expect(store.db.get("PRAGMA integrity_check")).toEqual({ integrity_check: "ok" });
    expect(store.db.get("SELECT count(*) AS n FROM fact")).toEqual({ n: 2 });
    store.db.close();
  });
});

describe("a damaged store", () => {
  it("opened by 20 processes at once is replaced once", async () => {
    const { store, path } = newStore(1, 30);
    for (let i = 0; i < 20; i++) take(store, `pod-${i}`);
    store.db.close();
    const fd = openSync(path, "r+");
    writeSync(fd, Buffer.alloc(1024), 0, 1024, 0);
    closeSync(fd);
    const all = await Promise.all(Array.from({ length: 20 }, () => start("open", path).ended));
    const notices = all.map((e) => String(e.answer)).filter((answer) => answer !== "opened");
    expect(notices).toHaveLength(1);
    expect(notices[0]).toMatch(/was damaged: set aside as .* 20 of address/);
    expect(readdirSync(folder).filter((name) => /\.corrupt-[0-9TZ]+$/.test(name))).toHaveLength(1);
  });

  it("is not replaced while a process is stopped in the middle of writing it", async () => {
    const { store, path } = newStore(1, 4);
    store.db.close();
    const victim = start("add", path, { ID: "victim", STOP_AT: "7" });
    expect(await stopped(victim.child)).toBe(true);
    const fd = openSync(path, "r+");
    writeSync(fd, Buffer.alloc(1024), 0, 1024, 0);
    closeSync(fd);
    const hasty = { ...deps, sys: { ...nodeSys, pollIn: () => [] } }; // does not wait its 5 s
    expect(() => openStore(hasty, path)).toThrow(
      new RegExp(`is damaged, and process ${victim.child.pid} has it locked for more than 5 s: end that process`),
    );
    victim.child.kill("SIGKILL");
    await victim.ended;
    expect(openStore(deps, path).notice).toMatch(/was damaged/);
  });
});

describe.skipIf(process.getuid?.() !== 0)("a full disk (skipped unless root)", () => {
  it("lets every plugin's DEL pass", async () => {
    const target = join(folder, "full");
    mkdirSync(target);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", target]);
    try {
      const path = join(target, "ipam.db");
      const store = openStore(deps, path);
      const addresses = Array.from({ length: 30 }, (_, i) => `10.0.1.${10 + i}`);
      putEni(store, makeEni(1), addresses);
      for (const id of addresses) take(store, id);
      store.db.close();
      spawnSync("dd", ["if=/dev/zero", `of=${join(target, "filler")}`, "bs=1024", "count=4096"]);
      const freed: unknown[] = [];
      for (const id of addresses) freed.push((await start("del", path, { ID: id }).ended).answer);
      expect(freed).toEqual(addresses.map((address) => [address]));
      expect(existsSync(`${path}.ballast`), "the ballast was needed").toBe(false);
    } finally {
      execFileSync("umount", ["-l", target]);
    }
  });
});

describe("a process that is stopped inside its transaction (F-22)", () => {
  const POINTS = Array.from({ length: 36 }, (_, i) => i + 1);

  it("holds up the others for a bounded time, and they name it; killed, it holds up nobody", async () => {
    const agent = agentBehindStopped();
    const cases = await Promise.all(
      POINTS.map(async (point) => {
        const { store, path } = newStore(1, 4);
        store.db.close();
        const victim = start("pair", path, { ID: "victim", STOP_AT: String(point) });
        if (!(await stopped(victim.child))) return undefined; // it has fewer points than that
        const waited = await start("add", path, { ID: "waiter" }).ended;
        victim.child.kill("SIGKILL");
        await victim.ended;
        const next = await start("add", path, { ID: "next" }).ended;
        const again = await start("add", path, { ID: "victim" }).ended;
        return { point, pid: victim.child.pid, waited, next, again };
      }),
    );
    await agent;
    const seen = cases.filter((c) => c !== undefined);
    const blocked = seen.filter((c) => c.waited.tookMs > 4000);
    expect(blocked.length, "points under the write lock").toBeGreaterThanOrEqual(20);
    for (const { pid, waited } of blocked) {
      expect(waited.answer).toMatch(
        new RegExp(`^SqlError: the store .* is locked by process ${pid} for more than 5 s$`),
      );
      expect(waited.tookMs).toBeLessThan(7000);
    }
    const free = seen.filter((c) => !blocked.includes(c));
    expect(free.length, "points outside it").toBeGreaterThanOrEqual(4);
    for (const { waited } of free) expect(waited.answer).toMatch(/^assigned /);
    for (const { point, next, again } of seen) {
      expect(next.answer, `after point ${point}`).toMatch(/^assigned /);
      expect(next.tookMs).toBeLessThan(500);
      // What the victim had committed it still has; what it had not is as if it had never been.
      expect(again.answer).toMatch(/^(assigned|already-held) /);
    }
  });

  /** The agent (this process) is told the pid too, and asking does not cost it its own locks. */
  async function agentBehindStopped(): Promise<void> {
    const { store, path } = newStore(1, 4);
    const victim = start("add", path, { ID: "victim", STOP_AT: "7" });
    expect(await stopped(victim.child)).toBe(true);
    await pause(1000); // this process blocks now: let the other cases come to their waiting first
    const startedMs = performance.now();
    expect(() => take(store, "agent")).toThrow(`is locked by process ${victim.child.pid}`);
    expect(performance.now() - startedMs).toBeLessThan(7000);
    victim.child.kill("SIGKILL");
    await victim.ended;
    // SQLite marks an open database by a lock on byte 128 of -shm: a process that closes the database as the last one
    // deletes the WAL. Ours must still be marked.
    const inode = nodeSys.stat(`${path}-shm`)?.ino;
    const locks = readFileSync("/proc/locks", "utf8").split("\n");
    const mark = locks.find((line) => line.includes(`:${inode} 128 128`) && line.includes(` ${process.pid} `));
    expect(mark).toBeDefined();
    expect(said(take(store, "agent"))).toMatch(/^assigned /);
    store.db.close();
  }
});

interface Span {
  readonly id: string;
  readonly fromMs: number;
  /** Infinity while it is held. */
  readonly toMs: number;
}

interface Churned {
  /** By address, in order of time. */
  readonly spans: ReadonlyMap<string, readonly Span[]>;
  /** Address by container, of those that were never deleted. */
  readonly live: ReadonlyMap<string, string>;
  /** Containers whose ADD or DEL was cut short. */
  readonly unsettled: readonly string[];
}

function readChurn(logs: readonly string[]): Churned {
  const spans = new Map<string, Span[]>();
  const live = new Map<string, string>();
  const unsettled = new Set<string>();
  for (const log of logs) {
    const got = new Map<string, { readonly address: string; readonly fromMs: number }>();
    for (const line of readFileSync(log, "utf8").split("\n")) {
      const [event = "", id = "", a = "", b = ""] = line.split(" ");
      if (event === "adding") unsettled.add(id);
      if (event === "got") {
        got.set(id, { address: a, fromMs: Number(b) });
        live.set(id, a);
        unsettled.delete(id);
      }
      if (event === "freeing") {
        const held = got.get(id);
        if (held)
          spans.set(held.address, [...(spans.get(held.address) ?? []), { id, fromMs: held.fromMs, toMs: Number(a) }]);
        got.delete(id);
        live.delete(id);
        unsettled.add(id);
      }
      if (event === "freed") unsettled.delete(id);
    }
    for (const [id, { address, fromMs }] of got)
      spans.set(address, [...(spans.get(address) ?? []), { id, fromMs, toMs: Infinity }]);
  }
  for (const list of spans.values()) list.sort((x, y) => x.fromMs - y.fromMs);
  return { spans, live, unsettled: [...unsettled] };
}

/** Pairs of owners of one address that come closer than the cool-down. */
function conflicts(spans: Churned["spans"], cooldownMs: number): string[] {
  return [...spans].flatMap(([address, list]) =>
    list.slice(1).flatMap((next, i) => {
      const before = list[i];
      return before !== undefined && next.fromMs < before.toMs + cooldownMs
        ? [`${address}: ${before.id} until ${before.toMs}, ${next.id} from ${next.fromMs}`]
        : [];
    }),
  );
}

/** Ends the loops of all processes on this store. */
const end = (path: string) => writeFileSync(`${path}.over`, "");

/** Keeps `count` processes of a role running until `isOver`, and kills one at random every so often. */
async function runAndKill(
  role: string,
  count: number,
  isOver: (kills: number) => boolean,
  everyMs: number,
  path: string,
  prefix: string,
): Promise<{ readonly kills: number; readonly answers: readonly unknown[]; readonly logs: readonly string[] }> {
  const logs = Array.from({ length: count }, (_, i) => join(folder, `${prefix}-${i}.log`));
  const running = new Map<number, Started>();
  const answers: unknown[] = [];
  const ends: Promise<unknown>[] = [];
  let kills = 0;
  const launch = (i: number) => {
    const started = start(role, path, { ID: String(i + 1), LOG: logs[i] ?? "" });
    running.set(i, started);
    ends.push(
      started.ended.then(({ answer }) => {
        running.delete(i);
        if (answer !== undefined) answers.push(answer);
        else launch(i); // its successor, as a kubelet would retry
      }),
    );
  };
  for (let i = 0; i < count; i++) launch(i);
  while (!isOver(kills)) {
    await pause(everyMs);
    const some = [...running.values()];
    const victim = some[Math.floor(Math.random() * some.length)];
    if (victim?.child.kill("SIGKILL")) kills += 1;
  }
  end(path);
  for (let i = 0; i < ends.length; i++) await ends[i]; // grows while it is walked
  return { kills, answers, logs };
}

describe("many processes", () => {
  it("64 at once, some killed at any moment: no address has two owners, none is lost", async () => {
    const { store, path } = newStore(3, 20);
    const { kills, answers, logs } = await runAndKill("churn", 64, (n) => n > 200, 8, path, "stress");
    expect(answers.filter((a) => typeof a !== "object")).toEqual([]);
    const total = (name: "adds" | "empty") =>
      (answers as Record<string, number>[]).reduce((n, a) => n + (a[name] ?? 0), 0);
    expect(kills).toBeGreaterThan(200);
    const { spans, live, unsettled } = readChurn(logs);
    const owners = [...spans.values()].reduce((n, list) => n + list.length, 0);
    expect(owners).toBeGreaterThan(500);
    expect(total("empty"), "the pool was too large to fight over").toBeGreaterThan(0);
    expect(conflicts(spans, 20)).toEqual([]);
    expect(unsettled, "a successor settled every one").toEqual([]);

    expect(store.db.get("PRAGMA integrity_check")).toEqual({ integrity_check: "ok" });
    const rows = listAddresses(store.db);
    expect(rows).toHaveLength(60);
    const held = new Map(rows.flatMap((a) => (a.state === "allocated" ? [[a.containerId ?? "", a.address]] : [])));
    expect([...held].sort()).toEqual([...live].sort());
    expect(rows.filter((a) => a.state !== "allocated" && a.state !== "idle")).toEqual([]);
    for (const id of live.keys()) inTransaction(store.db, () => releaseAttachment(store.db, makeKey(id), bootMs(), 0));
    expect(listAddresses(store.db).filter((a) => a.state === "idle")).toHaveLength(60);
    expect(store.db.get("SELECT count(*) AS n FROM attachment")).toEqual({ n: 0 });
    store.db.close();
  });

  it("an agent killed 100 times while pods come and go: every live pod keeps its address (F-42, F-53)", async () => {
    const { store, path } = newStore(0, 0);
    store.db.close();
    let restarts = 0;
    const churning = runAndKill("churn", 6, () => restarts > 100, 200, path, "restart");
    const log = join(folder, "agent.log");
    appendFileSync(log, "");
    while (restarts < 100) {
      const running = start("agent", path, { ID: "agent", LOG: log });
      await pause(5 + Math.random() * 35);
      running.child.kill("SIGKILL");
      await running.ended;
      restarts += 1;
    }
    const last = start("agent", path, { ID: "agent", LOG: log });
    await pause(200);
    restarts += 1;
    const { logs, answers } = await churning;
    expect(answers.filter((a) => typeof a !== "object")).toEqual([]);
    expect((await last.ended).answer).toMatch(/ENIs$/);

    const { spans, live, unsettled } = readChurn(logs);
    expect(unsettled).toEqual([]);
    expect(conflicts(spans, 20)).toEqual([]);
    const cloud = readFileSync(log, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => line.split(" "));
    const released = cloud.filter(([event]) => event === "released");
    expect(released.length).toBeGreaterThan(50);
    const robbed = released.flatMap(([, address = "", time]) =>
      (spans.get(address) ?? []).filter((s) => s.fromMs <= Number(time) && Number(time) <= s.toMs).map((s) => s.id),
    );
    expect(robbed, "pods whose address went back to the cloud").toEqual([]);
    const ghosts = [...spans].flatMap(([address, list]) =>
      list.filter(({ fromMs }) => {
        const before = cloud.filter(([, a, time]) => a === address && Number(time) <= fromMs);
        return before[before.length - 1]?.[0] !== "added";
      }),
    );
    expect(ghosts, "pods that got an address which the cloud had taken back").toEqual([]);

    const after = openStore(deps, path);
    const rows = listAddresses(after.db);
    const held = rows.flatMap((a) => (a.state === "allocated" ? [[a.containerId ?? "", a.address]] : []));
    expect(held.sort()).toEqual([...live].sort());
    expect(rows.filter((a) => a.state === "releasing")).toEqual([]);
    after.db.close();
  });

  it("an address that one wants and another gives back goes to exactly one of them, 10,000 times (F-53)", async () => {
    const { store, path } = newStore(1, 1);
    const sides = ["pod", "agent"].map((ID) => ({ ID, LOG: join(folder, `contend-${ID}.log`) }));
    const runs = sides.map((env) => start("contend", path, { ...env, ADDRESS: "10.0.1.10", TRIES: "5000" }).ended);
    const answers = (await Promise.all(runs)).map((r) => r.answer as { won: number });
    const spans = sides.flatMap(({ ID, LOG }) => {
      const lines = existsSync(LOG) ? readFileSync(LOG, "utf8").split("\n") : [];
      const times = lines.filter((line) => line !== "").map((line) => Number(line.split(" ")[1]));
      return times.flatMap((fromMs, i) => (i % 2 === 0 ? [{ id: ID, fromMs, toMs: times[i + 1] ?? Infinity }] : []));
    });
    spans.sort((a, b) => a.fromMs - b.fromMs);
    expect(conflicts(new Map([["10.0.1.10", spans]]), 0)).toEqual([]);
    for (const { won } of answers) expect(won).toBeGreaterThan(100);
    const changes = spans.filter((span, i) => i > 0 && span.id !== spans[i - 1]?.id);
    expect(changes.length, "they took turns").toBeGreaterThan(100);
    expect(listAddresses(store.db).map((a) => a.state)).toEqual(["idle"]);
    store.db.close();
  });
});
