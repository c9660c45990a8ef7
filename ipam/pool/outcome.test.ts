import { describe, expect, it } from "vitest";
import type { CloudErrorClass } from "../cloud/classify.ts";
import { decide } from "./decide.ts";
import { applyOutcome } from "./outcome.ts";
import type { ConditionReason, PoolAction, PoolState } from "./state.ts";
import { makeEni, makeMemory, makeState } from "./testkit.ts";

const assign: PoolAction = { kind: "assign", eniId: "a", count: 4 };
const create: PoolAction = { kind: "create", vswitchId: "vsw-a", count: 4 };
const base = makeState({ enis: [makeEni("a", 0)], memory: makeMemory() });

function fail(
  state: PoolState,
  action: PoolAction,
  cls: CloudErrorClass,
  nowMs: number,
  code = "Some.Code",
  more: { retryAfterMs?: number; untilNextMinuteMs?: number } = {},
): PoolState {
  const failure = { class: cls, code, message: "said the cloud", retryAfterMs: undefined, ...more };
  return { ...state, ...applyOutcome(state, action, { kind: "failed", failure }, nowMs, 0.5) };
}

interface Row {
  readonly cls: CloudErrorClass;
  readonly code?: string;
  readonly action: PoolAction;
  /** What may not be tried, and for how long after the first failure. */
  readonly key: string | undefined;
  readonly ms: number;
  readonly condition: ConditionReason | undefined;
}
const row = (
  cls: CloudErrorClass,
  action: PoolAction,
  key: string | undefined,
  ms: number,
  condition?: ConditionReason,
  code?: string,
): Row => ({
  cls,
  action,
  key,
  ms,
  condition,
  ...(code && { code }),
});

const rows: readonly Row[] = [
  row("throttled", assign, "assign", 7500, "CloudThrottled"),
  row("retry", assign, "eni:a", 750),
  row("retry", create, "create", 750),
  row("conflict", assign, "eni:a", 750),
  row("state", assign, "eni:a", 750),
  row("vswitch-full", assign, "vswitch:vsw-a", 30_000, "VSwitchExhausted"),
  row("vswitch-full", create, "vswitch:vsw-a", 30_000, "VSwitchExhausted"),
  row("eni-limit", create, "create", 60_000, "EniLimitReached"),
  row("capacity", assign, "eni:a", 5000),
  row("quota", create, "create", 600_000, "QuotaExceeded"),
  row("quota", create, "create", 60_000, "SecurityGroupFull", "SecurityGroupInstanceLimitExceed"),
  row("gone", assign, "eni:a", 5000),
  row("gone", create, undefined, 0),
  row("not-ours", assign, "eni:a", Number.POSITIVE_INFINITY, "UnexpectedAnswer"),
  row("config", create, "create", 60_000, "ConfigRejected", "InvalidSecurityGroupId.NotFound"),
  row("config", create, "vswitch:vsw-a", 60_000, "ConfigRejected", "InvalidVSwitchId.NotFound"),
  row("auth", assign, "all", 15_000, "CloudAuthFailed", "InvalidAccessKeyId.NotFound"),
  // One right is missing: what needs others goes on.
  row("auth", assign, "assign", 15_000, "CloudAuthFailed", "Forbidden.RAM"),
  row("auth", create, "create", 15_000, "CloudAuthFailed", "Forbidden"),
  row("bug", assign, "eni:a", 30_000, "UnexpectedAnswer"),
  row("idempotent-failed", create, "create", 500),
  row("unknown", create, "create", 30_000, "UnexpectedAnswer"),
];

