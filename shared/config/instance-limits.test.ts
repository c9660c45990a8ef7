import { describe, expect, it } from "vitest";
import { parseEniConf } from "./eni-conf.ts";
import type { EniConfig } from "./eni-conf-keys.ts";
import {
  addressesPerEni,
  clampToInstance,
  type InstanceLimits,
  limitsFromTypeInfo,
  podCapacity,
  stackProblem,
} from "./instance-limits.ts";
import { applyNodeAnnotations, MAX_POOL_ANNOTATION, MIN_POOL_ANNOTATION } from "./node-annotations.ts";

const limits = (eniQuantity: number, ipv4PerEni: number, more: Partial<InstanceLimits> = {}): InstanceLimits => ({
  instanceType: "ecs.test",
  eniQuantity,
  eniTotalQuantity: eniQuantity,
  ipv4PerEni,
  ipv6PerEni: ipv4PerEni,
  trunkSupported: false,
  ...more,
});

function mustConfig(more: object): EniConfig {
  const { config, faults } = parseEniConf({
    security_group: "sg-1",
    service_cidr: "172.16.0.0/16",
    vswitches: { z: ["vsw-1"] },
    ...more,
  });
  if (config === undefined) throw new Error(JSON.stringify(faults));
  return config;
}

describe("podCapacity", () => {
  it.each([
    ["ENIIP, 8 × 30", limits(8, 30), "ENIIP", "ipv4", 7 * 29],
    ["ENIIP, 3 × 10", limits(3, 10), "ENIIP", "ipv4", 18],
    ["ENIIP, dual, fewer IPv6", limits(4, 15, { ipv6PerEni: 5 }), "ENIIP", "dual", 15],
    ["ENIIP, dual, no IPv6", limits(4, 15, { ipv6PerEni: 0 }), "ENIIP", "dual", 0],
    ["ENIIP, IPv6 alone: no primary address is left out", limits(4, 15, { ipv6PerEni: 10 }), "ENIIP", "ipv6", 30],
    ["ENIIP, no secondary ENI", limits(1, 10), "ENIIP", "ipv4", 0],
    ["ENIIP, an old type without numbers", limits(0, 0), "ENIIP", "ipv4", 0],
    ["ENI exclusive, 8 ENIs", limits(8, 30), "ENI", "ipv4", 7],
    ["Trunk, 32 + 224 members", limits(32, 30, { eniTotalQuantity: 256, trunkSupported: true }), "Trunk", "ipv4", 224],
    ["Trunk, not supported", limits(32, 30, { eniTotalQuantity: 256 }), "Trunk", "ipv4", 0],
  ] as const)("%s", (_claim, type, mode, stack, want) => expect(podCapacity(type, mode, stack)).toBe(want));

  it("leaves an ENI's primary address out", () => expect(addressesPerEni(limits(4, 15), "ipv4")).toBe(14));
});

describe("stackProblem", () => {
  const none = limits(4, 15, { ipv6PerEni: 0 });
  it.each([
    ["IPv4 needs nothing", none, "ENIIP", "ipv4", undefined],
    ["dual on a type without IPv6", none, "ENIIP", "dual", /ip_stack dual needs IPv6.*ecs.test has none.*another/],
    ["IPv6 alone, whole ENIs", none, "ENI", "ipv6", /ip_stack ipv6 needs IPv6 addresses on ENIs/],
    ["VPC mode has ranges of its own", none, "VPC", "ipv6", undefined],
    ["a type with IPv6", limits(4, 15), "Trunk", "ipv6", undefined],
  ] as const)("%s", (_claim, type, mode, stack, want) => {
    if (want === undefined) expect(stackProblem(type, mode, stack)).toBeUndefined();
    else expect(stackProblem(type, mode, stack)).toMatch(want);
  });
});

describe("clampToInstance", () => {
  it("lowers what the instance cannot hold and says so (CON-13)", () => {
    const config = mustConfig({ max_pool_size: 150, min_pool_size: 80, pre_attach_eni_count: 5 });
    const clamped = clampToInstance(config, limits(3, 10), "ipv4");
    expect(clamped.config).toMatchObject({ maxPoolSize: 18, minPoolSize: 18, preAttachEniCount: 2 });
    expect(clamped.warnings.map((w) => w.key)).toEqual(["max_pool_size", "min_pool_size", "pre_attach_eni_count"]);
    expect(clamped.warnings[0]?.message).toBe(
      "max_pool_size 150 is more than ecs.test allows (18 pods in mode ENIIP): using 18",
    );
  });

  it("changes nothing that fits", () => {
    const config = mustConfig({});
    expect(clampToInstance(config, limits(4, 15), "ipv4")).toEqual({ config, warnings: [] });
  });

  it("allows one trunk ENI and the members that the type has (CON-23, CON-24)", () => {
    const config = mustConfig({ network_mode: "Trunk", trunk_eni_count: 2, eni_capability: { member_adapters: 200 } });
    const type = limits(8, 30, { eniTotalQuantity: 136, trunkSupported: true });
    expect(clampToInstance(config, type, "ipv4").config).toMatchObject({ trunkEniCount: 1, memberAdapters: 128 });
  });

  it("warns when dual stack gets fewer addresses", () => {
    const { warnings } = clampToInstance(
      mustConfig({ min_pool_size: 1, max_pool_size: 2 }),
      limits(4, 15, { ipv6PerEni: 5 }),
      "dual",
    );
    expect(warnings.map((w) => w.key)).toEqual(["ip_stack"]);
  });
});

describe("limitsFromTypeInfo", () => {
  it("reads the API's own names", () => {
    const info = {
      InstanceTypeId: "ecs.g7.large",
      EniQuantity: 3,
      EniPrivateIpAddressQuantity: 10,
      EniIpv6AddressQuantity: -1,
    };
    expect(limitsFromTypeInfo(info)).toEqual(limits(3, 10, { instanceType: "ecs.g7.large", ipv6PerEni: 0 }));
  });
  it("refuses what names no type", () => expect(limitsFromTypeInfo({ EniQuantity: 3 })).toBeUndefined());
});

describe("applyNodeAnnotations", () => {
  const cluster = { maxPoolSize: 25, minPoolSize: 10 };
  it.each([
    ["both", { [MAX_POOL_ANNOTATION]: "80", [MIN_POOL_ANNOTATION]: "40" }, { maxPoolSize: 80, minPoolSize: 40 }, 0],
    ["only max", { [MAX_POOL_ANNOTATION]: "12" }, { maxPoolSize: 12, minPoolSize: 10 }, 0],
    ["none", { other: "1" }, cluster, 0],
    ["max below the cluster's min: ignored", { [MAX_POOL_ANNOTATION]: "5" }, cluster, 1],
    ["not a number: both ignored", { [MAX_POOL_ANNOTATION]: "a lot", [MIN_POOL_ANNOTATION]: "1" }, cluster, 1],
    ["negative: ignored", { [MIN_POOL_ANNOTATION]: "-1" }, cluster, 1],
  ])("%s", (_claim, annotations, want, warnings) => {
    const got = applyNodeAnnotations(cluster, annotations as Record<string, string>);
    expect(got.config).toEqual(want);
    expect(got.warnings).toHaveLength(warnings);
  });
});
