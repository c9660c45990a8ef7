/** The executor on a real store and a cloud that is only a list of ENIs: what it leaves behind, whatever the cloud says. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as tick } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { IpStack } from "../../shared/config/ip-stack.ts";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import type { CloudErrorClass } from "../cloud/classify.ts";
import { type CloudApi, type CloudEni, CloudError } from "../cloud/cloud-api.ts";
import type { PoolAction } from "../pool/decide.ts";
import type { Failure } from "../pool/inhibit.ts";
import { createPoolKeeper } from "../pool/keeper.ts";
import { addAddress, listAddresses } from "../store/addresses.ts";
import { allocateFromEnis } from "../store/allocate.ts";
import { releaseAttachment } from "../store/attachments.ts";
import { getEni, setEniLink, setEniState, upsertEni } from "../store/enis.ts";
import { listIntents } from "../store/intents.ts";
import { openStore, type Store } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import { emptyLately, nowMs } from "./context.ts";
import { createExecutor, type Executor, mustGoOn } from "./executor.ts";

const INSTANCE = "i-1";

let dir: string;
let store: Store;
let cloud: ReturnType<typeof fakeCloud>;
let outcomes: { readonly action: PoolAction; readonly failure: Failure | undefined }[];
let said: string[];
let ipStack: IpStack;
let executors: Executor[];
/** The node has a link for each ENI that is attached. */
let links: boolean;
let lately: ReturnType<typeof emptyLately>;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-ex-"));
  store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  cloud = fakeCloud();
  outcomes = [];
  said = [];
  ipStack = "ipv4";
  executors = [];
  links = true;
  lately = emptyLately();
});
afterEach(() => {
  for (const executor of executors) executor.stop();
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});

function cloudError(kind: CloudErrorClass, outcomeUnknown = false): CloudError {
  return new CloudError({
    action: "X",
    code: kind,
    class: kind,
    requestId: "",
    message: "refused",
    retryAfterMs: undefined,
    outcomeUnknown,
  });
}

function eniOf(id: string, ips: readonly string[], status: string): CloudEni {
  return {
    id,
    mac: `00:16:3e:00:00:${id.slice(-2)}`,
    status,
    type: "Secondary",
    vswitchId: "vsw-1",
    instanceId: status === "InUse" ? INSTANCE : undefined,
    primary4: `10.9.0.${Number(id.slice(-2))}`,
    ips4: ips.filter((ip) => !ip.includes(":")),
    ips6: ips.filter((ip) => ip.includes(":")),
    prefixes: [],
    securityGroups: ["sg-1"],
    tags: {},
    name: "",
    description: "",
    zone: "",
    createdAt: "",
    deleteOnRelease: true,
    serviceManaged: false,
    trunkEniId: undefined,
    vlanId: undefined,
  };
}

