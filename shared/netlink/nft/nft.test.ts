/** Every message kind: encoded and decoded, accepted by the running kernel, read back equal, and shown so by nft. */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createNetns, type Netns, runTool } from "../../../test/cloud/netns.ts";
import { inNetns } from "../../../test/runtime/exec.ts";
import { nodeSys } from "../../sys/node.ts";
import { encodeUtf8 } from "../../sys/sys.ts";
import type { Request } from "../request.ts";
import { NetlinkError } from "../socket.ts";
import { parseMessages } from "../wire/reader.ts";
import { Writer } from "../wire/writer.ts";
import type { Expression } from "./expression.ts";
import type { NftFamily } from "./message.ts";
import { delRules, getRules, newRule, parseRule, type Rule } from "./rule.ts";
import {
  addElements,
  concatKey,
  delElements,
  delSet,
  getElements,
  getSets,
  type KeyType,
  keyLength,
  type NftSet,
  newSet,
  parseElements,
  parseSet,
  type SetElement,
} from "./set.ts";
import { encodeBatch, type NftSocket, openNft } from "./socket.ts";
import {
  type Chain,
  delChain,
  delTable,
  getChains,
  getTables,
  newChain,
  newTable,
  parseChain,
  parseTable,
} from "./table.ts";
import { formatVerdict, readVerdict, type Verdict } from "./verdict.ts";

function encode(request: Request): Uint8Array {
  const w = new Writer();
  const at = w.beginMessage(request.type, request.flags, 1);
  request.write(w);
  w.endMessage(at);
  return parseMessages(w.finish())[0]?.payload ?? new Uint8Array(0);
}

const name = fc.stringMatching(/^[a-z][a-z0-9_.-]{0,30}$/);
const family = fc.constantFrom<NftFamily>("inet", "ip", "ip6", "bridge");
const bytes = (minLength: number, maxLength = minLength) => fc.uint8Array({ minLength, maxLength });
const verdict: fc.Arbitrary<Verdict> = fc.oneof(
  fc.constantFrom<Verdict>({ to: "accept" }, { to: "drop" }, { to: "continue" }, { to: "return" }),
  fc.record({ to: fc.constantFrom<"jump" | "goto">("jump", "goto"), chain: name }),
);
const reg = fc.integer({ min: 1, max: 23 });
const u32 = fc.nat(0xffffffff);
const count = fc.nat(Number.MAX_SAFE_INTEGER);
const isTrue = fc.constantFrom<{ readonly not?: true }>({}, { not: true });
const expression: fc.Arbitrary<Expression> = fc.oneof(
  fc.record({
    kind: fc.constant("payload" as const),
    reg,
    base: fc.constantFrom<"link" | "network" | "transport">("link", "network", "transport"),
    offset: fc.nat(64),
    length: fc.integer({ min: 1, max: 16 }),
  }),
  fc.record({
    kind: fc.constant("meta" as const),
    reg,
    key: fc.constantFrom<"mark" | "iifname" | "oifname" | "nfproto" | "l4proto">(
      "mark",
      "iifname",
      "oifname",
      "nfproto",
      "l4proto",
    ),
  }),
  fc.record({
    kind: fc.constant("ct" as const),
    reg,
    key: fc.constantFrom<"state" | "direction" | "status" | "mark">("state", "direction", "status", "mark"),
  }),
  fc.record({
    kind: fc.constant("cmp" as const),
    reg,
    op: fc.constantFrom<"eq" | "neq" | "lt" | "lte" | "gt" | "gte">("eq", "neq", "lt", "lte", "gt", "gte"),
    value: bytes(1, 16),
  }),
  fc.record({ kind: fc.constant("range" as const), reg, from: bytes(2), to: bytes(2) }),
  fc.record({ kind: fc.constant("range" as const), reg, outside: fc.constant(true), from: bytes(2), to: bytes(2) }),
  fc.record({ kind: fc.constant("bitwise" as const), reg, mask: bytes(4), xor: bytes(4) }),
  fc.tuple(reg, name, isTrue).map(([r, set, not]): Expression => ({ kind: "lookup", reg: r, set, ...not })),
  fc.tuple(reg, name).map(([r, set]): Expression => ({ kind: "lookup", reg: r, set, map: true })),
  fc.record({ kind: fc.constant("set-mark" as const), of: fc.constantFrom<"meta" | "ct">("meta", "ct"), reg }),
  fc.record({ kind: fc.constant("masquerade" as const) }),
  fc.record({ kind: fc.constant("verdict" as const), verdict }),
  fc.record({ kind: fc.constant("counter" as const), packets: count, bytes: count }),
  fc.record({ kind: fc.constant("limit" as const), rate: count, perSeconds: count, burst: u32 }),
  fc.record({ kind: fc.constant("nflog" as const), group: fc.nat(65535), prefix: name }),
  fc.record({ kind: fc.constant("log" as const), level: fc.nat(7), prefix: name }),
  fc.record({ kind: fc.constant("fib-type" as const), reg, of: fc.constantFrom<"saddr" | "daddr">("saddr", "daddr") }),
);
const keyType = fc.constantFrom<KeyType>("ipv4_addr", "ipv6_addr", "inet_proto", "inet_service", "mark");

