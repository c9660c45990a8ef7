import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { cidrContains, cidrsOverlap, formatCidr, lastOf, networkOf, parseCidr, tryParseCidr } from "./cidr.ts";
import { hash128, toHex } from "./hash.ts";
import { addToIp, compareIp, distanceIp, formatIp, type Ip, parseIp, tryParseIp } from "./ip.ts";
import { formatMac, localMac, parseMac, tryParseMac } from "./mac.ts";

const ip4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((bytes): Ip => ({ family: 4, bytes }));
const ip6 = fc.uint8Array({ minLength: 16, maxLength: 16 }).chain((bytes) =>
  fc.array(fc.boolean(), { minLength: 8, maxLength: 8 }).map((zero): Ip => {
    const out = bytes.map((b, i) => (zero[i >> 1] ? 0 : b));
    return { family: 6, bytes: out };
  }),
);
const ip = fc.oneof(ip4, ip6);

describe("addresses", () => {
  it("parseIp(formatIp(x)) is x", () =>
    fc.assert(fc.property(ip, (x) => void expect(parseIp(formatIp(x))).toEqual(x))));

  it.each([
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["2001:0DB8::0001", "2001:db8::1"],
    ["0:0:0:0:0:0:0:0", "::"],
    ["::ffff:10.0.0.1", "::ffff:a00:1"],
    ["1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"],
    ["10.0.0.1", "10.0.0.1"],
  ])("%s is written %s (RFC 5952)", (text, want) => expect(formatIp(parseIp(text))).toBe(want));

  it.each([
    "",
    "1",
    "1.2.3",
    "1.2.3.4.5",
    "1..2.3",
    "01.2.3.4",
    "0x10.1.1.1",
    "256.1.1.1",
    "1.2.3.4 ",
    " 1.2.3.4",
    "1.2.3.-4",
    "1.2.3.4%eth0",
    ":",
    ":::",
    "1::2::3",
    "12zz::1",
    "1:2:3:4:5:6:7",
    "1:2:3:4:5:6:7:8:9",
    "1:2:3:4:5:6:7::8",
    "fe80::1%eth0",
    "12345::",
    "::1.2.3",
    "1.2.3.4::",
    "::1:",
    ":1::",
  ])("refuses %j", (text) => expect(tryParseIp(text)).toBeUndefined());

  it("addToIp and distanceIp undo each other", () =>
    fc.assert(
      fc.property(ip4, fc.integer({ min: -70000, max: 70000 }), (x, n) => {
        const moved = addToIp(x, n);
        if (moved === undefined) return;
        expect(distanceIp(x, moved)).toBe(n);
        expect(addToIp(moved, -n)).toEqual(x);
      }),
    ));

  it.each([
    ["255.255.255.255", 1],
    ["0.0.0.0", -1],
    ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1],
  ] as const)("addToIp(%s, %i) leaves the address space", (text, n) =>
    expect(addToIp(parseIp(text), n)).toBeUndefined(),
  );

  it("compareIp orders as numbers do", () => {
    const texts = ["10.0.0.9", "10.0.0.10", "10.0.1.0", "255.0.0.0", "::", "::1", "fe80::"];
    expect([...texts].sort((a, b) => compareIp(parseIp(b), parseIp(a))).reverse()).toEqual(texts);
  });
});

describe("CIDRs", () => {
  it.each([
    ["10.0.1.7/24", "10.0.1.0", "10.0.1.255"],
    ["10.0.1.7/32", "10.0.1.7", "10.0.1.7"],
    ["10.0.1.7/0", "0.0.0.0", "255.255.255.255"],
    ["10.0.130.7/20", "10.0.128.0", "10.0.143.255"],
    ["2001:db8::5/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"],
  ])("%s reaches from %s to %s", (text, first, last) => {
    expect([formatIp(networkOf(parseCidr(text))), formatIp(lastOf(parseCidr(text)))]).toEqual([first, last]);
    expect(formatCidr(parseCidr(text))).toBe(text);
  });

  it.each([
    "10.0.0.0",
    "10.0.0.0/",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0/024",
    "::/129",
    "10.0.0.0/2 ",
    "/24",
    "10.0.0.0/24/1",
  ])("refuses %j", (text) => expect(tryParseCidr(text)).toBeUndefined());

  it("contain their ends and nothing beyond", () =>
    fc.assert(
      fc.property(ip, fc.nat(128), (x, n) => {
        const cidr = { ip: x, prefixLength: Math.min(n, x.bytes.length * 8) };
        expect(cidrContains(cidr, networkOf(cidr)) && cidrContains(cidr, lastOf(cidr)) && cidrContains(cidr, x)).toBe(
          true,
        );
        const beyond = addToIp(lastOf(cidr), 1);
        if (beyond) expect(cidrContains(cidr, beyond)).toBe(false);
      }),
    ));

  it.each([
    ["10.0.0.0/8", "10.1.0.0/16", true],
    ["10.1.0.0/16", "10.0.0.0/8", true],
    ["10.0.0.0/24", "10.0.1.0/24", false],
    ["::/0", "10.0.0.0/8", false],
  ] as const)("%s overlaps %s: %s", (a, b, want) => expect(cidrsOverlap(parseCidr(a), parseCidr(b))).toBe(want));
});

describe("MAC addresses", () => {
  it("parseMac(formatMac(x)) is x", () =>
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (x) => void expect(parseMac(formatMac(x))).toEqual(x)),
    ));
  it.each(["", "00:11:22:33:44", "00:11:22:33:44:5g", "00-11-22-33-44-55", "00:11:22:33:44:55:66"])("refuses %j", (t) =>
    expect(tryParseMac(t)).toBeUndefined(),
  );
  it("localMac is unicast and locally administered", () =>
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 16, maxLength: 16 }),
        (x) => void expect((localMac(x)[0] ?? 0) & 3).toBe(2),
      ),
    ));
});

describe("hash128", () => {
  it("gives 100,000 different keys different 44-bit prefixes", () => {
    const seen = new Set<string>();
    for (let i = 0; i < 100_000; i++) seen.add(toHex(hash128(`net/container-${i}/eth0`)).slice(0, 11));
    expect(seen.size).toBe(100_000);
  });
});