/** Every call takes some turns of the event loop, acts, and answers; or fails as told. */
function fakeCloud() {
  const enis = new Map<string, { ips: Set<string>; status: string }>();
  const calls: string[] = [];
  const tokens = new Map<string, readonly string[]>();
  const failures: { readonly call: string; readonly error: CloudError; readonly after: boolean }[] = [];
  let serial = 20;

  async function call<T>(name: string, act: () => T): Promise<T> {
    calls.push(name);
    for (let i = 0; i < 2; i++) await tick();
    const i = failures.findIndex((f) => f.call === name);
    const [failure] = i < 0 ? [] : failures.splice(i, 1);
    if (failure && !failure.after) throw failure.error;
    const result = act();
    if (failure) throw failure.error;
    await tick();
    return result;
  }
  const there = (id: string) => {
    const eni = enis.get(id);
    if (eni === undefined) throw cloudError("gone");
    return eni;
  };
  const become = (id: string, status: string) => {
    there(id).status = status;
  };
  const draw = (token: string, count: number, prefix: string): readonly string[] => {
    const known = tokens.get(token);
    if (known !== undefined) return known;
    const drawn = Array.from({ length: count }, () => `${prefix}${++serial}`);
    tokens.set(token, drawn);
    return drawn;
  };
  const give = (id: string, addresses: readonly string[]) => {
    for (const a of addresses) there(id).ips.add(a);
    return [...addresses];
  };
  const take = (id: string, addresses: readonly string[]) => {
    if (addresses.some((a) => !there(id).ips.has(a))) throw cloudError("gone");
    for (const a of addresses) there(id).ips.delete(a);
  };
  const api: Partial<CloudApi> = {
    describeEni: (id) =>
      call("describeEni", () => {
        const eni = enis.get(id);
        return eni && eniOf(id, [...eni.ips], eni.status);
      }),
    createEni: (r) =>
      call("createEni", () => {
        const id = draw(r.clientToken, 1, "eni-").map((n) => `eni-${n.slice(4).padStart(2, "0")}`)[0] ?? "";
        if (!enis.has(id)) {
          enis.set(id, { ips: new Set(), status: "Available" });
          give(id, draw(`${r.clientToken}-ips`, r.count4, "10.0.0."));
          give(id, draw(`${r.clientToken}-ips6`, r.count6, "fd00::"));
        }
        return eniOf(id, [...there(id).ips], there(id).status);
      }),
    attachEni: (id) => call("attachEni", () => become(id, "InUse")),
    detachEni: (id) => call("detachEni", () => become(id, "Available")),
    deleteEni: (id) =>
      call("deleteEni", () => {
        there(id);
        enis.delete(id);
      }),
    assign: (id, count, token) => call("assign", () => give(id, draw(token, count, "10.0.0."))),
    assign6: (id, count, token) => call("assign6", () => give(id, draw(token, count, "fd00::"))),
    unassign: (id, addresses) => call("unassign", () => take(id, addresses)),
    unassign6: (id, addresses) => call("unassign6", () => take(id, addresses)),
  };
  return {
    api: api as CloudApi,
    enis,
    calls,
    fail: (name: string, error: CloudError, after = false) => void failures.push({ call: name, error, after }),
  };
}

function newExecutor(): Executor {
  const ctx = {
    store,
    cloud: cloud.api,
    self: { instanceId: INSTANCE },
    config: { ipStack, securityGroups: ["sg-1"], eniTags: {} },
    metrics: { observeEniCreate: () => undefined },
    lately,
    log: (_level: string, msg: string) => void said.push(msg),
    wake: () => undefined,
    reached: () => undefined,
    storeLost(error: unknown): never {
      throw error;
    },
  } as unknown as Parameters<typeof createExecutor>[0];
  const put = (eni: CloudEni, state: "attaching" | "ready") =>
    inTransaction(store.db, () => {
      addEni(eni.id, state);
      if (state === "ready") for (const a of [...eni.ips4, ...eni.ips6]) addAddress(store.db, eni.id, a, nowMs());
    });
  const executor = createExecutor(ctx, "shared", {
    refuseOtherZone: async () => undefined,
    trunkId: () => undefined,
    adopt: async (eni) => put(eni, "attaching"),
    async putIntoService(eni) {
      put(eni, links ? "ready" : "attaching");
      return links;
    },
    outcome(action, failure) {
      outcomes.push({ action, failure });
      return undefined;
    },
  });
  executors.push(executor);
  return executor;
}

function addEni(id: string, state: "attaching" | "ready"): void {
  upsertEni(store.db, {
    id,
    mac: `00:16:3e:00:00:${id.slice(-2)}`,
    kind: "shared",
    state,
    vswitchId: "vsw-1",
    securityGroups: ["sg-1"],
    primary4: undefined,
    cidr4: "10.0.0.0/16",
    gateway4: undefined,
    primary6: undefined,
    cidr6: undefined,
    gateway6: undefined,
    mtu: 1500,
    createdMs: 0,
  });
  setEniState(store.db, id, state);
  setEniLink(store.db, id, { ifname: "eth1", ifindex: 2, mtu: 1500, preparedBoot: store.bootId });
}

