/**
 * Every key of `eni_conf` (requirements 2.2 and 2.3) as data: its id, spelling, other names, kind, default, and whether
 * something acts on it yet. The type `EniConfig` follows from this table.
 */
import {
  cidrs,
  cloudId,
  flag,
  oneOf,
  quotedFlag,
  rate,
  tags,
  text,
  type ValueKind,
  whole,
  zoneVSwitches,
} from "./config-value.ts";
import type { IpStack } from "./ip-stack.ts";

export interface KeySpec<T> {
  /** Requirement id. */
  readonly id: string;
  /** Canonical spelling; `section.key` for a key of a sub-object. */
  readonly path: string;
  readonly kind: ValueKind<NonNullable<T>>;
  /** When the key is absent. */
  readonly fallback: T;
  /** When the key is absent but its sub-object is there: writing the sub-object turns the feature on (CFG-64). */
  readonly inSection: T;
  readonly aliases: readonly string[];
  readonly required: boolean;
  readonly secret: boolean;
  /** False: parsed and checked, but nothing acts on it yet. */
  readonly actedOn: boolean;
}

interface Extra<T> {
  readonly aliases?: readonly string[];
  readonly inSection?: T;
  readonly required?: true;
  readonly secret?: true;
  readonly idle?: true;
}

function key<T>(
  id: string,
  path: string,
  kind: ValueKind<NonNullable<T>>,
  fallback: T,
  extra: Extra<T> = {},
): KeySpec<T> {
  return {
    id,
    path,
    kind,
    fallback,
    inSection: "inSection" in extra ? (extra.inSection as T) : fallback,
    aliases: extra.aliases ?? [],
    required: extra.required ?? false,
    secret: extra.secret ?? false,
    actedOn: extra.idle === undefined,
  };
}

export const IP_STACK = oneOf<IpStack>({ ipv4: "ipv4", dual: "dual", ipv6: "ipv6" });

export type NetworkMode = "VPC" | "ENI" | "ENIIP" | "Trunk";
export type EniSelectionPolicy = "least-ip" | "most-ip";
export type VSwitchSelectionPolicy = "most" | "ordered" | "random";

const MODES = { VPC: "VPC", ENI: "ENI", ENIIP: "ENIIP", Trunk: "Trunk", Trunking: "Trunk" } as const;
const seconds = whole(1, 86_400);

