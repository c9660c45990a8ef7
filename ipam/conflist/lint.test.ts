import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseInterfaceConfig } from "../../plugins/interface/config.ts";
import { parseIpamConfig } from "../../plugins/terway-ipam/config.ts";
import { parsePolicyConfig } from "../../plugins/terway-policy/config.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { kernelWithout } from "../../shared/kernel/probe.ts";
import { lintConflist } from "./lint.ts";
import type { NodeFacts } from "./lint-finding.ts";
import { MODE_NAMES } from "./modes.ts";
import { editDistance, nearest } from "./nearest.ts";
import { IPAM_KEYS, PLUGINS } from "./plugins.ts";
import { type Conflist, formatConflist, mustRender, type PluginConf } from "./render.ts";

const said = (text: string, node?: NodeFacts) =>
  lintConflist(text, node).map((f) => `${f.line}:${f.column} ${f.level}: ${f.message}; ${f.remedy}`);

const ENI = { type: "terway-eni", ipam: { type: "terway-ipam" } };
const PORTMAP = { type: "portmap", capabilities: { portMappings: true } };
const chain = (...plugins: unknown[]) => JSON.stringify({ cniVersion: "1.0.0", name: "n", plugins }, null, 1);

describe("lintConflist", () => {
  it.each(MODE_NAMES)("has nothing to say of the conflist of mode %s", (mode) => {
    const everything = { networkPolicy: true, portmap: true, bandwidth: true };
    const all = MODE_NAMES.filter((m) => ["eniip-veth", "vpc", "trunk"].includes(m)).includes(mode) ? everything : {};
    expect(said(formatConflist(mustRender({ mode, ...all })), { kernel: kernelWithout() })).toEqual([]);
  });

  it("points at each fault of a file by line and column", () => {
    const text = `{
  "cniVersion": "1.2.0",
  "name": "a b",
  "pluggins": [],
  "plugins": [
    {
      "type": "terway-eni",
      "mod": "shared",
      "mtu": 100,
      "ipam": { "type": "terway-ipam", "pol": "eni", "waitSeconds": "3" }
    },
    { "type": "portmap", "capabilities": { "portMapings": true } }
  ]
}`;
    expect(said(text)).toEqual([
      '2:17 error: cniVersion is "1.2.0"; use one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0',
      "3:11 error: name is \"a b\"; start with a letter or digit, go on with letters, digits, '.', '_' or '-'",
      '4:3 warning: a conflist has no key "pluggins": it does nothing; did you mean "plugins"?',
      '8:7 warning: terway-eni has no key "mod": it does nothing; did you mean "mode"?',
      "9:14 error: terway-eni: mtu is 100; want a whole number from 1280 to 9500, without quotes, in bytes",
      '10:40 warning: terway-ipam has no key "pol": it does nothing; did you mean "pool"?',
      '10:69 error: terway-ipam: waitSeconds is "3"; want a number from 0 to 3600',
      '12:5 warning: portmap without the capability portMappings: host ports are not handed to it; add "capabilities": { "portMappings": true }',
      '12:44 warning: no runtime knows the capability "portMapings"; did you mean "portMappings"?',
    ]);
  });

  it.each<[text: string, finding: string]>([
    ["{", "1:2 error: not JSON: expected a name in double quotes, got the end of the document; correct it there"],
    ['{"a": 1,\n}', "1:8 error: not JSON: a comma before"],
    ["[]", "1:1 error: not a JSON object"],
    [chain(ENI).replace("{", "{ // ours\n"), "1:3 error: a comment is not JSON"],
    [
      '{"cniVersion":"0.4.0","name":"terway","type":"terway"}',
      '1:39 error: one plugin by itself (type "terway"), not a list; turn it into a list with: terway-cli conflist from-config',
    ],
    ['{"cniVersion":"1.0.0","name":"n","plugins":[]}', "1:34 error: plugins is not a list"],
    [chain(), "4:2 error: plugins is not a list"],
    [chain("x"), '5:3 error: plugin 1 is "x"'],
    [chain({ type: "a/b" }), '6:12 error: type of plugin 1 is "a/b"'],
    [chain(PORTMAP, ENI), "5:3 error: portmap comes first, but makes no interface"],
    [chain(ENI, { type: "ptp" }), "11:3 error: ptp makes the pod's interface and comes as number 2"],
    [chain(ENI, PORTMAP, PORTMAP), "17:3 error: portmap is in the chain twice"],
    [chain({ type: "terway" }), '6:12 error: type "terway" is the former plugin'],
    [chain({ type: "terway-eni" }), "5:3 error: terway-eni has no ipam section to speak of"],
    [
      chain({ ...ENI, mode: "vcp" }),
      '10:12 error: terway-eni: mode is "vcp"; want one of "shared", "vpc", "exclusive"',
    ],
    [chain({ ...ENI, mode: "vpc" }), "7:4 error: mode vpc takes addresses from the node's pod range"],
    [
      chain({ ...ENI, ipam: { type: "host-local" } }),
      '8:13 error: ipam.type is "host-local": in mode eniip-veth only terway-ipam',
    ],
    [
      chain({ ...ENI, ipam: { type: "terway-ipam", subnet: "10.0.0.0/24" } }),
      "7:4 error: mode eniip-veth takes addresses from ENIs",
    ],
    [chain({ ...ENI, ipam: {} }), "7:4 error: terway-eni has no ipam section to speak of"],
    [chain({ ...ENI, serviceCIDRs: ["172.16.0.0/16"] }), "10:4 warning: serviceCIDRs means nothing in mode eniip-veth"],
    [
      chain({ ...ENI, hostStackCIDRs: "10.0.0.0/8" }),
      '10:22 error: terway-eni: hostStackCIDRs is "10.0.0.0/8"; want a list',
    ],
    [chain({ ...ENI, capabilities: [] }), "10:20 error: capabilities is []"],
    [chain({ ...ENI, capabilities: { ips: "yes" } }), '11:12 error: capability ips is "yes"'],
    [
      chain({ type: "terway-trunk", ipam: { type: "terway-ipam" }, capabilities: { mac: true } }),
      "11:5 warning: a pod that asks for a MAC address will fail",
    ],
    [
      chain({ type: "terway-ipvlan", ipam: { type: "terway-ipam" } }, PORTMAP),
      "11:3 warning: in mode eniip-ipvlan a pod's answers to clients of a host port",
    ],
    [chain(ENI, PORTMAP, { type: "terway-policy" }), "17:3 warning: terway-policy comes after portmap"],
    [
      chain(ENI, { type: "terway-policy", default: "maybe" }),
      '13:15 error: terway-policy: default is "maybe"; want one of "allow", "deny", "wait"',
    ],
    [
      chain(ENI, { type: "terway-policy" }, { type: "cilium-cni" }),
      "14:3 error: terway-policy and cilium-cni both enforce NetworkPolicy",
    ],
    [chain(ENI, { type: "cilium-cni" }, PORTMAP), "11:3 warning: cilium-cni is not the last"],
    [
      chain({ type: "terway-ipvlan", ipam: { type: "terway-ipam" } }, { type: "cilium-cni" }),
      "11:3 error: Cilium chains to veths only",
    ],
    [
      chain(
        ENI,
        { type: "bandwidth", capabilities: { bandwidth: true } },
        { type: "terway-bandwidth", capabilities: { bandwidth: true } },
      ),
      "17:3 error: bandwidth and terway-bandwidth both shape",
    ],
    [chain(ENI, { type: "terway-bandwidth" }), "11:3 warning: terway-bandwidth without the capability bandwidth"],
    [
      chain(ENI, { type: "terway-polcy" }),
      '12:12 warning: no known plugin is called "terway-polcy"; did you mean "terway-policy"?',
    ],
  ])("%s", (text, finding) => {
    expect(said(text)).toContainEqual(expect.stringContaining(finding));
  });

  it("knows a rate in the conflist from one that a capability brings", () => {
    expect(said(chain(ENI, { type: "bandwidth", ingressRate: 1000, ingressBurst: 1000 }))).toEqual([]);
  });

  it("says which binaries are missing, cannot be run, or speak another version", () => {
    const node: NodeFacts = {
      binaryOf: (type) =>
        type === "terway-ipam"
          ? { kind: "missing", looked: "/opt/cni/bin" }
          : type === "portmap"
            ? { kind: "not-executable", looked: "/opt/cni/bin/portmap" }
            : { kind: "installed", versions: ["0.3.1", "0.4.0"] },
    };
    expect(said(chain(ENI, PORTMAP), node)).toEqual([
      "6:12 error: the installed terway-eni does not speak CNI 1.0.0, but 0.3.1, 0.4.0; install a newer terway-eni, or set cniVersion to 0.4.0",
      "8:13 error: plugin terway-ipam is not in /opt/cni/bin; put the binary there, or name its folder with --bin-dir",
      "12:12 error: /opt/cni/bin/portmap is not executable; chmod 755 /opt/cni/bin/portmap",
    ]);
  });

  it("foretells what the kernel would refuse, and names the mode that does without", () => {
    const node: NodeFacts = { kernel: kernelWithout("ipvlan", "nftables") };
    expect(said(formatConflist(mustRender({ mode: "eniip-ipvlan", networkPolicy: true })), node)).toEqual([
      expect.stringMatching(/^6:15 error: terway-ipvlan needs IPvlan links .*use the conflist of mode eniip-veth; or /),
      expect.stringMatching(/error: terway-policy needs nftables .*CONFIG_NF_TABLES/),
    ]);
  });

  it("finds a neighbour with the same name", () => {
    const siblings = [{ file: "05-other.conflist", name: "terway" }];
    expect(said(formatConflist(mustRender({ mode: "vpc" })), { siblings })).toEqual([
      expect.stringContaining('3:11 warning: 05-other.conflist has a network of the name "terway" too'),
    ]);
  });

  it("answers any text with findings that lie in it, and never throws", () => {
    const shipped = formatConflist(mustRender({ mode: "eniip-veth", networkPolicy: true }));
    const damage = fc.tuple(fc.nat(shipped.length), fc.nat(40), fc.string({ maxLength: 6 }));
    fc.assert(
      fc.property(damage, ([at, length, put]) => {
        const text = shipped.slice(0, at) + put + shipped.slice(at + length);
        const lines = text.split("\n");
        for (const f of lintConflist(text, { kernel: kernelWithout() })) {
          expect(f.line).toBeLessThanOrEqual(lines.length);
          expect(f.column).toBeLessThanOrEqual((lines[f.line - 1]?.length ?? 0) + 1);
          expect(f.remedy).not.toBe("");
        }
      }),
    );
  });
});

