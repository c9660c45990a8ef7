/** Every tc message: encoded and decoded, accepted by the running kernel, and shown equally by tc(8). */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createNetns, type Netns, runTool } from "../../../test/cloud/netns.ts";
import { type Feature, needs } from "../../../test/kernel/features.ts";
import { limiterName, limiterProgram } from "../../datapath/limiter-program.ts";
import { nodeSys } from "../../sys/node.ts";
import type { Request } from "../request.ts";
import { getLink, linkIndexOf, newLink, setLink } from "../rtnl/link.ts";
import { BPF_PROG_TYPE_SCHED_CLS } from "../uapi/bpf.ts";
import { TCA_EGRESS_REDIR } from "../uapi/pkt-cls.ts";
import { TC_H_ROOT } from "../uapi/pkt-sched.ts";
import { parseMessages } from "../wire/reader.ts";
import { Writer } from "../wire/writer.ts";
import { delClass, getClasses, type HtbClass, parseHtbClass, replaceClass } from "./class.ts";
import { delFilter, type FilterMatch, getFilters, newFilter, parseFilter, replaceFilter } from "./filter.ts";
import { changeQdisc, delQdisc, getQdiscs, newQdisc, parseQdisc, type QdiscOptions, replaceQdisc } from "./qdisc.ts";
import { ticksOf } from "./rate.ts";
import { formatTcHandle, tcHandle } from "./tcmsg.ts";

function encode(request: Request): Uint8Array {
  const w = new Writer();
  const at = w.beginMessage(request.type, request.flags, 1);
  request.write(w);
  w.endMessage(at);
  return parseMessages(w.finish())[0]?.payload ?? new Uint8Array(0);
}
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const holds = <T>(arbitrary: fc.Arbitrary<T>, check: (x: T) => void) =>
  fc.assert(
    fc.property(arbitrary, (x) => void check(x)),
    { numRuns: 200 },
  );

const u32 = fc.nat(0x7fffffff);
const rate = fc.integer({ min: 125, max: 2 ** 46 });
const options: fc.Arbitrary<QdiscOptions> = fc.oneof(
  fc.record({ kind: fc.constant("tbf" as const), bytesPerSecond: rate, burstBytes: u32, limitBytes: u32 }),
  fc.record({ kind: fc.constant("htb" as const), defaultClass: fc.nat(0xffff) }),
  fc.record({
    kind: fc.constant("prio" as const),
    bands: fc.integer({ min: 2, max: 16 }),
    bandOf: fc.array(fc.nat(15), { minLength: 16, maxLength: 16 }),
  }),
  fc.record({ kind: fc.constantFrom("clsact" as const, "ingress" as const, "noqueue" as const, "mq" as const) }),
);
const classId = fc.tuple(fc.integer({ min: 1, max: 0xffff }), fc.nat(0xffff)).map(([a, b]) => tcHandle(a, b));
const mirred = fc.record({
  kind: fc.constant("mirred" as const),
  direction: fc.integer({ min: 1, max: 4 }),
  linkIndex: fc.integer({ min: 1, max: 0x7fffffff }),
});
const match: fc.Arbitrary<FilterMatch> = fc.oneof(
  fc.record(
    {
      kind: fc.constant("u32" as const),
      keys: fc.array(fc.record({ value: fc.nat(), mask: fc.nat(), offset: fc.integer({ min: -14, max: 60 }) }), {
        minLength: 1,
        maxLength: 8,
      }),
      classId,
      actions: fc.array(mirred, { maxLength: 3 }),
    },
    { requiredKeys: ["kind", "keys", "actions"] },
  ),
  fc.record({
    kind: fc.constant("bpf" as const),
    fd: fc.nat(1000),
    name: fc.stringMatching(/^[a-z0-9 ]{1,60}$/),
    direct: fc.boolean(),
  }),
);

