import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { openStore, type Store } from "./open.ts";
import { forgetBoot } from "./reboot.ts";
import { dropShaping, getShaping, listShaping, putShaping, type ShapingRow, updateShapingPlan } from "./shaping.ts";
import { inTransaction } from "./transaction.ts";

let folder: string;
let store: Store;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "terway-shaping-"));
  store = openStore({ sys, openSql: openNodeSql }, join(folder, "ipam.db"));
});
afterEach(() => {
  store.db.close();
  rmSync(folder, { recursive: true, force: true });
});

const row = (containerId: string, change: Partial<ShapingRow> = {}): ShapingRow => ({
  network: "net",
  containerId,
  ifname: "eth0",
  netns: `/run/netns/${containerId}`,
  netnsDev: 4,
  netnsIno: 4026532000,
  podNamespace: "default",
  podName: "web",
  explicit: "{}",
  plan: '{"version":1}',
  createdMs: 12.5,
  ...change,
});

describe("shaping", () => {
  it("is kept by attachment, written again in place, listed by network, and dropped once", () => {
    const { db } = store;
    putShaping(db, row("a"));
    putShaping(db, row("b", { network: "other", podNamespace: undefined, podName: undefined }));
    putShaping(db, row("a", { plan: '{"version":1,"again":true}' }));
    expect(getShaping(db, row("a"))).toEqual(row("a", { plan: '{"version":1,"again":true}' }));
    expect(getShaping(db, { ...row("a"), ifname: "net1" })).toBeUndefined();
    expect(listShaping(db).map((s) => s.containerId)).toEqual(["a", "b"]);
    expect(listShaping(db, "other")).toEqual([
      row("b", { network: "other", podNamespace: undefined, podName: undefined }),
    ]);
    expect([dropShaping(db, row("a")), dropShaping(db, row("a"))]).toEqual([true, false]);
    expect(listShaping(db, "net")).toEqual([]);
  });

  it("is changed only while the namespace is the same: a container's successor keeps its own", () => {
    putShaping(store.db, row("a"));
    expect(updateShapingPlan(store.db, row("a", { netnsIno: 1 }), "{}")).toBe(false);
    expect(updateShapingPlan(store.db, row("a"), "{}")).toBe(true);
    expect(getShaping(store.db, row("a"))?.plan).toBe("{}");
  });

  it("does not outlive a reboot", () => {
    putShaping(store.db, row("a"));
    inTransaction(store.db, () => forgetBoot(store.db, "another boot"));
    expect(listShaping(store.db)).toEqual([]);
  });
});
