import { describe, expect, it } from "vitest";
import { ENDS, planCycles } from "./soak-plan.ts";

describe("the plan of a soak", () => {
  it("is the same for the same seed, and another for another", () => {
    expect(planCycles(7, 200)).toEqual(planCycles(7, 200));
    expect(planCycles(7, 200)).not.toEqual(planCycles(8, 200));
  });

  it.each([1, 12, 200])("has a kill in a quarter of %i cycles, in ADD and DEL by turns", (count) => {
    const kills = planCycles(3, count).flatMap((c) => (c.kill ? [c.kill] : []));
    expect(kills.length).toBe(Math.ceil(count / 4));
    expect(kills.filter((k) => k.verb === "ADD").length).toBe(Math.ceil(kills.length / 2));
    for (const k of kills) expect([k.place >= 0 && k.place < 1, k.moment >= 0 && k.moment < 1]).toEqual([true, true]);
  });

  it("comes to every end", () => {
    const killed = planCycles(1, 200).filter((c) => c.kill);
    expect(new Set(killed.map((c) => c.end))).toEqual(new Set(ENDS));
    expect(planCycles(1, 200).some((c) => !c.kill && c.end === "collect")).toBe(true);
  });
});
