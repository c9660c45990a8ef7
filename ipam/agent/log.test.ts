import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createLog } from "./log.ts";

let lines: string[];
let log: ReturnType<typeof createLog>;
beforeEach(() => {
  vi.useFakeTimers({ now: 0 });
  lines = [];
  log = createLog((line) => void lines.push(line));
});
afterEach(() => vi.useRealTimers());

describe("the agent's log", () => {
  it("has a JSON line of each message, with its fields", () => {
    log("warn", "it rains", { count: 2 });
    expect(lines).toEqual(['{"time":"1970-01-01T00:00:00.000Z","level":"warn","msg":"it rains","count":2}\n']);
  });

  it("says the same words once a minute", () => {
    for (let second = 0; second < 120; second++) {
      log("warn", "it rains");
      log("warn", "it pours");
      vi.advanceTimersByTime(1000);
    }
    expect(lines.map((line) => JSON.parse(line).msg)).toEqual(["it rains", "it pours", "it rains", "it pours"]);
  });
});