/** An ENI in service with these addresses, in the cloud and in the store. */
function haveEni(id: string, addresses: readonly string[]): void {
  cloud.enis.set(id, { ips: new Set(addresses), status: "InUse" });
  inTransaction(store.db, () => {
    addEni(id, "ready");
    for (const a of addresses) addAddress(store.db, id, a, 0);
  });
}

const statesOf = () => Object.fromEntries(listAddresses(store.db).map((a) => [a.address, a.state]));
const keyOf = (n: number) => ({ network: "net", containerId: `c${n}`, ifname: "eth0" });
const add = (n: number, address?: string) =>
  inTransaction(store.db, () =>
    allocateFromEnis(
      store.db,
      keyOf(n),
      { families: [4], ...(address === undefined ? {} : { requested: [address] }) },
      nowMs(),
    ),
  );

describe("an action that goes well", () => {
  it.each<[string, PoolAction]>([
    ["create", { kind: "create", vswitchId: "vsw-1", count: 2 }],
    ["assign", { kind: "assign", eniId: "eni-01", count: 2 }],
    ["unassign", { kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] }],
    ["remove", { kind: "remove", eniId: "eni-01" }],
  ])("%s: the intent is there before the first call, and gone with the outcome", async (_what, action) => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    const running = newExecutor().run(action);
    expect(listIntents(store.db)).toHaveLength(1);
    await running;
    expect(listIntents(store.db)).toEqual([]);
    expect(outcomes).toMatchObject([{ action, failure: undefined }]);
    const inCloud = [...cloud.enis.values()].flatMap((e) => [...e.ips]).sort();
    expect(Object.keys(statesOf()).sort()).toEqual(inCloud);
    expect(Object.values(statesOf()).every((s) => s === "idle")).toBe(true);
  });

  it("an unassignment asks the cloud nothing besides", async () => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    await newExecutor().run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] });
    expect(cloud.calls).toEqual(["unassign"]);
  });
});

