/**
 * What an executable knows of the store's schema since it was built: used where it holds, and nowhere else. The executable
 * of terway-ipam, on stores that were changed by hand.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { openStore } from "../../ipam/store/open.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";

const PROGRAM = fileURLToPath(new URL("../../dist/cni/terway-ipam", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "terway-schema-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let count = 0;
const newPath = () => join(folder, `${count++}.db`);

function call(
  verb: "ADD" | "DEL",
  store: string,
  containerId: string,
): { readonly status: number; readonly out: string } {
  const ipam = { type: "terway-ipam", ranges: [[{ subnet: "10.7.0.0/24" }]], cooldownSeconds: 0 };
  const conf = { cniVersion: "1.0.0", name: "net", type: "bridge", store, logDir: folder, ipam };
  const env = {
    CNI_COMMAND: verb,
    CNI_CONTAINERID: containerId,
    CNI_NETNS: "/run/netns/none",
    CNI_IFNAME: "eth0",
    CNI_PATH: folder,
  };
  const done = spawnSync(PROGRAM, [], { input: JSON.stringify(conf), env, encoding: "utf8" });
  return { status: done.status ?? -1, out: done.stdout };
}

/** By hand, with what SQLite forbids otherwise. */
function change<T>(store: string, work: (db: DatabaseSync) => T): T {
  const db = new DatabaseSync(store, { defensive: false });
  try {
    return work(db);
  } finally {
    db.close();
  }
}

const numberOf = (db: DatabaseSync, pragma: string) =>
  Number(Object.values(db.prepare(`PRAGMA ${pragma}`).get() ?? {})[0]);

describe("a store's schema, known since the build", () => {
  it("has the same number whoever makes the store", () => {
    const [ofPlugin, ofNode] = [newPath(), newPath()];
    expect(call("ADD", ofPlugin, "a").status).toBe(0);
    openStore({ sys: nodeSys, openSql: openNodeSql }, ofNode).db.close();
    const number = change(ofNode, (db) => numberOf(db, "application_id"));
    expect(number).toBeGreaterThan(0);
    expect(change(ofPlugin, (db) => numberOf(db, "application_id"))).toBe(number);
  });

  it("is not read again: its text may be unreadable", () => {
    const store = newPath();
    const setAside = () => readdirSync(folder).filter((name) => name.includes(".corrupt-")).length;
    expect(call("ADD", store, "a").status).toBe(0);
    change(store, (db) =>
      db.exec("PRAGMA writable_schema=1; UPDATE sqlite_schema SET sql = 'CREATE nonsense' WHERE name = 'intent'"),
    );
    expect(call("ADD", store, "b")).toMatchObject({ status: 0, out: expect.stringContaining("10.7.0.3/24") });
    expect(setAside()).toBe(0);
    // Read by whoever has to: the damage is found, and the store repaired.
    change(store, (db) => db.exec("PRAGMA writable_schema=1; PRAGMA application_id=0"));
    expect(call("ADD", store, "c").status).toBe(0);
    expect(setAside()).toBeGreaterThan(0);
    expect(change(store, (db) => numberOf(db, "application_id"))).toBeGreaterThan(0);
  });

  it.each<[string, (db: DatabaseSync) => void]>([
    ["made before there was a number", (db) => db.exec("PRAGMA application_id=0")],
    ["with an index that somebody added", (db) => db.exec("CREATE INDEX mine ON address(address, state)")],
    [
      "on other pages",
      (db) =>
        db.exec(
          "CREATE TABLE x(y); DROP INDEX address_state; CREATE INDEX address_state ON address(pool, eni_id, state, family, cool_until_ms); DROP TABLE x",
        ),
    ],
    ["that was vacuumed", (db) => db.exec("DROP INDEX attachment_netns; VACUUM")],
    [
      "on other pages after as many changes, of a migration of its own",
      (db) => {
        const changes = numberOf(db, "schema_version");
        db.exec(
          "DROP INDEX address_owner; CREATE TABLE x(y); CREATE UNIQUE INDEX address_owner ON address(network, container_id, ifname, slot) WHERE container_id IS NOT NULL",
        );
        db.exec(`PRAGMA writable_schema=1; PRAGMA schema_version=${changes}; PRAGMA application_id=5`);
      },
    ],
  ])("is not used for a store %s", (_what, byHand) => {
    const store = newPath();
    for (const id of ["a", "b", "c"]) expect(call("ADD", store, id).status).toBe(0);
    change(store, byHand);
    for (const id of ["d", "e"]) expect(call("ADD", store, id).status).toBe(0);
    for (const id of ["a", "e"]) expect(call("DEL", store, id).status).toBe(0);
    const left = change(store, (db) => ({
      integrity: db.prepare("PRAGMA integrity_check").all(),
      owners: db.prepare("SELECT container_id FROM address WHERE state = 'allocated' ORDER BY 1").all(),
    }));
    expect(left.integrity).toEqual([{ integrity_check: "ok" }]);
    expect(left.owners.map((o) => o.container_id)).toEqual(["b", "c", "d"]);
  });
});