describe("decode(encode(x)) is x", () => {
  it("for qdiscs of every kind", () =>
    holds(fc.tuple(options, u32, classId), ([o, linkIndex, parent]) => {
      const own = o.kind === "clsact" || o.kind === "ingress";
      expect(parseQdisc(encode(newQdisc({ linkIndex, parent, handle: tcHandle(7), options: o })))).toEqual({
        linkIndex,
        handle: own ? 0xffff0000 : tcHandle(7),
        parent: own ? 0xfffffff1 : parent,
        kind: o.kind,
        options: o,
        stats: undefined,
      });
    }));
  it("for classes, but for the rounding of bursts to ticks of 64 ns", () =>
    holds(fc.tuple(classId, rate, rate, fc.nat(7), u32), ([handle, rateBps, ceilBps, priority, quantumBytes]) => {
      const c: HtbClass = {
        linkIndex: 3,
        handle,
        parent: TC_H_ROOT,
        rateBytesPerSecond: rateBps,
        ceilBytesPerSecond: ceilBps,
        burstBytes: Math.ceil(rateBps / 100),
        ceilBurstBytes: Math.ceil(ceilBps / 100),
        quantumBytes,
        priority,
      };
      const got = parseHtbClass(encode(replaceClass(c)));
      expect(got).toMatchObject({ ...c, burstBytes: expect.any(Number), ceilBurstBytes: expect.any(Number) });
      // A tick of a fast rate is many bytes.
      expect(Math.abs((got?.burstBytes ?? 0) - c.burstBytes)).toBeLessThanOrEqual(1 + (rateBps * 64) / 1e9);
    }));
  it("for filters of every kind", () =>
    holds(
      fc.tuple(match, classId, fc.integer({ min: 1, max: 0xffff }), fc.nat(0xffff)),
      ([m, parent, pref, protocol]) =>
        expect(
          parseFilter(encode(newFilter({ linkIndex: 4, parent, preference: pref, protocol, handle: 9, match: m }))),
        ).toEqual({ linkIndex: 4, parent, preference: pref, protocol, handle: 9, kind: m.kind, match: m }),
    ));
});

describe("malformed input", () => {
  const messages = [
    encode(newQdisc({ linkIndex: 1, options: { kind: "tbf", bytesPerSecond: 2 ** 40, burstBytes: 1, limitBytes: 1 } })),
    encode(
      newFilter({
        linkIndex: 1,
        parent: 1,
        preference: 1,
        match: {
          kind: "u32",
          keys: [{ value: 1, mask: 1, offset: 1 }],
          actions: [{ kind: "mirred", direction: 1, linkIndex: 1 }],
        },
      }),
    ),
  ];
  it("is refused or read, but never read past its end", () =>
    fc.assert(
      fc.property(fc.constantFrom(...messages), fc.nat(400), fc.nat(255), fc.nat(400), (good, length, value, at) => {
        const bytes = good.slice(0, length);
        if (at < bytes.length) bytes[at] = value;
        for (const parse of [parseQdisc, parseHtbClass, parseFilter]) {
          try {
            parse(bytes);
          } catch (error) {
            expect((error as Error).name).toBe("MalformedNetlink");
          }
        }
      }),
    ));
});

describe("the bytes are those of iproute2 6.1.0", () => {
  // Captured with: strace -e trace=sendmsg -e write=3 COMMAND, without the nlmsghdr, for a link with index 2.
  it("tc qdisc add dev h0 clsact", () =>
    expect(hex(encode(newQdisc({ linkIndex: 2, options: { kind: "clsact" } })))).toBe(
      "00000000020000000000fffff1ffffff000000000b000100636c736163740000",
    ));
});

describe("handles", () => {
  it.each<[number, string]>([
    [TC_H_ROOT, "root"],
    [tcHandle(0x5457), "5457:"],
    [tcHandle(1, 0x1f), "1:1f"],
    [0xfffffff1, "clsact"],
    [0, "none"],
  ])("%i is %s, as tc writes it", (handle, text) => expect(formatTcHandle(handle)).toBe(text));
});

