import { describe, expect, it } from "vitest";
import type { IpStack } from "../../shared/config/ip-stack.ts";
import type { EniAddress } from "../store/addresses.ts";
import type { Demand } from "../store/demand.ts";
import type { Eni } from "../store/enis.ts";
import type { Intent } from "../store/intents.ts";
import { groupDemand, idleFor, operationOf, poolEnis, slotPressure, untilTrunk } from "./pool-state.ts";

const demand = (containerId: string, only?: Demand["only"]): Demand => ({
  network: "net",
  containerId,
  ifname: "eth0",
  families: "4",
  waiter: "w",
  only,
  sinceMs: 0,
  deadlineMs: 1,
});

const eni: Eni = {
  id: "eni-1",
  mac: "00:16:3e:00:00:01",
  kind: "shared",
  state: "ready",
  vswitchId: "vsw-1",
  securityGroups: ["sg-1"],
  primary4: "10.0.0.1",
  cidr4: "10.0.0.0/24",
  gateway4: "10.0.0.253",
  primary6: undefined,
  cidr6: undefined,
  gateway6: undefined,
  trunkId: undefined,
  vlanId: undefined,
  routeSlot: 1,
  ifname: "eth1",
  ifindex: 3,
  mtu: 1500,
  preparedBoot: undefined,
  idleSinceMs: undefined,
  createdMs: 0,
  dedicated: false,
};

const address = (text: string, tweaks: Partial<EniAddress> = {}): EniAddress => ({
  address: text,
  family: text.includes(":") ? 6 : 4,
  eniId: "eni-1",
  state: "idle",
  network: undefined,
  containerId: undefined,
  ifname: undefined,
  coolUntilMs: 0,
  sinceMs: 0,
  ...tweaks,
});

describe("pods that wait", () => {
  const demands = [
    demand("a"),
    demand("b", { kinds: ["shared"] }),
    demand("c", { vswitchIds: ["vsw-2"] }),
    demand("d", { kinds: ["exclusive"] }),
    demand("e", { kinds: ["shared"], vswitchIds: ["vsw-2"] }),
  ];
  it("are served by the pool of their kind, in groups of the same constraint, oldest first", () => {
    const { any, constrained } = groupDemand(demands, "shared");
    expect(any.map((d) => d.containerId)).toEqual(["a", "b"]);
    expect(constrained.map((g) => [g.only, g.demands.map((d) => d.containerId)])).toEqual([
      [{ vswitchIds: ["vsw-2"] }, ["c", "e"]],
    ]);
    expect(groupDemand(demands, "exclusive").any.map((d) => d.containerId)).toEqual(["d"]);
  });
});

describe("a member", () => {
  it("is not made before there is a trunk to hang it on", () => {
    const trunk = { kind: "trunk", state: "ready" } as const;
    const wait = { create: { tokens: 0, nextAtMs: 5100 } };
    expect(untilTrunk({ kind: "member" }, [], 100)).toEqual(wait);
    expect(untilTrunk({ kind: "member" }, [{ kind: "trunk", state: "attaching" }], 100)).toEqual(wait);
    expect(untilTrunk({ kind: "member" }, [trunk], 100)).toEqual({});
    expect(untilTrunk({ kind: "shared" }, [], 100)).toEqual({});
  });
});

describe("an ENI of the pool", () => {
  const addresses = [
    address("10.0.0.2", { sinceMs: 20 }),
    address("10.0.0.3", { sinceMs: 10 }),
    address("10.0.0.4", { coolUntilMs: 600 }),
    address("10.0.0.5", { coolUntilMs: 500 }),
    address("10.0.0.6", { state: "allocated" }),
    address("10.0.0.7", { state: "reserved" }),
    address("10.0.0.8", { state: "releasing" }),
    address("fd00::2"),
    address("10.0.1.2", { eniId: "eni-2" }),
  ];
  const view = (stack: IpStack) => poolEnis([eni], addresses, stack, new Map([["eni-1", 7]]), 100);

  it("counts what it has, without what goes; the longest idle comes first", () => {
    expect(view("ipv4")).toEqual([
      {
        id: "eni-1",
        state: "ready",
        vswitchId: "vsw-1",
        total: 6,
        allocated: 1,
        reserved: 1,
        idle: ["10.0.0.3", "10.0.0.2"],
        cooling: 2,
        nextFreeAtMs: 500,
        unassignedAtMs: 7,
        securityGroups: ["sg-1"],
      },
    ]);
  });

  it("counts both families in dual stack: a pod needs a pair", () => {
    expect(view("dual")).toMatchObject([{ total6: 1, idle6: ["fd00::2"] }]);
    expect([idleFor(view("ipv4"), {}), idleFor(view("dual"), {})]).toEqual([2, 1]);
    expect(idleFor(view("dual"), { eniIds: ["eni-9"] })).toBe(0);
  });
});

