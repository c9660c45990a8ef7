import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { lowestIdle, nextRise, noteIdle, startIdleWindow } from "./idle-window.ts";

const TTL = 100;

describe("idle window", () => {
  it("says nothing before it is as old as the timeout", () => {
    const window = noteIdle(startIdleWindow(0), 5, TTL, 0);
    expect(lowestIdle(window, TTL, 99)).toBeUndefined();
    expect(lowestIdle(window, TTL, 100)).toBe(5);
    expect(nextRise(window, TTL, 40)).toBe(100);
  });

  it("holds a low count until the timeout after it ended, not after it began", () => {
    let window = noteIdle(startIdleWindow(0), 2, TTL, 0);
    window = noteIdle(window, 9, TTL, 150);
    expect(lowestIdle(window, TTL, 249)).toBe(2);
    expect(nextRise(window, TTL, 200)).toBe(250);
    expect(lowestIdle(window, TTL, 250)).toBe(9);
  });

  it("is the minimum over the window, whatever came, and stays small", () => {
    const step = fc.record({ after: fc.integer({ min: 1, max: 60 }), idle: fc.nat(12) });
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 60 }), (steps) => {
        let window = startIdleWindow(0);
        let now = 0;
        const held: { from: number; to: number; idle: number }[] = [];
        for (const { after, idle } of steps) {
          now += after;
          const last = held.at(-1);
          if (last) last.to = now;
          held.push({ from: now, to: Number.POSITIVE_INFINITY, idle });
          window = noteIdle(window, idle, TTL, now);
          expect(window.marks.length).toBeLessThanOrEqual(13);
          if (now >= TTL) {
            const inWindow = held.filter((h) => h.to > now - TTL).map((h) => h.idle);
            expect(lowestIdle(window, TTL, now)).toBe(Math.min(...inWindow));
          }
        }
      }),
    );
  });
});
