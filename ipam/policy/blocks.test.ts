import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { coverBlocks, subtractBlocks } from "./blocks.ts";
import { inCidr } from "./testkit/oracle.ts";

const cidr4 = fc
  .tuple(fc.nat(63), fc.integer({ min: 24, max: 32 }))
  .map(([last, length]) => `10.0.0.${last}/${length}`);
const cidr6 = fc
  .tuple(fc.nat(63), fc.integer({ min: 118, max: 128 }))
  .map(([last, length]) => `fd00::${last.toString(16)}/${length}`);
const block = fc.oneof(
  fc.record({ cidr: cidr4, except: fc.array(cidr4, { maxLength: 3 }) }),
  fc.record({ cidr: cidr6, except: fc.array(cidr6, { maxLength: 3 }) }),
);
const ADDRESSES = Array.from({ length: 70 }, (_, i) => [`10.0.0.${i}`, `fd00::${i.toString(16)}`]).flat();
const inAny = (address: string, cidrs: readonly string[]) => cidrs.filter((cidr) => inCidr(address, cidr)).length;

describe("blocks of addresses", () => {
  it("cover exactly what they say, each address once", () =>
    fc.assert(
      fc.property(fc.array(block, { maxLength: 6 }), (blocks) => {
        const cover = coverBlocks(blocks);
        for (const address of ADDRESSES) {
          const meant = blocks.some((b) => inCidr(address, b.cidr) && inAny(address, b.except) === 0);
          expect(inAny(address, cover), address).toBe(meant ? 1 : 0);
        }
      }),
    ));

  it("take others away", () =>
    fc.assert(
      fc.property(fc.array(cidr4, { maxLength: 4 }), fc.array(cidr4, { maxLength: 4 }), (from, without) => {
        const left = subtractBlocks(from, without);
        for (const address of ADDRESSES)
          expect(inAny(address, left)).toBe(inAny(address, from) > 0 && inAny(address, without) === 0 ? 1 : 0);
      }),
    ));

  it.each([
    [["10.0.0.0/25", "10.0.0.128/25"], ["10.0.0.0/24"]],
    [["0.0.0.0/1", "128.0.0.0/1"], ["0.0.0.0/0"]],
    [["10.0.0.7/8"], ["10.0.0.0/8"]],
    [["255.255.255.255/32", "255.255.255.254/32"], ["255.255.255.254/31"]],
    [
      ["::/0", "10.0.0.0/8"],
      ["10.0.0.0/8", "::/0"],
    ],
  ])("%j become %j", (blocks, want) => expect(coverBlocks(blocks.map((cidr) => ({ cidr, except: [] })))).toEqual(want));
});
