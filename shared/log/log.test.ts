import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeSys } from "../sys/node.ts";
import { appendLog, formatTime, redact } from "./log.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-log-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("the log", () => {
  it("writes times as ISO 8601 does", () => {
    for (const ms of [0, 951_782_399_999, 1_709_164_800_000, 1_795_233_119_342, 4_102_444_799_001])
      expect(formatTime(ms)).toBe(new Date(ms).toISOString());
  });
  it("hides secrets at any depth", () => {
    expect(
      redact({ access_key: "a", access_secret: "b", vpn: [{ pre_shared_key: "c" }], empty: { token: "" }, name: "d" }),
    ).toEqual({
      access_key: "***",
      access_secret: "***",
      vpn: [{ pre_shared_key: "***" }],
      empty: { token: "" },
      name: "d",
    });
  });
  it("makes its folder, appends lines, turns over when large, and never throws", () => {
    const at = join(folder, "a/b");
    expect(appendLog(nodeSys, at, "p", 0, { msg: "one", secret: "x" })).toBe(true);
    expect(appendLog(nodeSys, at, "p", 0, { msg: "two" })).toBe(true);
    const lines = readFileSync(join(at, "p.log"), "utf8").trim().split("\n");
    expect(lines.map((l) => JSON.parse(l).msg)).toEqual(["one", "two"]);
    expect(lines[0]).not.toContain('"x"');
    truncateSync(join(at, "p.log"), 11 << 20);
    appendLog(nodeSys, at, "p", 0, { msg: "three" });
    expect(statSync(join(at, "p.log.1")).size).toBeGreaterThan(10 << 20);
    expect(appendLog(nodeSys, "/proc/nowhere", "p", 0, {})).toBe(false);
  });
});
