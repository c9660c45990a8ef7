import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeSys, openNodeSql } from "../../../shared/sys/node.ts";
import { migrate } from "../migrate.ts";
import { openStore } from "../open.ts";
import { MIGRATIONS } from "../schema.ts";
import { CASES } from "./cases.ts";
import type { ContractCase } from "./kit.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-store-contract-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const deps = { sys: nodeSys, openSql: openNodeSql };
let count = 0;
const newPath = () => join(folder, `${count++}.db`);

function run(path: string, runCase: ContractCase[1]): void {
  const store = openStore(deps, path);
  try {
    runCase({ deps, store });
  } finally {
    try {
      store.db.close();
    } catch {
      // The case closed it itself.
    }
  }
}

/** A migration that only adds: what the next version may do while plugins of this one still run. */
function nextSchema() {
  const db = openNodeSql(newPath());
  migrate(db);
  const tables = db.all("SELECT name FROM sqlite_schema WHERE type = 'table'").map((row) => String(row.name));
  db.close();
  const added = tables.map((table) => `ALTER TABLE ${table} ADD COLUMN from_the_future TEXT NOT NULL DEFAULT 'x';`);
  return [...MIGRATIONS, { sql: `${added.join("")} CREATE TABLE future(x);`, minReader: MIGRATIONS.length }];
}

describe.each(CASES)("store on Node: %s", (_group, cases) => {
  it.each(cases)("%s", (_claim, runCase) => run(newPath(), runCase));
});

describe.each(CASES)("store of the next schema, with the programs of this one: %s", (_group, cases) => {
  const migrations = nextSchema();
  it.each(cases)("%s", (_claim, runCase) => {
    const path = newPath();
    const db = openNodeSql(path);
    migrate(db, migrations);
    db.close();
    run(path, runCase);
  });
});

describe("store in the plugins' engine", () => {
  const own = mkdtempSync(join(folder, "quickjs-"));
  const program = join(folder, "contract");
  const entry = "ipam/store/contract/contract-main.ts";
  const built = spawnSync(process.execPath, ["plugins/host/build.ts", "--entry", entry, "--out", program], {
    encoding: "utf8",
  });
  const ran = spawnSync(program, [], { encoding: "utf8", env: { CONTRACT_FOLDER: own } });
  const results = new Map(
    (ran.stdout ?? "")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as { group: string; claim: string; problem?: string })
      .map(({ group, claim, problem }) => [`${group}: ${claim}`, problem ?? "held"]),
  );

  it("builds and runs", () => expect([built.stderr, ran.status, ran.stderr]).toEqual(["", 0, ""]));
  describe.each(CASES)("%s", (group, cases) => {
    it.each(cases)("%s", (claim) => expect(results.get(`${group}: ${claim}`)).toBe("held"));
  });
});
