/** A store that is lost while pods run under policies: they stay under them. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { readTable } from "../../shared/policy/read.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns } from "../../test/cloud/netns.ts";
import { inNetns } from "../../test/runtime/exec.ts";
import { openStore, type Store } from "../store/open.ts";
import { dropPolicyAddresses, listPolicyAddresses, putPolicyAddress } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";
import { createEnforcer } from "./enforcer.ts";
import { restoreOwners } from "./lost-owners.ts";

const root = mkdtempSync(join(tmpdir(), "terway-lost-"));
const cache = join(root, "results");
const stores: Store[] = [];
let node: Netns;
let nft: NftSocket;

function newStore(): Store {
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(root, `${stores.length}.db`));
  stores.push(store);
  return store;
}

beforeAll(() => {
  mkdirSync(cache);
  node = createNetns(`lo${process.pid % 10000}`);
  nft = inNetns(node.path, () => openNft(nodeSys));
});
afterAll(() => {
  for (const store of stores) store.db.close();
  nft.close();
  node.close();
  rmSync(root, { recursive: true, force: true });
});

const KEY = { network: "net", ifname: "eth0" };
const POLICY: CompiledPolicy = {
  revision: 1,
  sets: [],
  endpointSets: [],
  profiles: [{ id: "shut", direction: "ingress", admin: [], policies: [], baseline: [] }],
  pods: [{ namespace: "shop", name: "web", ingress: "shut" }],
};

/** As libcni writes it. */
function remember(
  containerId: string,
  addresses: readonly string[],
  { interfaces, ...more }: { readonly interfaces?: readonly object[]; readonly netns?: string } = {},
): void {
  const conf = {
    cniVersion: "1.0.0",
    name: "net",
    plugins: [{ type: "ptp" }, { type: "terway-policy", default: "deny" }],
  };
  const info = {
    kind: "cniCacheV1",
    containerId,
    config: Buffer.from(JSON.stringify(conf)).toString("base64"),
    ifName: "eth0",
    networkName: "net",
    netns: node.path,
    cniArgs: [
      ["IgnoreUnknown", "1"],
      ["K8S_POD_NAMESPACE", "shop"],
      ["K8S_POD_NAME", "web"],
    ],
    result: { cniVersion: "1.0.0", ips: addresses.map((address) => ({ address: `${address}/32` })), interfaces },
    ...more,
  };
  writeFileSync(join(cache, `net-${containerId}-eth0`), JSON.stringify(info));
}

describe("a store that is lost", () => {
  it("takes no running pod out of its policy that the runtime knows of", () => {
    const store = newStore();
    const put = (containerId: string, address: string, name: string) =>
      inTransaction(store.db, () =>
        putPolicyAddress(store.db, {
          ...KEY,
          containerId,
          address,
          namespace: "shop",
          name,
          posture: "deny",
          sinceMs: 0,
        }),
      );
    put("c1", "10.9.0.1", "web");
    put("c1", "2001:db8::1", "web");
    put("c1", "%veth1", "web");
    put("c2", "10.9.0.2", "other");
    createEnforcer(store, nft).bring(POLICY);
    const verdicts = () => readTable(nft)?.sets.get("to4")?.elements;
    const before = ["10.9.0.1 : goto in-shut", "10.9.0.2 : goto drop-ingress"];
    expect(verdicts()).toEqual(before);
    expect(restoreOwners(store, nft, cache)).toEqual({ restored: [], unknown: [] });

    const interfaces = [{ name: "veth1" }, { name: "eth0", sandbox: node.path }];
    remember("c1", ["10.9.0.1", "2001:db8::1"], { interfaces });
    remember("old", ["10.9.0.2"], { netns: "/run/netns/gone" });
    writeFileSync(join(cache, "net-broken-eth0"), "{");
    const fresh = newStore();
    const lost = restoreOwners(fresh, nft, cache);
    expect([[...lost.restored].sort(), lost.unknown]).toEqual([["%veth1", "10.9.0.1", "2001:db8::1"], ["10.9.0.2"]]);
    createEnforcer(fresh, nft).bring(POLICY);
    expect(verdicts()).toEqual(["10.9.0.1 : goto in-shut"]);
    expect(listPolicyAddresses(fresh.db).map(({ name, posture }) => [name, posture])).toEqual([
      ["web", "deny"],
      ["web", "deny"],
      ["web", "deny"],
    ]);
    // DEL finds them as ever.
    inTransaction(fresh.db, () => dropPolicyAddresses(fresh.db, { ...KEY, containerId: "c1" }));
    expect(listPolicyAddresses(fresh.db)).toEqual([]);
  });

  it("is nothing where there is no table", () => {
    const empty = createNetns(`le${process.pid % 10000}`);
    const tables = inNetns(empty.path, () => openNft(nodeSys));
    expect(restoreOwners(newStore(), tables, join(root, "none"))).toEqual({ restored: [], unknown: [] });
    tables.close();
    empty.close();
  });
});
