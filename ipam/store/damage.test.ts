/** Stores whose files were damaged, truncated or overwritten. */
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { putAttachment } from "./attachments.ts";
import { makeAttachment, makeEni, makeKey, NOW, putEni, rangeOf, said, take, takeRange } from "./contract/kit.ts";
import { readJournal } from "./journal.ts";
import { PAGE_BYTES } from "./migrate.ts";
import { isDamage, openStore, repairStore, StoreReplacedError } from "./open.ts";
import { listReservations, reserve } from "./reservations.ts";
import { inTransaction } from "./transaction.ts";
import type { Store } from "./types.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-store-damage-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const deps = { sys: nodeSys, openSql: openNodeSql };
let count = 0;

const PODS = 60;

/** A store with 60 pods, half of them on ranges, and a reservation. Everything is in its main file. */
function fullStore(): { readonly path: string; readonly owners: ReadonlyMap<string, string> } {
  const path = join(folder, `${count++}.db`);
  const store = openStore(deps, path);
  putEni(
    store,
    makeEni(1),
    Array.from({ length: PODS }, (_, i) => `10.0.1.${10 + i}`),
  );
  reserve(store.db, { podNamespace: "d", podName: "p", address: "10.0.1.69", expiresMs: undefined, reason: "" });
  for (let i = 0; i < PODS / 2; i++) {
    take(store, `eni-${i}`);
    takeRange(store, `local-${i}`, [[rangeOf("10.1.0.0/24")]]);
    for (const id of [`eni-${i}`, `local-${i}`])
      inTransaction(store.db, () =>
        putAttachment(store.db, makeAttachment(makeKey(id), { datapath: JSON.stringify({ x: "y".repeat(300) }) })),
      );
  }
  const owners = ownersOf(store);
  store.db.close(); // the last one: SQLite empties the WAL and removes it
  return { path, owners };
}

function ownersOf(store: Store): Map<string, string> {
  const rows = store.db.all("SELECT pool, address, container_id FROM address WHERE state = 'allocated'");
  return new Map(rows.map((row) => [`${row.pool} ${row.address}`, String(row.container_id)]));
}

function damage(path: string, offset: number, bytes: Uint8Array): void {
  const file = readFileSync(path);
  file.set(bytes.subarray(0, Math.max(0, file.length - offset)), offset);
  writeFileSync(path, file);
}

/** Overwrites the page of the table in which this address is (its text is on pages of indexes too). */
function losePageOf(path: string, key: readonly string[]): void {
  const sound = readFileSync(path);
  for (let page = 1; page < sound.length / PAGE_BYTES; page++) {
    damage(path, page * PAGE_BYTES, new Uint8Array(PAGE_BYTES));
    const db = openNodeSql(path);
    try {
      // The whole row, by its key, from a schema that can be read.
      db.get("SELECT count(*) FROM fact");
      if (db.get("SELECT since_ms FROM address WHERE pool = ? AND address = ?", key) === undefined) return;
    } catch (error) {
      if (!isDamage(error)) throw error;
      if (sound.indexOf(key[1] ?? "", page * PAGE_BYTES) < (page + 1) * PAGE_BYTES) return;
    } finally {
      db.close();
    }
    writeFileSync(path, sound);
  }
  throw new Error(`no page has ${key.join(" ")}`);
}

/** What a plugin does: when the damage shows in use, repair and try again. */
function useStore<T>(
  path: string,
  work: (store: Store) => T,
): { readonly result: T; readonly notice: string | undefined } {
  const store = openStore(deps, path);
  try {
    return { result: work(store), notice: store.notice };
  } catch (error) {
    if (!isDamage(error)) throw error;
    store.db.close();
    const repaired = repairStore(deps, path);
    const result = work(repaired);
    repaired.db.close();
    return { result, notice: repaired.notice };
  }
}

const readAll = (store: Store) => {
  for (const table of ["address", "attachment", "eni", "journal", "reservation", "fact"])
    store.db.all(`SELECT * FROM ${table}`);
  return ownersOf(store);
};

