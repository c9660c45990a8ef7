/** VPC mode: how often the cloud is asked for the node's route while it refuses. */
import { afterEach, describe, expect, it, vi } from "vitest";
import type { CloudErrorClass } from "../cloud/classify.ts";
import { CloudError, type CloudRoute } from "../cloud/cloud-api.ts";
import { listIntents } from "../store/intents.ts";
import type { AgentContext } from "./context.ts";
import { pauseAfter } from "./pause.ts";
import { refusal, storeAndClock } from "./testkit.ts";
import { keepVpcRoutes } from "./vpc-routes.ts";

const MINUTE_MS = 60_000;
const CIDR = "10.1.0.0/24";

const store = storeAndClock();
let stop: () => void = () => undefined;
afterEach(() => stop());

/** @param answers To the calls that make the entry, in turn; the last again and again. */
function start(answers: readonly (CloudError | "made")[]) {
  const routes: CloudRoute[] = [];
  const calls = { list: 0, create: 0, createdAtMs: [] as number[] };
  const ctx = {
    store: store(),
    cloud: {
      describeVSwitches: async () => [{ id: "vsw-1", zone: "", cidr4: "10.0.0.0/16", routeTableId: "vtb-1" }],
      async listRoutes() {
        calls.list++;
        return [...routes];
      },
      async createRoute(_table: string, destination: string, instanceId: string) {
        const answer = answers[Math.min(calls.create++, answers.length - 1)];
        calls.createdAtMs.push(Date.now());
        if (answer instanceof CloudError) throw answer;
        routes.push({ id: "rte-1", destination, status: "Available", nextHopIds: [instanceId] });
      },
    },
    self: { instanceId: "i-1" },
    config: { vswitchIds: ["vsw-1"], vswitchCacheTtlMs: MINUTE_MS },
    log: () => undefined,
  } as unknown as AgentContext;
  stop = keepVpcRoutes(ctx, [CIDR]);
  return { calls, routes };
}

describe("the VPC's route to this node", () => {
  it("is asked for again at once while another change of the table is under way", async () => {
    const { calls, routes } = start([refusal("TaskConflict"), refusal("InternalError"), "made"]);
    await vi.advanceTimersByTimeAsync(2000);
    expect([calls.create, routes.length, listIntents(store().db)]).toEqual([3, 1, []]);
  });

  it("waits as long as the cloud says when it throttles", async () => {
    const { calls, routes } = start([refusal("Throttling.User", { retryAfterMs: 40_000 }), "made"]);
    await vi.advanceTimersByTimeAsync(39_000);
    expect([calls.list, calls.create]).toEqual([1, 1]);
    await vi.advanceTimersByTimeAsync(7000);
    expect([calls.create, routes.length]).toEqual([2, 1]);
  });

  it.each(["Throttling", "QuotaExceeded.RouteEntry", "Forbidden.RAM", "InvalidVSwitchId.NotFound"])(
    "is asked for ever more seldom while the answer is %s",
    async (code) => {
      const { calls } = start([refusal(code)]);
      await vi.advanceTimersByTimeAsync(120 * MINUTE_MS);
      expect(calls.create).toBeGreaterThan(12);
      expect(calls.create).toBeLessThan(35);
      const [before = 0, last = 0] = calls.createdAtMs.slice(-2);
      expect(last - before).toBeGreaterThanOrEqual(5 * MINUTE_MS);
    },
  );

  it("is asked for soon again after a failure that follows a success", async () => {
    const { calls, routes } = start([refusal("Throttling"), refusal("Throttling"), "made", refusal("Throttling")]);
    await vi.advanceTimersByTimeAsync(MINUTE_MS);
    expect(calls.create).toBe(3);
    routes.pop();
    await vi.advanceTimersByTimeAsync(18 * MINUTE_MS);
    const [, , , failed = 0, again = 0] = calls.createdAtMs;
    expect(again - failed).toBeLessThanOrEqual(10_000);
  });
});

describe("the pause after a failure", () => {
  it.each<[CloudErrorClass | undefined, number, number, number]>([
    [undefined, 1, 5000, 10_000],
    [undefined, 99, 30_000, 60_000],
    ["retry", 99, 30_000, 60_000],
    ["quota", 1, 5000, 10_000],
    ["quota", 99, 300_000, 600_000],
  ])("of class %s, the %ith in a row", (kind, failures, least, most) => {
    const error = kind === undefined ? new Error("x") : Object.assign(refusal("X"), { class: kind });
    expect([0, 1].map((jitter) => pauseAfter(error, failures, jitter))).toEqual([least, most]);
  });
});
