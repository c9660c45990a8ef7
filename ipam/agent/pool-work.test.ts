/** What the operator is told of a condition. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { readJournal } from "../store/journal.ts";
import { openStore } from "../store/open.ts";
import { tellOperator } from "./pool-work.ts";

it("of a condition that is over, the beginning is a failure and the end is none", () => {
  const dir = mkdtempSync(join(tmpdir(), "terway-conditions-"));
  const store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  const full = { reason: "VSwitchExhausted", about: "vswitch:vsw-1", message: "0 free addresses" } as const;
  const said: string[] = [];
  const ctx = { store, log: (level: string, text: string) => void said.push(`${level}: ${text}`) };
  tellOperator(ctx, { began: [full], ended: [] });
  tellOperator(ctx, { began: [], ended: [full] });
  const rows = (onlyFailures: boolean) => readJournal(store.db, { onlyFailures }).map((r) => [r.outcome, r.detail]);
  expect(rows(false)).toEqual([
    ["VSwitchExhausted began", "0 free addresses"],
    ["ok", "VSwitchExhausted ended: 0 free addresses"],
  ]);
  expect(rows(true)).toEqual([["VSwitchExhausted began", "0 free addresses"]]);
  expect(said.map((s) => s.slice(0, 28))).toEqual(["warn: VSwitchExhausted began", "info: VSwitchExhausted ended"]);
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});
