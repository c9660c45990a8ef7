/** What the sweep frees, on a real store; links and routes of that name there are none. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { addAddress, listAddresses } from "../store/addresses.ts";
import { allocateFromEnis } from "../store/allocate.ts";
import { listAttachments, putAttachment } from "../store/attachments.ts";
import { upsertEni } from "../store/enis.ts";
import type { AttachmentKey } from "../store/key.ts";
import { openStore, type Store } from "../store/open.ts";
import { listPolicyAddresses, putPolicyAddress } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, nowMs } from "./context.ts";
import { sweepDeadPods } from "./dead-pods.ts";

let dir: string;
let store: Store;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-dead-"));
  store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  inTransaction(store.db, () => {
    upsertEni(store.db, {
      id: "eni-1",
      mac: "00:16:3e:00:00:01",
      kind: "shared",
      state: "ready",
      vswitchId: "vsw-1",
      securityGroups: [],
      primary4: "198.18.0.1",
      cidr4: "198.18.0.0/24",
      gateway4: "198.18.0.253",
      primary6: undefined,
      cidr6: undefined,
      gateway6: undefined,
      mtu: 1500,
      createdMs: 0,
    });
    for (const n of [2, 3]) addAddress(store.db, "eni-1", `198.18.0.${n}`, 0);
  });
});
afterEach(() => {
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});

function attach(containerId: string, netns: string): string {
  const key: AttachmentKey = { network: "terway", containerId, ifname: "eth0" };
  const stat = sys.stat(netns);
  return inTransaction(store.db, () => {
    const given = allocateFromEnis(store.db, key, { families: [4] }, nowMs());
    const address = "leases" in given ? (given.leases[0]?.address ?? "") : "";
    putAttachment(store.db, {
      ...key,
      netns,
      netnsDev: stat?.dev ?? 4,
      netnsIno: stat?.ino ?? 99,
      podNamespace: "default",
      podName: containerId,
      podUid: undefined,
      plugin: "terway-eni",
      mode: "shared",
      eniId: "eni-1",
      hostIfname: undefined,
      datapath: undefined,
      state: "ready",
      createdMs: nowMs() - 60_000,
      at: 0,
    });
    putPolicyAddress(store.db, {
      ...key,
      address,
      namespace: "default",
      name: containerId,
      posture: "allow",
      sinceMs: 0,
    });
    return address;
  });
}

it("frees address, attachment and policy of a pod that is dead at two looks, and of no other", () => {
  attach("dead", "/run/netns/no-such-namespace");
  const address = attach("alive", "/proc/self/ns/net");
  const ctx = { store, log: () => undefined } as unknown as AgentContext;
  const suspects = sweepDeadPods(ctx, new Set(), 10_000);
  expect(listAttachments(store.db).length).toBe(2);
  sweepDeadPods(ctx, suspects, 10_000);
  expect(listAttachments(store.db).map((a) => a.containerId)).toEqual(["alive"]);
  expect(listPolicyAddresses(store.db).map((a) => a.containerId)).toEqual(["alive"]);
  expect(
    listAddresses(store.db)
      .filter((a) => a.containerId !== undefined)
      .map((a) => a.address),
  ).toEqual([address]);
});

it("is not held up by a pod that cannot be freed, and says so of it", () => {
  attach("broken", "/run/netns/no-such-namespace");
  attach("dead", "/run/netns/no-such-namespace");
  store.db.run("UPDATE attachment SET datapath = 'no JSON' WHERE container_id = 'broken'");
  const said: string[] = [];
  const ctx = {
    store,
    log: (level: string, text: string) => said.push(`${level}: ${text}`),
  } as unknown as AgentContext;
  const suspects = sweepDeadPods(ctx, new Set(), 10_000);
  expect([...sweepDeadPods(ctx, suspects, 10_000)]).toHaveLength(2);
  expect(listAttachments(store.db).map((a) => a.containerId)).toEqual(["broken"]);
  expect(said).toEqual([
    expect.stringMatching(/^error: .* container broken \(default\/broken\).*JSON.*tries again/),
    expect.stringMatching(/^warn: freed .* container dead/),
  ]);
});