describe("decode(encode(x)) is x", () => {
  const holds = <T>(arbitrary: fc.Arbitrary<T>, check: (x: T) => void) =>
    fc.assert(
      fc.property(arbitrary, (x) => void check(x)),
      { numRuns: 300 },
    );

  it("for tables", () =>
    holds(fc.record({ family, table: name }), (x) => expect(parseTable(encode(newTable(x)))).toEqual(x)));
  it("for chains", () =>
    holds(
      fc.tuple(
        fc.record({ family, table: name, name }),
        fc.option(
          fc.record({
            name: fc.constantFrom<"input" | "forward" | "output" | "prerouting" | "postrouting">(
              "input",
              "forward",
              "output",
              "prerouting",
              "postrouting",
            ),
            priority: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
            policy: fc.constantFrom<"accept" | "drop">("accept", "drop"),
          }),
        ),
      ),
      ([chain, hook]) => {
        const x: Chain = hook ? { ...chain, hook } : chain;
        expect(parseChain(encode(newChain(x)))).toEqual(x);
      },
    ));
  it("for rules of every expression", () =>
    holds(
      fc.tuple(
        fc.record({ family, table: name, chain: name, expressions: fc.array(expression, { maxLength: 8 }) }),
        fc.option(
          fc
            .string({ unit: "grapheme", maxLength: 20 })
            .filter((t) => encodeUtf8(t).length <= 128 && !t.includes("\0")),
        ),
      ),
      ([rule, comment]) => {
        const x: Rule = comment === null ? rule : { ...rule, comment };
        expect(parseRule(encode(newRule(x)))).toEqual({ ...x, handle: 0 });
      },
    ));
  it("for sets", () =>
    holds(
      fc.record(
        {
          family,
          table: name,
          name,
          key: fc.array(keyType, { minLength: 1, maxLength: 4 }),
          interval: fc.constant(true),
          verdicts: fc.constant(true),
          constant: fc.constant(true),
        },
        { requiredKeys: ["family", "table", "name", "key"] },
      ),
      (x: NftSet) => expect(parseSet(encode(newSet(x, 7)))).toEqual(x),
    ));
  it("for elements", () =>
    holds(
      fc.array(
        fc.record(
          { key: bytes(4, 32), keyEnd: bytes(4, 32), intervalEnd: fc.constant(true), verdict },
          { requiredKeys: ["key"] },
        ),
        { minLength: 1, maxLength: 300 },
      ),
      (elements: readonly SetElement[]) => {
        const requests = addElements({ family: "inet", table: "t", name: "s" }, elements);
        expect(requests.flatMap((r) => parseElements(encode(r)))).toEqual(elements);
      },
    ));
  it("for verdicts in words", () => holds(verdict, (x) => expect(readVerdict(formatVerdict(x))).toEqual(x)));
});