describe("a damaged store", () => {
  it("whose first page is gone keeps every owner and every reservation", () => {
    const { path, owners } = fullStore();
    damage(path, 0, new Uint8Array(PAGE_BYTES));
    const evidence = readFileSync(path);
    const store = openStore(deps, path);
    expect(store.notice).toMatch(
      /was damaged: set aside as .*\.corrupt-\d{8}T\d{6}Z, saved: 1 of reservation, 61 of address, 60 of attachment, 1 of eni, /,
    );
    expect(ownersOf(store)).toEqual(owners);
    expect(listReservations(store.db).map((r) => r.address)).toEqual(["10.0.1.69"]);
    expect(said(take(store, "eni-3"))).toMatch(/^already-held/);
    // Idle addresses of the cloud come back with the agent, which asks the cloud.
    expect(said(take(store, "new"))).toBe("pool-empty");
    expect(readJournal(store.db).map((row) => [row.actor, row.op, row.outcome])).toEqual([
      ["store", "repair", "damaged"],
    ]);
    expect(store.db.get("PRAGMA integrity_check")).toEqual({ integrity_check: "ok" });
    const aside = store.notice?.match(/set aside as (\S+),/)?.[1] ?? "";
    expect(readFileSync(aside).equals(evidence), "the evidence is untouched").toBe(true);
    store.db.close();
    expect(openStore(deps, path).notice, "said once").toBeUndefined();
  });

  it("that is no database at all is replaced by an empty one", () => {
    const { path } = fullStore();
    writeFileSync(path, "x".repeat(5000));
    const store = openStore(deps, path);
    expect(store.notice).toMatch(/nothing could be read of it|saved: 0 of reservation, 0 of address/);
    putEni(store, makeEni(1), ["10.0.1.5"]);
    expect(said(take(store, "a"))).toBe("assigned 10.0.1.5");
    store.db.close();
  });

  it.each(["front", "middle", "end"])("with a page lost in the %s of a table keeps the rows on both sides", (where) => {
    const { path, owners } = fullStore();
    const keys = [...owners.keys()].sort();
    const at = { front: 0, middle: PODS / 2, end: PODS - 1 }[where] ?? 0;
    losePageOf(path, keys[at]?.split(" ") ?? []);
    const { result, notice } = useStore(path, readAll);
    expect(notice).toMatch(/was damaged/);
    for (const [address, owner] of result) expect(owners.get(address)).toBe(owner);
    expect(result.size, "one page has some 15 rows").toBeGreaterThan(owners.size - 20);
    expect(result.size).toBeLessThan(owners.size);
  });

  it("of any kind is replaced or reads as it was: no wrong owner, no crash, and it works again", () => {
    const hurt = fc.oneof(
      fc.record({ kind: fc.constant("truncate" as const), at: fc.double({ min: 0, max: 1, noNaN: true }) }),
      fc.record({
        kind: fc.constant("zero pages" as const),
        at: fc.double({ min: 0, max: 1, noNaN: true }),
        pages: fc.integer({ min: 1, max: 6 }),
      }),
      fc.record({
        kind: fc.constant("noise" as const),
        at: fc.double({ min: 0, max: 1, noNaN: true }),
        bytes: fc.uint8Array({ minLength: PAGE_BYTES, maxLength: 3 * PAGE_BYTES }),
      }),
    );
    const { path: original, owners } = fullStore();
    let replaced = 0;
    fc.assert(
      fc.property(hurt, (h) => {
        const path = join(folder, `${count++}.db`);
        copyFileSync(original, path);
        const size = readFileSync(path).length;
        const page = Math.floor((h.at * size) / PAGE_BYTES) * PAGE_BYTES;
        if (h.kind === "truncate") writeFileSync(path, readFileSync(path).subarray(0, Math.floor(h.at * size)));
        else damage(path, page, h.kind === "noise" ? h.bytes : new Uint8Array(h.pages * PAGE_BYTES));
        const { result, notice } = useStore(path, readAll);
        for (const [address, owner] of result) expect([address, owners.get(address)]).toEqual([address, owner]);
        if (notice !== undefined) replaced += 1;
        const after = useStore(path, (store) => {
          putEni(store, makeEni(2), ["10.0.2.5"]);
          return said(take(store, "after", { only: { eniIds: ["eni-2"] } }));
        });
        expect(after.result).toBe("assigned 10.0.2.5");
      }),
      { numRuns: 80 },
    );
    expect(replaced, "most of it was noticed").toBeGreaterThan(30);
  });

  it("with noise in its WAL keeps what was committed before", () => {
    const { path } = fullStore();
    const store = openStore(deps, path);
    putEni(store, makeEni(2), ["10.0.2.5", "10.0.2.6"]);
    const copy = join(folder, `${count++}.db`);
    for (const suffix of ["", "-wal"]) copyFileSync(path + suffix, copy + suffix);
    store.db.close();
    const wal = readFileSync(`${copy}-wal`);
    writeFileSync(`${copy}-wal`, wal.fill(0xa5, wal.length / 2));
    const { result } = useStore(copy, readAll);
    expect(result.size).toBe(PODS);
  });

  it("in use is replaced under everybody who has it open; nobody writes into the old one any more", () => {
    const { path, owners } = fullStore();
    const other = openStore(deps, path);
    expect(said(take(other, "eni-0"))).toMatch(/^already-held/);
    const page = Math.floor(readFileSync(path).indexOf("10.0.1.20") / PAGE_BYTES);
    damage(path, page * PAGE_BYTES, new Uint8Array(PAGE_BYTES)); // writes in place: the same file
    const { notice } = useStore(path, readAll);
    expect(notice).toMatch(/was damaged/);
    expect(() => take(other, "eni-1", {}, NOW)).toThrow(StoreReplacedError);
    other.db.close();
    const again = openStore(deps, path);
    expect([...ownersOf(again)].every(([address, owner]) => owners.get(address) === owner)).toBe(true);
    again.db.close();
  });

  it("whose repair was cut short between two renames is repaired by the next one", () => {
    const { path, owners } = fullStore();
    renameSync(path, `${path}.ready`);
    writeFileSync(`${path}-wal`, "left from the damaged one");
    const store = openStore(deps, path);
    expect(ownersOf(store)).toEqual(owners);
    expect(
      readdirSync(folder).filter(
        (name) => name.startsWith(path.slice(folder.length + 1)) && /ready|salvage|new/.test(name),
      ),
    ).toEqual([]);
    store.db.close();
  });

  it("that was repaired meanwhile is left alone", () => {
    const { path, owners } = fullStore();
    const store = repairStore(deps, path);
    expect([store.notice, ownersOf(store)]).toEqual([undefined, owners]);
    store.db.close();
  });
});
