import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseDurationMs, parseRate, parseSize } from "./quantity.ts";

describe("parseRate", () => {
  it.each<[unknown, number]>([
    ["10M", 10e6],
    ["1G", 1e9],
    ["500k", 500e3],
    ["1Gbps", 1e9],
    ["10Gbps", 10e9],
    ["100Mbps", 100e6],
    ["500Mbps", 500e6],
    ["64kbps", 64e3],
    ["64Kbps", 64e3],
    ["10Mbit", 10e6],
    ["1.5G", 1.5e9],
    ["1e6", 1e6],
    ["1E6", 1e6],
    ["12e+5", 12e5],
    ["10Ki", 10_240],
    ["1Mi", 1_048_576],
    ["2Gi", 2 ** 31],
    ["10T", 1e13],
    ["1P", 1e15],
    ["1000", 1000],
    [10_000_000, 10e6],
    [" 10M ", 10e6],
    ["+5M", 5e6],
  ])("%j is %d bit/s", (value, bitsPerSecond) => expect(parseRate(value)).toEqual({ kind: "rate", bitsPerSecond }));

  it.each<[unknown]>([[""], [null], [undefined]])("%j says nothing", (value) =>
    expect(parseRate(value)).toEqual({ kind: "absent" }),
  );
  it.each<[unknown]>([["0"], [0], ["0M"], ["0bps"], ["0.0"]])("%j says: no limit", (value) =>
    expect(parseRate(value)).toEqual({ kind: "none" }),
  );
  it.each<[unknown, string]>([
    ["1e3M", "is no rate"],
    ["-10M", "is negative"],
    [-1, "is negative"],
    ["10m", "less than 1 kbit/s"],
    ["999", "less than 1 kbit/s"],
    ["2P", "more than 1 Pbit/s"],
    ["1E", "more than 1 Pbit/s"],
    ["fast", "is no rate"],
    ["10 M", "is no rate"],
    ["10MB", "is no rate"],
    ["10Mb/s", "is no rate"],
    ["NaN", "is no rate"],
    ["0x10", "is no rate"],
    ["1,5M", "is no rate"],
    [Number.NaN, "is no rate"],
    [true, "is no rate"],
    [{}, "is no rate"],
  ])("%j is refused: %s, and the accepted forms are named", (value, why) => {
    const rate = parseRate(value);
    expect(rate).toMatchObject({ kind: "wrong", why: expect.stringContaining(why) });
    expect(rate).toMatchObject({ why: expect.stringContaining("10M, 1.5G, 500k, 1e6, 512Ki") });
  });
  it("never throws, whatever it is given", () =>
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(typeof parseRate(value).kind).toBe("string");
      }),
    ));
});

describe("sizes and durations", () => {
  it.each<[unknown, number | undefined]>([
    ["32KB", 32_768],
    ["16KB", 16_384],
    ["1MiB", 2 ** 20],
    ["4096", 4096],
    [4096, 4096],
    ["0", undefined],
    ["-1KB", undefined],
    ["big", undefined],
  ])("size %j is %s bytes", (value, bytes) => expect(parseSize(value)).toBe(bytes));
  it.each<[unknown, number | undefined]>([
    ["10ms", 10],
    ["50ms", 50],
    ["100ms", 100],
    ["1.5s", 1500],
    ["500us", 0.5],
    ["0ms", undefined],
    ["10", undefined],
    [10, undefined],
  ])("duration %j is %s ms", (value, ms) => expect(parseDurationMs(value)).toBe(ms));
});
