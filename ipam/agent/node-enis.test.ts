/** ENIs of the node itself, with a cloud that is a list of ENIs and idempotency tokens, and a kernel that takes anything. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Link } from "../../shared/netlink/rtnl/link.ts";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { classify } from "../cloud/classify.ts";
import { type CloudEni, CloudError, type CreateEniRequest } from "../cloud/cloud-api.ts";
import type { MultiEniConfig } from "../policy/objects.ts";
import type { Refresh } from "../policy/source-dir.ts";
import { openStore, type Store } from "../store/open.ts";
import type { AgentContext } from "./context.ts";
import { keepNodeEnis, storedNodeEnis } from "./node-enis.ts";

vi.mock("./eni-node.ts", () => ({ readLinks: () => [], waitForLink: async () => ({}) as Link }));
vi.mock("../../shared/datapath/eni-link.ts", async (original) => ({
  ...(await original<typeof import("../../shared/datapath/eni-link.ts")>()),
  // Every ENI that is there has its link.
  findEniLink: (_links: unknown, mac: string) => (cloud.macs.has(mac) ? { index: 2, name: "eth1" } : undefined),
}));
vi.mock("../../shared/datapath/ipv6.ts", () => ({ quietLink: () => undefined }));
vi.mock("../../shared/netlink/socket.ts", async (original) => ({
  ...(await original<typeof import("../../shared/netlink/socket.ts")>()),
  openNetlink: () => ({ dump: () => [], apply: () => undefined, close: () => undefined }),
}));

const MINUTE_MS = 60_000;
const SELF = "i-1";

let dir: string;
let store: Store;
let cloud: ReturnType<typeof fakeCloud>;
let said: string[];
let tell: (refresh: Partial<Refresh>) => void;
let stop: () => void = () => undefined;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-ne-"));
  store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  cloud = fakeCloud();
  said = [];
  vi.useFakeTimers();
});
afterEach(() => {
  stop();
  vi.useRealTimers();
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});

const refusal = (code: string, outcomeUnknown = false) =>
  new CloudError({
    action: "X",
    code,
    class: classify(code),
    requestId: "",
    message: "refused",
    retryAfterMs: undefined,
    outcomeUnknown,
  });

function fakeCloud() {
  const enis = new Map<string, CloudEni>();
  const macs = new Set<string>();
  const answers = new Map<string, CloudEni>();
  const creates: CreateEniRequest[] = [];
  const calls: string[] = [];
  /** Of the next creates, by what they fail; `lost`: made, nobody hears of it, and no list shows it before the next try. */
  const failures: ("lost" | string)[] = [];
  const become = (id: string, status: string, instanceId: string | undefined) => {
    const eni = enis.get(id);
    if (eni === undefined) throw refusal("InvalidEniId.NotFound");
    enis.set(id, { ...eni, status, instanceId });
  };
  /** Its token's answer stays, and brings nothing back. */
  const deleted = new Set<string>();
  const remove = (id: string) => {
    deleted.add(id);
    macs.delete(enis.get(id)?.mac ?? "");
    enis.delete(id);
  };
  const api = {
    describeInstanceEnis: async (id: string) => [...enis.values()].filter((e) => e.instanceId === id),
    findEnisByTags: async () => [...enis.values()],
    describeEni: async (id: string) => enis.get(id),
    describeVSwitches: async ([id]: string[]) => [{ id, zone: "z", cidr4: "10.1.0.0/24" }],
    async createEni(r: CreateEniRequest) {
      creates.push(r);
      const failure = failures.shift();
      if (failure !== undefined && failure !== "lost") throw refusal(failure);
      const known = answers.get(r.clientToken);
      const n = answers.size + 1;
      const made = known ?? {
        ...({
          id: `eni-${n}`,
          mac: `mac-${n}`,
          type: "Secondary",
          status: "Available",
          ips4: [],
        } as unknown as CloudEni),
        instanceId: undefined,
        primary4: `10.1.0.${n}`,
        vswitchId: r.vswitchId,
        securityGroups: r.securityGroups,
        tags: r.tags,
      };
      answers.set(r.clientToken, made);
      if (failure === "lost") throw refusal("InternalError", true);
      if (!deleted.has(made.id)) {
        enis.set(made.id, made);
        macs.add(made.mac);
      }
      return made;
    },
    async attachEni(id: string) {
      become(id, "InUse", SELF);
    },
    async detachEni(id: string) {
      calls.push(`detach ${id}`);
      become(id, "Available", undefined);
    },
    async deleteEni(id: string) {
      calls.push(`delete ${id}`);
      remove(id);
    },
  };
  return {
    api,
    enis,
    macs,
    creates,
    calls,
    failures,
    remove,
  };
}

