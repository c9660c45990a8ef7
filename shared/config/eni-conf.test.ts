import { describe, expect, it } from "vitest";
import { keysNotActedOn, parseEniConf, redactedConfig } from "./eni-conf.ts";
import { type EniConfig, KEY_SPECS } from "./eni-conf-keys.ts";
import { trunkingEnabled } from "./eni-conf-rules.ts";

/** The least that the required keys ask for. */
const core = {
  security_group: "sg-bp1xxx",
  service_cidr: "172.16.0.0/16",
  vswitches: { "cn-hangzhou-h": ["vsw-bp1xxx"] },
};

const parse = (more: object, options = {}) => parseEniConf({ ...core, ...more }, options);

/** One row per key and alias: a value that is taken, and one that is refused. */
interface Row {
  readonly id: string;
  readonly key: string;
  readonly good: unknown;
  readonly reads: Partial<EniConfig>;
  readonly bad: unknown;
}
const row = (id: string, key: string, good: unknown, reads: Partial<EniConfig>, bad: unknown): Row => ({
  id,
  key,
  good,
  reads,
  bad,
});

const rows: readonly Row[] = [
  row("CFG-74", "ip_stack", "ipv6", { ipStack: "ipv6" }, "ipv5"),
  row("CFG-1", "disable_network_policy", "true", { disableNetworkPolicy: true }, "yes"),
  row("CFG-10", "version", "1", { version: "1" }, 1),
  row("CFG-11", "access_key", "", { accessKey: "" }, 7),
  row("CFG-12", "access_secret", "", { accessSecret: "" }, null),
  row("CFG-13", "security_group", "sg-1", { securityGroup: "sg-1" }, "vsw-1"),
  row("CFG-14", "service_cidr", "172.16.0.0/16", { serviceCidrs: ["172.16.0.0/16"] }, "172.16.0.1/16"),
  row("CFG-15", "vswitches", { z: ["vsw-1", "vsw-2"] }, { vswitches: { z: ["vsw-1", "vsw-2"] } }, { z: [] }),
  row("CFG-16", "max_pool_size", 60, { maxPoolSize: 60 }, "60"),
  row("CFG-17", "min_pool_size", 0, { minPoolSize: 0 }, -1),
  row("CFG-18", "eni_tags", { a: "b" }, { eniTags: { a: "b" } }, { "acs:x": "y" }),
  row("CFG-19", "network_mode", "Trunking", { networkMode: "Trunk" }, "eniip"),
  row("CFG-20", "daemon_mode", "ENIIP", { networkMode: "ENIIP" }, "ENIMultiIP"),
  row("CFG-21", "eni_max_pool_size", 30, { maxPoolSize: 30 }, 1.5),
  row("CFG-21", "eni_min_pool_size", 3, { minPoolSize: 3 }, true),
  row("CFG-23", "Network", "10.0.0.0/8", { clusterCidrs: ["10.0.0.0/8"] }, "10.0.0.0"),
  row("CFG-30", "eni_selection_policy", "least-ip", { eniSelectionPolicy: "least-ip" }, "random"),
  row("CFG-31", "hot_plug", false, { hotPlug: false }, "false"),
  row("CFG-32", "trunk_on", true, { trunkOn: true }, 1),
  row("CFG-33", "eni_capability.trunk", true, { declaredTrunk: true }, "true"),
  row("CFG-34", "eni_capability.member_adapters", 200, { memberAdapters: 200 }, 5000),
  row("CFG-35", "eni_cap_policy", "prefer_trunk", { eniCapPolicy: "prefer_trunk" }, "trunk"),
  row("CFG-36", "enable_eni_trunking", true, { enableEniTrunking: true }, []),
  row("CFG-37", "trunk_eni_count", 2, { trunkEniCount: 2 }, 65),
  row("CFG-38", "pre_attach_eni_count", 2, { preAttachEniCount: 2 }, -1),
  row("CFG-39", "ip_allocation_policy.prefer_eni_with_most_ips", false, { preferEniWithMostIps: false }, 0),
  row("CFG-40", "ip_allocation_policy.ip_reserve_percent", 20, { ipReservePercent: 20 }, 100),
  row("CFG-41", "ip_warmup.enable", true, { warmup: true }, "on"),
  row("CFG-42", "ip_warmup.warmup_interval_seconds", 60, { warmupIntervalSeconds: 60, warmup: true }, 0),
  row("CFG-43", "ip_warmup.warmup_batch_size", 5, { warmupBatchSize: 5 }, 0),
  row("CFG-44", "resource_gc.enable", true, { gc: true }, {}),
  row("CFG-45", "resource_gc.interval_seconds", 120, { gcIntervalSeconds: 120, gc: true }, "2m"),
  row("CFG-46", "resource_gc.idle_ip_ttl_seconds", 600, { idleIpTtlSeconds: 600 }, 0.5),
  row("CFG-47", "resource_gc.orphan_eni_ttl_seconds", 1800, { orphanEniTtlSeconds: 1800 }, 100_000),
  row("CFG-48", "rate_limit.eni_create_qps", 0.5, { eniCreateQps: 0.5 }, 0),
  row("CFG-49", "rate_limit.eni_delete_qps", 10, { eniDeleteQps: 10 }, -1),
  row("CFG-50", "rate_limit.ip_assign_qps", 50, { ipAssignQps: 50 }, "50"),
  row("CFG-51", "rate_limit.ip_unassign_qps", 50, { ipUnassignQps: 50 }, null),
  row("CFG-52", "rate_limit.burst_size", 20, { burstSize: 20 }, 0),
  row("CFG-53", "batch_config.enable", true, { batch: true }, 1),
  row("CFG-54", "batch_config.batch_size", 20, { batchSize: 20, batch: true }, 0),
  row("CFG-55", "batch_config.batch_interval_ms", 100, { batchIntervalMs: 100 }, 20_000),
  row("CFG-56", "cache_config.eni_cache_ttl_seconds", 300, { eniCacheTtlSeconds: 300 }, 0),
  row("CFG-57", "cache_config.ip_cache_ttl_seconds", 60, { ipCacheTtlSeconds: 60 }, 0),
  row("CFG-58", "cache_config.vpc_cache_ttl_seconds", 600, { vpcCacheTtlSeconds: 600 }, 0),
  row("CFG-59", "ha_config.leader_election", true, { leaderElection: true }, "true"),
  row("CFG-60", "ha_config.lease_duration_seconds", 30, { leaseDurationSeconds: 30 }, "15s"),
  row("CFG-61", "ha_config.renew_deadline_seconds", 12, { renewDeadlineSeconds: 12 }, 0),
  row("CFG-62", "ha_config.retry_period_seconds", 3, { retryPeriodSeconds: 3 }, 0),
  row("CFG-63", "security_group_per_pod", true, { securityGroupPerPod: true }, "true"),
  row("CON-10", "max_eni", 2, { maxEni: 2 }, -1),
  row("POOL-17", "vswitch_selection_policy", "ordered", { vswitchSelectionPolicy: "ordered" }, "first"),
];
// The long name of vswitches takes the place of the short one.
const eniVSwitches = row("CFG-22", "eni_vswitches", { z: ["vsw-9"] }, { vswitches: { z: ["vsw-9"] } }, ["vsw-9"]);

