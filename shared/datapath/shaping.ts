/**
 * What limits a pod's traffic in the kernel: how it is to be, how it is, and the steps between. Pure.
 *
 * veth: what the pod receives waits in a token bucket at the root of the node's end. What it sends waits in one at the
 * root of the pod's own end: there a full queue holds back the sending socket itself instead of dropping its packets, no
 * packet is redirected, and the bucket goes with the link. Root in the pod can remove that one; so the node's end also
 * has a limiter (limiter-program.ts) a little above the rate, which never touches a pod that is held to its rate.
 *
 * pod: the link has no end on the node (IPvlan, an ENI or VLAN inside of the pod). What it sends waits at its root; what
 * it receives is redirected to an ifb device in the pod's namespace and waits at that one's root.
 */
import type { Limit, NetworkPriority, PodLimits } from "../config/pod-limits.ts";
import { hash128, toHex } from "../net/hash.ts";
import type { Request } from "../netlink/request.ts";
import { setLink } from "../netlink/rtnl/link.ts";
import { delFilter, type Filter, newFilter, replaceFilter } from "../netlink/tc/filter.ts";
import {
  changeQdisc,
  delQdisc,
  describeQdisc,
  newQdisc,
  type Qdisc,
  type QdiscSpec,
  type TbfOptions,
} from "../netlink/tc/qdisc.ts";
import { tcHandle } from "../netlink/tc/tcmsg.ts";
import { TCA_EGRESS_REDIR } from "../netlink/uapi/pkt-cls.ts";
import { TC_H_MIN_EGRESS, TC_H_MIN_INGRESS, TC_H_ROOT } from "../netlink/uapi/pkt-sched.ts";
import { type LimiterSpec, limiterName } from "./limiter-program.ts";

/** What was built for one attachment; kept in the store as JSON. */
export interface Shaping {
  readonly version: 1;
  readonly datapath: "veth" | "pod";
  readonly podIfname: string;
  /** Only of a veth. */
  readonly hostIfname?: string;
  readonly limits: PodLimits;
}

/** Reads what the store keeps. @returns undefined when it is damaged. */
export function parseShaping(json: string): Shaping | undefined {
  try {
    const value = JSON.parse(json) as Partial<Shaping> | null;
    return value?.limits ? (value as Shaping) : undefined;
  } catch {
    return undefined;
  }
}

/** Handle of our root qdiscs, "TW": by it they are told from everybody else's. */
export const OUR_MAJOR = 0x5457;
export const FILTER_PREFERENCE = 10;
const FILTER_HANDLE = 1;
export const CLSACT_INGRESS = tcHandle(0xffff, TC_H_MIN_INGRESS);
export const CLSACT_EGRESS = tcHandle(0xffff, TC_H_MIN_EGRESS);

/** skb->tc_index of the priority classes, which are class minors on the ENI too. */
export const PRIORITY_CLASS: Readonly<Record<NetworkPriority, number>> = {
  guaranteed: 0x101,
  burstable: 0x102,
  "best-effort": 0x103,
};

// ---- figures ----

/**
 * The kernel counts Ethernet headers, people count what arrives. With this much on top, packets of 1500 bytes come within
 * 5 % of the configured rate by every measure: on the wire, as IP, and as TCP or UDP payload, IPv4 and IPv6.
 */
const WIRE_PER_RATE = 1.02;
/** A timer that comes late must not cost throughput; TSO packets longer than the burst are segmented. */
const BURST_SECONDS = 0.01;
const MOST_BURST_BYTES = 4 << 20;
const LEAST_BURST_PACKETS = 4;
/** The longest that a packet may wait at rates from 4 Mbit/s up: a longer queue would be delay for all and speed for none. */
const QUEUE_SECONDS = 0.03;
const LEAST_QUEUE_PACKETS = 10;
const MOST_QUEUE_BYTES = 32 << 20;
/** A TSO packet not longer than the burst is not segmented and has to find room as a whole. */
const TSO_BYTES = 68 << 10;
const ETHERNET_BYTES = 14;
/** The limiter stands behind the bucket: it must not drop what the bucket let pass, however late it comes. */
const LIMITER_PER_BUCKET = 1.05;
const LIMITER_SLACK_SECONDS = 0.1;
/** Removing a bucket from a live link would drop what waits in it, so it is opened wide instead. */
const OPEN_BYTES_PER_SECOND = 125e9;