function start(): void {
  stop();
  const ctx = {
    store,
    cloud: cloud.api,
    self: { instanceId: SELF, zone: "z", ip: "10.0.0.1" },
    config: { vswitchIds: ["vsw-1"], securityGroups: ["sg-1"], eniTags: {}, viaNode: [], vswitchCacheTtlMs: 0 },
    metrics: { nodeEniFailed: () => undefined },
    log: (_level: string, msg: string) => void said.push(msg),
    storeLost(error: unknown): never {
      throw error;
    },
  } as unknown as AgentContext;
  const listeners: ((refresh: Refresh) => void)[] = [];
  const manifests = { dir: "/m", subscribe: (l: (r: Refresh) => void) => void listeners.push(l) };
  stop = keepNodeEnis(ctx, manifests as unknown as Parameters<typeof keepNodeEnis>[1]);
  tell = (refresh) => {
    const none = { events: [], findings: [], faulty: new Set<string>(), broken: false, unsettled: false, empty: false };
    for (const listener of listeners) listener({ ...none, ...refresh });
  };
}

function configOf(...names: readonly string[]): Partial<Refresh> {
  const object = {
    kind: "MultiENIConfig",
    namespace: "ns",
    name: "m",
    enis: names.map((name) => ({ name, primary: false, tags: {} })),
    routes: [],
  } as unknown as MultiEniConfig;
  return { events: [{ type: "set", object }] };
}
const UNMEANT: Partial<Refresh> = { events: [{ type: "delete", key: "MultiENIConfig/ns/m" }] };

const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);
const served = () => (storedNodeEnis({ store })?.enis ?? []).map((e) => `${e.name} ${e.id}`);
const tokens = () => cloud.creates.map((r) => r.clientToken);

describe("an ENI of the node", () => {
  it("is made once and left alone", async () => {
    start();
    tell(configOf("back"));
    await pass(10 * MINUTE_MS);
    expect([served(), cloud.creates.length]).toEqual([["back eni-1"], 1]);
  });

  it("is the same one when the answer was lost, also to the next agent", async () => {
    cloud.failures.push("lost");
    start();
    tell(configOf("back"));
    await pass(1000);
    cloud.failures.push("Throttling.User");
    start();
    tell(configOf("back"));
    await pass(5 * MINUTE_MS);
    expect([served(), cloud.creates.length, new Set(tokens()).size]).toEqual([["back eni-1"], 3, 1]);
  });

  it("is another one when it was deleted: the former token's answer is the former ENI", async () => {
    start();
    tell(configOf("back"));
    await pass(1000);
    cloud.remove("eni-1");
    await pass(5 * MINUTE_MS);
    expect([served(), new Set(tokens()).size]).toEqual([["back eni-2"], 2]);
  });

  it("is another one when it is taken away and meant again", async () => {
    start();
    tell(configOf("back"));
    await pass(1000);
    tell(UNMEANT);
    await pass(1000);
    expect([served(), cloud.calls]).toEqual([[], ["detach eni-1", "delete eni-1"]]);
    tell(configOf("back"));
    await pass(1000);
    expect(served()).toEqual(["back eni-2"]);
  });

  it("is told apart from one with a similar long name", async () => {
    const long = "a".repeat(60);
    start();
    tell(configOf(`${long}1`, `${long}2`));
    await pass(1000);
    expect(served()).toEqual([`${long}1 eni-1`, `${long}2 eni-2`]);
  });

  it("is asked for ever more seldom while it is refused, whatever else changes, and at once when it itself is changed", async () => {
    for (let i = 0; i < 1000; i++) cloud.failures.push("InvalidVSwitchId.IpNotEnough");
    start();
    tell(configOf("back"));
    for (let i = 0; i < 120; i++) {
      await pass(MINUTE_MS / 2);
      tell({});
    }
    expect(cloud.creates.length).toBeLessThan(20);
    cloud.failures.length = 0;
    tell(configOf("front"));
    await pass(1000);
    expect(served()).toEqual(["front eni-1"]);
  });

  it("stays through a start with an empty folder, until something is there that does not mean it", async () => {
    start();
    tell(configOf("back"));
    await pass(1000);
    start();
    tell({ empty: true });
    await pass(5 * MINUTE_MS);
    tell({ empty: true });
    await pass(5 * MINUTE_MS);
    expect([served(), cloud.calls]).toEqual([["back eni-1"], []]);
    expect(said.filter((line) => line.includes("empty List"))).not.toEqual([]);
    tell({ broken: true });
    await pass(MINUTE_MS);
    expect(served()).toEqual(["back eni-1"]);
    tell({});
    await pass(MINUTE_MS);
    expect([served(), cloud.calls]).toEqual([[], ["detach eni-1", "delete eni-1"]]);
  });
});