/** `a.b` → { a: { b: value } } */
const nested = (key: string, value: unknown): object => {
  const [section = "", member] = key.split(".");
  return member === undefined ? { [section]: value } : { [section]: { [member]: value } };
};
const withKey = (key: string, value: unknown) => {
  const { vswitches, ...rest } = core;
  return key === "eni_vswitches" ? { ...rest, ...nested(key, value) } : { ...rest, vswitches, ...nested(key, value) };
};

describe("every key of eni_conf", () => {
  it("has a row here, and so has every other name", () => {
    const spelled = KEY_SPECS.flatMap(([, spec]) => [spec.path, ...spec.aliases]);
    expect([...rows, eniVSwitches].map((r) => r.key).sort()).toEqual(spelled.sort());
  });

  it("of requirements 2.2 and 2.3 has a row", () => {
    const numbers = [...Array.from({ length: 14 }, (_, i) => 10 + i), ...Array.from({ length: 34 }, (_, i) => 30 + i)];
    const ids = new Set([...rows, eniVSwitches].map((r) => r.id));
    expect(numbers.map((n) => `CFG-${n}`).filter((id) => !ids.has(id))).toEqual([]);
  });

  it.each([...rows, eniVSwitches])("$id $key takes $good", ({ key, good, reads }) => {
    const { config, faults } = parseEniConf(withKey(key, good));
    expect(faults).toEqual([]);
    expect(config).toMatchObject(reads);
  });

  it.each([...rows, eniVSwitches])("$id $key refuses $bad, naming key, value and accepted form", ({ key, bad }) => {
    const { config, faults } = parseEniConf(withKey(key, bad));
    expect(config).toBeUndefined();
    expect(faults.map((f) => f.key)).toContain(key);
    const fault = faults.find((f) => f.key === key);
    expect(fault?.accepted).not.toBe("");
    expect(fault?.message).toContain(`"${key}" is ${/access/.test(key) ? '"***"' : JSON.stringify(bad)}: want`);
  });
});

