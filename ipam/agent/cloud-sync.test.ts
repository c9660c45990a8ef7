/** The comparison of store and cloud, with a cloud that is a list of ENIs. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { type CloudEni, CloudError } from "../cloud/cloud-api.ts";
import { listAddresses } from "../store/addresses.ts";
import { makeEni, putEni } from "../store/contract/kit.ts";
import { getEni, listEnis, removeEni } from "../store/enis.ts";
import { openStore, type Store } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import { putIntoService, refuseOtherZone, syncWithCloud } from "./cloud-sync.ts";
import { type AgentContext, emptyLately, nowMs } from "./context.ts";
import { TAG_CREATOR, TAG_NODE, TAG_POOL } from "./settings.ts";

// No ENI gets its link: what is written down of it before is looked at.
vi.mock("./eni-node.ts", async (original) => ({
  ...(await original<typeof import("./eni-node.ts")>()),
  waitForLink: async () => undefined,
}));

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
    securityGroups: record.securityGroups,
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

describe("where DescribeVSwitches is not allowed", () => {
  const NET = { cidr4: "10.0.1.0/24", cidr6: "fd00:1::/64" };
  const eniOf = (n: number, pool?: string): CloudEni => {
    haveEni(n, [], []);
    const eni = enis.pop() as CloudEni;
    inTransaction(store.db, () => removeEni(store.db, eni.id));
    return { ...eni, vswitchId: `vsw-${n}`, tags: { ...eni.tags, ...(pool && { [TAG_POOL]: pool }) } };
  };
  let code: string;
  let asked: string[];
  let said: string[];
  beforeEach(() => {
    [code, asked, said] = ["Forbidden.RAM", [], []];
  });
  const ctx = () =>
    ({
      store,
      cloud: {
        async describeVSwitches() {
          const fields = { action: "DescribeVSwitches", code, class: "auth", requestId: "", message: "" } as const;
          throw new CloudError({ ...fields, retryAfterMs: undefined });
        },
      },
      self: { instanceId: SELF, zone: "z" },
      config: { vswitchCacheTtlMs: 0, ipStack: "dual" },
      log: (_level: string, msg: string) => void said.push(msg),
      async toldNetwork(mac: string) {
        asked.push(mac);
        return mac === "00:16:3e:00:00:01" ? NET : undefined;
      },
    }) as unknown as AgentContext;
  const networkIn = (id: string) => {
    const { cidr4, gateway4, cidr6, gateway6 } = getEni(store.db, id) ?? {};
    return [cidr4, gateway4, cidr6, gateway6];
  };
  const WHOLE = [NET.cidr4, "10.0.1.253", NET.cidr6, "fd00:1::ffff:ffff:ffff:fffd"];

  it("an ENI's network is what the guest is told, and the right is named", async () => {
    await putIntoService(ctx(), eniOf(1));
    expect([networkIn("eni-1"), asked]).toEqual([WHOLE, ["00:16:3e:00:00:01"]]);
    expect(said.join()).toContain("vpc:DescribeVSwitches");
  });

  it("an ENI's network is that of another one in its vSwitch: a member's is told to no guest", async () => {
    await putIntoService(ctx(), eniOf(1));
    await putIntoService(ctx(), { ...eniOf(2, "member"), vswitchId: "vsw-1", vlanId: 7 });
    expect([networkIn("eni-2"), asked.length]).toEqual([WHOLE, 1]);
    await expect(putIntoService(ctx(), eniOf(3))).rejects.toThrow("allow vpc:DescribeVSwitches");
  });

  it("zones are not checked", async () => {
    await refuseOtherZone(ctx(), "vsw-1");
    expect(said.join()).toContain("vpc:DescribeVSwitches");
  });

  it("other refusals are not gone round", async () => {
    code = "InvalidAccessKeyId.NotFound";
    await expect(refuseOtherZone(ctx(), "vsw-1")).rejects.toThrow("InvalidAccessKeyId");
    await expect(putIntoService(ctx(), eniOf(1))).rejects.toThrow("InvalidAccessKeyId");
  });
});