/** Lint's tables are apart from the plugins' parsers: here one is held against the other. */
describe("what lint knows of our plugins", () => {
  const call = (conf: PluginConf) =>
    ({
      conf: { name: "n", raw: conf, runtimeConfig: {}, cniArgs: {} },
      env: { args: {} },
    }) as unknown as CniCall;
  const MODES = { shared: { eniKind: "shared" }, vpc: {}, exclusive: { eniKind: "exclusive" } } as const;
  const wrong = { $: "wrong" };
  const checked = (type: string) =>
    Object.keys(PLUGINS[type]?.keys ?? {}).filter((k) => k !== "store" && k !== "logDir");
  const faultsOf = (parse: () => unknown): string => {
    try {
      parse();
      return "";
    } catch (error) {
      return String((error as Error).message);
    }
  };

  it.each(checked("terway-eni"))("the interface plugins check %s", (key) => {
    const conf = { ...ENI, [key]: wrong };
    expect(faultsOf(() => parseInterfaceConfig(call(conf), {}, "terway-eni", MODES))).toContain(key);
  });

  it.each(checked("terway-policy"))("terway-policy checks %s", (key) => {
    const conf = { type: "terway-policy", [key]: wrong };
    expect(faultsOf(() => parsePolicyConfig(call(conf), {}))).toContain(key);
  });

  it("terway-ipam knows each key of its section, and no other", () => {
    const ipam = Object.fromEntries([...Object.keys(IPAM_KEYS), "other"].map((key) => [key, undefined]));
    const config = parseIpamConfig(call({ ...ENI, ipam: { ...ipam, type: "terway-ipam" } } as PluginConf), {});
    expect([...config.ignored].sort()).toEqual(["dataDir", "other"]);
  });

  it.each(MODE_NAMES)("what is rendered for mode %s, our plugins take", (mode) => {
    const { plugins }: Conflist = mustRender({
      mode,
      ...(mode === "vpc" || mode.startsWith("eniip-v") ? { mtu: 1400, networkPolicy: true } : {}),
    });
    for (const plugin of plugins) {
      if (plugin.type === "terway-policy") parsePolicyConfig(call(plugin), {});
      if (plugin.type === "terway-eni") parseInterfaceConfig(call(plugin), {}, plugin.type, MODES);
      if (plugin.ipam !== undefined) expect(parseIpamConfig(call(plugin), {}).ignored).toEqual([]);
    }
  });
});

describe("nearest", () => {
  it.each([
    ["portMapings", ["ips", "portMappings"], "portMappings"],
    ["hostStackCIDRS", ["hostStackCIDRs"], "hostStackCIDRs"],
    ["mud", ["mtu", "mode"], undefined],
    ["x", ["mtu"], undefined],
    ["mtu", [], undefined],
  ])("%s of %j is %s", (word, known, want) => expect(nearest(word, known)).toBe(want));

  it("counts a swap of neighbours as one slip", () => expect(editDistance("mdoe", "mode")).toBe(1));
});
