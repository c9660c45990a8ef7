import { describe, expect, it } from "vitest";
import { createPoolKeeper, type PoolView } from "./keeper.ts";
import { makeEni, makeState } from "./testkit.ts";

function viewOf(tweaks: Partial<PoolView> = {}): PoolView {
  const { inhibitions: _i, memory: _m, vswitches: _v, surplusSinceMs: _s, ...rest } = makeState();
  return {
    ...rest,
    vswitchIds: ["vsw-a"],
    enis: [makeEni("a", 0)],
    waiters: 2,
    limits: { enis: 1, perEni: 9 },
    ...tweaks,
  };
}
const full = {
  class: "vswitch-full",
  code: "InvalidVSwitchId.IpNotEnough",
  message: "",
  retryAfterMs: undefined,
} as const;

describe("pool keeper", () => {
  it("carries a failure into the next decisions, and a look out of them", () => {
    const keeper = createPoolKeeper(0, 0.5, true);
    const view = viewOf();
    const [action] = keeper.decide(view, 0).actions;
    if (action === undefined) throw new Error("nothing decided");
    keeper.failed(action, full, view.enis, 100, 0.5);
    const told = keeper.decide(view, 200);
    expect(told.actions).toEqual([]);
    expect(told.began.map((c) => [c.reason, c.about])).toEqual([["VSwitchExhausted", "vswitch:vsw-a"]]);
    expect(told.observe.map((o) => o.what)).toEqual(["vswitches"]);
    expect(Object.keys(keeper.inhibitions())).toEqual(["vswitch:vsw-a"]);

    keeper.saw("vswitches", 300, { vswitches: [{ id: "vsw-a", available: 50 }] });
    const [again] = keeper.decide(view, 400).actions;
    expect(again).toMatchObject({ kind: "assign", eniId: "a" });
    if (again !== undefined) keeper.done(again, view.enis, 500);
    expect(keeper.inhibitions()).toEqual({});
  });

  it("looks again when it counts a vSwitch as full that the cloud said has room", () => {
    const keeper = createPoolKeeper(0, 0, true);
    keeper.saw("vswitches", 1000, { vswitches: [{ id: "vsw-a", available: 1 }] });
    // Taken before the look, and told of after it.
    keeper.done({ kind: "create", vswitchId: "vsw-a", count: 3 }, [], 1100);
    const view = viewOf({ waiters: 1 });
    expect(keeper.decide(view, 1200).actions).toEqual([]);
    expect(keeper.decide(view, 9000).observe.map((o) => o.what)).toContain("vswitches");
    keeper.saw("vswitches", 9000, { vswitches: [{ id: "vsw-a", available: 1 }] });
    expect(keeper.decide(view, 9100).actions).toEqual([{ kind: "assign", eniId: "a", count: 1 }]);
  });

  it("suspects an ENI until a look that began afterwards could judge it", () => {
    const keeper = createPoolKeeper(0, 0, true);
    keeper.saw("enis", 0);
    keeper.saw("limits", 0);
    const view = viewOf();
    const looksAt = (now: number) => keeper.decide(view, now).observe.map((o) => o.what);
    const gone = { ...full, class: "gone", code: "InvalidEniId.NotFound" } as const;
    keeper.failed({ kind: "assign", eniId: "a", count: 2 }, gone, view.enis, 10_000, 0.5);
    expect([looksAt(10_500), looksAt(11_000)]).toEqual([[], ["enis"]]);
    // Told of at 10 s: an answer to a question of before says nothing.
    keeper.saw("enis", 9900);
    expect(looksAt(11_100)).toEqual(["enis"]);
    keeper.saw("enis", 11_100, { unsettled: new Set(["a", "b"]) });
    expect([looksAt(11_200), looksAt(17_000), looksAt(17_100)]).toEqual([[], [], ["enis"]]);
    keeper.saw("enis", 17_100, { unsettled: new Set(["b"]) });
    expect(looksAt(100_000)).toEqual([]);
  });

  it("does not ask an ENI that is said to be gone again and again", () => {
    const keeper = createPoolKeeper(0, 0, true);
    const view = viewOf();
    const gone = { ...full, class: "gone", code: "InvalidEniId.NotFound" } as const;
    let asked = 0;
    for (let now = 0; now < 60_000; now += 100)
      for (const action of keeper.decide(view, now).actions) {
        asked += 1;
        keeper.failed(action, gone, view.enis, now, 0.5);
      }
    expect(asked).toBeLessThan(6);
  });

  it("says once that a condition began, and that it ended when it was not there for half a minute", () => {
    const keeper = createPoolKeeper(0, 0.5, true);
    const config = { ...makeState().config, hotPlug: false, idleTtlMs: 600_000 };
    const empty = viewOf({ config, enis: [] });
    const fine = viewOf({ config, enis: [makeEni("a", 6)] });
    expect(keeper.decide(empty, 0).began.map((c) => c.reason)).toEqual(["HotPlugOff"]);
    expect(keeper.decide(empty, 1000).began).toEqual([]);
    expect(keeper.decide(fine, 20_000)).toMatchObject({ ended: [], againAtMs: 31_000 });
    expect(keeper.decide(empty, 25_000).began).toEqual([]);
    expect(keeper.decide(fine, 55_000).ended.map((c) => c.reason)).toEqual(["HotPlugOff"]);
    expect(keeper.conditions()).toEqual([]);
    expect(keeper.decide(empty, 56_000).began).toHaveLength(1);
  });

  it("tries a look again later that brought nothing", () => {
    const keeper = createPoolKeeper(0, 0, false);
    const view = viewOf({ waiters: 0, enis: [makeEni("a", 9)] });
    expect(keeper.decide(view, 0).observe.map((o) => o.what)).toEqual(["enis", "limits"]);
    keeper.sawNothing("enis", 0, 45_000);
    keeper.saw("limits", 0);
    expect(keeper.decide(view, 44_999).observe).toEqual([]);
    expect(keeper.decide(view, 45_000).observe.map((o) => o.what)).toEqual(["enis"]);
  });
});
