import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decide, type PoolState } from "./decide.ts";
import { makeEni as eni, makeState as state } from "./testkit.ts";

const actions = (s: PoolState, now = 0) => decide(s, now).actions;

describe("decide", () => {
  it.each<[string, PoolState, unknown[]]>([
    [
      "an empty node gets an ENI with the floor of idle addresses",
      state(),
      [{ kind: "create", vswitchId: "vsw-a", count: 4 }],
    ],
    ["a pool at its floor is left alone", state({ enis: [eni("a", 4)] }), []],
    ["cooling addresses count for the floor", state({ enis: [eni("a", 2, { cooling: 2 })] }), []],
    [
      "cooling addresses do not serve a waiter",
      state({ enis: [eni("a", 0, { cooling: 6 })], waiters: 1 }),
      [{ kind: "assign", eniId: "a", count: 1 }],
    ],
    [
      "an ENI with room is filled before another is made",
      state({ enis: [eni("a", 1)] }),
      [{ kind: "assign", eniId: "a", count: 3 }],
    ],
    [
      "what is under way is not asked for again",
      state({ enis: [eni("a", 1)], operations: [{ kind: "assign", eniId: "a", count: 3 }] }),
      [],
    ],
    [
      "a busy ENI is left alone",
      state({ enis: [eni("a", 1), eni("b", 0)], operations: [{ kind: "unassign", eniId: "a", count: 1 }] }),
      [{ kind: "assign", eniId: "b", count: 3 }],
    ],
    [
      "a full ENI makes another one needed",
      state({ enis: [eni("a", 0, { allocated: 9 })] }),
      [{ kind: "create", vswitchId: "vsw-a", count: 4 }],
    ],
    ["no ENI beyond the limit", state({ enis: [eni("a", 0, { allocated: 9 }), eni("b", 0, { allocated: 9 })] }), []],
    [
      "a lost ENI takes no slot",
      state({ enis: [eni("a", 0, { state: "lost" }), eni("b", 0, { allocated: 9 })] }),
      [{ kind: "create", vswitchId: "vsw-a", count: 4 }],
    ],
    ["no ENI without hot plug", state({ config: { hotPlug: false } }), []],
    [
      "a burst is served by several ENIs at once, and the floor comes along",
      state({ waiters: 12 }),
      [
        { kind: "create", vswitchId: "vsw-a", count: 9 },
        { kind: "create", vswitchId: "vsw-a", count: 7 },
      ],
    ],
    [
      "new ENIs spread over vSwitches",
      state({
        waiters: 12,
        vswitches: [
          { id: "vsw-a", available: 50 },
          { id: "vsw-b", available: 60 },
        ],
      }),
      [
        { kind: "create", vswitchId: "vsw-b", count: 9 },
        { kind: "create", vswitchId: "vsw-a", count: 7 },
      ],
    ],
    [
      "more idle than the ceiling goes back",
      state({ enis: [eni("a", 9, { total: 9 }), eni("b", 2, { allocated: 1 })] }),
      [{ kind: "unassign", eniId: "a", addresses: ["a-0", "a-1", "a-2"] }],
    ],
    [
      "an ENI that is all idle goes whole",
      state({ enis: [eni("a", 9), eni("b", 8, { allocated: 1 })], limits: { enis: 2, perEni: 9 } }),
      [{ kind: "remove", eniId: "a" }],
    ],
    [
      "the emptiest ENI gives first",
      state({ enis: [eni("a", 5, { allocated: 4 }), eni("b", 5, { allocated: 1 })] }),
      [{ kind: "unassign", eniId: "b", addresses: ["b-0", "b-1"] }],
    ],
  ])("%s", (_claim, s, want) => expect(actions(s)).toEqual(want));

  it("gives surplus back only after it has rested", () => {
    const s = state({ enis: [eni("a", 7, { allocated: 1 })], surplusSinceMs: 0 });
    expect(decide(s, 999)).toMatchObject({ actions: [], stuck: undefined, againAtMs: 1000 });
    expect(actions(s, 1000)).toEqual([{ kind: "unassign", eniId: "a", addresses: ["a-0", "a-1", "a-2"] }]);
  });

  it("does not assign where it has just given back, unless a pod waits", () => {
    const s = state({ enis: [eni("a", 0, { unassignedAtMs: 0 })], limits: { enis: 1, perEni: 9 } });
    expect(decide(s, 59_999)).toMatchObject({ actions: [], againAtMs: 60_000 });
    expect(actions({ ...s, waiters: 1 }, 1).length).toBe(1);
    expect(actions(s, 60_000).length).toBe(1);
  });

  it("says why pods wait", () => {
    const full = { "vswitch:vsw-a": { untilMs: 10, reason: "vSwitch vsw-a has 0 free addresses" } };
    expect(decide(state({ waiters: 1, inhibitions: full }), 0)).toMatchObject({
      actions: [],
      stuck: "vSwitch vsw-a has 0 free addresses",
      againAtMs: 10,
    });
    expect(
      decide(state({ waiters: 1, enis: [eni("a", 0, { allocated: 9 }), eni("b", 0, { allocated: 9 })] }), 0).stuck,
    ).toContain("2 of 2 ENIs");
    expect(decide(state({ waiters: 1, inhibitions: full }), 10).actions.length).toBe(1);
  });

  const anyEni = fc.record({ idle: fc.nat(9), allocated: fc.nat(9), cooling: fc.nat(3), draining: fc.boolean() });
  const anyState = fc
    .record({
      enis: fc.array(anyEni, { maxLength: 3 }),
      waiters: fc.nat(30),
      min: fc.nat(10),
      span: fc.nat(10),
      surplus: fc.boolean(),
    })
    .map((r) =>
      state({
        limits: { enis: 3, perEni: 9 },
        waiters: r.waiters,
        surplusSinceMs: r.surplus ? 0 : undefined,
        config: { minIdle: r.min, maxIdle: r.min + r.span },
        enis: r.enis.map((e, i) => {
          const allocated = Math.min(e.allocated, 9);
          const idle = Math.min(e.idle, 9 - allocated);
          return eni(`e${i}`, idle, {
            allocated,
            cooling: Math.min(e.cooling, 9 - allocated - idle),
            state: e.draining ? "draining" : "ready",
          });
        }),
      }),
    );

  it("never exceeds a limit, never releases below the floor, never touches what is not idle", () => {
    fc.assert(
      fc.property(anyState, (s) => {
        const got = actions(s, 5000);
        const creates = got.filter((a) => a.kind === "create").length;
        expect(s.enis.length + creates).toBeLessThanOrEqual(Math.max(3, s.enis.length));
        let idle = s.enis.filter((e) => e.state === "ready").reduce((n, e) => n + e.idle.length, 0);
        for (const a of got) {
          const on = s.enis.find((e) => "eniId" in a && e.id === a.eniId);
          if (a.kind === "assign") expect((on?.total ?? 99) + a.count).toBeLessThanOrEqual(9);
          if (a.kind === "create") expect(a.count).toBeLessThanOrEqual(9);
          if (a.kind === "unassign") {
            for (const address of a.addresses) expect(on?.idle).toContain(address);
            idle -= a.addresses.length;
          }
          if (a.kind === "remove") {
            expect(on?.allocated).toBe(0);
            idle -= on?.idle.length ?? 0;
          }
          if (a.kind === "unassign" || a.kind === "remove") expect(idle).toBeGreaterThanOrEqual(s.config.minIdle);
        }
        // Growing and shrinking at once would be a see-saw.
        expect(
          got.some((a) => a.kind === "assign" || a.kind === "create") &&
            got.some((a) => a.kind === "unassign" || a.kind === "remove"),
        ).toBe(false);
      }),
    );
  });
});
