/** The configuration of terway-bandwidth, and what it makes of a pod. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { parsePodFacts } from "../../shared/config/pod-facts.ts";
import { type ExplicitLimits, type PodLimits, resolveLimits } from "../../shared/config/pod-limits.ts";
import { parseQosConfig, type QosConfig } from "../../shared/config/qos-config.ts";
import { placesOf } from "../terway-ipam/config.ts";

export interface BandwidthConfig {
  readonly store: string;
  readonly logDir: string;
  readonly runtime: ExplicitLimits;
  readonly conf: ExplicitLimits;
  /** The conflist's own QoS configuration; absent: the cluster's, from the store. */
  readonly qos: QosConfig | undefined;
}

/** Kept in the store: the agent decides anew from it when annotations or profiles change. */
export interface ExplicitSources {
  readonly runtime: ExplicitLimits;
  readonly conf: ExplicitLimits;
  /** In place of the cluster's. */
  readonly qos?: QosConfig;
}

const KEYS = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"] as const;

function limitsIn(holder: Readonly<Record<string, unknown>>): ExplicitLimits {
  return Object.fromEntries(
    KEYS.filter((key) => holder[key] !== undefined && holder[key] !== null).map((key) => [key, holder[key]]),
  );
}

function invalid(what: string, faults: readonly string[]): CniFailure {
  return new CniFailure(CODE.invalidConfig, `${what}: ${faults.join("; ")}`, "correct what is named");
}

/** @throws {CniFailure} invalidConfig, naming every fault. */
export function parseBandwidthConfig(call: CniCall, environment: Readonly<Record<string, string>>): BandwidthConfig {
  const { raw, runtimeConfig, name } = call.conf;
  const { bandwidth } = runtimeConfig;
  if (bandwidth !== undefined && bandwidth !== null && (typeof bandwidth !== "object" || Array.isArray(bandwidth)))
    throw invalid(`network "${name}"`, [`runtimeConfig.bandwidth is ${JSON.stringify(bandwidth)}, want an object`]);
  const parsed = raw.qos === undefined ? undefined : parseQosConfig(raw.qos);
  if (parsed && parsed.faults.length > 0) throw invalid(`network "${name}": qos`, parsed.faults);
  return {
    ...placesOf(call, environment),
    runtime: limitsIn((bandwidth ?? {}) as Readonly<Record<string, unknown>>),
    conf: limitsIn(raw),
    qos: parsed?.config,
  };
}

/**
 * @param facts JSON of the pod's facts, if the store has them.
 * @param clusterQos JSON of the cluster's QoS configuration, if the store has it.
 * @throws {CniFailure} invalidConfig, naming every fault and the accepted forms.
 */
export function limitsOf(
  config: Pick<BandwidthConfig, "runtime" | "conf" | "qos">,
  pod: string,
  facts: string | undefined,
  clusterQos: string | undefined,
): PodLimits {
  let qos = config.qos;
  if (qos === undefined && clusterQos !== undefined) {
    const parsed = parseQosConfig(JSON.parse(clusterQos));
    if (parsed.faults.length > 0) throw invalid("QoS configuration of the cluster", parsed.faults);
    qos = parsed.config;
  }
  const { labels, annotations } = facts === undefined ? { labels: {}, annotations: {} } : parsePodFacts(facts);
  const { limits, faults } = resolveLimits({ runtime: config.runtime, conf: config.conf, labels, annotations, qos });
  if (faults.length > 0) throw invalid(`bandwidth of ${pod}`, faults);
  return limits;
}

/** Nothing has to be done in the kernel for it. */
export function isUnlimited(limits: PodLimits): boolean {
  return limits.ingress === undefined && limits.egress === undefined && limits.priority === undefined;
}
