/** What the agent concludes from namespaces, links and routes, without touching any. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { eniRoutes, eniRules } from "../../shared/datapath/eni-link.ts";
import type { KernelView } from "../../shared/datapath/verify.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { parseMac } from "../../shared/net/mac.ts";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { addAddress, listAddresses } from "../store/addresses.ts";
import { type EniState, getEni, listEnis, type NewEni, setEniState, upsertEni } from "../store/enis.ts";
import { openStore, type Store } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import { holdRouted, holdsAny, releaseUnrouted } from "./kernel-leases.ts";
import { eniProblems, strayEniRules } from "./repair.ts";

const NEW_ENI: NewEni = {
  id: "eni-1",
  mac: "00:16:3e:00:00:01",
  kind: "shared",
  state: "ready",
  vswitchId: "vsw-1",
  securityGroups: [],
  primary4: "10.0.0.1",
  cidr4: "10.0.0.0/24",
  gateway4: "10.0.0.253",
  primary6: undefined,
  cidr6: undefined,
  gateway6: undefined,
  mtu: 1500,
  createdMs: 0,
};

let dir: string;
let store: Store;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-ns-"));
  store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  inTransaction(store.db, () => {
    upsertEni(store.db, NEW_ENI);
    for (const n of [2, 3, 4]) addAddress(store.db, "eni-1", `10.0.0.${n}`, 0);
  });
});
afterEach(() => {
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});

describe("an ENI's side of the node", () => {
  const eni = () => getEni(store.db, "eni-1") as NonNullable<ReturnType<typeof getEni>>;
  const link = (flags: number) => ({
    index: 3,
    name: "eth1",
    flags,
    mtuBytes: 1500,
    mac: parseMac(NEW_ENI.mac),
    permanentMac: undefined,
    kind: "",
    parentIndex: undefined,
    masterIndex: undefined,
    linkNetnsId: undefined,
    vlanId: undefined,
    alias: "",
  });
  const view = (tweaks: Partial<KernelView>): KernelView => ({
    links: [link(1)],
    addresses: [],
    routes: eniRoutes(eni(), 3) as never,
    rules: eniRules(eni()) as never,
    neighbours: [],
    ...tweaks,
  });
  it("is in order, or says what is missing", () => {
    expect(eniProblems(eni(), view({}))).toEqual([]);
    expect(eniProblems(eni(), view({ links: [link(0)] }))).toEqual(["link eth1 of ENI eni-1 is down"]);
    const changed = { mac: parseMac("02:00:00:00:00:77"), permanentMac: parseMac(NEW_ENI.mac) };
    expect(eniProblems(eni(), view({ links: [{ ...link(1), ...changed }] }))).toEqual([
      "link eth1 of ENI eni-1 has MAC 02:00:00:00:00:77",
    ]);
    expect(eniProblems(eni(), view({ rules: [] }))).toEqual([
      expect.stringContaining("rule is missing: from 10.0.0.1"),
    ]);
    expect(eniProblems(eni(), view({ routes: [] }))[0]).toContain("route is missing: ");
  });
  it("is not judged without its link: the next look at the cloud says what became of it", () => {
    expect(eniProblems(eni(), view({ links: [], rules: [] }))).toEqual([]);
  });
});

describe("rules of ENIs that are gone", () => {
  const rule = (address: string, table: number, more: object = {}) => {
    const ip = parseIp(address);
    return { family: 4 as const, priority: 2049, from: { ip, prefixLength: 32 }, table, protocol: 84, ...more };
  };
  it("are told from those of ENIs that are here, and from other people's", () => {
    const mine = rule("10.0.0.1", 17001);
    const gone = rule("10.0.0.77", 17002);
    const formerSlot = rule("10.0.0.1", 17003);
    const foreign = [rule("10.0.0.78", 17002, { protocol: 4 }), rule("10.0.0.79", 17002, { priority: 3000 })];
    const stray = (state: EniState) => {
      setEniState(store.db, "eni-1", state);
      return strayEniRules(listEnis(store.db), [mine, gone, ...foreign, formerSlot]);
    };
    expect(stray("ready")).toEqual([gone, formerSlot]);
    expect(stray("attaching")).toEqual([gone, formerSlot]);
    expect(stray("deleting")).toEqual([mine, gone, formerSlot]);
  });
});

describe("addresses that only the kernel knows to be in use", () => {
  it("are held until their route is gone, and cool down then", () => {
    const states = () => listAddresses(store.db).map((a) => a.state);
    const routed = new Map([["10.0.0.2", "cali1"]]);
    const held = inTransaction(store.db, () =>
      holdRouted(store.db, "eni-1", ["10.0.0.2", "10.0.0.3", "10.0.0.4"], routed, 10),
    );
    expect([held, states()]).toEqual([["10.0.0.2"], ["allocated", "idle", "idle"]]);
    expect(inTransaction(store.db, () => releaseUnrouted(store.db, routed, 20, 30))).toEqual([]);
    expect(holdsAny(store.db)).toBe(true);
    expect(inTransaction(store.db, () => releaseUnrouted(store.db, new Map(), 20, 30))).toEqual(["10.0.0.2"]);
    expect(listAddresses(store.db)[0]).toMatchObject({ state: "idle", coolUntilMs: 50 });
    expect(holdsAny(store.db)).toBe(false);
  });
});
