/** From two readings of a pod's qdiscs to what happened in between. Pure. */
import type { PodLimits } from "../../shared/config/pod-limits.ts";
import { type LinkState, OUR_MAJOR, type ShapingState } from "../../shared/datapath/shaping.ts";
import { tcHandle } from "../../shared/netlink/tc/tcmsg.ts";
import { TC_H_ROOT } from "../../shared/netlink/uapi/pkt-sched.ts";
import type { Counted, Direction } from "./shaping-metrics.ts";

export interface Reading extends Counted {
  /** How long a packet that came now would wait, ms. */
  readonly waitMs: number;
}
export type Readings = Readonly<Partial<Record<Direction, Reading>>>;

function readBucket(link: LinkState | undefined, extraDrops = 0): Reading | undefined {
  const root = link?.qdiscs.find((q) => q.parent === TC_H_ROOT && q.handle === tcHandle(OUR_MAJOR));
  if (root?.options?.kind !== "tbf" || root.stats === undefined) return undefined;
  const { bytes, packets, drops, overlimits, backlogBytes } = root.stats;
  const waitMs = (backlogBytes / root.options.bytesPerSecond) * 1000;
  return { bytes, packets, drops: drops + extraDrops, overlimits, waitMs };
}

/** @param limits In force: an open bucket of a limit that was taken away is not read. */
export function readingsOf(limits: PodLimits, state: ShapingState): Readings {
  // What the limiter at the node's end drops, clsact counts.
  const limiter = state.host?.qdiscs.find((q) => q.kind === "clsact")?.stats?.drops ?? 0;
  const ingress = limits.ingress && readBucket(state.host ?? state.ifb);
  const egress = limits.egress && readBucket(state.pod, limiter);
  return { ...(ingress ? { ingress } : {}), ...(egress ? { egress } : {}) };
}

/** Counters that went back are those of a qdisc made anew. */
export function countedSince(before: Reading | undefined, now: Reading): Counted {
  const base = before !== undefined && before.bytes <= now.bytes ? before : undefined;
  return {
    bytes: now.bytes - (base?.bytes ?? 0),
    packets: now.packets - (base?.packets ?? 0),
    drops: Math.max(0, now.drops - (base?.drops ?? 0)),
    overlimits: Math.max(0, now.overlimits - (base?.overlimits ?? 0)),
  };
}

/** QOS-23: the SLA was missed, or the pod had more than a tenth above its allocation. */
export function isViolation(
  limits: PodLimits,
  direction: Direction,
  reading: Reading,
  bytesPerSecond: number,
): boolean {
  const late = limits.latencySlaMs !== undefined && reading.waitMs > limits.latencySlaMs;
  const allocated = limits[direction]?.bitsPerSecond;
  return late || (allocated !== undefined && bytesPerSecond > (allocated / 8) * 1.1);
}