describe("an action that is refused", () => {
  it("leaves no intent of a create or an assign, and its reason", async () => {
    haveEni("eni-01", []);
    cloud.fail("createEni", cloudError("vswitch-full"));
    cloud.fail("assign", cloudError("throttled"));
    const executor = newExecutor();
    await executor.run({ kind: "create", vswitchId: "vsw-1", count: 2 });
    await executor.run({ kind: "assign", eniId: "eni-01", count: 2 });
    expect(listIntents(store.db)).toEqual([]);
    expect(outcomes.map((o) => o.failure?.class)).toEqual(["vswitch-full", "throttled"]);
  });

  it("counts as no change of the ENI, unless something was done or may have been", async () => {
    const assign: PoolAction = { kind: "assign", eniId: "eni-01", count: 2 };
    const changedBy = async (action: PoolAction) => {
      lately.changed.clear();
      await newExecutor().run(action);
      return [...lately.changed.keys()];
    };
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    for (const kind of ["gone", "capacity", "state"] as const) {
      cloud.fail("assign", cloudError(kind));
      expect(await changedBy(assign)).toEqual([]);
    }
    cloud.fail("unassign", cloudError("throttled"));
    expect(await changedBy({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] })).toEqual([]);
    cloud.fail("detachEni", cloudError("conflict"));
    expect(await changedBy({ kind: "remove", eniId: "eni-01" })).toEqual([]);
    expect(await changedBy(assign)).toEqual(["eni-01"]);
    cloud.fail("assign", cloudError("retry", true), true);
    expect(await changedBy(assign)).toEqual(["eni-01"]);
    ipStack = "dual";
    cloud.fail("assign6", cloudError("vswitch-full"));
    expect(await changedBy(assign)).toEqual(["eni-01"]);
  });

  it("puts addresses that were to go back into use", async () => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    cloud.fail("unassign", cloudError("throttled"));
    await newExecutor().run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] });
    expect(statesOf()).toEqual({ "10.1.0.1": "idle", "10.1.0.2": "idle" });
    expect(listIntents(store.db)).toEqual([]);
  });

  it("puts an ENI that could not be detached back into service", async () => {
    haveEni("eni-01", ["10.1.0.1"]);
    cloud.fail("detachEni", cloudError("conflict"));
    await newExecutor().run({ kind: "remove", eniId: "eni-01" });
    expect(getEni(store.db, "eni-01")?.state).toBe("ready");
    expect(add(1).kind).toBe("assigned");
  });

  it("deletes one again that cannot be attached", async () => {
    cloud.fail("attachEni", cloudError("eni-limit"));
    await newExecutor().run({ kind: "create", vswitchId: "vsw-1", count: 2 });
    expect(cloud.enis.size).toBe(0);
    expect([listIntents(store.db), listAddresses(store.db)]).toEqual([[], []]);
  });

  it("gives one back at once whose link never comes, and the pool waits with the next, ever longer", async () => {
    links = false;
    const action: PoolAction = { kind: "create", vswitchId: "vsw-1", count: 2 };
    const executor = newExecutor();
    const keeper = createPoolKeeper(0, 0, true);
    const pauses: number[] = [];
    for (let n = 0; n < 6; n++) {
      await executor.run(action);
      await vi.waitUntil(() => outcomes.length === 2, 5000);
      expect(outcomes.map((o) => [o.action.kind, o.failure?.code])).toEqual([
        ["create", "NoLink"],
        ["remove", undefined],
      ]);
      for (const o of outcomes.splice(0))
        if (o.failure) keeper.failed(o.action, o.failure, [], 0, 0);
        else keeper.done(o.action, [], 0);
      pauses.push((keeper.inhibitions().create?.untilMs ?? 0) / 1000);
    }
    expect([cloud.enis.size, listIntents(store.db), listAddresses(store.db)]).toEqual([0, [], []]);
    expect(pauses).toEqual([30, 60, 120, 240, 480, 600]);
    expect(keeper.inhibitions().create).toMatchObject({ condition: "UnexpectedAnswer" });
    expect(said[0]).toMatch(/^create failed: .*NoLink.* eni-21 .*cannot be used/);
  }, 30_000);

  it("keeps what one family brought when the other is refused", async () => {
    ipStack = "dual";
    haveEni("eni-01", []);
    cloud.fail("assign6", cloudError("vswitch-full"));
    await newExecutor().run({ kind: "assign", eniId: "eni-01", count: 2 });
    expect(Object.keys(statesOf()).sort()).toEqual([...(cloud.enis.get("eni-01")?.ips ?? [])].sort());
    expect(Object.keys(statesOf())).toHaveLength(2);
    await newExecutor().run({ kind: "assign", eniId: "eni-01", count: 2, family: 6 });
    expect(listAddresses(store.db).map((a) => a.family)).toEqual([4, 4, 6, 6]);
  });
});

describe("IPv6 alone", () => {
  it("asks for no IPv4 address, neither with a new ENI nor for one that is there", async () => {
    ipStack = "ipv6";
    haveEni("eni-01", []);
    await newExecutor().run({ kind: "assign", eniId: "eni-01", count: 2 });
    await newExecutor().run({ kind: "create", vswitchId: "vsw-1", count: 3 });
    expect(listAddresses(store.db).map((a) => a.family)).toEqual([6, 6, 6, 6, 6]);
    expect([...cloud.enis.values()].flatMap((e) => [...e.ips]).filter((ip) => !ip.includes(":"))).toEqual([]);
  });
});

