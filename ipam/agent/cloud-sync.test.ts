/** The comparison of store and cloud, with a cloud that is a list of ENIs. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import type { CloudEni } from "../cloud/cloud-api.ts";
import { listAddresses } from "../store/addresses.ts";
import { makeEni, putEni } from "../store/contract/kit.ts";
import { listEnis } from "../store/enis.ts";
import { openStore, type Store } from "../store/open.ts";
import { syncWithCloud } from "./cloud-sync.ts";
import { type AgentContext, emptyLately, nowMs } from "./context.ts";
import { TAG_CREATOR, TAG_NODE } from "./settings.ts";

const SELF = "i-1";

let dir: string;
let store: Store;
let enis: CloudEni[];
let lately: ReturnType<typeof emptyLately>;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-sync-"));
  store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  enis = [];
  lately = emptyLately();
});
afterEach(() => {
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});

function haveEni(n: number, inCloud: readonly string[], inStore: readonly string[], status = "InUse"): string {
  const record = makeEni(n);
  enis.push({
    id: record.id,
    mac: record.mac,
    status,
    type: "Secondary",
    vswitchId: record.vswitchId,
    instanceId: SELF,
    primary4: record.primary4 ?? "",
    ips4: [record.primary4 ?? "", ...inCloud],
    ips6: [],
    tags: { [TAG_CREATOR]: "terway", [TAG_NODE]: SELF },
  } as unknown as CloudEni);
  putEni(store, record, inStore);
  return record.id;
}

const sync = async () => [
  ...(await syncWithCloud({
    store,
    cloud: { findEnisByTags: async () => enis, describeEni: async (id: string) => enis.find((e) => e.id === id) },
    self: { instanceId: SELF },
    config: { orphanTtlMs: 60_000 },
    lately,
    log: () => undefined,
  } as unknown as AgentContext)),
];
const addresses = () => listAddresses(store.db).map((a) => a.address);

describe("a look at the cloud", () => {
  it("brings addresses that were not known, and forgets ENIs that are gone", async () => {
    haveEni(1, ["10.0.1.2", "10.0.1.3"], ["10.0.1.2"]);
    haveEni(2, [], ["10.0.2.2"]);
    enis.pop();
    expect(await sync()).toEqual([]);
    expect([listEnis(store.db).length, addresses()]).toEqual([1, ["10.0.1.2", "10.0.1.3"]]);
  });

  it("judges no ENI that changed a moment ago, and says which these are", async () => {
    const listed = haveEni(1, ["10.0.1.2"], []);
    const unlisted = haveEni(2, [], ["10.0.2.2"]);
    const leaving = haveEni(3, [], [], "Detaching");
    enis.splice(1, 1);
    lately.changed.set(listed, nowMs() - 4000);
    lately.changed.set(unlisted, nowMs() - 4000);
    expect((await sync()).sort()).toEqual([listed, leaving, unlisted].sort());
    expect([listEnis(store.db).length, addresses()]).toEqual([3, ["10.0.2.2"]]);
    lately.changed.set(listed, nowMs() - 6000);
    lately.changed.set(unlisted, nowMs() - 6000);
    expect(await sync()).toEqual([leaving]);
    expect([listEnis(store.db).length, addresses()]).toEqual([2, ["10.0.1.2"]]);
  });
});
