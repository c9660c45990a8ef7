import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Qdisc, TbfOptions } from "../netlink/tc/qdisc.ts";
import { parseQdisc } from "../netlink/tc/qdisc.ts";
import { tcHandle } from "../netlink/tc/tcmsg.ts";
import { TC_H_ROOT } from "../netlink/uapi/pkt-sched.ts";
import { parseMessages } from "../netlink/wire/reader.ts";
import { Writer } from "../netlink/wire/writer.ts";
import { classOfPacketProgram, limiterName, limiterProgram } from "./limiter-program.ts";
import {
  bareLink,
  bucketOf,
  ifbNameOf,
  type LinkState,
  limiterOf,
  OUR_MAJOR,
  parseShaping,
  removalSteps,
  type ShapingState,
  shapingDifferences,
} from "./shaping.ts";

const bits = fc.double({ min: 3, max: 15, noNaN: true }).map((x) => Math.round(10 ** x));

describe("a bucket", () => {
  it("at 10 Mbit/s holds back no more than 50 ms by default, and so from 4 Mbit/s up", () =>
    fc.assert(
      fc.property(fc.integer({ min: 4e6, max: 2e9 }), fc.constantFrom(1500, 1400, 1280), (bitsPerSecond, mtu) => {
        const { limitBytes, bytesPerSecond } = bucketOf({ bitsPerSecond }, mtu);
        expect((limitBytes / bytesPerSecond) * 1000).toBeLessThanOrEqual(50);
      }),
    ));
  it("takes at least one whole packet, and what it does not segment finds room in its queue", () =>
    fc.assert(
      fc.property(
        bits,
        fc.option(fc.integer({ min: 1, max: 1e9 })),
        fc.integer({ min: 1280, max: 9500 }),
        (b, burst, mtu) => {
          const bucket = bucketOf({ bitsPerSecond: b, ...(burst === null ? {} : { burstBytes: burst }) }, mtu);
          expect(bucket.burstBytes).toBeGreaterThanOrEqual(mtu + 14);
          expect(bucket.limitBytes).toBeGreaterThanOrEqual(Math.min(bucket.burstBytes, 64 << 10));
          expect(bucket.burstBytes).toBeLessThan(2 ** 32);
          // Within 5 % of the configured rate, headers or not.
          expect(Math.abs(bucket.bytesPerSecond * 8 - b) / b).toBeLessThan(0.03);
        },
      ),
    ));
  it("is above the rate by less than the limiter behind it", () => {
    const limits = { egress: { bitsPerSecond: 1e6 } };
    const [bucket, limiter] = [bucketOf(limits.egress, 1500), limiterOf(limits, 1500)?.limit];
    expect(limiter?.bytesPerSecond).toBeGreaterThan(bucket.bytesPerSecond * 1.04);
    expect(limiter?.burstBytes).toBeGreaterThan(bucket.burstBytes);
  });
});

// ---- a kernel of values ----

function qdisc(linkIndex: number, options: TbfOptions, handle = tcHandle(OUR_MAJOR)): Qdisc {
  return { linkIndex, handle, parent: TC_H_ROOT, kind: "tbf", options, stats: undefined };
}
const with_ = (link: LinkState, ...qdiscs: Qdisc[]): LinkState => ({ ...link, qdiscs });
const veth = (host: LinkState, pod: LinkState): ShapingState => ({ mtuBytes: 1500, pod, host });
const M = 1e6;

/** The bucket that a step asks for. */
function asked(state: ShapingState, limits: Parameters<typeof shapingDifferences>[0]): TbfOptions[] {
  return shapingDifferences(limits, state)
    .flatMap((d) => d.steps)
    .flatMap((step) => {
      if (step.kind !== "request") return [];
      const w = new Writer();
      const at = w.beginMessage(step.request.type, step.request.flags, 1);
      step.request.write(w);
      w.endMessage(at);
      const q = parseQdisc(parseMessages(w.finish())[0]?.payload ?? new Uint8Array(0));
      return q.options?.kind === "tbf" ? [q.options] : [];
    });
}