describe("an outcome that is not known", () => {
  it.each<[string, string, PoolAction]>([
    ["create", "createEni", { kind: "create", vswitchId: "vsw-1", count: 2 }],
    ["attach", "attachEni", { kind: "create", vswitchId: "vsw-1", count: 2 }],
    ["assign", "assign", { kind: "assign", eniId: "eni-01", count: 2 }],
    ["unassign", "unassign", { kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] }],
    ["detach", "detachEni", { kind: "remove", eniId: "eni-01" }],
    ["delete", "deleteEni", { kind: "remove", eniId: "eni-01" }],
  ])("%s: the successor ends it, and nothing is doubled or lost", async (_what, call, action) => {
    haveEni("eni-01", ["10.1.0.1"]);
    cloud.fail(call, cloudError("retry", true), true);
    const first = newExecutor();
    await first.run(action);
    first.stop();
    expect(listIntents(store.db)).toHaveLength(1);
    await newExecutor().resume();
    expect(listIntents(store.db)).toEqual([]);
    const inCloud = [...cloud.enis.values()].flatMap((e) => [...e.ips]).sort();
    expect(Object.keys(statesOf()).sort()).toEqual(inCloud);
    if (action.kind === "create") expect(cloud.enis.size).toBe(2);
    if (action.kind === "remove") expect(cloud.enis.size).toBe(0);
  });

  it.each<[string, Parameters<typeof mustGoOn>[0], CloudErrorClass | undefined, boolean]>([
    ["not an answer of the cloud", { kind: "assign", eniId: "e", step: "asked" }, undefined, true],
    ["an unavailable API", { kind: "assign", eniId: "e", step: "asked" }, "retry", true],
    ["a refusal", { kind: "assign", eniId: "e", step: "asked" }, "throttled", false],
    [
      "a refused attachment of an ENI that was made",
      { kind: "create-eni", eniId: "e", step: "made" },
      "throttled",
      true,
    ],
    ["a refused creation", { kind: "create-eni", eniId: undefined, step: "asked" }, "auth", false],
    ["a refused detachment", { kind: "detach-eni", eniId: "e", step: "asked" }, "conflict", false],
    ["a refused deletion after it", { kind: "detach-eni", eniId: "e", step: "detached" }, "conflict", true],
  ])("%s", (_what, intent, kind, goesOn) => {
    expect(mustGoOn(intent, kind && cloudError(kind))).toBe(goesOn);
  });
});

