import { expect, it, vi } from "vitest";
import type { PoolAction } from "../pool/decide.ts";
import { createPoolKeeper, type PoolView } from "../pool/keeper.ts";
import { makeEni, makeState } from "../pool/testkit.ts";
import { type AgentContext, nowMs } from "./context.ts";
import { createLooks } from "./looks.ts";

const UNSETTLED = new Set(["a"]);
let asked = 0;
vi.mock("./cloud-sync.ts", async (original) => ({
  ...(await original<typeof import("./cloud-sync.ts")>()),
  syncWithCloud: async () => {
    asked += 1;
    return asked === 1 ? UNSETTLED : new Set();
  },
}));

it("a look that any pool asks for is made once, and ends the suspicion of all only when it could judge", async () => {
  const looks = createLooks({ log: () => undefined, wake: () => undefined } as unknown as AgentContext);
  const { inhibitions: _i, memory: _m, vswitches: _v, surplusSinceMs: _s, ...rest } = makeState();
  const view: PoolView = { ...rest, vswitchIds: ["vsw-a"], enis: [makeEni("a", 0)] };
  const start = nowMs() - 100_000;
  const keepers = [0, 1, 2].map(() => createPoolKeeper(start, 0, true));
  for (const keeper of keepers) {
    keeper.saw("limits", start);
    keeper.saw("enis", start + 1);
    looks.join(keeper);
  }
  const action: PoolAction = { kind: "assign", eniId: "a", count: 1 };
  const gone = { class: "gone", code: "InvalidEniId.NotFound", message: "", retryAfterMs: undefined } as const;
  const failedMs = nowMs() - 2000;
  for (const keeper of keepers.slice(1)) keeper.failed(action, gone, view.enis, failedMs, 0);
  const wantLooks = (now: number) => keepers.map((k) => k.decide(view, now).observe.some((o) => o.what === "enis"));
  async function step(now: number): Promise<void> {
    for (const keeper of keepers)
      for (const { what, reason } of keeper.decide(view, now).observe) if (what === "enis") looks.look(what, reason);
    await vi.waitFor(() => expect(wantLooks(nowMs())).toEqual([false, false, false]));
  }
  expect(wantLooks(nowMs())).toEqual([false, true, true]);
  await step(nowMs());
  expect(asked).toBe(1);
  expect(wantLooks(nowMs() + 7000)).toEqual([false, true, true]);
  await step(nowMs() + 7000);
  expect(asked).toBe(2);
  expect(wantLooks(nowMs() + 7000)).toEqual([false, false, false]);
});