describe("the running kernel", () => {
  let ns: Netns;
  let a0 = 0;
  let b0 = 0;
  // Not before a case runs: where cases are only collected, nobody would take it away.
  beforeAll(() => {
    ns = createNetns(`tc${process.pid % 100000}`);
    ns.nl.apply([newLink({ kind: "ifb", name: "a0" }), newLink({ kind: "ifb", name: "b0" })]);
    [a0, b0] = [indexOf("a0"), indexOf("b0")];
    ns.nl.apply([setLink({ index: a0, up: true }), setLink({ index: b0, up: true })]);
  });
  afterAll(() => ns.close());
  const indexOf = (name: string) => {
    const [found] = ns.nl.apply([getLink({ name })]);
    return linkIndexOf((found?.ok ? found.replies[0] : undefined) ?? new Uint8Array(16));
  };
  const tc = (...args: string[]) =>
    JSON.parse(runTool("tc", ["-n", ns.name, "-j", ...args])) as Record<string, unknown>[];
  const qdiscsOf = (index: number) =>
    ns.nl
      .dump(getQdiscs(index))
      .map(parseQdisc)
      .filter((q) => q.linkIndex === index);
  const filtersOf = (parent: number) =>
    ns.nl
      .dump(getFilters(a0, parent))
      .map(parseFilter)
      .filter((f) => f.match !== undefined);

  const tbf = (bytesPerSecond: number): QdiscOptions => ({
    kind: "tbf",
    bytesPerSecond,
    burstBytes: 20_000,
    limitBytes: 50_000,
  });

  const qdiscs: readonly (readonly [string, QdiscOptions, Record<string, unknown>, ...Feature[]])[] = [
    ["tbf", tbf(1_250_000), { rate: 1_250_000, burst: 20_000 }],
    [
      "tbf beyond 32 bits",
      { ...tbf(125_000_000_000), burstBytes: 4_000_000 } as QdiscOptions,
      { rate: 125_000_000_000 },
    ],
    ["htb", { kind: "htb", defaultClass: 0x10 }, { default: "0x10" }],
    ["noqueue", { kind: "noqueue" }, {}],
    [
      "prio",
      { kind: "prio", bands: 3, bandOf: [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1] },
      { bands: 3, priomap: [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1] },
      "prio",
    ],
  ];
  for (const [what, o, shown, ...features] of qdiscs)
    it(`takes ${what} and gives it back equal, also to tc`, needs(...features), () => {
      const spec = { linkIndex: a0, handle: tcHandle(0x10), options: o };
      ns.nl.apply([newQdisc(spec)]);
      const root = qdiscsOf(a0).find((q) => q.parent === TC_H_ROOT);
      if (o.kind === "tbf") {
        expect(root?.options).toMatchObject({
          kind: "tbf",
          bytesPerSecond: o.bytesPerSecond,
          limitBytes: o.limitBytes,
        });
        const got = root?.options?.kind === "tbf" ? root.options.burstBytes : 0;
        expect(Math.abs(got - o.burstBytes) / o.burstBytes).toBeLessThan(0.01);
      } else if (o.kind !== "noqueue") {
        expect([root?.handle, root?.options]).toEqual([tcHandle(0x10), o]);
      }
      const [line] = tc("qdisc", "show", "dev", "a0").filter((q) => q.root === true);
      expect(line?.kind).toBe(o.kind);
      if (o.kind === "tbf") {
        // tc computes the burst back from a time too.
        expect(line?.options).toMatchObject({ rate: shown.rate });
      } else expect(line?.options).toMatchObject(shown);
      ns.nl.apply([delQdisc({ ...spec })]);
      expect(ns.nl.transact([changeQdisc(spec)])[0]?.ok).toBe(false);
    });

  it("changes a tbf in place: same qdisc, other rate, its counters kept", () => {
    const handle = tcHandle(0x20);
    ns.nl.apply([newQdisc({ linkIndex: b0, handle, options: tbf(1000) })]);
    expect(ns.nl.transact([newQdisc({ linkIndex: b0, handle, options: tbf(1000) })])[0]?.refusal?.errno).toBe("EEXIST");
    ns.nl.apply([changeQdisc({ linkIndex: b0, handle, options: tbf(2000) })]);
    ns.nl.apply([replaceQdisc({ linkIndex: b0, handle, options: tbf(3000) })]);
    expect(qdiscsOf(b0).map((q) => q.options)).toMatchObject([{ kind: "tbf", bytesPerSecond: 3000 }]);
    expect(qdiscsOf(b0)[0]?.stats).toEqual({
      bytes: expect.any(Number),
      packets: expect.any(Number),
      queued: 0,
      backlogBytes: 0,
      drops: expect.any(Number),
      requeues: 0,
      overlimits: expect.any(Number),
    });
    ns.nl.apply([delQdisc({ linkIndex: b0, handle, options: tbf(1) })]);
  });

  it("takes htb classes, changes them and gives them back equal, also to tc", () => {
    const handle = tcHandle(1);
    ns.nl.apply([newQdisc({ linkIndex: b0, handle, options: { kind: "htb", defaultClass: 2 } })]);
    const c: HtbClass = {
      linkIndex: b0,
      parent: handle,
      handle: tcHandle(1, 2),
      rateBytesPerSecond: 1_000_000,
      ceilBytesPerSecond: 8_000_000_000,
      burstBytes: 64_000,
      ceilBurstBytes: 512_000,
      quantumBytes: 3000,
      priority: 3,
    };
    ns.nl.apply([replaceClass({ ...c, rateBytesPerSecond: 5 }), replaceClass(c)]);
    const [got] = ns.nl.dump(getClasses(b0)).map(parseHtbClass);
    expect(got).toMatchObject({ ...c, ceilBurstBytes: expect.any(Number), parent: TC_H_ROOT });
    // This version of tc has no JSON for classes.
    expect(runTool("tc", ["-n", ns.name, "class", "show", "dev", "b0"])).toMatch(
      /^class htb 1:2 root prio 3 rate 8Mbit ceil 64Gbit /,
    );
    ns.nl.apply([
      delClass(b0, c.handle),
      delQdisc({ linkIndex: b0, handle, options: { kind: "htb", defaultClass: 0 } }),
    ]);
  });

  it("takes u32, bpf and clsact, replaces a program in place, and gives them back equal, also to tc", () => {
    const clsact = { linkIndex: a0, options: { kind: "clsact" as const } };
    ns.nl.apply([newQdisc(clsact)]);
    const parent = 0xfffffff2;
    const u: FilterMatch = {
      kind: "u32",
      keys: [{ value: 0x0a000002, mask: 0xffffffff, offset: 12 }],
      actions: [{ kind: "mirred", direction: TCA_EGRESS_REDIR, linkIndex: b0 }],
    };
    ns.nl.apply([newFilter({ linkIndex: a0, parent, preference: 5, protocol: 0x800, match: u })]);
    expect(filtersOf(parent)).toMatchObject([{ preference: 5, protocol: 0x800, kind: "u32", match: u }]);
    const shown = JSON.stringify(tc("filter", "show", "dev", "a0", "ingress"));
    expect(shown).toContain('"mirred_action":"redirect","direction":"egress","to_dev":"b0"');
    ns.nl.apply([delFilter({ linkIndex: a0, parent, preference: 5, protocol: 0x800 })]);
    const limit = { bytesPerSecond: 1000, burstBytes: 5000 };
    for (const priorityClass of [1, 2]) {
      const map = nodeSys.bpfArray(8);
      const fd = nodeSys.bpfLoad(BPF_PROG_TYPE_SCHED_CLS, limiterProgram({ limit, priorityClass }, map));
      const m: FilterMatch = { kind: "bpf", fd, name: limiterName({ limit, priorityClass }), direct: true };
      ns.nl.apply([replaceFilter({ linkIndex: a0, parent, preference: 10, handle: 1, match: m })]);
      nodeSys.close(fd);
      nodeSys.close(map);
      expect(filtersOf(parent)).toMatchObject([
        { preference: 10, handle: 1, match: { kind: "bpf", name: m.name, direct: true } },
      ]);
    }
    expect(JSON.stringify(tc("filter", "show", "dev", "a0", "ingress"))).toContain("class 2");
    ns.nl.apply([delQdisc(clsact)]);
    expect(qdiscsOf(a0).some((q) => q.kind === "clsact")).toBe(false);
  });

  it("counts ticks as tc does", () => expect(ticksOf(20_000, 1_250_000)).toBe(250_000));
});