describe("a refusal after a try that may have gone through", () => {
  /** The first agent's answer is lost; what the successor leaves when it is refused. */
  async function lostThenRefused(action: PoolAction, call: string, then: string, kind: CloudErrorClass) {
    cloud.fail(call, cloudError("retry", true), true);
    const first = newExecutor();
    await first.run(action);
    first.stop();
    cloud.fail(then, cloudError(kind));
    const next = newExecutor();
    await next.resume();
    return next;
  }
  /** A successor that nothing disturbs ends it: store and cloud agree. */
  async function endsWell(before: Executor) {
    before.stop();
    await newExecutor().resume();
    expect(listIntents(store.db)).toEqual([]);
    const inCloud = [...cloud.enis.values()].flatMap((e) => [...e.ips]).sort();
    expect(Object.keys(statesOf()).sort()).toEqual(inCloud);
  }

  it.each<CloudErrorClass>(["throttled", "conflict", "auth"])(
    "dual stack: IPv4 is given back, IPv6 is refused (%s)",
    async (kind) => {
      ipStack = "dual";
      haveEni("eni-01", ["10.1.0.1", "fd00::1"]);
      cloud.fail("unassign6", cloudError(kind));
      await newExecutor().run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1", "fd00::1"] });
      expect(statesOf()).toEqual({ "fd00::1": "idle" });
      expect([...(cloud.enis.get("eni-01")?.ips ?? [])]).toEqual(["fd00::1"]);
    },
  );

  it.each<CloudErrorClass>(["throttled", "conflict"])("unassign: %s says nothing, and it goes on", async (kind) => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    const next = await lostThenRefused(
      { kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] },
      "unassign",
      "unassign",
      kind,
    );
    expect([add(1, "10.1.0.1").kind, listIntents(store.db).length]).toEqual(["unavailable", 1]);
    await endsWell(next);
    expect(statesOf()).toEqual({ "10.1.0.2": "idle" });
  });

  it.each<CloudErrorClass>(["auth", "state", "unknown"])("unassign: %s has it look what is left", async (kind) => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2", "10.1.0.3"]);
    cloud.fail("unassign", cloudError("retry", true));
    const first = newExecutor();
    await first.run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1", "10.1.0.2"] });
    first.stop();
    cloud.enis.get("eni-01")?.ips.delete("10.1.0.1");
    cloud.fail("unassign", cloudError(kind));
    await newExecutor().resume();
    expect(statesOf()).toEqual({ "10.1.0.2": "idle", "10.1.0.3": "idle" });
    expect(listIntents(store.db)).toEqual([]);
  });

  it("unassign: goes on when the look is refused as well", async () => {
    haveEni("eni-01", ["10.1.0.1"]);
    cloud.fail("describeEni", cloudError("auth"));
    const next = await lostThenRefused(
      { kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] },
      "unassign",
      "unassign",
      "auth",
    );
    expect(statesOf()).toEqual({ "10.1.0.1": "releasing" });
    await endsWell(next);
  });

  it("unassign: one is gone, and what else is there cannot be seen", async () => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    cloud.enis.get("eni-01")?.ips.delete("10.1.0.1");
    cloud.fail("describeEni", cloudError("throttled"));
    const executor = newExecutor();
    await executor.run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1", "10.1.0.2"] });
    expect(statesOf()).toEqual({ "10.1.0.1": "releasing", "10.1.0.2": "releasing" });
    await endsWell(executor);
    expect(statesOf()).toEqual({});
  });

  it.each<CloudErrorClass>(["throttled", "auth"])("detach: the look is refused (%s)", async (kind) => {
    haveEni("eni-01", ["10.1.0.1"]);
    cloud.fail("detachEni", cloudError("retry", true), true);
    const first = newExecutor();
    await first.run({ kind: "remove", eniId: "eni-01" });
    first.stop();
    // Only the latter has it look once more.
    for (let i = 0; i < (kind === "auth" ? 2 : 1); i++) cloud.fail("describeEni", cloudError(kind));
    const next = newExecutor();
    await next.resume();
    expect([getEni(store.db, "eni-01")?.state, statesOf()]).toEqual(["detaching", { "10.1.0.1": "releasing" }]);
    expect(add(1).kind).not.toBe("assigned");
    await endsWell(next);
    expect(cloud.enis.size).toBe(0);
  });

  it("detach: an ENI that is seen to be attached still goes back into service", async () => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    cloud.fail("detachEni", cloudError("retry", true));
    const first = newExecutor();
    await first.run({ kind: "remove", eniId: "eni-01" });
    first.stop();
    cloud.enis.get("eni-01")?.ips.delete("10.1.0.1");
    cloud.fail("detachEni", cloudError("not-ours"));
    await newExecutor().resume();
    expect([getEni(store.db, "eni-01")?.state, statesOf()]).toEqual(["ready", { "10.1.0.2": "idle" }]);
    expect(listIntents(store.db)).toEqual([]);
  });

  it.each<[string, CloudErrorClass, PoolAction]>(
    (["throttled", "conflict", "auth", "unknown"] as const).flatMap((kind) => [
      ["createEni", kind, { kind: "create", vswitchId: "vsw-1", count: 2 }],
      ["assign", kind, { kind: "assign", eniId: "eni-01", count: 2 }],
    ]),
  )("%s: after %s the token is asked again", async (call, kind, action) => {
    haveEni("eni-01", []);
    const next = await lostThenRefused(action, call, call, kind);
    const [intent] = listIntents(store.db);
    expect(intent).toMatchObject({ step: "asked", clientToken: expect.any(String) });
    await endsWell(next);
    expect(Object.keys(statesOf())).toHaveLength(2);
    expect(cloud.enis.size).toBe(action.kind === "create" ? 2 : 1);
  });

  it.each<CloudErrorClass>(["idempotent-failed", "config", "vswitch-full"])(
    "create: %s is the token's answer, and the pool decides anew",
    async (kind) => {
      cloud.fail("createEni", cloudError("retry", true));
      const first = newExecutor();
      await first.run({ kind: "create", vswitchId: "vsw-1", count: 2 });
      first.stop();
      cloud.fail("createEni", cloudError(kind));
      await newExecutor().resume();
      expect(listIntents(store.db)).toEqual([]);
    },
  );

  it("goes on in the same life as well", async () => {
    haveEni("eni-01", ["10.1.0.1"]);
    cloud.fail("unassign", cloudError("retry", true), true);
    cloud.fail("unassign", cloudError("throttled"));
    await newExecutor().run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1"] });
    await expect.poll(() => outcomes.length, { timeout: 5000 }).toBe(2);
    expect(statesOf()).toEqual({ "10.1.0.1": "releasing" });
    await expect.poll(() => listIntents(store.db).length, { timeout: 5000 }).toBe(0);
    expect(statesOf()).toEqual({});
  });
});

