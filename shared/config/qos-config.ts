/** The QoS configuration (K8S-73): bandwidth profiles chosen by pod labels, and classes per host interface. */
import { DURATION_FORMS, parseDurationMs, parseRate, parseSize, RATE_FORMS, SIZE_FORMS } from "./quantity.ts";

/** Bits per second; absent: no limit in that direction. */
export interface Bandwidth {
  readonly ingress?: number;
  readonly egress?: number;
}

export interface QosProfile extends Bandwidth {
  readonly name: string;
  /** All of them must be on the pod; none: every pod. */
  readonly labels: Readonly<Record<string, string>>;
  readonly latencySlaMs?: number;
}

/** A class of egress on a host interface. */
export interface TcRule {
  readonly interface: string;
  readonly classId: number;
  /** What is guaranteed, and what may be borrowed up to; bits per second. */
  readonly rate: number;
  readonly ceil: number;
  readonly burstBytes?: number;
}

export interface QosConfig {
  /** For pods that no profile matches. */
  readonly defaults: Bandwidth;
  /** The first that matches counts. */
  readonly profiles: readonly QosProfile[];
  readonly tcRules: readonly TcRule[];
}

export const NO_QOS: QosConfig = { defaults: {}, profiles: [], tcRules: [] };

/** Minors above are the priority classes' own. */
const MOST_CLASS_ID = 0xff;

type Json = Readonly<Record<string, unknown>>;
const object = (value: unknown): Json =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Json) : {};

/** @returns Every fault at once: key, value and what is accepted. The configuration only when there is none. */
export function parseQosConfig(value: unknown): { readonly config?: QosConfig; readonly faults: readonly string[] } {
  const faults: string[] = [];
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return { faults: ["the QoS configuration is no JSON object"] };
  const list = (key: string, holder: Json): Json[] => {
    const items = holder[key] ?? [];
    if (Array.isArray(items)) return items.map(object);
    faults.push(`${key} is ${JSON.stringify(items)}, want a list`);
    return [];
  };
  const rate = (where: string, text: unknown): number | undefined => {
    const r = parseRate(text);
    if (r.kind === "wrong") faults.push(`${where}: ${r.why}`);
    return r.kind === "rate" ? r.bitsPerSecond : undefined;
  };
  const bandwidth = (where: string, holder: Json, prefix: string): Bandwidth => {
    const ingress = rate(`${where}${prefix}ingress_bandwidth`, holder[`${prefix}ingress_bandwidth`]);
    const egress = rate(`${where}${prefix}egress_bandwidth`, holder[`${prefix}egress_bandwidth`]);
    return { ...(ingress === undefined ? {} : { ingress }), ...(egress === undefined ? {} : { egress }) };
  };
  const root = value as Json;
  const management = object(root.bandwidth_management);
  const profiles = list("application_profiles", management).map((p, i): QosProfile => {
    const where = `application_profiles[${i}]`;
    if (typeof p.name !== "string" || p.name === "") faults.push(`${where}.name is missing`);
    const labels = object(object(p.selector).labels);
    for (const [key, label] of Object.entries(labels))
      if (typeof label !== "string")
        faults.push(`${where}.selector.labels.${key} is ${JSON.stringify(label)}, want text`);
    const latencySlaMs = parseDurationMs(p.latency_sla);
    if (p.latency_sla !== undefined && latencySlaMs === undefined)
      faults.push(`${where}.latency_sla is ${JSON.stringify(p.latency_sla)}, want ${DURATION_FORMS}`);
    return {
      name: String(p.name),
      labels: labels as Readonly<Record<string, string>>,
      ...bandwidth(`${where}.`, p, ""),
      ...(latencySlaMs === undefined ? {} : { latencySlaMs }),
    };
  });
  const seen = new Set<string>();
  const tcRules = list("tc_rules", object(root.traffic_shaping)).map((r, i): TcRule => {
    const where = `tc_rules[${i}]`;
    if (typeof r.interface !== "string" || r.interface === "") faults.push(`${where}.interface is missing`);
    const classId = r.class_id;
    if (typeof classId !== "number" || !Number.isInteger(classId) || classId < 1 || classId > MOST_CLASS_ID)
      faults.push(`${where}.class_id is ${JSON.stringify(classId)}, want a whole number from 1 to ${MOST_CLASS_ID}`);
    if (seen.has(`${r.interface}/${classId}`))
      faults.push(`${where}: class_id ${classId} comes twice on ${r.interface}`);
    seen.add(`${r.interface}/${classId}`);
    const guaranteed = rate(`${where}.rate`, r.rate);
    const ceil = rate(`${where}.ceil`, r.ceil) ?? guaranteed;
    if (guaranteed === undefined || ceil === undefined) faults.push(`${where}.rate is missing: want ${RATE_FORMS}`);
    else if (ceil < guaranteed) faults.push(`${where}.ceil is below its rate`);
    const burstBytes = parseSize(r.burst);
    if (r.burst !== undefined && burstBytes === undefined)
      faults.push(`${where}.burst is ${JSON.stringify(r.burst)}, want ${SIZE_FORMS}`);
    return {
      interface: String(r.interface),
      classId: Number(classId),
      rate: guaranteed ?? 0,
      ceil: ceil ?? 0,
      ...(burstBytes === undefined ? {} : { burstBytes }),
    };
  });
  const defaults = bandwidth("", management, "default_");
  return faults.length > 0 ? { faults } : { config: { defaults, profiles, tcRules }, faults };
}

export function profileFor(config: QosConfig, labels: Readonly<Record<string, string>>): QosProfile | undefined {
  return config.profiles.find((p) => Object.entries(p.labels).every(([key, value]) => labels[key] === value));
}
