/** What an instance type allows, and the pool sizes that fit in it (CON-13, CON-16; alicloud-api section 10). */
import type { ConfigWarning } from "./eni-conf.ts";
import type { EniConfig } from "./eni-conf-keys.ts";
import type { IpStack } from "./ip-stack.ts";

/** Limits as DescribeInstanceTypes reports them. */
export interface InstanceLimits {
  readonly instanceType: string;
  /** ENIs that can be attached, the primary one included. */
  readonly eniQuantity: number;
  /** The same with member ENIs of a trunk. */
  readonly eniTotalQuantity: number;
  /** IPv4 addresses of one ENI, its primary one included. */
  readonly ipv4PerEni: number;
  readonly ipv6PerEni: number;
  readonly trunkSupported: boolean;
}

/** Addresses that one shared ENI can carry for pods, IPv4 ones besides its primary. Dual stack needs as many of both. */
export function addressesPerEni(limits: InstanceLimits, stack: IpStack): number {
  const ipv4 = Math.max(0, limits.ipv4PerEni - 1);
  const ipv6 = Math.max(0, limits.ipv6PerEni);
  return stack === "dual" ? Math.min(ipv4, ipv6) : stack === "ipv6" ? ipv6 : ipv4;
}

/** ENIs that can be given to pods: all but the primary one. */
export function podEnis(limits: InstanceLimits): number {
  return Math.max(0, limits.eniQuantity - 1);
}

/** Member ENIs of a trunk (alicloud-api section 10). */
export function memberEnis(limits: InstanceLimits): number {
  if (!limits.trunkSupported) return 0;
  return Math.max(0, Math.min(limits.eniTotalQuantity - limits.eniQuantity, limits.eniTotalQuantity - 2));
}

/**
 * How many pods can have an address of their own in the mode.
 *
 * ENIIP: secondary addresses of secondary ENIs. An ENI's primary address is not in the pool (POOL-14), and the primary ENI
 * stays the node's own. ENIs × addresses − 1 (CON-16) is never reached under these two rules and stays as an upper bound.
 */
export function podCapacity(limits: InstanceLimits, mode: EniConfig["networkMode"], stack: IpStack): number {
  if (mode === "Trunk") return memberEnis(limits);
  if (mode !== "ENIIP") return podEnis(limits);
  if (stack === "ipv6") return podEnis(limits) * addressesPerEni(limits, stack);
  const stated = Math.max(0, limits.eniQuantity * limits.ipv4PerEni - 1);
  return Math.min(stated, podEnis(limits) * addressesPerEni(limits, stack));
}

export interface ClampedConfig {
  readonly config: EniConfig;
  readonly warnings: readonly ConfigWarning[];
}

/** Why pods of this instance type cannot have the stack; undefined when they can. VPC mode takes no addresses of ENIs. */
export function stackProblem(
  limits: InstanceLimits,
  mode: EniConfig["networkMode"],
  stack: IpStack,
): string | undefined {
  if (stack === "ipv4" || mode === "VPC" || limits.ipv6PerEni > 0) return undefined;
  return `ip_stack ${stack} needs IPv6 addresses on ENIs, of which ${limits.instanceType} has none: use another instance type, or ip_stack ipv4`;
}

/** The configuration as far as the instance can follow it; each value that was lowered has a warning. */
export function clampToInstance(config: EniConfig, limits: InstanceLimits, stack: IpStack): ClampedConfig {
  const warnings: ConfigWarning[] = [];
  const atMost = (key: string, value: number, most: number, what: string): number => {
    if (value <= most) return value;
    warnings.push({
      key,
      message: `${key} ${value} is more than ${limits.instanceType} allows (${what}): using ${most}`,
    });
    return most;
  };
  const pods = podCapacity(limits, config.networkMode, stack);
  const enis = podEnis(limits);
  const what = `${pods} pods in mode ${config.networkMode}`;
  if (stack === "dual" && limits.ipv6PerEni < limits.ipv4PerEni - 1)
    warnings.push({
      key: "ip_stack",
      message: `${limits.instanceType} has ${limits.ipv6PerEni} IPv6 and ${limits.ipv4PerEni - 1} secondary IPv4 addresses per ENI: dual stack uses the smaller number of both`,
    });
  return {
    config: {
      ...config,
      maxPoolSize: atMost("max_pool_size", config.maxPoolSize, pods, what),
      minPoolSize: atMost("min_pool_size", config.minPoolSize, pods, what),
      preAttachEniCount: atMost(
        "pre_attach_eni_count",
        config.preAttachEniCount,
        enis,
        `${enis} ENIs besides the primary one`,
      ),
      // One trunk ENI per instance (CON-23).
      trunkEniCount:
        config.networkMode === "Trunk"
          ? atMost("trunk_eni_count", config.trunkEniCount, limits.trunkSupported ? 1 : 0, "trunk ENIs")
          : config.trunkEniCount,
      memberAdapters:
        config.memberAdapters === undefined
          ? undefined
          : atMost(
              "eni_capability.member_adapters",
              config.memberAdapters,
              memberEnis(limits),
              `${memberEnis(limits)} member ENIs`,
            ),
    },
    warnings,
  };
}

/**
 * Limits from the node annotation `alibabacloud.com/instance-type-info`: the JSON of an InstanceType as the API answers it.
 *
 * @returns undefined when it is none.
 */
export function limitsFromTypeInfo(info: Readonly<Record<string, unknown>>): InstanceLimits | undefined {
  const count = (name: string) => {
    const value = info[name];
    return typeof value === "number" && Number.isInteger(value) ? Math.max(0, value) : 0;
  };
  const instanceType = info.InstanceTypeId;
  if (typeof instanceType !== "string" || instanceType === "") return undefined;
  const eniQuantity = count("EniQuantity");
  return {
    instanceType,
    eniQuantity,
    eniTotalQuantity: Math.max(eniQuantity, count("EniTotalQuantity")),
    ipv4PerEni: count("EniPrivateIpAddressQuantity"),
    ipv6PerEni: count("EniIpv6AddressQuantity"),
    trunkSupported: info.EniTrunkSupported === true,
  };
}
