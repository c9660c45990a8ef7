import { describe, expect, it } from "vitest";
import { KEY_SPECS } from "../../shared/config/eni-conf-keys.ts";
import { kernelWithout } from "../../shared/kernel/probe.ts";
import { type Converted, convertConfig, type LegacyDocuments } from "./from-config.ts";
import { lintConflist } from "./lint.ts";
import { formatConflist } from "./render.ts";

/** ARC-25 and MODE-46, as they stand in the requirements. */
const SINGLE = `{
  "cniVersion": "0.4.0",
  "name": "terway",
  "type": "terway",
  "eniip_virtual_type": "IPVlan",
  "ip_stack": "ipv4"
}`;
/** ARC-24 */
const LIST = `{
  "cniVersion": "1.0.0",
  "name": "k8s-pod-network",
  "plugins": [
    {
      "type": "terway",
      "eni_conf": "/etc/eni/eni_conf",
      "eni_max_pool_size": 25,
      "eni_min_pool_size": 10,
      "eni_vswitches": { "cn-hangzhou-h": ["vsw-1"], "cn-hangzhou-i": ["vsw-2"] }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}`;
const eniConf = (more: object = {}) => `{
  // the node's network
  "version": "1",
  "security_group": "sg-bp1xxx",
  "service_cidr": "172.16.0.0/16",
  "vswitches": { "cn-hangzhou-h": ["vsw-bp1xxx"] }${Object.entries(more)
    .map(([k, v]) => `,\n  "${k}": ${JSON.stringify(v)}`)
    .join("")}
}`;

function convert(legacy: Partial<LegacyDocuments>, hasIpvlan: boolean | undefined = true): Converted {
  const outcome = convertConfig({ terwayConf: SINGLE, eniConf: eniConf(), ...legacy }, hasIpvlan);
  if (outcome.kind === "refused") throw new Error(outcome.faults.join("\n"));
  return outcome;
}
const types = (c: Converted) => c.conflist.plugins.map((p) => p.type);
const accountOf = (c: Converted, key: string) => c.accounts.find((a) => a.key === key);
const single = (more: object) => JSON.stringify({ ...JSON.parse(SINGLE), ...more });

