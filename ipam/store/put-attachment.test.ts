import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { type Attachment, getAttachment, listAttachments, putAttachment } from "./attachments.ts";
import { openStore } from "./open.ts";
import { inTransaction } from "./transaction.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-put-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const make = (containerId: string, hostIfname: string, netns = "/run/netns/a"): Attachment => ({
  network: "net",
  containerId,
  ifname: "eth0",
  netns,
  netnsDev: 4,
  netnsIno: 5,
  podNamespace: undefined,
  podName: undefined,
  podUid: undefined,
  plugin: "terway-eni",
  mode: "shared",
  eniId: undefined,
  hostIfname,
  datapath: "{}",
  state: "building",
  createdMs: 1,
  at: 1,
});

it("putAttachment() takes the place of the same attachment, host interface and all, and of no other's", () => {
  const { db } = openStore({ sys: nodeSys, openSql: openNodeSql }, join(folder, "ipam.db"));
  inTransaction(db, () => putAttachment(db, make("a", "cali1")));
  inTransaction(db, () => putAttachment(db, make("a", "cali1", "/run/netns/b")));
  inTransaction(db, () => putAttachment(db, make("a", "cali2", "/run/netns/c")));
  expect(getAttachment(db, make("a", ""))).toMatchObject({ netns: "/run/netns/c", hostIfname: "cali2" });
  expect(() => inTransaction(db, () => putAttachment(db, make("b", "cali2")))).toThrow("host_ifname");
  expect(listAttachments(db).map((a) => a.containerId)).toEqual(["a"]);
  db.close();
});
