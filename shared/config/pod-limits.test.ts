import { describe, expect, it } from "vitest";
import { EGRESS_BANDWIDTH, formatPodFacts, INGRESS_BANDWIDTH, NETWORK_PRIORITY, parsePodFacts } from "./pod-facts.ts";
import { type LimitSources, type PodLimits, resolveLimits } from "./pod-limits.ts";
import { parseQosConfig, type QosConfig } from "./qos-config.ts";

const nothing: LimitSources = { runtime: {}, conf: {}, labels: {}, annotations: {}, qos: undefined };

/** The document of the specification. */
const SPEC = {
  bandwidth_management: {
    default_egress_bandwidth: "1Gbps",
    default_ingress_bandwidth: "1Gbps",
    application_profiles: [
      {
        name: "high-priority",
        selector: { labels: { priority: "high" } },
        egress_bandwidth: "10Gbps",
        ingress_bandwidth: "10Gbps",
        latency_sla: "10ms",
      },
      {
        name: "low-priority",
        selector: { labels: { priority: "low" } },
        egress_bandwidth: "100Mbps",
        ingress_bandwidth: "100Mbps",
        latency_sla: "100ms",
      },
    ],
  },
  traffic_shaping: {
    tc_rules: [
      { interface: "eth0", class_id: 1, rate: "1Gbps", ceil: "2Gbps", burst: "32KB" },
      { interface: "eth1", class_id: 2, rate: "500Mbps", ceil: "1Gbps", burst: "16KB" },
    ],
  },
};
const qos = parseQosConfig(SPEC).config as QosConfig;

describe("resolveLimits", () => {
  it.each<[string, Partial<LimitSources>, PodLimits]>([
    ["nothing asks for nothing", {}, {}],
    [
      "the runtime's figures are bits",
      { runtime: { ingressRate: 1e6, ingressBurst: 80_000, egressRate: 2e6 } },
      { ingress: { bitsPerSecond: 1e6, burstBytes: 10_000 }, egress: { bitsPerSecond: 2e6 } },
    ],
    [
      "a burst of all ones is a runtime that knows none",
      { runtime: { ingressRate: 1e6, ingressBurst: 2147483647, egressRate: 1e6, egressBurst: 4294967295 } },
      { ingress: { bitsPerSecond: 1e6 }, egress: { bitsPerSecond: 1e6 } },
    ],
    [
      "runtime before conflist before annotation, each direction by itself",
      {
        runtime: { ingressRate: 1e6 },
        conf: { ingressRate: 2e6, egressRate: 2e6 },
        annotations: { [EGRESS_BANDWIDTH]: "3M" },
      },
      { ingress: { bitsPerSecond: 1e6 }, egress: { bitsPerSecond: 2e6 } },
    ],
    [
      "annotation before profile",
      { annotations: { [INGRESS_BANDWIDTH]: "10M" }, labels: { priority: "low" }, qos },
      {
        ingress: { bitsPerSecond: 10e6 },
        egress: { bitsPerSecond: 100e6 },
        profile: "low-priority",
        latencySlaMs: 100,
      },
    ],
    [
      "default where no profile matches",
      { labels: { priority: "none" }, qos },
      { ingress: { bitsPerSecond: 1e9 }, egress: { bitsPerSecond: 1e9 } },
    ],
    [
      "0 takes the limit away that a default would give",
      { annotations: { [INGRESS_BANDWIDTH]: "0" }, runtime: { egressRate: 0 }, qos },
      {},
    ],
    ["an empty annotation is none", { annotations: { [INGRESS_BANDWIDTH]: "", [NETWORK_PRIORITY]: "" } }, {}],
    ["a priority class", { annotations: { [NETWORK_PRIORITY]: "best-effort" } }, { priority: "best-effort" }],
  ])("%s", (_claim, sources, limits) =>
    expect(resolveLimits({ ...nothing, ...sources })).toEqual({ limits, faults: [] }),
  );

  it("names every fault at once, and the source of each", () => {
    const { faults } = resolveLimits({
      ...nothing,
      runtime: { ingressRate: -5 },
      conf: { egressRate: "1e3M", egressBurst: "x" },
      annotations: { [INGRESS_BANDWIDTH]: "fast", [NETWORK_PRIORITY]: "high" },
    });
    expect(faults).toEqual([
      expect.stringContaining("runtimeConfig.bandwidth.ingressRate: -5 is negative"),
      expect.stringContaining(`annotation ${INGRESS_BANDWIDTH}: "fast" is no rate`),
      expect.stringContaining('egressRate: "1e3M" is no rate'),
      expect.stringContaining('egressBurst is "x", want a number of bits'),
      expect.stringContaining(
        `annotation ${NETWORK_PRIORITY} is "high", want one of guaranteed, burstable, best-effort`,
      ),
    ]);
  });
  it("refuses a burst without a rate", () =>
    expect(resolveLimits({ ...nothing, conf: { ingressBurst: 8000 } }).faults).toEqual([
      "ingressBurst is set without ingressRate: set both, or neither",
    ]));
});