export function bucketOf(limit: Limit, mtuBytes: number): TbfOptions {
  const packet = mtuBytes + ETHERNET_BYTES;
  const bytesPerSecond = Math.round((limit.bitsPerSecond / 8) * WIRE_PER_RATE);
  const burst =
    limit.burstBytes ??
    Math.min(MOST_BURST_BYTES, Math.max(bytesPerSecond * BURST_SECONDS, packet * LEAST_BURST_PACKETS));
  // A packet longer than the burst that cannot be segmented never passes.
  const burstBytes = Math.min(0x7fffffff, Math.max(Math.ceil(burst), packet));
  const queue = Math.max(bytesPerSecond * QUEUE_SECONDS, packet * LEAST_QUEUE_PACKETS, Math.min(burstBytes, TSO_BYTES));
  return { kind: "tbf", bytesPerSecond, burstBytes, limitBytes: Math.min(MOST_QUEUE_BYTES, Math.ceil(queue)) };
}

const OPEN_BUCKET: TbfOptions = {
  kind: "tbf",
  bytesPerSecond: OPEN_BYTES_PER_SECOND,
  burstBytes: MOST_BURST_BYTES,
  limitBytes: MOST_QUEUE_BYTES,
};

/** @returns undefined when the node's end of a veth needs no program. */
export function limiterOf(limits: PodLimits, mtuBytes: number): LimiterSpec | undefined {
  const bucket = limits.egress && bucketOf(limits.egress, mtuBytes);
  if (bucket === undefined && limits.priority === undefined) return undefined;
  return {
    ...(bucket
      ? {
          limit: {
            bytesPerSecond: Math.round(bucket.bytesPerSecond * LIMITER_PER_BUCKET),
            burstBytes: Math.ceil(
              Math.max(bucket.burstBytes, TSO_BYTES) + bucket.bytesPerSecond * LIMITER_SLACK_SECONDS,
            ),
          },
        }
      : {}),
    ...(limits.priority ? { priorityClass: PRIORITY_CLASS[limits.priority] } : {}),
  };
}

/** Of the device in the pod that what it receives waits at. */
export function ifbNameOf(podIfname: string): string {
  return `ifb-${podIfname.length <= 11 ? podIfname : toHex(hash128(podIfname)).slice(0, 11)}`;
}

// ---- how it is ----

export interface LinkState {
  readonly index: number;
  readonly qdiscs: readonly Qdisc[];
  /** On the ingress hook of clsact, or of the older `ingress`. */
  readonly ingress: readonly Filter[];
  readonly egress: readonly Filter[];
}

/** The links that an attachment's shaping lies on, with what is on them. */
export interface ShapingState {
  readonly mtuBytes: number;
  readonly pod: LinkState;
  /** Of a veth. */
  readonly host?: LinkState;
  /** Where there is one. */
  readonly ifb?: LinkState;
}

export function bareLink(index: number): LinkState {
  return { index, qdiscs: [], ingress: [], egress: [] };
}

// ---- the steps between ----

export type Step =
  | { readonly side: "host" | "pod"; readonly kind: "request"; readonly request: Request }
  /** Load the program, then make the request with its descriptor. */
  | {
      readonly side: "host" | "pod";
      readonly kind: "program";
      readonly program: LimiterSpec;
      readonly request: (fd: number) => Request;
    };

/** One thing that is not as it should be. */
export interface Difference {
  readonly what: string;
  /** Empty: somebody else's thing is in the way. */
  readonly steps: readonly Step[];
}