describe("an ENI of an IPv6-only pool", () => {
  const six = [address("fd00::2"), address("fd00::3", { state: "allocated" }), address("10.0.0.2")];
  it("counts its IPv6 addresses", () => {
    const [seen] = poolEnis([eni], six, "ipv6", new Map(), 100);
    expect(seen).toMatchObject({ total: 2, allocated: 1, idle: ["fd00::2"] });
    expect(seen?.idle6).toBeUndefined();
  });
  it("is taken whole when a pod of before has its IPv4 address", () => {
    const held = [address("fd00::2"), address("10.0.0.2", { state: "allocated" })];
    const [whole] = poolEnis([{ ...eni, kind: "exclusive" }], held, "ipv6", new Map(), 100);
    expect(whole).toMatchObject({ total: 1, allocated: 1, idle: [] });
  });
});

describe("a call under way", () => {
  const intent = (kind: Intent["kind"], payload: object, eniId?: string): Intent => ({
    id: "i",
    kind,
    eniId,
    clientToken: "t",
    payload: JSON.stringify(payload),
    step: "asked",
    sinceMs: 0,
  });
  it.each([
    [
      intent("create-eni", { kind: "create", vswitchId: "vsw-1", count: 3, only: { vswitchIds: ["vsw-1"] } }),
      [{ kind: "create", eniId: undefined, count: 3, vswitchId: "vsw-1", only: { vswitchIds: ["vsw-1"] } }],
    ],
    [intent("assign", { kind: "assign", eniId: "e", count: 3 }, "e"), [{ kind: "assign", eniId: "e", count: 3 }]],
    // What goes is not among the idle ones any more: counted once.
    [
      intent("unassign", { kind: "unassign", eniId: "e", addresses: ["10.0.0.2"] }, "e"),
      [{ kind: "unassign", eniId: "e", count: 0 }],
    ],
    [intent("detach-eni", { kind: "remove", eniId: "e" }, "e"), [{ kind: "remove", eniId: "e", count: 0 }]],
    [intent("create-route", { routeTableId: "vtb-1" }), []],
  ])("%#", (given, operations) => expect(operationOf(given)).toEqual(operations));
});

describe("slots for pods that need a whole ENI", () => {
  const of = (id: string, kind: Eni["kind"], state: Eni["state"] = "ready") => ({ ...eni, id, kind, state });
  const own = { ...demand("p"), only: { kinds: ["exclusive" as const] } };
  const full = {
    eniSlots: 2,
    enis: [of("a", "shared"), of("b", "shared")],
    addresses: [address("10.0.0.2", { eniId: "a", state: "allocated" })],
    demands: [own],
    intents: [],
  };
  it("come from shared ones without a pod, and those who wait know it", () => {
    expect(slotPressure({ ...full, kind: "shared" })).toEqual({ promised: 1, roomFor: 1 });
    expect(slotPressure({ ...full, kind: "exclusive" })).toEqual({ promised: 0, roomComing: true });
    expect(
      slotPressure({ ...full, kind: "exclusive", enis: [of("a", "shared"), of("b", "shared", "detaching")] }),
    ).toEqual({ promised: 0, roomComing: true });
  });
  it("do not come where every shared one has a pod, or is the last", () => {
    const both = [...full.addresses, address("10.0.1.2", { eniId: "b", state: "allocated" })];
    expect(slotPressure({ ...full, kind: "exclusive", addresses: both })).toEqual({ promised: 0 });
    expect(slotPressure({ ...full, kind: "exclusive", eniSlots: 1, enis: [of("b", "shared")] })).toEqual({
      promised: 0,
    });
  });
  it("are not asked for while one is free, or comes", () => {
    expect(slotPressure({ ...full, kind: "shared", eniSlots: 3 })).toEqual({ promised: 1 });
    expect(slotPressure({ ...full, kind: "shared", enis: [of("a", "shared"), of("x", "exclusive")] })).toEqual({
      promised: 0,
    });
    expect(slotPressure({ ...full, kind: "shared", demands: [] })).toEqual({ promised: 0 });
  });
});