describe("addresses that are gone already", () => {
  it("do not keep the others from being given back", async () => {
    haveEni("eni-01", ["10.1.0.1", "10.1.0.2"]);
    cloud.enis.get("eni-01")?.ips.delete("10.1.0.1");
    await newExecutor().run({ kind: "unassign", eniId: "eni-01", addresses: ["10.1.0.1", "10.1.0.2"] });
    expect([statesOf(), [...(cloud.enis.get("eni-01")?.ips ?? [])]]).toEqual([{}, []]);
  });
});

describe("a release that races an ADD (F-53)", () => {
  const ROUNDS = 10_000;
  const pauses = [0, 1, 2, 3, 5];

  it(`of exactly that address, ${ROUNDS} times: the pod has it, or it is gone`, async () => {
    const executor = newExecutor();
    haveEni("eni-01", []);
    const tally = { had: 0, gone: 0 };
    for (let n = 0; n < ROUNDS; n++) {
      const address = `10.${2 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}`;
      cloud.enis.get("eni-01")?.ips.add(address);
      inTransaction(store.db, () => addAddress(store.db, "eni-01", address, 0));
      const before = Math.random() < 0.3 ? add(n, address) : undefined;
      const release = executor.run({ kind: "unassign", eniId: "eni-01", addresses: [address] });
      for (let i = pauses[n % pauses.length] ?? 0; i > 0; i--) await tick();
      const lease = before ?? add(n, address);
      await release;
      const has = cloud.enis.get("eni-01")?.ips.has(address);
      expect([lease.kind, has]).toEqual(lease.kind === "assigned" ? ["assigned", true] : ["unavailable", false]);
      tally[lease.kind === "assigned" ? "had" : "gone"] += 1;
      inTransaction(store.db, () => releaseAttachment(store.db, keyOf(n), nowMs(), 0));
      if (has) await executor.run({ kind: "unassign", eniId: "eni-01", addresses: [address] });
    }
    expect(Math.min(tally.had, tally.gone)).toBeGreaterThan(ROUNDS / 10);
    expect(listIntents(store.db)).toEqual([]);
  }, 120_000);

  it("of the whole ENI: a pod's ENI stays, and no pod gets an address of one that goes", async () => {
    const tally = { had: 0, gone: 0 };
    for (let n = 0; n < 40; n++) {
      const executor = newExecutor();
      const id = `eni-${String((n % 80) + 10)}`;
      haveEni(id, [`10.3.0.${n + 1}`]);
      const before = n % 3 === 0 ? add(n) : undefined;
      const removal = executor.run({ kind: "remove", eniId: id });
      for (let i = pauses[n % pauses.length] ?? 0; i > 0; i--) await tick();
      const lease = before ?? add(n);
      await removal;
      expect(cloud.enis.get(id)?.status).toBe(lease.kind === "assigned" ? "InUse" : undefined);
      tally[lease.kind === "assigned" ? "had" : "gone"] += 1;
      inTransaction(store.db, () => releaseAttachment(store.db, keyOf(n), nowMs(), 0));
      if (lease.kind === "assigned") await executor.run({ kind: "remove", eniId: id });
    }
    expect(Math.min(tally.had, tally.gone)).toBeGreaterThan(5);
  }, 60_000);
});