const ROOT = tcHandle(OUR_MAJOR);

/**
 * How a bucket that is in use may become another one.
 *
 * NB: sch_tbf segments by the burst when a packet comes in. One that waits and is longer than a burst made smaller
 * meanwhile would wait for ever, and all behind it. So a burst does not shrink below one TSO packet under traffic.
 */
function changedBucket(from: TbfOptions, to: TbfOptions): TbfOptions {
  const burstBytes = Math.max(to.burstBytes, Math.min(from.burstBytes, TSO_BYTES));
  return { ...to, burstBytes, limitBytes: Math.max(to.limitBytes, burstBytes) };
}

/** As wanted, or as {@link changedBucket} left it. The kernel tells a burst as a time, so that bytes come back rounded. */
function isBucket(is: TbfOptions, want: TbfOptions): boolean {
  const slack = Math.max(64, want.burstBytes / 50);
  return (
    is.bytesPerSecond === want.bytesPerSecond &&
    is.burstBytes >= want.burstBytes - slack &&
    is.burstBytes <= Math.max(want.burstBytes, TSO_BYTES) + slack &&
    is.limitBytes >= want.limitBytes &&
    is.limitBytes <= Math.max(want.limitBytes, TSO_BYTES + slack)
  );
}

type Side = "host" | "pod";
const one = (side: Side, request: Request): Step => ({ side, kind: "request", request });

function rootDifference(
  side: Side,
  where: string,
  link: LinkState,
  want: TbfOptions | undefined,
): Difference | undefined {
  const root = link.qdiscs.find((q) => q.parent === TC_H_ROOT);
  const ours = root?.handle === ROOT && root.options?.kind === "tbf" ? root.options : undefined;
  const spec = (options: TbfOptions): QdiscSpec => ({ linkIndex: link.index, handle: ROOT, options });
  if (ours === undefined) {
    if (want === undefined) return undefined;
    // A default qdisc has no handle; whatever has one was put there by somebody.
    if (root !== undefined && root.handle !== 0)
      return { what: `${where} is shaped by somebody else's ${root.kind}`, steps: [] };
    return {
      what: `${where} has no limit, want ${describeQdisc({ options: want })}`,
      steps: [one(side, newQdisc(spec(want)))],
    };
  }
  const aim = want ?? OPEN_BUCKET;
  if (isBucket(ours, aim)) return undefined;
  return {
    what: `${where} has ${describeQdisc({ options: ours })}, want ${want ? describeQdisc({ options: want }) : "no limit"}`,
    steps: [one(side, changeQdisc(spec(changedBucket(ours, aim))))],
  };
}

function clsact(side: Side, link: LinkState): Step[] {
  if (link.qdiscs.some((q) => q.kind === "clsact")) return [];
  return [one(side, { ...newQdisc({ linkIndex: link.index, options: { kind: "clsact" } }), accept: ["EEXIST"] })];
}

function isOurs(filter: Filter): boolean {
  return filter.preference === FILTER_PREFERENCE && filter.match !== undefined;
}

function programDifference(
  side: Side,
  where: string,
  link: LinkState,
  hook: "ingress" | "egress",
  want: LimiterSpec | undefined,
): Difference | undefined {
  const found = link[hook].find(isOurs)?.match;
  const name = found?.kind === "bpf" ? found.name : undefined;
  const parent = hook === "ingress" ? CLSACT_INGRESS : CLSACT_EGRESS;
  const place = { linkIndex: link.index, parent, preference: FILTER_PREFERENCE };
  if (want === undefined) {
    if (name === undefined) return undefined;
    return { what: `${where} has "${name}", want no limiter`, steps: [one(side, delFilter(place))] };
  }
  if (name === limiterName(want)) return undefined;
  return {
    what: `${where} has ${name === undefined ? "no limiter" : `"${name}"`}, want "${limiterName(want)}"`,
    steps: [
      ...clsact(side, link),
      {
        side,
        kind: "program",
        program: want,
        request: (fd) =>
          replaceFilter({
            ...place,
            handle: FILTER_HANDLE,
            match: { kind: "bpf", fd, name: limiterName(want), direct: true },
          }),
      },
    ],
  };
}