describe("parseQosConfig", () => {
  it("reads the document of the specification", () =>
    expect(qos).toEqual({
      defaults: { ingress: 1e9, egress: 1e9 },
      profiles: [
        { name: "high-priority", labels: { priority: "high" }, ingress: 10e9, egress: 10e9, latencySlaMs: 10 },
        { name: "low-priority", labels: { priority: "low" }, ingress: 100e6, egress: 100e6, latencySlaMs: 100 },
      ],
      tcRules: [
        { interface: "eth0", classId: 1, rate: 1e9, ceil: 2e9, burstBytes: 32_768 },
        { interface: "eth1", classId: 2, rate: 500e6, ceil: 1e9, burstBytes: 16_384 },
      ],
    }));
  it.each<[string, unknown, string]>([
    ["no object", [], "no JSON object"],
    [
      "a rate",
      { bandwidth_management: { default_egress_bandwidth: "lots" } },
      'default_egress_bandwidth: "lots" is no rate',
    ],
    ["a list", { bandwidth_management: { application_profiles: {} } }, "application_profiles is {}, want a list"],
    ["a name", { bandwidth_management: { application_profiles: [{}] } }, "application_profiles[0].name is missing"],
    [
      "a duration",
      { bandwidth_management: { application_profiles: [{ name: "a", latency_sla: "10" }] } },
      'latency_sla is "10", want a duration',
    ],
    [
      "a class id",
      { traffic_shaping: { tc_rules: [{ interface: "eth0", class_id: 0, rate: "1G" }] } },
      "class_id is 0, want a whole number from 1 to 255",
    ],
    [
      "a ceiling",
      { traffic_shaping: { tc_rules: [{ interface: "eth0", class_id: 1, rate: "2G", ceil: "1G" }] } },
      "ceil is below its rate",
    ],
  ])("refuses %s that is wrong, and names the key", (_what, value, message) =>
    expect(parseQosConfig(value)).toEqual({ faults: [expect.stringContaining(message)] }),
  );
});

describe("pod facts", () => {
  it("keep labels and the annotations that plugins read, in one form", () => {
    const json = formatPodFacts({ labels: { b: "2", a: "1" }, annotations: { other: "x", [INGRESS_BANDWIDTH]: "1M" } });
    expect(json).toBe(`{"labels":{"a":"1","b":"2"},"annotations":{"${INGRESS_BANDWIDTH}":"1M"}}`);
    expect(parsePodFacts(json)).toEqual({ labels: { a: "1", b: "2" }, annotations: { [INGRESS_BANDWIDTH]: "1M" } });
  });
  it.each(["{}", "null", '{"labels":[1],"annotations":{"a":5}}'])(
    "of another version are read as far as they go: %s",
    (json) => expect(parsePodFacts(json)).toEqual({ labels: {}, annotations: {} }),
  );
});
