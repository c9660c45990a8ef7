import { expect, it } from "vitest";
import { readOptions } from "./options.ts";

it.each([
  ["2", 60_000, 1],
  ["0", 60_000, 1],
  ["60", 60_000, 0],
  ["900", 900_000, 0],
])("--reconcile-seconds %s looks every %i ms", (seconds, ms, warnings) => {
  const said: string[] = [];
  const options = readOptions(["--reconcile-seconds", seconds], {}, (text) => void said.push(text));
  expect([options.reconcileMs, said.length]).toEqual([ms, warnings]);
  for (const text of said) expect(text).toContain(`--reconcile-seconds is ${seconds}: less than 60 is too often`);
});

it("tests may look more often", () => {
  const options = readOptions([], { TERWAY_TEST_RECONCILE_SECONDS: "2" }, () => undefined);
  expect(options.reconcileMs).toBe(2000);
});

it.each([
  [["--reconcile-seconds", "often"], /--reconcile-seconds is "often": want a number/],
  [["--ip-stack", "ipv5"], /--ip-stack is "ipv5": want ipv4, /],
  [["--pool", "3"], /--pool/],
])("%j is refused", (args, words) => {
  expect(() => readOptions(args, {}, () => undefined)).toThrow(words);
});