describe("parseEniConf", () => {
  it("fills in the defaults of CFG-64", () => {
    expect(parse({}).config).toMatchObject({
      version: "1",
      maxPoolSize: 25,
      minPoolSize: 10,
      networkMode: "ENIIP",
      hotPlug: true,
      eniCapPolicy: "prefer_eni",
      preAttachEniCount: 0,
      trunkEniCount: 1,
      warmup: false,
      gc: false,
      batch: false,
      idleIpTtlSeconds: 300,
      orphanEniTtlSeconds: 600,
      ipReservePercent: 0,
      eniCreateQps: undefined,
    });
  });

  it("reports all faults at once", () => {
    const { faults } = parseEniConf({ max_pool_size: "many", hot_plug: 1, ip_warmup: 5 });
    expect(faults.map((f) => f.key).sort()).toEqual([
      "hot_plug",
      "ip_warmup",
      "max_pool_size",
      "security_group",
      "service_cidr",
      "vswitches",
    ]);
    expect(faults.find((f) => f.key === "security_group")?.message).toContain('"security_group" is missing: want');
  });

  it("names line and column of a text that is no JSON, and nothing else", () => {
    const { faults } = parseEniConf('{\n  "version": "1",,\n}');
    expect(faults.map((f) => f.message)).toEqual([
      'Cannot read eni_conf: line 2, column 18: expected a name in double quotes, got ","',
    ]);
  });

  it.each([
    ["other names with differing values (CON-1)", { network_mode: "ENIIP", daemon_mode: "VPC" }, "daemon_mode"],
    ["other names with differing values (CON-2)", { max_pool_size: 25, eni_max_pool_size: 30 }, "eni_max_pool_size"],
    ["min above max", { max_pool_size: 5, min_pool_size: 6 }, "min_pool_size"],
    ["half a credential", { access_key: "LTAI" }, "access_secret"],
    ["trunking switched off in mode Trunk (CON-3)", { network_mode: "Trunk", trunk_on: false }, "trunk_on"],
    [
      "a declared false in mode Trunk (CON-3)",
      { network_mode: "Trunk", eni_capability: { trunk: false } },
      "eni_capability.trunk",
    ],
    ["renew after lease", { ha_config: { renew_deadline_seconds: 15 } }, "ha_config.renew_deadline_seconds"],
    ["retry after renew", { ha_config: { retry_period_seconds: 10 } }, "ha_config.renew_deadline_seconds"],
    ["pod range on the Service range", { Network: "172.16.128.0/20" }, "Network"],
    ["a vSwitch id without its prefix", { vswitches: { z: ["sw-1"] } }, "vswitches"],
    ["no vSwitch at all", { vswitches: {} }, "vswitches"],
    ["an IPv4 range given twice", { service_cidr: "172.16.0.0/16,172.17.0.0/16" }, "service_cidr"],
    [
      "too many tags",
      { eni_tags: Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`k${i}`, "v"])) },
      "eni_tags",
    ],
  ])("refuses %s", (_claim, more, key) => {
    const { config, faults } = parse(more);
    expect(config).toBeUndefined();
    expect(faults.map((f) => f.key)).toEqual([key]);
  });

  it.each([
    ["equal values under two names", { network_mode: "Trunk", daemon_mode: "Trunking" }],
    [
      "equal maps in another order",
      { vswitches: { a: ["vsw-1"], b: ["vsw-2"] }, eni_vswitches: { b: ["vsw-2"], a: ["vsw-1"] } },
    ],
    ["dual-stack Service ranges", { service_cidr: "172.16.0.0/16, fd00::/108" }],
    [
      "the core form with what it leaves out (CFG-7)",
      {
        version: "1",
        daemon_mode: "ENIIP",
        eni_max_pool_size: 25,
        eni_min_pool_size: 10,
        eni_selection_policy: "least-ip",
        hot_plug: true,
      },
    ],
  ])("takes %s", (_claim, more) => expect(parse(more).faults).toEqual([]));

  it("refuses a Service range that overlaps the VPC, and says which", () => {
    const { faults } = parse({}, { vpcCidrs: ["10.0.0.0/8", "172.16.0.0/12"] });
    expect(faults.map((f) => f.message)).toEqual([
      '"service_cidr" is "172.16.0.0/16": want a range outside of the VPC\'s 172.16.0.0/12 (Service and VPC addresses could not be told apart)',
    ]);
    expect(parse({}, { vpcCidrs: ["10.0.0.0/8"] }).faults).toEqual([]);
  });

  it("lets inline keys win, and leaves the plugin's other keys alone (CON-6)", () => {
    const inline = {
      type: "terway",
      eni_conf: "/etc/eni/eni_conf",
      eni_max_pool_size: 40,
      eni_vswitches: { z: ["vsw-7"] },
    };
    const { config, warnings, given } = parse({ max_pool_size: 30 }, { inline });
    expect(config).toMatchObject({ maxPoolSize: 40, vswitches: { z: ["vsw-7"] } });
    expect(warnings).toEqual([]);
    expect(given).toContain("max_pool_size");
  });

  it("takes from the node what the core form leaves out, with a warning each", () => {
    const discovered = { security_group: "sg-node", vswitches: { z: ["vsw-node"] } };
    const { config, warnings, given } = parseEniConf({ version: "1", service_cidr: "172.16.0.0/16" }, { discovered });
    expect(config).toMatchObject({ securityGroup: "sg-node", vswitches: { z: ["vsw-node"] } });
    expect(warnings.map((w) => w.key)).toEqual(["security_group", "vswitches"]);
    expect(given).toEqual(["version", "service_cidr"]);
  });

  it("warns of unknown keys, also inside of sub-objects", () => {
    const { config, warnings } = parse({ max_pol_size: 3, ip_warmup: { intervall: 3 } });
    expect(config).toBeDefined();
    expect(warnings.map((w) => w.key)).toEqual(["max_pol_size", "ip_warmup.intervall"]);
  });

  it("turns a feature on by its sub-object alone, and off by enable: false", () => {
    expect(parse({ ip_warmup: {} }).config?.warmup).toBe(true);
    expect(parse({ ip_warmup: { enable: false, warmup_batch_size: 3 } }).config?.warmup).toBe(false);
  });

  it("shows no secret anywhere (CFG-12, CON-40)", () => {
    const good = parse({ access_key: "LTAI4key", access_secret: "s3cr3t-value" });
    expect(good.warnings.map((w) => w.key)).toEqual(["access_secret"]);
    expect(good.config?.accessSecret).toBe("s3cr3t-value");
    const shown = JSON.stringify([good.warnings, good.config && redactedConfig(good.config)]);
    expect(shown).not.toMatch(/s3cr3t|LTAI4/);
    const bad = parse({ access_key: ["LTAI4key"], access_secret: { x: "s3cr3t-value" } });
    expect(JSON.stringify(bad)).not.toMatch(/s3cr3t|LTAI4/);
    const differing = parse({}, { inline: { access_key: 5 } });
    expect(differing.faults.map((f) => f.value)).toEqual(['"***"']);
  });

  it("lists the keys that nothing acts on yet, only when they are set", () => {
    expect(keysNotActedOn(parse({ hot_plug: true }))).toEqual([]);
    expect(keysNotActedOn(parse({ security_group_per_pod: true, ha_config: { retry_period_seconds: 1 } }))).toEqual([
      "security_group_per_pod",
      "ha_config.retry_period_seconds",
    ]);
  });

  it.each([
    ["mode Trunk", { network_mode: "Trunk" }, true],
    ["ENIIP with trunk_on", { trunk_on: true }, true],
    ["ENIIP with enable_eni_trunking", { enable_eni_trunking: true }, true],
    ["ENIIP with a declaration alone", { eni_capability: { trunk: true } }, false],
    ["VPC with trunk_on", { network_mode: "VPC", trunk_on: true }, false],
  ])("%s: trunking is %s (CON-3)", (_claim, more, want) => {
    const { config } = parse(more);
    expect(config && trunkingEnabled(config)).toBe(want);
  });
});
