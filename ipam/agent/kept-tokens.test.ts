import { describe, expect, it } from "vitest";
import { getFact } from "../store/facts.ts";
import { dropToken, type Making, tokenOf } from "./kept-tokens.ts";
import { storeAndClock } from "./testkit.ts";

const store = storeAndClock();
const MAKINGS: readonly Making[] = ["trunk", { name: "back" }, { name: "trunk" }];

describe("a ClientToken", () => {
  it("is one of each ENI's own, and the same until it is dropped", () => {
    const first = MAKINGS.map((what) => tokenOf(store(), what));
    expect(new Set(first).size).toBe(MAKINGS.length);
    for (const [i, what] of MAKINGS.entries()) {
      dropToken(store(), what);
      const now = MAKINGS.map((other) => tokenOf(store(), other));
      expect(now.map((token, j) => token === first[j])).toEqual(MAKINGS.map((_, j) => j > i));
    }
  });

  it("is found where agents of before have kept it, and leaves nothing there", () => {
    const [trunk, back] = MAKINGS.map((what) => tokenOf(store(), what));
    dropToken(store(), { name: "trunk" });
    const facts = () => [getFact(store().db, "trunk_token"), getFact(store().db, "node_eni_tokens")];
    expect(facts()).toEqual([trunk, JSON.stringify({ back })]);
    for (const what of MAKINGS) dropToken(store(), what);
    expect(facts()).toEqual(["", "{}"]);
  });

  it("that is not there can be dropped, and nothing is written", () => {
    for (const what of MAKINGS) dropToken(store(), what);
    expect([getFact(store().db, "trunk_token"), getFact(store().db, "node_eni_tokens")]).toEqual([
      undefined,
      undefined,
    ]);
  });
});
