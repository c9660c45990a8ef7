import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { CONTRACT } from "./contract.ts";
import { nodeRaw, nodeSys, openNodeSql } from "./node.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-contract-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("Sys on Node", () => {
  const own = mkdtempSync(join(folder, "node-"));
  it.each(CONTRACT)("%s", (_claim, run) => run({ raw: nodeRaw, sys: nodeSys, openSql: openNodeSql, folder: own }));
});

describe("Sys in the plugins' engine", () => {
  const own = mkdtempSync(join(folder, "quickjs-"));
  const out = join(folder, "contract");
  const built = spawnSync(
    process.execPath,
    ["plugins/host/build.ts", "--entry", "shared/sys/contract-main.ts", "--out", out],
    { encoding: "utf8" },
  );
  const ran = spawnSync(out, [], { encoding: "utf8", env: { PATH: process.env.PATH, CONTRACT_FOLDER: own } });
  const results = new Map(
    (ran.stdout ?? "")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as { claim: string; problem?: string })
      .map(({ claim, problem }) => [claim, problem ?? "held"]),
  );

  it("builds and runs", () => expect([built.stderr, ran.status, ran.stderr]).toEqual(["", 0, ""]));
  it.each(CONTRACT)("%s", (claim) => expect(results.get(claim)).toBe("held"));
});
