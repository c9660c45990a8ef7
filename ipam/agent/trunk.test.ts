/** The trunk ENI, with a cloud that is a list of ENIs and idempotency tokens: there again whatever becomes of it. */
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { CloudEni, CreateEniRequest } from "../cloud/cloud-api.ts";
import { makeEni, putEni } from "../store/contract/kit.ts";
import { listEnis, removeEni } from "../store/enis.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AgentContext } from "./context.ts";
import { refusal, storeAndClock } from "./testkit.ts";
import { keepTrunk } from "./trunk.ts";

// It waits for the kernel's link.
vi.mock("./cloud-sync.ts", async (original) => ({
  ...(await original<typeof import("./cloud-sync.ts")>()),
  putIntoService: async (ctx: AgentContext, eni: CloudEni) => {
    putEni(ctx.store, makeEni(1, { id: eni.id, kind: "trunk", state: "ready" }), []);
    return true;
  },
}));

const MINUTE_MS = 60_000;
const SELF = "i-1";

const store = storeAndClock();
let cloud: ReturnType<typeof fakeCloud>;
let wakes: number;
let stop: () => void = () => undefined;
beforeEach(() => {
  cloud = fakeCloud();
  wakes = 0;
});
afterEach(() => stop());

type Eni = Pick<CloudEni, "id" | "type" | "status" | "instanceId" | "tags">;

function fakeCloud() {
  const enis = new Map<string, Eni>();
  const answers = new Map<string, Eni>();
  const creates: CreateEniRequest[] = [];
  const full = new Set<string>();
  /** Of the next create: made, but nobody hears of it, and no list shows it yet. */
  let unheard = false;
  let throttled = false;
  let unseen: string | undefined;
  const become = (id: string, status: string, instanceId: string | undefined) => {
    const eni = enis.get(id);
    if (eni === undefined) throw refusal("InvalidEniId.NotFound");
    enis.set(id, { ...eni, status, instanceId });
  };
  const api = {
    describeInstanceEnis: async (id: string) => [...enis.values()].filter((e) => e.instanceId === id),
    findEnisByTags: async () => [...enis.values()],
    describeEni: async (id: string) => enis.get(id),
    async createEni(r: CreateEniRequest) {
      creates.push(r);
      if (throttled) {
        throttled = false;
        throw refusal("Throttling.User");
      }
      if (full.has(r.vswitchId)) throw refusal("InvalidVSwitchId.IpNotEnough");
      const known = answers.get(r.clientToken);
      const made = known ?? {
        id: `eni-${creates.length}`,
        type: "Trunk",
        status: "Available",
        instanceId: undefined,
        tags: r.tags,
      };
      answers.set(r.clientToken, made);
      if (unheard) {
        unheard = false;
        unseen = made.id;
        throw refusal("InternalError", { outcomeUnknown: true });
      }
      if (known === undefined || unseen === made.id) enis.set(made.id, made);
      return made;
    },
    attachEni: async (id: string) => become(id, "InUse", SELF),
  };
  return {
    api,
    enis,
    creates,
    full,
    become,
    loseAnswer() {
      unheard = true;
    },
    throttleNext() {
      throttled = true;
    },
    deleteUnheard() {
      unseen = undefined;
    },
  };
}

function start(): void {
  stop = keepTrunk({
    store: store(),
    cloud: cloud.api,
    self: { instanceId: SELF },
    config: { vswitchIds: ["vsw-1", "vsw-2"], securityGroups: ["sg-1"], eniTags: {} },
    log: () => undefined,
    wake: () => wakes++,
    storeLost(error: unknown): never {
      throw error;
    },
  } as unknown as AgentContext);
}

const trunks = () => listEnis(store().db).map((e) => [e.id, e.kind, e.state]);
/** As the comparison with the cloud does. */
const forget = (id: string) => inTransaction(store().db, () => removeEni(store().db, id));

describe("the trunk ENI", () => {
  it("is made once, and left alone while it is there", async () => {
    start();
    await vi.advanceTimersByTimeAsync(10 * MINUTE_MS);
    expect([trunks(), cloud.creates.length, wakes]).toEqual([[["eni-1", "trunk", "ready"]], 1, 1]);
  });

  it("is attached again when it was detached, within minutes", async () => {
    start();
    await vi.advanceTimersByTimeAsync(1000);
    cloud.become("eni-1", "Available", undefined);
    forget("eni-1");
    await vi.advanceTimersByTimeAsync(2 * MINUTE_MS);
    expect([trunks(), cloud.enis.get("eni-1")?.status]).toEqual([[["eni-1", "trunk", "ready"]], "InUse"]);
    expect([cloud.creates.length, wakes]).toEqual([1, 2]);
  });

  it("is another one when it was deleted: a token of its own, for the former one's answer is the former ENI", async () => {
    start();
    await vi.advanceTimersByTimeAsync(1000);
    cloud.enis.delete("eni-1");
    forget("eni-1");
    await vi.advanceTimersByTimeAsync(2 * MINUTE_MS);
    expect(trunks()).toEqual([["eni-2", "trunk", "ready"]]);
    expect(new Set(cloud.creates.map((r) => r.clientToken)).size).toBe(2);
  });

  it("is not one that hangs on another instance by now", async () => {
    start();
    await vi.advanceTimersByTimeAsync(1000);
    cloud.become("eni-1", "InUse", "i-2");
    forget("eni-1");
    await vi.advanceTimersByTimeAsync(2 * MINUTE_MS);
    expect(trunks()).toEqual([["eni-2", "trunk", "ready"]]);
  });

  it("is made in the next vSwitch where the first is full", async () => {
    cloud.full.add("vsw-1");
    start();
    await vi.advanceTimersByTimeAsync(1000);
    expect([trunks().length, cloud.creates.map((r) => r.vswitchId)]).toEqual([1, ["vsw-1", "vsw-2"]]);
  });

  it("is asked for ever more seldom while every vSwitch is full", async () => {
    for (const id of ["vsw-1", "vsw-2"]) cloud.full.add(id);
    start();
    await vi.advanceTimersByTimeAsync(60 * MINUTE_MS);
    expect(cloud.creates.length).toBeLessThan(50);
    cloud.full.clear();
    await vi.advanceTimersByTimeAsync(10 * MINUTE_MS);
    expect(trunks()).toHaveLength(1);
  });

  it("is the same one when the answer was lost, also to the next agent", async () => {
    cloud.loseAnswer();
    start();
    await vi.advanceTimersByTimeAsync(1000);
    stop();
    cloud.throttleNext(); // which says nothing of the first try
    start();
    await vi.advanceTimersByTimeAsync(MINUTE_MS);
    expect(trunks()).toEqual([["eni-1", "trunk", "ready"]]);
    expect(new Set(cloud.creates.map((r) => r.clientToken)).size).toBe(1);
  });

  it("is another one when the one of the lost answer was deleted", async () => {
    cloud.loseAnswer();
    start();
    await vi.advanceTimersByTimeAsync(1000);
    cloud.deleteUnheard();
    await vi.advanceTimersByTimeAsync(2 * MINUTE_MS);
    const [lost, dead, fresh] = cloud.creates.map((r) => r.clientToken);
    expect([trunks(), dead === lost, fresh === lost]).toEqual([[["eni-3", "trunk", "ready"]], true, false]);
  });
});
