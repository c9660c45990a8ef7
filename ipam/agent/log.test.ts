import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createLog } from "./log.ts";
import { refusal } from "./testkit.ts";

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

  it.each([
    ["as an error tells it", (requestId: string) => refusal("Forbidden.RAM", { requestId }).message],
    ["as the SDK words it", (requestId: string) => `code: 403, no right request id: ${requestId} and more`],
    ["as the answer has it", (requestId: string) => `no right, RequestId: ${requestId}, and more`],
  ])("says a failure once a minute although each has its request id, %s", (_what, words) => {
    const [first = "", second = ""] = [
      "4C467B38-3910-447D-87BC-AC049166F210",
      "A0B1C2D3-F93C-424B-94EB-79A1405E10DC",
    ].map(words);
    log("error", first);
    log("error", second);
    vi.advanceTimersByTime(60_000);
    log("error", second);
    expect(lines.map((line) => JSON.parse(line).msg)).toEqual([first, second]);
  });

  it("says what differs in other words", () => {
    const messages = ["a", "b"].map((what) => `${what}: refused (request 4C467B38) at ${what}`);
    for (const msg of messages) log("error", msg);
    expect(lines.map((line) => JSON.parse(line).msg)).toEqual(messages);
  });
});
