import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { SysError } from "../../shared/sys/sys.ts";
import { makeEni, putEni, said, take } from "./contract/kit.ts";
import { getFact, setFacts } from "./facts.ts";
import { maintainStore } from "./maintain.ts";
import { migrate, schemaVersion } from "./migrate.ts";
import { openStore, readBootId, StoreError, StoreReplacedError } from "./open.ts";
import { MIGRATIONS } from "./schema.ts";
import { inTransaction } from "./transaction.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-store-open-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const deps = { sys: nodeSys, openSql: openNodeSql };
let count = 0;
const newPath = () => join(folder, `${count++}.db`);

describe("openStore", () => {
  it("refuses a store that a newer program changed beyond this one's understanding, and leaves it as it is", () => {
    const path = newPath();
    const db = openNodeSql(path);
    migrate(db, [...MIGRATIONS, { sql: "DROP TABLE demand;", minReader: MIGRATIONS.length + 1 }]);
    db.close();
    const before = readFileSync(path);
    expect(() => openStore(deps, path)).toThrow(
      `has schema ${MIGRATIONS.length + 1} for programs that know ${MIGRATIONS.length + 1} or more, this one knows ${MIGRATIONS.length}: upgrade this program`,
    );
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  it("with mustExist creates nothing", () => {
    const path = newPath();
    expect(() => openStore(deps, path, { mustExist: true })).toThrow(/there is no store .*: the first plugin/);
    expect(existsSync(path)).toBe(false);
    openStore(deps, path).db.close();
    openStore(deps, path, { mustExist: true }).db.close();
  });

  it("says so when there was a store before and it is gone, or empty", () => {
    const path = newPath();
    expect(openStore(deps, path).notice).toBeUndefined();
    rmSync(path);
    expect(openStore(deps, path).notice).toMatch(/was missing or empty, but there was one before/);
    for (const suffix of ["-wal", "-shm"]) rmSync(path + suffix, { force: true });
    writeFileSync(path, "");
    expect(openStore(deps, path).notice).toMatch(/was missing or empty, but there was one before/);
    expect(openStore(deps, path).notice).toBeUndefined();
  });

  it.each([
    ["a folder", () => mkdirSync(join(folder, "is-folder")), "is-folder"],
    ["beneath a file", () => writeFileSync(join(folder, "is-file"), ""), "is-file/x.db"],
  ])("explains a path that is %s", (_what, prepare, name) => {
    prepare();
    expect(() => openStore(deps, join(folder, name))).toThrow(StoreError);
    expect(() => openStore(deps, join(folder, name))).toThrow(/cannot be used: .*; check the folder's rights and room/);
  });

  it("waits only so long for who holds the lock file, and says where to look", () => {
    let naps = 0;
    const sys = {
      ...nodeSys,
      flock: () => {
        throw new SysError("flock", "lock", 11);
      },
      pollIn: () => {
        naps += 1;
        return [];
      },
    };
    expect(() => openStore({ sys, openSql: openNodeSql }, newPath())).toThrow(
      /by another process for more than 5 s: see who holds .*\.lock in \/proc\/locks/,
    );
    expect(naps).toBe(5000);
  });

  it("reads the boot id that the kernel has", () => {
    expect(readBootId(nodeSys)).toBe(readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
  });
});

describe("a handle on a store that was removed or replaced", () => {
  it("writes nothing more, and says that it must be opened again", () => {
    const path = newPath();
    const old = openStore(deps, path);
    putEni(old, makeEni(1), ["10.0.1.5"]);
    for (const suffix of ["", "-wal", "-shm"]) rmSync(path + suffix);
    expect(() => take(old, "a")).toThrow(StoreReplacedError);
    const fresh = openStore(deps, path);
    putEni(fresh, makeEni(1), ["10.0.1.5"]);
    expect(() => take(old, "a")).toThrow(StoreReplacedError);
    expect(said(take(fresh, "b"))).toBe("assigned 10.0.1.5");
    expect(old.db.get("SELECT count(*) AS n FROM address WHERE state = 'allocated'")).toEqual({ n: 0 });
    fresh.db.close();
  });
});

describe("migrations", () => {
  it("are applied to a store in use, whose users go on", () => {
    const path = newPath();
    const old = openStore(deps, path);
    const db = openNodeSql(path);
    migrate(db, [...MIGRATIONS, { sql: "ALTER TABLE address ADD COLUMN added TEXT;", minReader: 1 }]);
    putEni(old, makeEni(1), ["10.0.1.5"]);
    expect(said(take(old, "a"))).toBe("assigned 10.0.1.5");
    expect(schemaVersion(db)).toBe(MIGRATIONS.length + 1);
    expect(db.get("SELECT container_id, added FROM address")).toEqual({ container_id: "a", added: null });
    db.close();
    old.db.close();
  });

  it("are all or nothing", () => {
    const path = newPath();
    openStore(deps, path).db.close();
    const db = openNodeSql(path);
    const broken = [
      { sql: "CREATE TABLE half(x);", minReader: 1 },
      { sql: "CREATE TABLE whole(x); nonsense;", minReader: 9 },
    ];
    expect(() => migrate(db, [...MIGRATIONS, ...broken])).toThrow(/nonsense/);
    expect(schemaVersion(db)).toBe(MIGRATIONS.length);
    expect(db.get("SELECT value FROM fact WHERE name = 'min_reader'")).toEqual({ value: "1" });
    expect(db.all("SELECT name FROM sqlite_schema WHERE name IN ('half', 'whole')")).toEqual([]);
    db.close();
  });
});

describe("maintainStore", () => {
  it("checkpoints when there is enough to do, begins the WAL anew, and puts the ballast back", () => {
    const path = newPath();
    const store = openStore(deps, path);
    store.db.exec("PRAGMA wal_autocheckpoint=0");
    rmSync(`${path}.ballast`);
    const log = () => Number(store.db.get("PRAGMA wal_checkpoint(NOOP)")?.log);
    maintainStore(nodeSys, store, 1);
    expect(readdirSync(folder)).toContain(`${path.slice(folder.length + 1)}.ballast`);
    const few = log();
    maintainStore(nodeSys, store, 1);
    expect(log(), "nothing was written").toBe(few);
    for (let i = 0; i < 200; i++) inTransaction(store.db, () => setFacts(store.db, { zone: String(i) }));
    expect(log()).toBeGreaterThan(128);
    maintainStore(nodeSys, store, 1);
    expect(log()).toBeLessThan(10);
    expect(getFact(store.db, "zone")).toBe("199");
    store.db.close();
  });
});