describe("differences", () => {
  const want = bucketOf({ bitsPerSecond: 10 * M }, 1500);

  it("of a bare link name each thing that is missing", () =>
    expect(
      shapingDifferences(
        { ingress: { bitsPerSecond: 10 * M }, egress: { bitsPerSecond: 5 * M } },
        veth(bareLink(3), bareLink(2)),
      ).map((d) => d.what),
    ).toEqual([
      expect.stringContaining("egress in the pod has no limit, want tbf rate 5100000bit"),
      expect.stringContaining("ingress on the node's end has no limit, want tbf rate 10200000bit"),
      expect.stringContaining("egress on the node's end has no limiter, want \"terway-bandwidth limit 5355000bit"),
    ]));
  it("are none when nothing is wanted and nothing is there", () =>
    expect(shapingDifferences({}, veth(bareLink(3), bareLink(2)))).toEqual([]));
  it("are none once what is wanted is there, though the kernel rounds the burst", () =>
    expect(
      shapingDifferences(
        { ingress: { bitsPerSecond: 10 * M } },
        veth(with_(bareLink(3), qdisc(3, { ...want, burstBytes: want.burstBytes - 2 })), bareLink(2)),
      ),
    ).toEqual([]));
  it("leave somebody else's qdisc alone, and have no step for it", () => {
    const state = veth(with_(bareLink(3), qdisc(3, want, tcHandle(1))), bareLink(2));
    expect(shapingDifferences({ ingress: { bitsPerSecond: M } }, state)).toEqual([
      { what: "ingress on the node's end is shaped by somebody else's tbf", steps: [] },
    ]);
    expect(shapingDifferences({}, state)).toEqual([]);
    expect(removalSteps(state)).toEqual([]);
  });
  it("never ask for a burst below a TSO packet that may wait, whatever the rates: it would block the queue for ever", () =>
    fc.assert(
      fc.property(bits, bits, (before, after) => {
        const from = bucketOf({ bitsPerSecond: before }, 1500);
        const state = veth(with_(bareLink(3), qdisc(3, from)), bareLink(2));
        for (const to of asked(state, { ingress: { bitsPerSecond: after } })) {
          expect(to.burstBytes).toBeGreaterThanOrEqual(Math.min(from.burstBytes, 65_536));
          expect(to.limitBytes).toBeGreaterThanOrEqual(Math.min(from.burstBytes, 65_536));
          // What came of it counts as right, and is not changed again and again.
          const next = veth(with_(bareLink(3), qdisc(3, to)), bareLink(2));
          expect(shapingDifferences({ ingress: { bitsPerSecond: after } }, next)).toEqual([]);
        }
      }),
    ));
  it("open a bucket wide that is no longer wanted, instead of removing it with what waits in it", () => {
    const state = veth(with_(bareLink(3), qdisc(3, want)), bareLink(2));
    const [open] = asked(state, {});
    expect(open?.bytesPerSecond).toBe(125e9);
    if (open) expect(shapingDifferences({}, veth(with_(bareLink(3), qdisc(3, open)), bareLink(2)))).toEqual([]);
  });
});

describe("programs", () => {
  it("are told apart by their names", () => {
    const names = [
      limiterName({ priorityClass: 0x101 }),
      limiterName({ limit: { bytesPerSecond: 1000, burstBytes: 5 } }),
      limiterName({ limit: { bytesPerSecond: 1000, burstBytes: 6 } }),
      limiterName({ limit: { bytesPerSecond: 1000, burstBytes: 5 }, priorityClass: 0x101 }),
    ];
    expect(new Set(names).size).toBe(names.length);
  });
  it("are whole instructions, and have no state without a limit", () => {
    expect(limiterProgram({ priorityClass: 1 }, -1).length).toBe(5 * 8);
    expect(limiterProgram({ limit: { bytesPerSecond: 1e6, burstBytes: 1e5 } }, 7).length % 8).toBe(0);
    expect(classOfPacketProgram(OUR_MAJOR).length).toBe(4 * 8);
  });
});

describe("ifbNameOf", () => {
  it.each(["eth0", "net1", "averylongname15"])("fits a device name and differs for each interface: %s", (name) => {
    expect(ifbNameOf(name).length).toBeLessThanOrEqual(15);
    expect(ifbNameOf(name)).not.toBe(ifbNameOf(`${name.slice(0, 14)}x`));
  });
});

describe("what the store keeps", () => {
  it("is read as it was written", () => {
    const shaping = { version: 1, datapath: "pod", podIfname: "eth0", limits: { egress: { bitsPerSecond: M } } };
    expect(parseShaping(JSON.stringify(shaping))).toEqual(shaping);
  });
  it.each(["", '{"version":1,"datap', "null", "7", "{}"])("is nothing when it is damaged: %s", (json) =>
    expect(parseShaping(json)).toBeUndefined(),
  );
});