function redirectDifference(where: string, pod: LinkState, ifbIndex: number): Difference | undefined {
  const found = pod.ingress.find(isOurs)?.match;
  const action = found?.kind === "u32" ? found.actions[0] : undefined;
  if (action?.kind === "mirred" && action.linkIndex === ifbIndex) return undefined;
  const place = { linkIndex: pod.index, parent: CLSACT_INGRESS, preference: FILTER_PREFERENCE };
  return {
    what: `${where} is not redirected to its ifb`,
    steps: [
      ...clsact("pod", pod),
      ...(found === undefined ? [] : [one("pod", delFilter(place))]),
      one(
        "pod",
        newFilter({
          ...place,
          handle: FILTER_HANDLE, // without one the kernel adds a second filter
          match: {
            kind: "u32",
            keys: [{ value: 0, mask: 0, offset: 0 }],
            actions: [{ kind: "mirred", direction: TCA_EGRESS_REDIR, linkIndex: ifbIndex }],
          },
        }),
      ),
    ],
  };
}

/**
 * Everything in which `state` differs from `limits`, with the steps that put it right. Nothing that carries packets is
 * removed and made again: rates change in place, programs are exchanged between two packets.
 *
 * The ifb of a pod's own link is the caller's to make: its index is part of the state.
 */
export function shapingDifferences(limits: PodLimits, state: ShapingState): Difference[] {
  const { mtuBytes, pod, host, ifb } = state;
  const bucket = (limit: Limit | undefined) => limit && bucketOf(limit, mtuBytes);
  const found: (Difference | undefined)[] = [rootDifference("pod", "egress in the pod", pod, bucket(limits.egress))];
  if (host) {
    found.push(
      rootDifference("host", "ingress on the node's end", host, bucket(limits.ingress)),
      programDifference("host", "egress on the node's end", host, "ingress", limiterOf(limits, mtuBytes)),
    );
  } else {
    const { priority } = limits;
    const program = priority && { priorityClass: PRIORITY_CLASS[priority] };
    found.push(programDifference("pod", "priority in the pod", pod, "egress", program));
    if (ifb) {
      found.push(
        rootDifference("pod", "ingress in the pod", ifb, bucket(limits.ingress)),
        redirectDifference("ingress in the pod", pod, ifb.index),
      );
    } else if (limits.ingress) found.push({ what: "ingress in the pod has no ifb", steps: [] });
  }
  return found.filter((d) => d !== undefined);
}

/** What takes everything of ours away, of what is there; clsact too when nobody else uses it. */
export function removalSteps(state: ShapingState): Step[] {
  const of = (side: Side, link: LinkState | undefined): Step[] => {
    if (link === undefined) return [];
    const steps: Step[] = [];
    const filters = [...link.ingress, ...link.egress].filter((f) => f.match !== undefined);
    const ours = filters.filter(isOurs);
    const hasClsact = link.qdiscs.some((q) => q.kind === "clsact");
    if (hasClsact && ours.length > 0 && ours.length === filters.length)
      steps.push(one(side, delQdisc({ linkIndex: link.index, options: { kind: "clsact" } })));
    else
      for (const f of ours)
        steps.push(one(side, delFilter({ linkIndex: link.index, parent: f.parent, preference: FILTER_PREFERENCE })));
    const root = link.qdiscs.find((q) => q.parent === TC_H_ROOT && q.handle === ROOT);
    if (root?.options) steps.push(one(side, delQdisc({ linkIndex: link.index, handle: ROOT, options: root.options })));
    return steps;
  };
  return [...of("host", state.host), ...of("pod", state.pod)];
}

/** Brings an ifb up; before that it carries nothing. */
export function ifbUp(index: number): Request {
  return setLink({ index, up: true });
}