export const ENI_CONF_KEYS = {
  version: key<string>("CFG-10", "version", oneOf({ 1: "1" }), "1"),
  /** Empty: the instance's RAM role. */
  accessKey: key<string>("CFG-11", "access_key", text, "", { secret: true }),
  accessSecret: key<string>("CFG-12", "access_secret", text, "", { secret: true }),
  securityGroup: key<string>("CFG-13", "security_group", cloudId("sg-"), "", { required: true }),
  serviceCidrs: key<readonly string[]>("CFG-14", "service_cidr", cidrs, [], { required: true }),
  vswitches: key<Readonly<Record<string, readonly string[]>>>(
    "CFG-15",
    "vswitches",
    zoneVSwitches,
    {},
    {
      aliases: ["eni_vswitches"],
      required: true,
    },
  ),
  /** Most idle addresses kept (CON-10). */
  maxPoolSize: key<number>("CFG-16", "max_pool_size", whole(0), 25, { aliases: ["eni_max_pool_size"] }),
  /** Fewest idle addresses kept (CON-11). */
  minPoolSize: key<number>("CFG-17", "min_pool_size", whole(0), 10, { aliases: ["eni_min_pool_size"] }),
  eniTags: key<Readonly<Record<string, string>>>("CFG-18", "eni_tags", tags, {}),
  networkMode: key<NetworkMode>("CFG-19", "network_mode", oneOf<NetworkMode>(MODES), "ENIIP", {
    aliases: ["daemon_mode"],
  }),
  /** The cluster's pod ranges, in mode VPC. */
  clusterCidrs: key<readonly string[] | undefined>("CFG-23", "Network", cidrs, undefined, { idle: true }),

  /** Which ENI gets new addresses (CON-9). Absent: the fullest, so that the others can drain. */
  eniSelectionPolicy: key<EniSelectionPolicy>(
    "CFG-30",
    "eni_selection_policy",
    oneOf<EniSelectionPolicy>({ "least-ip": "least-ip", "most-ip": "most-ip" }),
    "most-ip",
  ),
  hotPlug: key<boolean>("CFG-31", "hot_plug", flag, true),
  trunkOn: key<boolean | undefined>("CFG-32", "trunk_on", flag, undefined),
  declaredTrunk: key<boolean | undefined>("CFG-33", "eni_capability.trunk", flag, undefined, { idle: true }),
  memberAdapters: key<number | undefined>("CFG-34", "eni_capability.member_adapters", whole(0, 4094), undefined),
  eniCapPolicy: key<"prefer_eni" | "prefer_trunk">(
    "CFG-35",
    "eni_cap_policy",
    oneOf<"prefer_eni" | "prefer_trunk">({ prefer_trunk: "prefer_trunk", prefer_eni: "prefer_eni" }),
    "prefer_eni",
  ),
  enableEniTrunking: key<boolean | undefined>("CFG-36", "enable_eni_trunking", flag, undefined),
  trunkEniCount: key<number>("CFG-37", "trunk_eni_count", whole(0, 64), 1, { idle: true }),
  /** ENIs without a pod kept attached. */
  preAttachEniCount: key<number>("CFG-38", "pre_attach_eni_count", whole(0, 64), 0),
  /** From which ENI an idle address is handed out (CON-9). */
  preferEniWithMostIps: key<boolean>("CFG-39", "ip_allocation_policy.prefer_eni_with_most_ips", flag, true),
  ipReservePercent: key<number>("CFG-40", "ip_allocation_policy.ip_reserve_percent", whole(0, 90), 0),
  warmup: key<boolean>("CFG-41", "ip_warmup.enable", flag, false, { inSection: true }),
  warmupIntervalSeconds: key<number>("CFG-42", "ip_warmup.warmup_interval_seconds", seconds, 60),
  warmupBatchSize: key<number>("CFG-43", "ip_warmup.warmup_batch_size", whole(1, 1000), 10),
  gc: key<boolean>("CFG-44", "resource_gc.enable", flag, false, { inSection: true }),
  gcIntervalSeconds: key<number>("CFG-45", "resource_gc.interval_seconds", seconds, 300),
  /** Acts without the sub-object too: the built-in idle shrink (POOL-8, CON-8). */
  idleIpTtlSeconds: key<number>("CFG-46", "resource_gc.idle_ip_ttl_seconds", seconds, 300),
  orphanEniTtlSeconds: key<number>("CFG-47", "resource_gc.orphan_eni_ttl_seconds", seconds, 600),
  /** Absent: the node-local brake of the rate limiter, which is slower than any value a person would set. */
  eniCreateQps: key<number | undefined>("CFG-48", "rate_limit.eni_create_qps", rate, undefined),
  eniDeleteQps: key<number | undefined>("CFG-49", "rate_limit.eni_delete_qps", rate, undefined),
  ipAssignQps: key<number | undefined>("CFG-50", "rate_limit.ip_assign_qps", rate, undefined),
  ipUnassignQps: key<number | undefined>("CFG-51", "rate_limit.ip_unassign_qps", rate, undefined),
  burstSize: key<number | undefined>("CFG-52", "rate_limit.burst_size", whole(1, 1000), undefined),
  batch: key<boolean>("CFG-53", "batch_config.enable", flag, false, { inSection: true }),
  batchSize: key<number>("CFG-54", "batch_config.batch_size", whole(1, 1000), 20),
  batchIntervalMs: key<number>("CFG-55", "batch_config.batch_interval_ms", whole(0, 10_000), 100),
  eniCacheTtlSeconds: key<number | undefined>("CFG-56", "cache_config.eni_cache_ttl_seconds", seconds, undefined),
  ipCacheTtlSeconds: key<number | undefined>("CFG-57", "cache_config.ip_cache_ttl_seconds", seconds, undefined),
  vpcCacheTtlSeconds: key<number>("CFG-58", "cache_config.vpc_cache_ttl_seconds", seconds, 600),
  leaderElection: key<boolean>("CFG-59", "ha_config.leader_election", flag, true, { idle: true }),
  leaseDurationSeconds: key<number>("CFG-60", "ha_config.lease_duration_seconds", seconds, 15, { idle: true }),
  renewDeadlineSeconds: key<number>("CFG-61", "ha_config.renew_deadline_seconds", seconds, 10, { idle: true }),
  retryPeriodSeconds: key<number>("CFG-62", "ha_config.retry_period_seconds", seconds, 2, { idle: true }),
  securityGroupPerPod: key<boolean>("CFG-63", "security_group_per_pod", flag, false, { idle: true }),

  /** Not of the seeds: the ConfigMap key of the same name, which the inline form may carry too (CFG-1). */
  disableNetworkPolicy: key<boolean>("CFG-1", "disable_network_policy", quotedFlag, false),
  /** Not of the seeds here: of 10-terway.conf there, with IPv6 alone added (CFG-74). */
  ipStack: key<IpStack>("CFG-74", "ip_stack", IP_STACK, "ipv4"),
  /** Not of the seeds: caps the ENIs used for pods below the instance's own limit (CON-10). */
  maxEni: key<number | undefined>("CON-10", "max_eni", whole(0, 256), undefined),
  /** Not of the seeds: which vSwitch of the zone a new ENI goes to. `most` takes the one with most free addresses. */
  vswitchSelectionPolicy: key<VSwitchSelectionPolicy>(
    "POOL-17",
    "vswitch_selection_policy",
    oneOf<VSwitchSelectionPolicy>({ most: "most", ordered: "ordered", random: "random" }),
    "most",
  ),
};

type Keys = typeof ENI_CONF_KEYS;

/** A whole, checked configuration. Its members are documented in `ENI_CONF_KEYS`. */
export type EniConfig = {
  readonly [K in keyof Keys]: Keys[K] extends KeySpec<infer T> ? T : never;
};

export const KEY_SPECS: readonly (readonly [keyof EniConfig, KeySpec<unknown>])[] = Object.entries(
  ENI_CONF_KEYS,
) as unknown as [keyof EniConfig, KeySpec<unknown>][];
