/** Which limits and which priority a pod gets, out of everything that has a say. Pure. */
import { EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, NETWORK_PRIORITY } from "./pod-facts.ts";
import { profileFor, type QosConfig } from "./qos-config.ts";
import { parseRate } from "./quantity.ts";

export const PRIORITIES = ["guaranteed", "burstable", "best-effort"] as const;
export type NetworkPriority = (typeof PRIORITIES)[number];

export interface Limit {
  readonly bitsPerSecond: number;
  /** What may pass at once after a silence; absent: chosen by the rate. */
  readonly burstBytes?: number;
}

/** What the network configuration says: numbers or text as it came, by the CNI's own key names. */
export interface ExplicitLimits {
  readonly ingressRate?: unknown;
  readonly ingressBurst?: unknown;
  readonly egressRate?: unknown;
  readonly egressBurst?: unknown;
}

export interface LimitSources {
  /** `runtimeConfig.bandwidth`: what the runtime made of the pod. */
  readonly runtime: ExplicitLimits;
  /** The plugin's entry in the conflist. */
  readonly conf: ExplicitLimits;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly qos: QosConfig | undefined;
}

export interface PodLimits {
  readonly ingress?: Limit;
  readonly egress?: Limit;
  readonly priority?: NetworkPriority;
  /** Name of the QoS profile that matches, whether or not its rates came into force. */
  readonly profile?: string;
  readonly latencySlaMs?: number;
}

/**
 * Runtimes that know only a rate send the largest number they have for the burst (2^31-1 or 2^32-1 bits): half a
 * gigabyte at full speed before the limit begins. That is no wish.
 */
const NO_BURST_BITS = 2 ** 31 - 1;

type Direction = "ingress" | "egress";

/** @returns undefined when this source says nothing, null when it says: no limit. */
function explicit(
  source: ExplicitLimits,
  direction: Direction,
  where: string,
  faults: string[],
): Limit | null | undefined {
  const [rateKey, burstKey] = [`${direction}Rate`, `${direction}Burst`] as const;
  const rate = parseRate(source[rateKey as keyof ExplicitLimits]);
  if (rate.kind === "wrong") faults.push(`${where}${rateKey}: ${rate.why}`);
  const given = source[burstKey as keyof ExplicitLimits];
  const burst = given === undefined || given === null || given === 0 ? undefined : given;
  if (burst !== undefined && (typeof burst !== "number" || !Number.isFinite(burst) || burst < 0)) {
    faults.push(`${where}${burstKey} is ${JSON.stringify(burst)}, want a number of bits`);
    return undefined;
  }
  if (rate.kind === "absent" && burst !== undefined && burst < NO_BURST_BITS)
    faults.push(`${where}${burstKey} is set without ${rateKey}: set both, or neither`);
  if (rate.kind === "none") return null;
  if (rate.kind !== "rate") return undefined;
  return {
    bitsPerSecond: rate.bitsPerSecond,
    ...(burst === undefined || burst >= NO_BURST_BITS ? {} : { burstBytes: Math.ceil(burst / 8) }),
  };
}

function annotated(annotations: LimitSources["annotations"], name: string, faults: string[]): Limit | null | undefined {
  const rate = parseRate(annotations[name]);
  if (rate.kind === "wrong") faults.push(`annotation ${name}: ${rate.why}`);
  return rate.kind === "none" ? null : rate.kind === "rate" ? { bitsPerSecond: rate.bitsPerSecond } : undefined;
}

/**
 * For each direction the first that says something decides: the runtime, the conflist, the annotation, the profile, the
 * default.
 *
 * @returns What is in force, and every fault at once. With faults, what is in force is not to be used.
 */
export function resolveLimits(s: LimitSources): { readonly limits: PodLimits; readonly faults: readonly string[] } {
  const faults: string[] = [];
  const profile = s.qos && profileFor(s.qos, s.labels);
  const shared = profile ?? s.qos?.defaults ?? {};
  const pick = (direction: Direction): Limit | undefined => {
    const said = [
      explicit(s.runtime, direction, "runtimeConfig.bandwidth.", faults),
      explicit(s.conf, direction, "", faults),
      annotated(s.annotations, direction === "ingress" ? INGRESS_BANDWIDTH : EGRESS_BANDWIDTH, faults),
    ].find((limit) => limit !== undefined);
    if (said !== undefined) return said ?? undefined;
    const bits = shared[direction];
    return bits === undefined ? undefined : { bitsPerSecond: bits };
  };
  const [ingress, egress] = [pick("ingress"), pick("egress")];
  const asked = s.annotations[NETWORK_PRIORITY];
  const priority = PRIORITIES.find((p) => p === asked);
  if (asked !== undefined && asked !== "" && priority === undefined)
    faults.push(`annotation ${NETWORK_PRIORITY} is ${JSON.stringify(asked)}, want one of ${PRIORITIES.join(", ")}`);
  return {
    limits: {
      ...(ingress ? { ingress } : {}),
      ...(egress ? { egress } : {}),
      ...(priority ? { priority } : {}),
      ...(profile ? { profile: profile.name } : {}),
      ...(profile?.latencySlaMs === undefined ? {} : { latencySlaMs: profile.latencySlaMs }),
    },
    faults,
  };
}
