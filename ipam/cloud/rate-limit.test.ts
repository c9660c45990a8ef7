import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createRateLimiter, ratesOf } from "./rate-limit.ts";

const unset = {
  eniCreateQps: undefined,
  eniDeleteQps: undefined,
  ipAssignQps: undefined,
  ipUnassignQps: undefined,
  burstSize: undefined,
};

describe("ratesOf", () => {
  it.each([
    ["CreateNetworkInterface", {}, { perMinute: 10, burst: 2 }],
    ["AssignPrivateIpAddresses", {}, { perMinute: 10, burst: 2 }],
    ["AssignIpv6Addresses", {}, { perMinute: 10, burst: 2 }],
    ["UnassignPrivateIpAddresses", {}, { perMinute: 400, burst: 400 }],
    ["DescribeVSwitches", {}, { perMinute: 300, burst: 300 }],
    ["CreateNetworkInterface", { eniCreateQps: 5, burstSize: 20 }, { perMinute: 300, burst: 20 }],
    ["AttachNetworkInterface", { eniCreateQps: 5 }, { perMinute: 300, burst: 5 }],
    ["DeleteNetworkInterface", { eniDeleteQps: 0.5 }, { perMinute: 30, burst: 1 }],
    ["AssignPrivateIpAddresses", { ipAssignQps: 50 }, { perMinute: 400, burst: 50 }],
    ["UnassignIpv6Addresses", { ipUnassignQps: 2 }, { perMinute: 120, burst: 2 }],
    ["AssignPrivateIpAddresses", { burstSize: 20 }, { perMinute: 10, burst: 20 }],
  ])("%s with %o", (action, config, want) => expect(ratesOf({ ...unset, ...config })[action]).toEqual(want));
});

describe("rate limiter", () => {
  it("lets a burst through, then one call at a time, and counts who waited", () => {
    const limiter = createRateLimiter(ratesOf(unset), 0);
    const waits = [1, 2, 3, 4].map(() => limiter.take("CreateNetworkInterface", 0));
    expect(waits).toEqual([0, 0, 6000, 12_000]);
    expect(limiter.hits()).toEqual({ CreateNetworkInterface: 2 });
    expect(limiter.take("AssignPrivateIpAddresses", 0)).toBe(0);
  });

  it("tells the budget without taking from it", () => {
    const limiter = createRateLimiter({ X: { perMinute: 60, burst: 2 } }, 0);
    expect(limiter.budget("X", 0).tokens).toBe(2);
    expect(limiter.budget("X", 0).tokens).toBe(2);
    limiter.take("X", 0);
    limiter.take("X", 0);
    expect(limiter.budget("X", 0)).toEqual({ tokens: 0, nextAtMs: 1000 });
    expect(limiter.budget("X", 1500)).toEqual({ tokens: 1, nextAtMs: 2000 });
  });

  it("survives a clock that goes back", () => {
    const limiter = createRateLimiter({ X: { perMinute: 60, burst: 1 } }, 1000);
    expect(limiter.take("X", 1000)).toBe(0);
    expect(limiter.take("X", 0)).toBe(1000);
    expect(limiter.budget("X", 3000).tokens).toBe(1);
  });

  it("never lets more through than rate and burst allow, over any stretch", () => {
    const call = fc.nat(4000);
    fc.assert(
      fc.property(fc.array(call, { maxLength: 60 }), fc.integer({ min: 1, max: 5 }), (gaps, burst) => {
        const limiter = createRateLimiter({ X: { perMinute: 60, burst } }, 0);
        let now = 0;
        const times = gaps.map((gap) => {
          now += gap;
          return now + limiter.take("X", now);
        });
        times.sort((a, b) => a - b);
        for (const [i, from] of times.entries())
          for (const [j, to] of times.entries())
            if (j >= i) expect(j - i + 1).toBeLessThanOrEqual(burst + (to - from) / 1000 + 1e-6);
      }),
    );
  });
});