describe("the kernel", () => {
  let ns: Netns;
  let nft: NftSocket;
  beforeAll(() => {
    ns = createNetns(`nft-${process.pid}`);
    nft = inNetns(ns.path, () => openNft(nodeSys));
  });
  afterAll(() => {
    nft.close();
    ns.close();
  });
  const list = () => runTool("ip", ["netns", "exec", ns.name, "nft", "list", "ruleset"]).replace(/\s+/g, " ");
  const ref = { family: "inet", table: "codec" } as const;
  const clean = () => nft.commit([newTable(ref), delTable(ref), newTable(ref)]);

  it("takes tables, base chains and regular chains, and lists them equally", () => {
    clean();
    const chains: Chain[] = [
      { ...ref, name: "plain" },
      { ...ref, name: "fwd", hook: { name: "forward", priority: -10, policy: "accept" } },
      { ...ref, name: "in", hook: { name: "input", priority: 5, policy: "drop" } },
    ];
    nft.commit(chains.map(newChain));
    const ours = (payloads: readonly Uint8Array[]) => payloads.map(parseChain).filter((c) => c.table === ref.table);
    expect(ours(nft.dump(getChains("inet")))).toEqual(chains);
    expect(nft.dump(getTables()).map(parseTable)).toEqual([ref]);
    expect(list()).toContain("chain fwd { type filter hook forward priority filter - 10; policy accept; }");
    expect(list()).toContain("chain in { type filter hook input priority filter + 5; policy drop; }");
    nft.commit([delChain({ ...ref, name: "plain" })]);
    expect(ours(nft.dump(getChains("inet"))).map((c) => c.name)).toEqual(["fwd", "in"]);
  });

  const v4 = Uint8Array.of(2);
  const port = (n: number) => Uint8Array.of(n >> 8, n);
  const rules: readonly (readonly [readonly Expression[], string])[] = [
    [
      [
        { kind: "ct", reg: 1, key: "state" },
        { kind: "bitwise", reg: 1, mask: Uint8Array.of(6, 0, 0, 0), xor: new Uint8Array(4) },
        { kind: "cmp", reg: 1, op: "neq", value: new Uint8Array(4) },
        { kind: "verdict", verdict: { to: "accept" } },
      ],
      "ct state established,related accept",
    ],
    [
      [
        { kind: "meta", reg: 1, key: "l4proto" },
        { kind: "cmp", reg: 1, op: "eq", value: Uint8Array.of(6) },
        { kind: "payload", reg: 1, base: "transport", offset: 2, length: 2 },
        { kind: "cmp", reg: 1, op: "gte", value: port(8080) },
        { kind: "cmp", reg: 1, op: "lte", value: port(8090) },
        { kind: "meta", reg: 1, key: "nfproto" },
        { kind: "cmp", reg: 1, op: "eq", value: v4 },
        { kind: "payload", reg: 1, base: "network", offset: 12, length: 4 },
        { kind: "lookup", reg: 1, set: "s4" },
        { kind: "counter", packets: 0, bytes: 0 },
        { kind: "verdict", verdict: { to: "return" } },
      ],
      "tcp dport 8080-8090 ip saddr @s4 counter packets 0 bytes 0 return",
    ],
    [
      [
        { kind: "meta", reg: 1, key: "nfproto" },
        { kind: "cmp", reg: 1, op: "eq", value: v4 },
        { kind: "payload", reg: 1, base: "network", offset: 16, length: 4 },
        { kind: "lookup", reg: 1, set: "m4", map: true },
      ],
      "ip daddr vmap @m4",
    ],
    [
      [
        { kind: "limit", rate: 10, perSeconds: 1, burst: 20 },
        { kind: "nflog", group: 84, prefix: "drop " },
      ],
      'limit rate 10/second burst 20 packets log prefix "drop " group 84',
    ],
    [
      [
        { kind: "log", level: 4, prefix: "x" },
        { kind: "verdict", verdict: { to: "goto", chain: "other" } },
      ],
      'log prefix "x" goto other',
    ],
    [
      [
        { kind: "meta", reg: 1, key: "iifname" },
        { kind: "cmp", reg: 1, op: "eq", value: Uint8Array.of(...encodeUtf8("lo"), ...new Array(14).fill(0)) },
        { kind: "verdict", verdict: { to: "jump", chain: "other" } },
      ],
      'iifname "lo" jump other',
    ],
    [
      [
        { kind: "meta", reg: 1, key: "l4proto" },
        { kind: "cmp", reg: 1, op: "eq", value: Uint8Array.of(17) },
        { kind: "payload", reg: 1, base: "transport", offset: 2, length: 2 },
        { kind: "range", reg: 1, outside: true, from: port(53), to: port(60) },
        { kind: "verdict", verdict: { to: "drop" } },
      ],
      "udp dport != 53-60 drop",
    ],
    [
      [
        { kind: "fib-type", reg: 1, of: "daddr" },
        { kind: "cmp", reg: 1, op: "eq", value: Uint8Array.of(2, 0, 0, 0) },
        { kind: "counter", packets: 0, bytes: 0 },
      ],
      "fib daddr type local counter packets 0 bytes 0",
    ],
    [
      [
        { kind: "meta", reg: 1, key: "nfproto" },
        { kind: "cmp", reg: 1, op: "eq", value: v4 },
        { kind: "payload", reg: 1, base: "network", offset: 12, length: 4 },
        { kind: "meta", reg: 9, key: "l4proto" },
        { kind: "payload", reg: 10, base: "transport", offset: 2, length: 2 },
        { kind: "lookup", reg: 1, set: "e4" },
        { kind: "verdict", verdict: { to: "accept" } },
      ],
      "ip saddr . meta l4proto . th dport @e4 accept",
    ],
    [
      [
        { kind: "meta", reg: 1, key: "l4proto" },
        { kind: "payload", reg: 9, base: "transport", offset: 2, length: 2 },
        { kind: "lookup", reg: 1, set: "p", not: true },
        { kind: "verdict", verdict: { to: "continue" } },
      ],
      "meta l4proto . th dport != @p continue",
    ],
  ];

  it("takes rules with every expression, lists them equally, and nft reads them as meant", () => {
    clean();
    nft.commit([
      newChain({ ...ref, name: "c" }),
      newChain({ ...ref, name: "other" }),
      newSet({ ...ref, name: "s4", key: ["ipv4_addr"], interval: true }, 1),
      newSet({ ...ref, name: "m4", key: ["ipv4_addr"], verdicts: true }, 2),
      newSet({ ...ref, name: "e4", key: ["ipv4_addr", "inet_proto", "inet_service"] }, 3),
      newSet({ ...ref, name: "p", key: ["inet_proto", "inet_service"], interval: true, constant: true }, 4),
      ...rules.map(([expressions], i) => newRule({ ...ref, chain: "c", expressions, comment: `rule ${i} ü` })),
    ]);
    const read = nft.dump(getRules({ ...ref, chain: "c" })).map(parseRule);
    expect(read.map((r) => r.expressions)).toEqual(rules.map(([e]) => e));
    expect(read.map((r) => r.comment)).toEqual(rules.map((_, i) => `rule ${i} ü`));
    const shown = list();
    for (const [i, [, text]] of rules.entries()) expect(shown).toContain(`${text} comment "rule ${i} ü"`);
    nft.commit([delRules({ ...ref, chain: "c", handle: read[0]?.handle ?? 0 })]);
    expect(nft.dump(getRules(ref)).length).toBe(rules.length - 1);
    nft.commit([delRules({ ...ref, chain: "c" })]);
    expect(nft.dump(getRules(ref))).toEqual([]);
  });

  const ip4 = (text: string) => Uint8Array.from(text.split(".").map(Number));
  const sorted = (elements: readonly SetElement[]) =>
    elements
      .map((e) => JSON.stringify(e, (_k, v) => (v instanceof Uint8Array ? Buffer.from(v).toString("hex") : v)))
      .sort();

  it.each<[string, NftSet, readonly SetElement[], string]>([
    [
      "addresses",
      { ...ref, name: "a", key: ["ipv4_addr"] },
      [{ key: ip4("10.0.0.1") }, { key: ip4("10.0.0.9") }],
      "10.0.0.1, 10.0.0.9",
    ],
    [
      "IPv6 addresses",
      { ...ref, name: "a", key: ["ipv6_addr"] },
      [{ key: Uint8Array.of(0x20, 1, ...new Array(13).fill(0), 5) }],
      "2001::5",
    ],
    [
      "ranges",
      { ...ref, name: "a", key: ["ipv4_addr"], interval: true },
      [{ key: ip4("10.0.0.0") }, { key: ip4("10.1.0.0"), intervalEnd: true }],
      "10.0.0.0/16",
    ],
    [
      "concatenations",
      { ...ref, name: "a", key: ["ipv4_addr", "inet_proto", "inet_service"] },
      [{ key: concatKey(ip4("10.0.0.1"), Uint8Array.of(6), port(80)) }],
      "10.0.0.1 . tcp . 80",
    ],
    [
      "ranges of concatenations",
      { ...ref, name: "a", key: ["inet_proto", "inet_service"], interval: true },
      [{ key: concatKey(Uint8Array.of(6), port(80)), keyEnd: concatKey(Uint8Array.of(6), port(90)) }],
      "tcp . 80-90",
    ],
    [
      "verdicts",
      { ...ref, name: "a", key: ["ipv4_addr"], verdicts: true },
      [
        { key: ip4("10.0.0.1"), verdict: { to: "goto", chain: "c" } },
        { key: ip4("10.0.0.2"), verdict: { to: "return" } },
      ],
      "10.0.0.1 : goto c, 10.0.0.2 : return",
    ],
  ])("takes sets of %s and their elements", (_what, set, elements, shown) => {
    clean();
    nft.commit([newChain({ ...ref, name: "c" }), newSet(set, 1), ...addElements(set, elements)]);
    expect(nft.dump(getSets(ref)).map(parseSet)).toEqual([set]);
    expect(sorted(nft.dump(getElements(set)).flatMap(parseElements))).toEqual(sorted(elements));
    expect(list()).toContain(shown);
    nft.commit(delElements(set, elements));
    expect(nft.dump(getElements(set)).flatMap(parseElements)).toEqual([]);
    nft.commit([delSet(set)]);
    expect(nft.dump(getSets(ref))).toEqual([]);
  });

  it("finds one element", () => {
    clean();
    const set: NftSet = { ...ref, name: "m", key: ["ipv4_addr"], verdicts: true };
    nft.commit([newSet(set, 1), ...addElements(set, [{ key: ip4("10.0.0.1"), verdict: { to: "return" } }])]);
    const get = (text: string) => nft.transact([getElements(set, [{ key: ip4(text) }])])[0];
    const found = get("10.0.0.1");
    expect(found?.ok && parseElements(found.replies[0] ?? new Uint8Array())).toEqual([
      { key: ip4("10.0.0.1"), verdict: { to: "return" } },
    ]);
    expect(get("10.0.0.2")?.refusal?.errno).toBe("ENOENT");
  });

  it("takes 20,000 elements in one batch, split over messages", () => {
    clean();
    const set: NftSet = { ...ref, name: "big", key: ["ipv4_addr"] };
    const elements = Array.from({ length: 20_000 }, (_, i) => ({ key: Uint8Array.of(10, 0, i >> 8, i) }));
    expect(keyLength(set.key)).toBe(4);
    nft.commit([newSet(set, 1), ...addElements(set, elements)]);
    expect(nft.dump(getElements(set)).flatMap(parseElements).length).toBe(20_000);
  });

  it("applies all of a batch or nothing, and says what it refused", () => {
    clean();
    const before = nft.generation();
    const bad = () =>
      nft.commit([
        newChain({ ...ref, name: "good" }),
        newRule({ ...ref, chain: "missing", expressions: [{ kind: "counter", packets: 0, bytes: 0 }] }),
        newRule({ ...ref, chain: "good", expressions: [{ kind: "lookup", reg: 1, set: "nowhere" }] }),
      ]);
    expect(bad).toThrow("nft add rule inet codec missing (counter): ENOENT");
    expect(nft.generation()).toBe(before);
    expect(nft.dump(getChains("inet"))).toEqual([]);
    // The socket has nothing left over of it.
    nft.commit([newChain({ ...ref, name: "good" })]);
    expect(nft.generation()).toBe(before + 1);
  });

  it("refuses a batch that was made for another generation", () => {
    clean();
    const then = nft.generation();
    nft.commit([newChain({ ...ref, name: "a" })], then);
    let error: unknown;
    try {
      nft.commit([newChain({ ...ref, name: "b" })], then);
    } catch (e) {
      error = e;
    }
    expect(error).toBeInstanceOf(NetlinkError);
    expect((error as NetlinkError).errno).toBe("ERESTART");
    nft.commit([newChain({ ...ref, name: "b" })], then + 1);
  });

  it("refuses another verdict for an element that is there, and takes it in place of the old one", () => {
    clean();
    const set: NftSet = { ...ref, name: "m", key: ["ipv4_addr"], verdicts: true };
    const element = (to: "return" | "drop"): SetElement => ({ key: ip4("10.0.0.1"), verdict: { to } });
    nft.commit([newSet(set, 1), ...addElements(set, [element("return")])]);
    nft.commit(addElements(set, [element("return")]));
    expect(() => nft.commit(addElements(set, [element("return")], true))).toThrow("EEXIST");
    expect(() => nft.commit(addElements(set, [element("drop")]))).toThrow(/EEXIST|EBUSY/); // the kernel's choice has changed
    nft.commit([...delElements(set, [element("drop")]), ...addElements(set, [element("drop")])]);
    expect(nft.dump(getElements(set)).flatMap(parseElements)).toEqual([element("drop")]);
  });

  it("gets one batch as begin, requests and end, with the last one acknowledged", () => {
    const messages = parseMessages(encodeBatch([newTable(ref), newTable(ref)], 5, 100));
    expect(messages.map((m) => [m.type, m.seq, m.flags & 4])).toEqual([
      [0x10, 100, 0],
      [0xa00, 101, 0],
      [0xa00, 102, 4],
      [0x11, 103, 0],
    ]);
  });
});
