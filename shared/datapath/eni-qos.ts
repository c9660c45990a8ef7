/**
 * The order in which an ENI sends: classes with a guaranteed rate and a ceiling (tc rules), and in the first of them three
 * classes of network priority. Pure.
 *
 * htb and not prio: it orders as strictly (the lowest priority number is served first of what the link or the ceiling
 * leaves over), and it can hold an interface to a ceiling as well. Which class a packet belongs to was written into it at
 * the pod's link (limiter-program.ts), so that the ENI has one filter however many pods there are.
 */
import { PRIORITIES } from "../config/pod-limits.ts";
import type { TcRule } from "../config/qos-config.ts";
import type { Request } from "../netlink/request.ts";
import { type HtbClass, replaceClass } from "../netlink/tc/class.ts";
import { type Filter, replaceFilter } from "../netlink/tc/filter.ts";
import { delQdisc, newQdisc, type Qdisc } from "../netlink/tc/qdisc.ts";
import { tcHandle } from "../netlink/tc/tcmsg.ts";
import { TC_H_ROOT } from "../netlink/uapi/pkt-sched.ts";
import { FILTER_PREFERENCE, OUR_MAJOR, PRIORITY_CLASS } from "./shaping.ts";

const ROOT = tcHandle(OUR_MAJOR);
/** Without a rule the link itself is the ceiling: more than any has. */
const NO_CEILING_BYTES_PER_SECOND = 12.5e9;
/** What a priority class gets in any case is next to nothing: the rest is given out in order. */
const LEAST_SHARE = 1 / 200;
const BURST_SECONDS = 0.01;
const LEAST_BURST_BYTES = 68 << 10; // one TSO packet
const QUANTUM_BYTES = 68 << 10;
const CLASS_FILTER_NAME = "terway-bandwidth class of packet";

const burstOf = (bytesPerSecond: number) => Math.max(LEAST_BURST_BYTES, Math.ceil(bytesPerSecond * BURST_SECONDS));

function classOf(
  linkIndex: number,
  minor: number,
  parent: number,
  rate: number,
  ceil: number,
  priority: number,
): HtbClass {
  return {
    linkIndex,
    parent,
    handle: tcHandle(OUR_MAJOR, minor),
    rateBytesPerSecond: Math.max(125, Math.round(rate)),
    ceilBytesPerSecond: Math.max(125, Math.round(ceil)),
    burstBytes: burstOf(rate),
    ceilBurstBytes: burstOf(ceil),
    quantumBytes: QUANTUM_BYTES,
    priority,
  };
}

/** @param rules Those of this interface; none: only the order of priority. */
export function eniClasses(linkIndex: number, rules: readonly TcRule[]): HtbClass[] {
  const sorted = [...rules].sort((a, b) => a.classId - b.classId);
  const roots =
    sorted.length === 0
      ? [classOf(linkIndex, 1, ROOT, NO_CEILING_BYTES_PER_SECOND, NO_CEILING_BYTES_PER_SECOND, 0)]
      : sorted.map((r) => ({
          ...classOf(linkIndex, r.classId, ROOT, r.rate / 8, r.ceil / 8, 0),
          ...(r.burstBytes === undefined ? {} : { burstBytes: r.burstBytes, ceilBurstBytes: r.burstBytes }),
        }));
  const [first] = roots;
  if (first === undefined) return [];
  const leaves = PRIORITIES.map((name, i) =>
    classOf(
      linkIndex,
      PRIORITY_CLASS[name],
      first.handle,
      first.rateBytesPerSecond * LEAST_SHARE,
      first.ceilBytesPerSecond,
      i,
    ),
  );
  return [...roots, ...leaves];
}

export interface EniQosState {
  readonly linkIndex: number;
  readonly qdiscs: readonly Qdisc[];
  readonly classes: readonly HtbClass[];
  /** On the root qdisc. */
  readonly filters: readonly Filter[];
}

export type EniQosPlan =
  | { readonly kind: "right" }
  /** Somebody else's root qdisc stays. */
  | { readonly kind: "foreign"; readonly qdisc: string }
  | {
      readonly kind: "change";
      readonly before: readonly Request[];
      /** Absent: the filter is there. `fd` is {@link classOfPacketProgram}. */
      readonly filter?: (fd: number) => Request;
    };

function sameClass(a: HtbClass, b: HtbClass): boolean {
  return (
    a.handle === b.handle &&
    a.rateBytesPerSecond === b.rateBytesPerSecond &&
    a.ceilBytesPerSecond === b.ceilBytesPerSecond &&
    a.priority === b.priority
  );
}

/** @param wanted Whether any pod has a priority class, or a rule names the interface. */
export function planEniQos(state: EniQosState, wanted: boolean, rules: readonly TcRule[]): EniQosPlan {
  const { linkIndex } = state;
  const root = state.qdiscs.find((q) => q.parent === TC_H_ROOT);
  const ours = root?.handle === ROOT && root.kind === "htb";
  const options = { kind: "htb", defaultClass: PRIORITY_CLASS.burstable } as const;
  if (!wanted)
    return ours ? { kind: "change", before: [delQdisc({ linkIndex, handle: ROOT, options })] } : { kind: "right" };
  // A default qdisc has no handle of its own.
  if (!ours && root !== undefined && root.handle !== 0) return { kind: "foreign", qdisc: root.kind };
  const missing = eniClasses(linkIndex, rules).filter((c) => !state.classes.some((x) => sameClass(x, c)));
  const hasFilter = state.filters.some((f) => f.match?.kind === "bpf" && f.match.name === CLASS_FILTER_NAME);
  if (ours && missing.length === 0 && hasFilter) return { kind: "right" };
  return {
    kind: "change",
    before: [...(ours ? [] : [newQdisc({ linkIndex, handle: ROOT, options })]), ...missing.map(replaceClass)],
    ...(hasFilter
      ? {}
      : {
          filter: (fd: number) =>
            replaceFilter({
              linkIndex,
              parent: ROOT,
              preference: FILTER_PREFERENCE,
              handle: 1,
              match: { kind: "bpf", fd, name: CLASS_FILTER_NAME, direct: false },
            }),
        }),
  };
}