describe("convertConfig", () => {
  it("turns the single-plugin form into a chain of the same name and version", () => {
    const done = convert({});
    expect(formatConflist(done.conflist)).toBe(`{
  "cniVersion": "0.4.0",
  "name": "terway",
  "plugins": [
    {
      "type": "terway-ipvlan",
      "capabilities": { "ips": true },
      "ipam": { "type": "terway-ipam" }
    },
    {
      "type": "terway-policy"
    },
    {
      "type": "portmap",
      "capabilities": { "portMappings": true },
      "masqAll": true
    },
    {
      "type": "terway-bandwidth",
      "capabilities": { "bandwidth": true }
    }
  ]
}
`);
    expect(done.warnings).toEqual([]);
    expect(done.eniConf).toBeUndefined();
  });

  it("falls back to veth where the kernel has no IPvlan, and says so (CON-20)", () => {
    const done = convert({}, false);
    expect(done.mode).toBe("eniip-veth");
    expect(types(done)).toEqual(["terway-eni", "terway-policy", "portmap", "terway-bandwidth"]);
    expect(done.warnings).toEqual([expect.stringContaining("asks for IPvlan, and this kernel has none")]);
    expect(convertConfig({ terwayConf: SINGLE, eniConf: eniConf() }, undefined)).toMatchObject({
      mode: "eniip-ipvlan",
      warnings: [expect.stringContaining("run terway-cli node check")],
    });
  });

  it.each([
    ["VPC", "vpc"],
    ["ENI", "eni-exclusive"],
    ["Trunk", "trunk"],
    ["Trunking", "trunk"],
  ])("network_mode %s is mode %s, whatever the virtual type", (networkMode, mode) => {
    const done = convert({ eniConf: eniConf({ network_mode: networkMode, Network: "10.0.0.0/8" }) }, false);
    expect(done.mode).toBe(mode);
    expect(accountOf(done, "network_mode")).toMatchObject({ verdict: "translated" });
    expect(accountOf(done, "eniip_virtual_type")).toMatchObject({ verdict: "not needed" });
  });

  it.each([
    ["Veth", "eniip-veth"],
    ["veth", "eniip-veth"],
    ["ipvlan", "eniip-ipvlan"],
    ["datapathv2", "eniip-cilium"],
  ])("eniip_virtual_type %s is mode %s", (type, mode) => {
    expect(convert({ terwayConf: single({ eniip_virtual_type: type }) }).mode).toBe(mode);
  });

  it("keeps what was chained, with its settings, and moves inline keys into eni_conf (CON-5, CON-6)", () => {
    const terwayConf = LIST.replace(
      '{ "type": "portmap"',
      '{ "type": "tuning", "mtu": 1400 },\n{ "type": "portmap", "snat": true',
    );
    const done = convert({ terwayConf, eniConf: eniConf({ max_pool_size: 5, ip_warmup: { enable: true } }) });
    expect(done.conflist.name).toBe("k8s-pod-network");
    expect(types(done)).toEqual(["terway-ipvlan", "terway-policy", "portmap", "tuning", "terway-bandwidth"]);
    expect(done.conflist.plugins[2]).toMatchObject({ snat: true, masqAll: true });
    expect(done.conflist.plugins[3]).toEqual({ type: "tuning", mtu: 1400 });
    expect(done.eniConf).toMatchObject({
      security_group: "sg-bp1xxx",
      max_pool_size: 25,
      min_pool_size: 10,
      vswitches: { "cn-hangzhou-h": ["vsw-1"], "cn-hangzhou-i": ["vsw-2"] },
      ip_warmup: { enable: true },
    });
    expect(Object.keys(done.eniConf ?? {})).not.toContain("eni_vswitches");
    expect(accountOf(done, "max_pool_size")).toMatchObject({ source: "10-terway.conf", verdict: "moved" });
  });

  it("has one plugin shape: terway-bandwidth, with the rates that bandwidth had", () => {
    const chained = {
      type: "bandwidth",
      ingressRate: 1000,
      ingressBurst: 2000,
      capabilities: { bandwidth: true },
      shapedSubnets: [],
    };
    const terwayConf = JSON.stringify({ ...JSON.parse(LIST), plugins: [{ type: "terway" }, chained] });
    const done = convert({ terwayConf });
    expect(done.conflist.plugins.at(-1)).toEqual({
      type: "terway-bandwidth",
      capabilities: { bandwidth: true },
      ingressRate: 1000,
      ingressBurst: 2000,
    });
    expect(types(done)).not.toContain("bandwidth");
    expect(done.warnings).toEqual([expect.stringContaining('"plugins: bandwidth.shapedSubnets" is not supported')]);
    expect(types(convert({ terwayConf: single({ capabilities: { bandwidth: true } }) })).at(-1)).toBe(
      "terway-bandwidth",
    );
  });

  it("leaves policies to Cilium where it is chained", () => {
    const terwayConf = JSON.stringify({
      ...JSON.parse(LIST),
      plugins: [{ type: "terway" }, { type: "cilium-cni", "enable-debug": true }],
    });
    const done = convert({ terwayConf, disableNetworkPolicy: "false" });
    expect(types(done)).toEqual(["terway-eni", "portmap", "cilium-cni"]);
    expect(done.conflist.plugins.at(-1)).toEqual({
      type: "cilium-cni",
      "chaining-mode": "generic-veth",
      "enable-debug": true,
    });
    expect(accountOf(done, "disable_network_policy")).toMatchObject({ verdict: "not needed" });
  });

  it.each([
    ["the ConfigMap", { disableNetworkPolicy: "true" }],
    ["eni_conf", { eniConf: eniConf({ disable_network_policy: "true" }) }],
    ["the add-on", { addonOptions: '{"IPVlan":"true","NetworkPolicy":"false"}' }],
  ])("leaves terway-policy out where %s says so", (_who, legacy) => {
    expect(types(convert(legacy))).not.toContain("terway-policy");
  });

  it("asks the add-on for the virtual type only where 10-terway.conf has none (CON-21)", () => {
    const addonOptions = '{"IPVlan":"false","NetworkPolicy":"true"}';
    const { eniip_virtual_type: _, ...without } = JSON.parse(SINGLE);
    expect(convert({ terwayConf: JSON.stringify(without), addonOptions }).mode).toBe("eniip-veth");
    expect(convert({ addonOptions }).mode).toBe("eniip-ipvlan");
  });

  it("says what it does not know, loudly", () => {
    const done = convert({
      terwayConf: single({ wat: 1, disable_host_peer: true }),
      eniConf: eniConf({ huh: 2, trunk_eni_count: 2 }),
    });
    expect(accountOf(done, "wat")).toMatchObject({ verdict: "unsupported" });
    expect(accountOf(done, "huh")).toMatchObject({ source: "eni_conf", verdict: "unsupported" });
    expect(done.warnings.join("\n")).toMatch(
      /"wat" is not supported[\s\S]*disable_host_peer|disable_host_peer[\s\S]*"wat"/,
    );
    expect(done.warnings.join("\n")).toMatch(/huh/);
    expect(done.warnings.join("\n")).toMatch(/trunk_eni_count.*does not act on it yet/);
  });

  it("accounts for every key that it finds, exactly once", () => {
    const keys = KEY_SPECS.map(([, s]) => s.path);
    const plain = { max_pool_size: 30, eni_tags: { a: "b" }, hot_plug: true, ip_warmup: { enable: true }, surprise: 1 };
    const terwayConf = single({
      mtu: 1400,
      host_stack_cidrs: ["169.254.20.10/32"],
      symmetric_routing: true,
      other: 1,
      min_pool_size: 3,
    });
    const done = convert({ terwayConf, eniConf: eniConf(plain), disableNetworkPolicy: "false" });
    const found = done.accounts.map((a) => `${a.source} ${a.key}`);
    expect([...found].sort()).toEqual(
      [
        ...[
          "cniVersion",
          "name",
          "type",
          "eniip_virtual_type",
          "ip_stack",
          "mtu",
          "host_stack_cidrs",
          "symmetric_routing",
          "other",
          "min_pool_size",
        ].map((k) => `10-terway.conf ${k}`),
        ...[
          "version",
          "security_group",
          "service_cidr",
          "vswitches",
          "max_pool_size",
          "eni_tags",
          "hot_plug",
          "ip_warmup.enable",
          "surprise",
        ].map((k) => `eni_conf ${k}`),
        "eni-config disable_network_policy",
      ].sort(),
    );
    expect(keys).toContain("ip_warmup.enable");
    expect(done.conflist.plugins[0]).toMatchObject({ mtu: 1400, hostStackCIDRs: ["169.254.20.10/32"] });
  });

  it.each<[legacy: Partial<LegacyDocuments>, fault: string]>([
    [{ terwayConf: "{\n  oops" }, "10-terway.conf, line 2, column 3:"],
    [{ terwayConf: "[]" }, "no JSON object"],
    [{ terwayConf: '{"type":"calico"}' }, '0 plugins of type "terway"'],
    [{ terwayConf: '{"plugins":[{"type":"terway"},{"type":"terway"}]}' }, '2 plugins of type "terway"'],
    [{ terwayConf: '{"plugins":[{"type":"terway-eni"}]}' }, "terway-eni already"],
    [{ terwayConf: '{"plugins":[{}]}' }, "plugin 1 has no type"],
    [{ terwayConf: single({ eniip_virtual_type: "macvlan" }) }, '"eniip_virtual_type" is "macvlan"'],
    [{ terwayConf: single({ ip_stack: "ipv5" }) }, '"ip_stack" is "ipv5"'],
    [{ eniConf: "{" }, "Cannot read eni_conf: line 1, column 2"],
    [{ eniConf: eniConf({ network_mode: "eniip" }) }, '"network_mode" is "eniip"'],
    [{ eniConf: eniConf({ max_pool_size: 5 }), terwayConf: single({ min_pool_size: 9 }) }, '"min_pool_size" is 9'],
    [{ disableNetworkPolicy: "maybe" }, '"disable_network_policy" is "maybe"'],
    [{ addonOptions: "{" }, "Cannot read the add-on's options"],
    [{ terwayConf: single({ mtu: 9 }) }, "mtu 9: want bytes"],
  ])("refuses %j", (legacy, fault) => {
    const outcome = convertConfig({ terwayConf: SINGLE, eniConf: eniConf(), ...legacy }, true);
    expect(outcome).toEqual({ kind: "refused", faults: expect.arrayContaining([expect.stringContaining(fault)]) });
  });

  it("takes the short core form, whose required keys the node knows (CFG-7)", () => {
    const core =
      '{"version":"1","daemon_mode":"ENIIP","eni_max_pool_size":25,"eni_min_pool_size":10,"eni_selection_policy":"least-ip","hot_plug":true}';
    const done = convert({ eniConf: core });
    expect(done.mode).toBe("eniip-ipvlan");
    expect(done.warnings).toEqual([]);
    expect(JSON.stringify(done)).not.toMatch(/unknown|192\.0\.2/);
  });

  it("makes nothing that lint would object to", () => {
    for (const terwayConf of [
      SINGLE,
      LIST,
      single({ eniip_virtual_type: "datapathv2" }),
      single({ capabilities: { bandwidth: true } }),
    ])
      for (const hasIpvlan of [true, false]) {
        const text = formatConflist(convert({ terwayConf }, hasIpvlan).conflist);
        expect(lintConflist(text, { kernel: hasIpvlan ? kernelWithout() : kernelWithout("ipvlan") })).toEqual([]);
      }
  });
});