describe("applyOutcome", () => {
  it("has a row for every class", () => {
    const all: Record<CloudErrorClass, true> = {
      throttled: true,
      retry: true,
      conflict: true,
      "vswitch-full": true,
      "eni-limit": true,
      capacity: true,
      quota: true,
      gone: true,
      state: true,
      "not-ours": true,
      config: true,
      auth: true,
      bug: true,
      "idempotent-failed": true,
      unknown: true,
    };
    expect(new Set(rows.map((r) => r.cls))).toEqual(new Set(Object.keys(all)));
  });

  it.each(rows)("$cls of $action.kind ($code) blocks $key for $ms ms", ({ cls, code, action, key, ms, condition }) => {
    const after = fail(base, action, cls, 1000, code);
    expect(Object.keys(after.inhibitions)).toEqual(key === undefined ? [] : [key]);
    if (key === undefined) return;
    expect(after.inhibitions[key]?.untilMs).toBe(1000 + ms);
    expect(after.inhibitions[key]?.condition).toBe(condition);
  });

  it.each([
    ["throttled", 7500, 10_000],
    ["eni-limit", 60_000, 120_000],
    ["auth", 15_000, 30_000],
    ["unknown", 30_000, 60_000],
  ] as const)("%s waits longer the second time in a row", (cls, first, second) => {
    const once = fail(base, create, cls, 0);
    const [key = ""] = Object.keys(once.inhibitions);
    expect(once.inhibitions[key]?.untilMs).toBe(first);
    const twice = fail(once, create, cls, first);
    expect(twice.inhibitions[key]?.untilMs).toBe(first + second);
  });

  it("makes a new ENI for pods that wait where assigning is not allowed", () => {
    const waiting = { ...base, waiters: 1, limits: { enis: 2, perEni: 9 } };
    const after = fail(waiting, assign, "auth", 0, "Forbidden.RAM");
    const decision = decide(after, 1);
    expect(decision.actions.map((a) => a.kind)).toEqual(["create"]);
    expect(decision.conditions).toMatchObject([{ reason: "CloudAuthFailed", about: "assign" }]);
  });

  it("honours what the cloud says about when to come back", () => {
    expect(fail(base, assign, "throttled", 0, "Throttling", { retryAfterMs: 900 }).inhibitions.assign?.untilMs).toBe(
      3400,
    );
    expect(
      fail(base, assign, "throttled", 0, "Throttling", { untilNextMinuteMs: 42_000 }).inhibitions.assign?.untilMs,
    ).toBe(44_500);
  });

  it("a success ends the row of failures and the block", () => {
    const failed = fail(base, assign, "retry", 0);
    const done = { ...failed, ...applyOutcome(failed, assign, { kind: "done" }, 10, 0.5) };
    expect(done.inhibitions).toEqual({});
    expect(done.memory?.failedAtMs).toEqual({});
  });

  it.each(["gone", "capacity", "eni-limit", "state"] as const)("%s makes the agent look at its ENIs soon", (cls) => {
    const after = fail(base, cls === "eni-limit" ? create : assign, cls, 1000);
    const looks = decide({ ...after, enis: [makeEni("a", 4)] }, 3000).observe;
    expect(looks.map((l) => l.what)).toContain("enis");
  });

  it("reads the type's limits again when the cloud counts otherwise", () => {
    const after = fail(base, assign, "capacity", 1000);
    expect(decide(after, 3000).observe.map((l) => l.what)).toEqual(["enis", "limits"]);
  });

  it("leaves an ENI alone for good that is not ours", () => {
    const after = fail(base, assign, "not-ours", 0);
    expect(decide(after, 10 ** 9).actions).toEqual([{ kind: "create", vswitchId: "vsw-a", count: 4 }]);
  });
});

describe("a full vSwitch (F-09)", () => {
  const waiting = makeState({
    enis: [makeEni("a", 0)],
    waiters: 4,
    config: { minIdle: 0, maxIdle: 0 },
    vswitches: [{ id: "vsw-a", available: undefined }],
    memory: makeMemory(),
  });
  const full = fail(waiting, assign, "vswitch-full", 1000, "InvalidVSwitchId.IpNotEnough");
  const seen = (state: PoolState, available: number, atMs: number): PoolState => ({
    ...state,
    vswitches: [{ id: "vsw-a", available, atMs }],
  });

  it("is told to those who wait, by name and count, and looked at at once", () => {
    const decision = decide(full, 1001);
    expect(decision.actions).toEqual([]);
    expect(decision.stuck).toBe(
      "vSwitch vsw-a has 0 free addresses (InvalidVSwitchId.IpNotEnough): free some, or add a vSwitch of this zone to eni_conf",
    );
    expect(decision.observe.map((l) => l.what)).toEqual(["vswitches"]);
    expect(decision.conditions.map((c) => c.reason)).toEqual(["VSwitchExhausted"]);
  });

  it("is used again as soon as room is seen, for as much as there is", () => {
    expect(decide(seen(full, 3, 2000), 2000).actions).toEqual([{ kind: "assign", eniId: "a", count: 3 }]);
  });

  it("stays closed while it is seen empty, even after the block has ended", () => {
    expect(decide(seen(full, 0, 30_500), 31_500)).toMatchObject({
      actions: [],
      stuck: "vSwitch vsw-a has 0 free addresses: free some, or add a vSwitch of this zone to eni_conf",
    });
  });

  it("is tried without a look when looking is not possible", () => {
    expect(decide(full, 31_000).actions).toHaveLength(1);
  });

  it("fails at most twice a minute, whatever the looks say", () => {
    let state = waiting;
    const failures: number[] = [];
    for (let now = 0; now < 600_000; now += 500) {
      state = seen(state, 50, now); // always claims room
      if (decide(state, now).actions.length === 0) continue;
      failures.push(now);
      state = fail(state, assign, "vswitch-full", now);
    }
    for (const at of failures) expect(failures.filter((f) => f >= at && f < at + 60_000).length).toBeLessThanOrEqual(2);
    expect(failures.length).toBeGreaterThan(8);
  });

  it("does not close another vSwitch", () => {
    const both = { ...full, vswitches: [...full.vswitches, { id: "vsw-b", available: 9 }] };
    expect(decide(both, 1001).actions).toEqual([{ kind: "create", vswitchId: "vsw-b", count: 4 }]);
  });
});
