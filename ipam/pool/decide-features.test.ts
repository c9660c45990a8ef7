import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseEniConf } from "../../shared/config/eni-conf.ts";
import { decide, type PoolAction, type PoolState } from "./decide.ts";
import { initialMemory } from "./memory.ts";
import { noteAnswer, noteFailure, RECONCILE_MS, RESTART_SPREAD_MS } from "./observe.ts";
import { nodeVSwitches, poolConfigOf } from "./pool-config.ts";
import { makeEni, makeMemory, makeState } from "./testkit.ts";

const actions = (state: PoolState, nowMs = 0) => decide(state, nowMs).actions;
/** The state at the next look, with what was remembered. */
const after = (state: PoolState, nowMs: number, tweaks: Partial<PoolState> = {}): PoolState => ({
  ...state,
  memory: decide(state, nowMs).memory,
  ...tweaks,
});

describe("growing", () => {
  it.each<[string, PoolState, PoolAction[]]>([
    [
      "keeps a reserve that grows with the pods (POOL-11)",
      makeState({
        enis: [makeEni("a", 2, { allocated: 16 })],
        limits: { enis: 2, perEni: 30 },
        config: { minIdle: 1, maxIdle: 10, reservePercent: 20 },
      }),
      [{ kind: "assign", eniId: "a", count: 2 }],
    ],
    [
      "keeps no reserve above the ceiling",
      makeState({
        enis: [makeEni("a", 2, { allocated: 16 })],
        limits: { enis: 2, perEni: 30 },
        config: { minIdle: 0, maxIdle: 2, reservePercent: 50 },
      }),
      [],
    ],
    [
      "keeps ENIs without a pod attached (POOL-10), without filling them",
      makeState({ enis: [makeEni("a", 4, { allocated: 3 })], config: { preAttach: 1 } }),
      [{ kind: "create", vswitchId: "vsw-a", count: 0 }],
    ],
    ["counts an empty ENI as attached ahead", makeState({ enis: [makeEni("a", 4)], config: { preAttach: 1 } }), []],
    [
      "attaches none ahead beyond the instance's limit",
      makeState({
        limits: { enis: 1, perEni: 9 },
        enis: [makeEni("a", 4, { allocated: 3 })],
        config: { preAttach: 1 },
      }),
      [],
    ],
    [
      "warms up in steps (CFG-43)",
      makeState({ enis: [makeEni("a", 0)], config: { minIdle: 8, warmupBatch: 3 } }),
      [{ kind: "assign", eniId: "a", count: 3 }],
    ],
    [
      "asks for a whole call when a pod waits",
      makeState({ enis: [makeEni("a", 0)], waiters: 1, config: { minIdle: 8, warmupBatch: 3 } }),
      [{ kind: "assign", eniId: "a", count: 9 }],
    ],
    [
      "takes the fullest ENI by policy, so that the others drain",
      makeState({
        enis: [makeEni("a", 0, { allocated: 2 }), makeEni("b", 0, { allocated: 5 })],
        config: { fill: "most" },
      }),
      [{ kind: "assign", eniId: "b", count: 4 }],
    ],
    [
      "takes the emptiest ENI by policy",
      makeState({ enis: [makeEni("a", 0, { allocated: 2 }), makeEni("b", 0, { allocated: 5 })] }),
      [{ kind: "assign", eniId: "a", count: 4 }],
    ],
    [
      "asks a vSwitch for no more than it has, the ENI's own address included",
      makeState({ vswitches: [{ id: "vsw-a", available: 3, atMs: 0 }] }),
      [{ kind: "create", vswitchId: "vsw-a", count: 2 }],
    ],
    [
      "leaves a foreign ENI alone",
      makeState({ enis: [makeEni("a", 0, { foreign: true })] }),
      [{ kind: "create", vswitchId: "vsw-a", count: 4 }],
    ],
    [
      "keeps to the order of vSwitches by policy",
      makeState({
        config: { vswitchPolicy: "ordered" },
        vswitches: [
          { id: "vsw-a", available: 20, atMs: 0 },
          { id: "vsw-b", available: 90, atMs: 0 },
        ],
      }),
      [{ kind: "create", vswitchId: "vsw-a", count: 4 }],
    ],
    [
      "falls back to the next vSwitch (POOL-17)",
      makeState({
        config: { vswitchPolicy: "ordered" },
        vswitches: [
          { id: "vsw-a", available: 0, atMs: 0 },
          { id: "vsw-b", available: 90, atMs: 0 },
        ],
      }),
      [{ kind: "create", vswitchId: "vsw-b", count: 4 }],
    ],
    [
      "spends no more calls than the budget has",
      makeState({
        enis: [makeEni("a", 0, { allocated: 5 }), makeEni("b", 0, { allocated: 5 })],
        waiters: 6,
        budgets: { assign: { tokens: 1, nextAtMs: 6000 } },
      }),
      [{ kind: "assign", eniId: "a", count: 4 }],
    ],
  ])("%s", (_claim, state, want) => expect(actions(state)).toEqual(want));

  it("waits for the budget instead of failing pods", () => {
    const state = makeState({
      enis: [makeEni("a", 0)],
      waiters: 1,
      budgets: { assign: { tokens: 0, nextAtMs: 6000 } },
    });
    expect(decide({ ...state, limits: { enis: 1, perEni: 9 } }, 0)).toMatchObject({
      actions: [],
      stuck: undefined,
      againAtMs: 6000,
    });
  });

  it("waits a moment for more pods, unless enough are there (CFG-53 to 55)", () => {
    const config = { batchWindowMs: 100, batchSize: 3 };
    const state = makeState({ enis: [makeEni("a", 4)], waiters: 5, waitingSinceMs: 1000, config });
    expect(actions(state, 1000)).toHaveLength(1);
    const few = { ...state, waiters: 2, enis: [makeEni("a", 0, { cooling: 4 })] };
    expect(decide(few, 1050)).toMatchObject({ actions: [], stuck: undefined, againAtMs: 1100 });
    expect(actions(few, 1100)).toEqual([{ kind: "assign", eniId: "a", count: 2 }]);
  });

  it("says what is in the way in one line that an operator can act on", () => {
    const stuck = (tweaks: Parameters<typeof makeState>[0]) => decide(makeState({ waiters: 1, ...tweaks }), 0).stuck;
    expect(stuck({ config: { hotPlug: false } })).toMatch(/hot_plug is false/);
    expect(stuck({ vswitches: [] })).toMatch(/no vSwitch of this node's zone/);
    const taken = { allocated: 8, cooling: 1, nextFreeAtMs: 20_000 };
    const enis = [makeEni("a", 0, taken), makeEni("b", 0, taken)];
    expect(stuck({ enis })).toBe(
      "all 2 of 2 ENIs of this instance type have their 9 addresses (2 cooling down, the next one free in 20 s): use a larger type or more nodes",
    );
    expect(stuck({ enis: enis.map((e) => ({ ...e, nextFreeAtMs: 4000 })) })).toBeUndefined();
    expect(decide(makeState({ waiters: 1, enis }), 0).conditions.map((c) => c.reason)).toEqual(["PoolExhausted"]);
    for (const line of [stuck({ config: { hotPlug: false } }), stuck({ vswitches: [] }), stuck({ enis })])
      expect(line?.length).toBeLessThan(300);
  });

  it("lets pods wait while a throttled call is about to be allowed, and not longer", () => {
    const throttled = (untilMs: number) =>
      makeState({
        waiters: 1,
        inhibitions: { create: { untilMs, reason: "throttled", condition: "CloudThrottled", sinceMs: 0 } },
      });
    expect(decide(throttled(9000), 0).stuck).toBeUndefined();
    expect(decide(throttled(30_000), 0).stuck).toBe("throttled");
  });
});

describe("pods with a constraint", () => {
  const only = { securityGroups: ["sg-2", "sg-1"] };
  it("get addresses of an ENI that fits", () => {
    const enis = [makeEni("a", 4), makeEni("b", 0, { securityGroups: ["sg-1", "sg-2"] })];
    const state = makeState({ enis, constrained: [{ only, waiters: 2 }] });
    expect(actions(state)).toEqual([{ kind: "assign", eniId: "b", count: 2 }]);
  });
  it("get a new ENI made for them when none fits", () => {
    const state = makeState({ enis: [makeEni("a", 4)], constrained: [{ only, waiters: 2 }] });
    expect(actions(state)).toEqual([{ kind: "create", vswitchId: "vsw-a", count: 2, only }]);
    const asked = { ...state, operations: [{ kind: "create", eniId: undefined, count: 2, only } as const] };
    expect(actions(asked)).toEqual([]);
  });
  it("are told when no ENI can be made for them, and the others are not", () => {
    const enis = [makeEni("a", 4, { allocated: 1 }), makeEni("b", 1, { allocated: 1 })];
    const decision = decide(makeState({ enis, constrained: [{ only, waiters: 1 }] }), 0);
    expect(decision.stuck).toBeUndefined();
    expect(decision.stuckConstrained[0]).toContain("2 of 2 ENIs");
  });
  it("that name an ENI get none of another", () => {
    const full = makeEni("a", 0, { allocated: 9 });
    const state = makeState({ enis: [full, makeEni("b", 4)], constrained: [{ only: { eniIds: ["a"] }, waiters: 1 }] });
    expect(decide(state, 0).stuckConstrained[0]).toContain("ENI a has no address left");
  });
});

describe("dual stack", () => {
  const config = { stack: "dual" } as const;
  it("counts a pair as one address", () => {
    const eni = makeEni("a", 4, { total6: 4, idle6: ["x", "y"] });
    expect(actions(makeState({ enis: [eni], config: { ...config, minIdle: 2 } }))).toEqual([]);
  });
  it("brings the family up that lags behind", () => {
    const eni = makeEni("a", 4, { total6: 1, idle6: ["x"] });
    const state = makeState({ enis: [eni], config: { ...config, minIdle: 1 } });
    expect(actions(state)).toEqual([{ kind: "assign", eniId: "a", count: 3, family: 6 }]);
  });
  it("takes the surplus back when the other family cannot be had (F-37)", () => {
    const eni = makeEni("a", 4, { total6: 1, idle6: ["x"] });
    const blocked = { "vswitch:vsw-a": { untilMs: 9000, reason: "" } };
    const state = makeState({ enis: [eni], config: { ...config, minIdle: 1 }, inhibitions: blocked });
    expect(actions(state)).toEqual([{ kind: "unassign", eniId: "a", addresses: ["a-0", "a-1", "a-2"] }]);
  });
  it("gives back pairs", () => {
    const six = Array.from({ length: 9 }, (_, i) => `six-${i}`);
    const eni = makeEni("a", 9, { allocated: 0, total6: 9, idle6: six });
    const state = makeState({ enis: [eni, makeEni("b", 1, { allocated: 2 })], config: { ...config, hotPlug: false } });
    expect(actions(state)).toEqual([{ kind: "unassign", eniId: "a", addresses: ["a-0", "a-1", "six-0", "six-1"] }]);
  });
});

describe("IPv6 alone", () => {
  const config = { stack: "ipv6" } as const;
  const empty = { vswitches: [{ id: "vsw-a", available: 0 }] };
  it("asks a vSwitch without IPv4 addresses for IPv6 ones of the ENIs that are there", () => {
    const full = { "vswitch:vsw-a": { untilMs: 9000, reason: "full", condition: "VSwitchExhausted" } } as const;
    const state = makeState({ enis: [makeEni("a", 1)], config, ...empty, inhibitions: full });
    expect(actions(state)).toEqual([{ kind: "assign", eniId: "a", count: 3 }]);
    expect(actions({ ...state, config: { ...state.config, stack: "ipv4" } })).toEqual([]);
  });
  it("takes one address of the vSwitch for a new ENI, and none without it", () => {
    const one = makeState({ config, waiters: 6, vswitches: [{ id: "vsw-a", available: 1 }] });
    expect(actions(one)).toEqual([{ kind: "create", vswitchId: "vsw-a", count: 9 }]);
    const none = makeState({ config, waiters: 6, ...empty });
    expect(actions(none)).toEqual([]);
    expect(decide(none, 0).stuck).toContain("vSwitch vsw-a has 0 free addresses");
  });
});

describe("shrinking with memory", () => {
  const TTL = 300_000;
  const config = { minIdle: 4, maxIdle: 20, idleTtlMs: TTL };
  const pods = (allocated: number, idle: number) => [makeEni("a", idle, { allocated })];
  const limits = { enis: 2, perEni: 30 };
  const start = makeState({
    enis: pods(2, 15),
    limits,
    config,
    memory: makeMemory({ idle: { sinceMs: 0, marks: [] } }),
  });

  it("gives back what nobody needed for the whole timeout, down to the floor (POOL-8)", () => {
    const later = after(start, 0);
    expect(decide(later, TTL - 1)).toMatchObject({ actions: [], againAtMs: TTL });
    const [action] = actions(later, TTL);
    expect(action).toMatchObject({ kind: "unassign", eniId: "a" });
    expect(action?.kind === "unassign" && action.addresses).toHaveLength(10);
  });

  it("keeps what a burst within the timeout needed, even if each address rested longer", () => {
    let state = after(start, 0);
    state = after({ ...state, enis: pods(12, 5) }, TTL / 2);
    state = after({ ...state, enis: pods(2, 15) }, TTL / 2 + 60_000);
    expect(actions(state, TTL)).toEqual([{ kind: "unassign", eniId: "a", addresses: ["a-0"] }]);
    expect(actions(state, TTL + TTL / 2 + 60_000)).toHaveLength(1);
  });

  it("gives back at once what is above the ceiling (POOL-7), but leaves the ENI", () => {
    const enis = [makeEni("a", 9, { allocated: 2 }), makeEni("b", 14)];
    const state = { ...start, enis, limits: { enis: 2, perEni: 14 } };
    expect(actions(state, 1000)).toEqual([{ kind: "unassign", eniId: "b", addresses: ["b-0", "b-1", "b-2"] }]);
  });

  it("removes an ENI that had no pod for the whole timeout", () => {
    const enis = [makeEni("a", 6, { allocated: 2 }), makeEni("b", 0)];
    const state = after({ ...start, enis, config: { ...start.config, minIdle: 6 } }, 0);
    expect(actions(state, TTL - 1)).toEqual([]);
    expect(actions(state, TTL)).toEqual([{ kind: "remove", eniId: "b" }]);
    expect(actions({ ...state, config: { ...state.config, preAttach: 1 } }, TTL)).toEqual([]);
    const podBetween = after({ ...state, enis: [makeEni("a", 6), makeEni("b", 0, { allocated: 1 })] }, 1000);
    expect(actions({ ...podBetween, enis }, TTL + 500)).toEqual([]);
  });

  it("never gives back in the first timeout after a start", () => {
    const fresh = { ...start, memory: initialMemory(0, 0.5, true) };
    expect(actions(fresh, TTL - 1)).toEqual([]);
  });
});

describe("looks at the cloud", () => {
  const idle = makeState({ enis: [makeEni("a", 4)] });
  const looks = (state: PoolState, nowMs: number) => decide(state, nowMs).observe.map((l) => l.what);

  it("are spread over a fleet that restarts, when pods can start without", () => {
    const at = (seed: number) => {
      const memory = initialMemory(0, seed, true);
      for (let now = 0; now <= RESTART_SPREAD_MS; now += 1000)
        if (looks({ ...idle, memory }, now).includes("enis")) return now;
      return undefined;
    };
    expect([0, 0.25, 0.5, 1].map(at)).toEqual([0, 75_000, 150_000, 300_000]);
  });

  it("come first on a node that knows nothing", () => {
    expect(looks({ ...idle, memory: initialMemory(0, 0.9, false) }, 2000)).toEqual(["enis", "limits"]);
  });

  it("come at most once in ten minutes when all is well, never in step with others", () => {
    const gaps = new Set<number>();
    for (const seed of [0, 0.1, 0.5, 0.9, 1]) {
      let memory = initialMemory(0, seed, true);
      const seen: number[] = [];
      for (let now = 0; now < 7_200_000; now += 5000) {
        const decision = decide({ ...idle, memory }, now);
        memory = decision.memory;
        expect(decision.actions).toEqual([]);
        for (const { what } of decision.observe) {
          memory = noteAnswer(memory, what, now);
          if (what === "enis") seen.push(now);
        }
      }
      for (const [i, at] of seen.entries()) if (i > 0) gaps.add(at - (seen[i - 1] ?? 0));
    }
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(600_000);
    expect(Math.max(...gaps)).toBeLessThanOrEqual(RECONCILE_MS * 1.15 + 5000);
    expect(gaps.size).toBeGreaterThan(5);
  });

  it("that fail come again with growing pauses", () => {
    let memory = initialMemory(0, 0, false);
    const tries: number[] = [];
    for (let now = 0; now < 200_000; now += 500) {
      if (!looks({ ...idle, memory }, now).includes("enis")) continue;
      tries.push(now);
      memory = noteFailure(memory, "enis", now);
    }
    expect(tries.slice(0, 6)).toEqual([0, 2000, 6000, 14_000, 30_000, 60_000]);
    expect(noteFailure(memory, "enis", 0, { retryAfterMs: 90_000 }).observed.enis?.notBeforeMs).toBe(90_000);
  });
});

describe("starting", () => {
  it("fills up later on a node whose pods can start, and at once where one waits", () => {
    const memory = initialMemory(0, 1, true);
    const low = makeState({ enis: [makeEni("a", 1)], memory });
    expect(actions(low, 149_999)).toEqual([]);
    expect(actions(low, 150_000)).toHaveLength(1);
    expect(actions({ ...low, enis: [makeEni("a", 0)] }, 0)).toHaveLength(1);
    expect(actions({ ...low, waiters: 2 }, 0)).toEqual([{ kind: "assign", eniId: "a", count: 1 }]);
    const seen = noteAnswer(initialMemory(0, 1, false), "enis", 0);
    expect(actions({ ...low, memory: seen }, 0)).toHaveLength(1);
  });

  it("asks for nothing before it has seen what is attached; a pod that waits makes it look at once", () => {
    const memory = initialMemory(0, 1, false);
    const empty = makeState({ memory });
    expect(decide(empty, 0)).toMatchObject({ actions: [], observe: [], againAtMs: 2000, stuck: undefined });
    const waiting = decide({ ...empty, waiters: 1 }, 0);
    expect(waiting).toMatchObject({ actions: [], stuck: undefined });
    expect(waiting.observe.map((o) => o.what)).toContain("enis");
    const refused = noteFailure(waiting.memory, "enis", 0, { problem: "Forbidden.RAM: no right to describe" });
    const told = decide({ ...empty, waiters: 1, memory: refused }, 10);
    expect(told.stuck).toContain("Forbidden.RAM");
    expect(told.conditions).toHaveLength(1);
    expect(actions({ ...empty, memory: noteAnswer(refused, "enis", 20) }, 30)).toHaveLength(1);
  });

  it("looks as often as the configuration says", () => {
    const memory = noteAnswer(initialMemory(0, 0, true), "enis", 0);
    const idle = makeState({ enis: [makeEni("a", 4)], memory, config: { reconcileMs: 100_000 } });
    expect(decide(idle, 84_000).observe.map((o) => o.what)).not.toContain("enis");
    expect(decide(idle, 116_000).observe.map((o) => o.what)).toContain("enis");
  });
});

describe("poolConfigOf", () => {
  const base = { security_group: "sg-1", service_cidr: "172.16.0.0/16", vswitches: { h: ["vsw-1", "vsw-2"] } };
  const of = (more: object) => {
    const { config } = parseEniConf({ ...base, ...more });
    if (config === undefined) throw new Error("bad fixture");
    return poolConfigOf(config, "ipv4");
  };
  it("leaves features off whose sub-object is absent", () => {
    expect(of({})).toEqual({
      minIdle: 10,
      maxIdle: 25,
      batch: 10,
      idleTtlMs: 300_000,
      stack: "ipv4",
      fill: "most",
      hotPlug: true,
      reservePercent: 0,
      preAttach: 0,
      vswitchPolicy: "most",
    });
  });
  it("takes them over when it is there", () => {
    const more = {
      ip_warmup: { warmup_batch_size: 50 },
      batch_config: {},
      ip_allocation_policy: { ip_reserve_percent: 20 },
      eni_selection_policy: "least-ip",
    };
    expect(of(more)).toMatchObject({
      warmupBatch: 10,
      warmupIntervalMs: 60_000,
      batchWindowMs: 100,
      batchSize: 20,
      reservePercent: 20,
      fill: "fewest",
    });
  });
  it("knows the vSwitches of its own zone only", () => {
    const { config } = parseEniConf(base);
    expect(config && [nodeVSwitches(config, "h"), nodeVSwitches(config, "i")]).toEqual([["vsw-1", "vsw-2"], []]);
  });
});

describe("any state", () => {
  const anyEni = fc.record({
    idle: fc.nat(9),
    allocated: fc.nat(9),
    cooling: fc.nat(3),
    lag: fc.nat(3),
    draining: fc.boolean(),
    emptySince: fc.option(fc.nat(9000), { nil: undefined }),
  });
  const anyState = fc
    .record({
      enis: fc.array(anyEni, { maxLength: 4 }),
      waiters: fc.nat(30),
      min: fc.nat(10),
      span: fc.nat(10),
      low: fc.nat(20),
      dual: fc.boolean(),
      preAttach: fc.nat(2),
      reserve: fc.constantFrom(0, 20, 50),
      available: fc.option(fc.nat(12), { nil: undefined }),
      blocked: fc.subarray(["all", "create", "assign", "unassign", "remove", "vswitch:vsw-a", "eni:e0"]),
      tokens: fc.option(fc.nat(2), { nil: undefined }),
    })
    .map((r) =>
      makeState({
        limits: { enis: 3, perEni: 9 },
        waiters: r.waiters,
        vswitches: [{ id: "vsw-a", available: r.available, atMs: 9500 }],
        inhibitions: Object.fromEntries(r.blocked.map((key) => [key, { untilMs: 20_000, reason: key }])),
        ...(r.tokens !== undefined && {
          budgets: { assign: { tokens: r.tokens, nextAtMs: 12_000 }, create: { tokens: r.tokens, nextAtMs: 12_000 } },
        }),
        config: {
          minIdle: r.min,
          maxIdle: r.min + r.span,
          stack: r.dual ? ("dual" as const) : ("ipv4" as const),
          preAttach: r.preAttach,
          reservePercent: r.reserve,
        },
        enis: r.enis.map((e, i) => {
          const allocated = Math.min(e.allocated, 9);
          const idle = Math.min(e.idle, 9 - allocated);
          const cooling = Math.min(e.cooling, 9 - allocated - idle);
          const total6 = Math.max(allocated, allocated + idle + cooling - e.lag);
          const idle6 = Array.from({ length: Math.max(0, total6 - allocated - cooling) }, (_, n) => `e${i}-six-${n}`);
          return makeEni(`e${i}`, idle, {
            allocated,
            cooling,
            state: e.draining ? "draining" : "ready",
            ...(r.dual && { total6, idle6 }),
          });
        }),
        memory: makeMemory({
          idle: { sinceMs: 0, marks: [{ idle: r.low, untilMs: 9900 }] },
          emptySinceMs: Object.fromEntries(
            r.enis.flatMap((e, i) => (e.emptySince === undefined ? [] : [[`e${i}`, e.emptySince]])),
          ),
        }),
      }),
    );

  it("keeps to the limits, the floor, the blocks and the budgets", () => {
    fc.assert(
      fc.property(anyState, (s) => {
        const now = 10_000;
        const { actions: got, stuck, againAtMs } = decide(s, now);
        const blocked = (key: string) => s.inhibitions[key] !== undefined;
        const of = (kind: PoolAction["kind"]) => got.filter((a) => a.kind === kind).length;
        if (blocked("all")) expect(got).toEqual([]);
        for (const kind of ["create", "assign", "unassign", "remove"] as const) {
          if (blocked(kind)) expect(of(kind)).toBe(0);
          expect(of(kind)).toBeLessThanOrEqual(s.budgets?.[kind]?.tokens ?? 99);
        }
        expect(s.enis.length + of("create")).toBeLessThanOrEqual(Math.max(3, s.enis.length));
        const touched = got.flatMap((a) => ("eniId" in a ? [a.eniId] : []));
        expect(new Set(touched).size).toBe(touched.length);
        let usable = s.enis
          .filter((e) => e.state === "ready")
          .reduce((n, e) => n + Math.min(e.idle.length, e.idle6?.length ?? 99), 0);
        let fromVSwitch = 0;
        for (const a of got) {
          const on = s.enis.find((e) => "eniId" in a && e.id === a.eniId);
          if (a.kind !== "create") expect(on?.state).toBe("ready");
          if (a.kind === "assign") {
            expect(a.count).toBeGreaterThan(0);
            expect(a.count).toBeLessThanOrEqual(10);
            const on4 = a.family === 6 ? (on?.total6 ?? 99) : (on?.total ?? 99);
            expect((a.family === undefined ? Math.max(on4, on?.total6 ?? 0) : on4) + a.count).toBeLessThanOrEqual(9);
            expect(blocked("vswitch:vsw-a")).toBe(false);
            expect(blocked(`eni:${a.eniId}`)).toBe(false);
            if (a.family === undefined) fromVSwitch += a.count;
          }
          if (a.kind === "create") {
            expect(a.count).toBeLessThanOrEqual(9);
            fromVSwitch += a.count + 1;
          }
          if (a.kind === "unassign") {
            const before = usable;
            const [idle, idle6] = [on?.idle ?? [], on?.idle6 ?? []];
            for (const address of a.addresses) expect([...idle, ...idle6]).toContain(address);
            expect(a.addresses.filter((x) => idle.includes(x)).length).toBeLessThanOrEqual(10);
            const left4 = idle.filter((x) => !a.addresses.includes(x)).length;
            const left6 = on?.idle6 === undefined ? 99 : idle6.filter((x) => !a.addresses.includes(x)).length;
            usable -= Math.min(idle.length, on?.idle6 === undefined ? 99 : idle6.length) - Math.min(left4, left6);
            if (usable < before) expect(usable).toBeGreaterThanOrEqual(s.config.minIdle);
          }
          if (a.kind === "remove") {
            expect((on?.allocated ?? 1) + (on?.reserved ?? 1) + (on?.cooling ?? 1)).toBe(0);
            const before = usable;
            usable -= Math.min(on?.idle.length ?? 0, on?.idle6?.length ?? 99);
            if (usable < before) expect(usable).toBeGreaterThanOrEqual(s.config.minIdle);
          }
        }
        const available = s.vswitches[0]?.available;
        if (available !== undefined) expect(fromVSwitch).toBeLessThanOrEqual(available);
        // Growing and shrinking at once would be a see-saw.
        const grows = got.some((a) => a.kind === "create" || (a.kind === "assign" && a.family === undefined));
        const shrinks = got.some((a) => a.kind === "remove" || (a.kind === "unassign" && s.config.stack !== "dual"));
        expect(grows && shrinks).toBe(false);
        if (againAtMs !== undefined) expect(againAtMs).toBeGreaterThan(now);
        if (s.waiters === 0) expect(stuck).toBeUndefined();
      }),
      { numRuns: 3000 },
    );
  });
});

describe("whole ENIs, one for each pod", () => {
  const limits = { enis: 7, perEni: 1, whole: true };
  const config = { minIdle: 1, maxIdle: 2, idleTtlMs: 300_000 };
  it("are made one by one, with the address that they have anyway", () =>
    expect(actions(makeState({ enis: [], limits, config, waiters: 1 }))[0]).toMatchObject({
      kind: "create",
      count: 1,
    }));
  it("that nobody needs go back whole, down to the floor; no address goes back by itself", () => {
    const enis = ["a", "b", "c", "d"].map((id) => makeEni(id, 1));
    const planned = actions(makeState({ enis, limits, config, memory: makeMemory() }));
    expect(planned.map((a) => a.kind)).toEqual(["remove", "remove", "remove"]);
  });
  it("above the ceiling go back without having rested", () => {
    const enis = ["a", "b", "c", "d"].map((id) => makeEni(id, 1));
    const memory = { ...makeMemory(), idle: { sinceMs: 0, marks: [] }, emptySinceMs: {} };
    const planned = actions(makeState({ enis, limits, config, memory }), 1000);
    expect(planned.map((a) => a.kind)).toEqual(["remove", "remove"]);
  });
  it("with a pod stay", () => {
    const enis = [...["a", "b", "c"].map((id) => makeEni(id, 1)), makeEni("d", 0, { allocated: 1 })];
    const planned = actions(makeState({ enis, limits, config, memory: makeMemory() }));
    expect(planned.map((a) => [a.kind, "eniId" in a && a.eniId !== "d"])).toEqual([
      ["remove", true],
      ["remove", true],
    ]);
  });
});

describe("ENIs for pods with wishes of their own", () => {
  const only = { securityGroups: ["sg-own"] };
  const whole = { enis: 3, perEni: 1, whole: true };
  const none = { minIdle: 0, maxIdle: 0, idleTtlMs: 600_000 };
  const own = (id: string, tweaks = {}) => makeEni(id, 1, { dedicated: true, securityGroups: ["sg-own"], ...tweaks });

  it("are made where nobody else may have a vSwitch, and serve nobody else", () => {
    const vswitches = [
      { id: "vsw-a", available: 100 },
      { id: "vsw-plane", available: undefined, onlyAsked: true },
    ];
    const plane = { vswitchIds: ["vsw-plane"], securityGroups: ["sg-own"] };
    expect(
      actions(makeState({ limits: whole, config: none, vswitches, constrained: [{ only: plane, waiters: 1 }] })),
    ).toEqual([{ kind: "create", vswitchId: "vsw-plane", count: 1, only: plane }]);
    expect(actions(makeState({ limits: whole, config: none, vswitches, waiters: 1, enis: [own("a")] }))).toEqual([
      { kind: "create", vswitchId: "vsw-a", count: 1 },
    ]);
  });

  it("are not counted as the others' idle ones, nor is what is on its way to be one", () => {
    const state = makeState({
      limits: whole,
      config: { ...none, minIdle: 1, maxIdle: 1 },
      enis: [own("a", { allocated: 1, idle: [], total: 1 })],
      operations: [{ kind: "create", eniId: undefined, count: 1, only }],
    });
    expect(actions(state)).toEqual([{ kind: "create", vswitchId: "vsw-a", count: 1 }]);
  });

  it("stay a while when the pod is gone, and give way to a pod that needs the slot", () => {
    const memory = makeMemory({ emptySinceMs: { a: 0 } });
    const empty = makeState({ limits: { ...whole, enis: 1 }, config: none, enis: [own("a")], memory });
    expect(actions(empty, 50_000)).toEqual([]);
    expect(decide(empty, 50_000).againAtMs).toBeLessThanOrEqual(60_000);
    expect(actions(empty, 60_000)).toEqual([{ kind: "remove", eniId: "a" }]);
    expect(actions({ ...empty, waiters: 1 }, 1000)).toEqual([{ kind: "remove", eniId: "a" }]);
    expect(actions({ ...empty, constrained: [{ only, waiters: 1 }] }, 60_000)).toEqual([]);
  });

  it("have an empty ENI of another pool give way, but not its last", () => {
    const shared = (enis: PoolState["enis"]) => makeState({ limits: { enis: 1, perEni: 9 }, enis, roomFor: 1 });
    const [one, two] = [makeEni("a", 4), makeEni("b", 4, { allocated: 1 })];
    expect(actions(shared([one, two]))).toEqual([{ kind: "remove", eniId: "a" }]);
    expect(actions(shared([one]))).toEqual([]);
    expect(actions({ ...shared([one, two]), waiters: 6 })).not.toContainEqual({ kind: "remove", eniId: "a" });
    const waits = makeState({ limits: { ...whole, enis: 0 }, config: none, waiters: 1 });
    expect([decide(waits, 0).stuck, decide({ ...waits, roomComing: true }, 0).stuck]).toEqual([
      expect.stringMatching(/all 0 of 0 ENIs/),
      undefined,
    ]);
  });

  it("take the slot of an empty one, and say so when there is none", () => {
    const full = (a: Partial<Parameters<typeof makeEni>[2]>) =>
      makeState({
        limits: { ...whole, enis: 1 },
        config: { ...none, minIdle: 1, maxIdle: 1 },
        enis: [makeEni("a", 1, a)],
        constrained: [{ only, waiters: 1 }],
        memory: makeMemory(),
      });
    const room = decide(full({}), 1000);
    expect([room.actions, room.stuckConstrained]).toEqual([[{ kind: "remove", eniId: "a" }], [undefined]]);
    const taken = decide(full({ allocated: 1, idle: [], total: 1 }), 1000);
    expect(taken.actions).toEqual([]);
    expect(taken.stuckConstrained[0]).toMatch(/all 1 of 1 ENIs/);
  });
});
