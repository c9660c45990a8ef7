import { describe, expect, it } from "vitest";
import type { KernelFeature } from "../../../shared/kernel/features.ts";
import { kernelWithout } from "../../../shared/kernel/probe.ts";
import type { ModeName } from "../../conflist/modes.ts";
import { type ConflistWish, formatConflist, mustRender } from "../../conflist/render.ts";
import type { ConfFile, NodeCheckFacts } from "./facts.ts";
import { formatReport } from "./format.ts";
import { judgeNode } from "./judge.ts";

function fileOf(file: string, wish: ConflistWish): ConfFile {
  const conflist = mustRender(wish);
  const mode = conflist.plugins[0]?.mode;
  return {
    file,
    text: formatConflist(conflist),
    network: conflist.name,
    types: conflist.plugins.map((p) => p.type),
    ...(typeof mode === "string" ? { pluginMode: mode } : {}),
  };
}
const foreign = (file: string, type: string): ConfFile => ({ file, text: "{}", network: "other", types: [type] });

const STORE = {
  kind: "there",
  path: "/s",
  agentRuns: true,
  addresses: { idle: 5, cooling: 0, reserved: 0, releasing: 0, outOfService: 0 },
  pods: 3,
  enis: 2,
  instanceType: "ecs.g7.large",
  ipStack: "ipv4",
  hasIpv6Address: false,
} as const;
const STORE6 = { ...STORE, ipStack: "dual", hasIpv6Address: true };

/** A node on which all is well, in mode eniip-veth. */
function node(
  changes: Partial<NodeCheckFacts> & { without?: readonly KernelFeature[]; missing?: readonly string[] } = {},
): NodeCheckFacts {
  const { without = [], missing = [], ...rest } = changes;
  return {
    release: "6.1.0",
    kernel: kernelWithout(...without),
    sysctls: { "net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "0" },
    confDir: "/etc/cni/net.d",
    confFiles: [fileOf("10-terway.conflist", { mode: "eniip-veth" })],
    binDirs: ["/opt/cni/bin"],
    binaryOf: (type) =>
      missing.includes(type)
        ? { kind: "missing", looked: "/opt/cni/bin" }
        : { kind: "installed", versions: ["0.4.0", "1.0.0", "1.1.0"] },
    store: STORE,
    links: ["lo", "eth0", "cali00000000001", "tunl0"],
    chains: ["KUBE-SERVICES", "prerouting"],
    ...rest,
  };
}

const verdict = (facts: NodeCheckFacts, mode: ModeName) => judgeNode(facts).modes.find((m) => m.mode === mode);
const findings = (facts: NodeCheckFacts, wanted?: ModeName) =>
  judgeNode(facts, wanted).findings.map((f) => `${f.level}: ${f.subject}: ${f.message}; ${f.remedy}`);

describe("judgeNode", () => {
  it("has nothing to say of a node that is well", () => {
    expect(judgeNode(node())).toMatchObject({ findings: [], modeInForce: "eniip-veth", exitCode: 0 });
    expect(judgeNode(node()).modes.every((m) => m.possible === "yes")).toBe(true);
  });

  it("says which modes the kernel cannot do, why, and what to do instead", () => {
    const facts = node({ without: ["ipvlan", "vlan"] });
    expect(verdict(facts, "eniip-ipvlan")).toEqual({
      mode: "eniip-ipvlan",
      possible: "no",
      because: [
        {
          message: "the kernel has no IPvlan links (L2) (ipvlan: EOPNOTSUPP)",
          remedy: expect.stringMatching(/^use the conflist of mode eniip-veth; or load it with "modprobe -a ipvlan"/),
        },
      ],
    });
    expect(verdict(facts, "trunk")?.possible).toBe("no");
    expect(verdict(facts, "eniip-veth")?.possible).toBe("yes");
    // What is not asked for is no fault of the node.
    expect(judgeNode(facts).exitCode).toBe(0);
    expect(judgeNode(facts, "trunk").exitCode).toBe(1);
    expect(findings(facts, "trunk")).toEqual([
      expect.stringMatching(/^error: mode trunk: the kernel has no VLAN links.*8021q/),
    ]);
  });

  it("tells what is to be installed from what cannot be", () => {
    const facts = node({ missing: ["cilium-cni", "terway-trunk"], without: ["vlan"] });
    expect(verdict(facts, "eniip-cilium")?.possible).toBe("not yet");
    expect(verdict(facts, "trunk")).toMatchObject({
      possible: "no",
      because: [{}, { message: "plugin terway-trunk is not in /opt/cni/bin" }],
    });
  });

  it("counts what a chained plugin lacks apart from the modes", () => {
    const facts = node({
      without: ["nftables"],
      confFiles: [fileOf("10.conflist", { mode: "eniip-veth", networkPolicy: false })],
    });
    expect(verdict(facts, "eniip-veth")?.possible).toBe("yes");
    expect(judgeNode(facts).parts.networkPolicy).toHaveLength(1);
    expect(judgeNode(facts).exitCode).toBe(0);
    // With terway-policy in the chain that is in force, pods would fail.
    expect(judgeNode(node({ without: ["nftables"] })).exitCode).toBe(1);
  });

  it.each<[what: string, facts: NodeCheckFacts, finding: RegExp, exitCode: number]>([
    [
      "an unknown kernel",
      node({ kernel: { problem: "unshare 0x40000000: EPERM" } }),
      /^error: kernel: .*EPERM; run as root/,
      2,
    ],
    ["no folder", node({ confFiles: undefined }), /^error: \/etc\/cni\/net\.d: there is no such folder.*mkdir -p/, 1],
    [
      "no network",
      node({ confFiles: [] }),
      /^warning: \/etc\/cni\/net\.d: no network is configured; terway-cli conflist new/,
      0,
    ],
    [
      "another CNI's file that sorts before ours",
      node({ confFiles: [foreign("05-cilium.conflist", "cilium-cni"), fileOf("10-terway.conflist", { mode: "vpc" })] }),
      /^error: \/etc\/cni\/net\.d\/05-cilium\.conflist: sorts before 10-terway\.conflist: runtimes take it.*"other" \(cilium-cni\); remove it/,
      1,
    ],
    [
      "another CNI's node",
      node({ confFiles: [foreign("10-flannel.conflist", "flannel")] }),
      /^warning: .*not Terway; remove it before/,
      0,
    ],
    [
      "the former plugin's file",
      node({ confFiles: [foreign("10-terway.conf", "terway")] }),
      /^error: .*former plugin.*conflist from-config/,
      1,
    ],
    [
      "lo's file before ours",
      node({ confFiles: [foreign("00-lo.conf", "loopback"), fileOf("10-terway.conflist", { mode: "vpc" })] }),
      /^error: .*00-lo\.conf: is for lo alone and sorts before.*99-loopback\.conf/,
      1,
    ],
    [
      "a file that is not JSON",
      node({ confFiles: [{ file: "10-terway.conflist", text: "{", types: [] }] }),
      /^error: .*is not JSON/,
      1,
    ],
    [
      "two networks of one name",
      node({ confFiles: [fileOf("10-a.conflist", { mode: "vpc" }), fileOf("20-b.conflist", { mode: "trunk" })] }),
      /^warning: .*20-b\.conflist: has the network name "terway" of 10-a\.conflist/,
      0,
    ],
    [
      "no loopback",
      node({ missing: ["loopback"] }),
      /^warning: \/opt\/cni\/bin: the reference plugin loopback is missing/,
      0,
    ],
    ["no portmap", node({ missing: ["portmap"] }), /^error: .*portmap is not in/, 1],
    [
      "forwarding that was turned off under running pods",
      node({ sysctls: { "net/ipv4/ip_forward": "0" } }),
      /^error: net\.ipv4\.ip_forward: is 0 with 3 pods.*sysctl -w net\.ipv4\.ip_forward=1/,
      1,
    ],
    [
      "IPv6 forwarding that was turned off under pods with IPv6",
      node({ store: STORE6, sysctls: { "net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "0" } }),
      /^error: net\.ipv6\.conf\.all\.forwarding: is 0 with 3 pods/,
      1,
    ],
    [
      "a kernel without IPv6",
      node({ store: STORE6, without: ["policyRouting6"] }),
      /^error: kernel 6\.1\.0: has no IPv6 with policy routing, and pods have ip_stack dual; boot with IPv6/,
      1,
    ],
    [
      "a node without IPv6 for pods that have it",
      node({ store: STORE6, sysctls: { "net/ipv6/conf/default/disable_ipv6": "1" } }),
      /^error: net\.ipv6\.conf\.default\.disable_ipv6: is 1, and pods have ip_stack dual/,
      1,
    ],
    [
      "a node without an IPv6 address of its own",
      node({ store: { ...STORE6, ipStack: "ipv6", hasIpv6Address: false } }),
      /^error: ip_stack: is ipv6, and the node's primary ENI has no IPv6 address.*assign an IPv6 address/,
      1,
    ],
    [
      "no store",
      node({ store: { kind: "missing", path: "/s" } }),
      /^warning: \/s: there is no store.*start terway-agent/,
      0,
    ],
    [
      "a broken store",
      node({ store: { kind: "broken", path: "/s", problem: "malformed" } }),
      /^error: \/s: malformed/,
      1,
    ],
    [
      "no agent",
      node({
        store: {
          kind: "there",
          path: "/s",
          agentRuns: false,
          addresses: { idle: 5, cooling: 0, reserved: 0, releasing: 0, outOfService: 0 },
          pods: 0,
          enis: 1,
          instanceType: undefined,
          ipStack: undefined,
          hasIpv6Address: false,
        },
      }),
      /^warning: terway-agent: does not run: pods start while idle addresses are left \(5\)/,
      0,
    ],
    [
      "no agent, and addresses that no pod can have",
      node({
        store: {
          ...STORE,
          agentRuns: false,
          addresses: { idle: 0, cooling: 3, reserved: 1, releasing: 2, outOfService: 1 },
        },
      }),
      /^warning: terway-agent: does not run: .* \(0; 3 cooling, 1 reserved, 2 releasing, 1 of ENIs out of service\)/,
      0,
    ],
    [
      "what Calico left",
      node({ chains: ["cali-INPUT", "cali-FORWARD", "cali-a", "cali-b"], links: ["vxlan.calico"] }),
      /^warning: Calico: is or was on this node: links vxlan\.calico; chains cali-INPUT, cali-FORWARD, cali-a and 1 more/,
      0,
    ],
    ["what Flannel left", node({ links: ["flannel.1", "cni0"] }), /^warning: Flannel: .*flannel\.1/, 0],
  ])("speaks of %s", (_what, facts, finding, exitCode) => {
    expect(findings(facts)).toContainEqual(expect.stringMatching(finding));
    expect(judgeNode(facts).exitCode).toBe(exitCode);
  });

  it("warns of a strict reverse path filter that pods with an uplink would inherit", () => {
    const strict = node({
      sysctls: { "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "1" },
      store: { kind: "missing", path: "/s" },
    });
    expect(findings(strict, "eni-exclusive")).toContainEqual(
      expect.stringMatching(/^warning: net\.ipv4\.conf\.default\.rp_filter: is strict/),
    );
    expect(findings(strict, "eniip-veth").join()).not.toContain("rp_filter");
    const loose = { ...strict, sysctls: { ...strict.sysctls, "net/ipv4/conf/all/rp_filter": "2" } };
    expect(findings(loose, "eni-exclusive").join()).not.toContain("rp_filter");
  });

  it("does not take for leftovers what belongs there", () => {
    const ofCilium = { links: ["cilium_host", "cilium_net"], chains: ["CILIUM_INPUT"] };
    expect(
      findings(node({ ...ofCilium, confFiles: [fileOf("10-terway.conflist", { mode: "eniip-cilium" })] })),
    ).toEqual([]);
    expect(findings(node({ links: ["cni0"] }), "standalone-ipam-bridge")).toEqual([]);
    expect(findings(node({ sysctls: { "net/ipv4/ip_forward": "0" }, store: { kind: "missing", path: "/s" } }))).toEqual(
      [expect.stringContaining("there is no store")],
    );
  });

  const PLUGINS = ["terway-eni", "terway-ipvlan", "terway-trunk", "terway-ipam"];
  const lastLine = (facts: NodeCheckFacts) => formatReport(judgeNode(facts)).split("\n").at(-1);
  it.each<[what: string, facts: NodeCheckFacts, because: string]>([
    ["whose kernel can do no mode", node({ without: ["veth", "macvlan"], confFiles: [] }), "no mode is possible"],
    ["without plugins", node({ missing: PLUGINS, confFiles: [] }), "no mode is possible yet"],
    [
      "that lacks all but the plugins of standalone modes",
      node({ missing: PLUGINS.slice(0, 3), confFiles: [] }),
      "no mode but standalone is possible yet",
    ],
    [
      "without plugins and a folder",
      node({ missing: PLUGINS, confFiles: undefined }),
      "1 error, no mode is possible yet",
    ],
  ])("is not good on a node %s, and says why", (_what, facts, because) => {
    expect([lastLine(facts), judgeNode(facts).exitCode]).toEqual([`not good: ${because}`, 1]);
  });

  it("counts the errors where a mode is in force, or nothing could be tried", () => {
    expect(lastLine(node({ missing: PLUGINS }))).toMatch(/^not good: \d errors$/);
    expect(lastLine(node({ kernel: { problem: "EPERM" }, confFiles: [] }))).toBe("not good: 1 error");
  });
});

describe("formatReport", () => {
  it("is a table of modes, and what to do", () => {
    const facts = node({
      without: ["ipvlan", "fq"],
      missing: ["cilium-cni", "terway-bandwidth"],
      links: ["weave"],
      confFiles: [fileOf("10-terway.conflist", { mode: "eniip-veth", bandwidth: false })],
    });
    expect(
      formatReport(judgeNode(facts)),
    ).toBe(`Kernel 6.1.0: has veth, vlan, macvlan, bridge, ifb, tbf, clsact, redirect, bpf, htb, prio, policyRouting4, policyRouting6, nftables, conntrack
       has not ipvlan, fq

MODE                     POSSIBLE  WHY NOT
vpc                      yes
eniip-veth *             yes
eniip-ipvlan             no        the kernel has no IPvlan links (L2) (ipvlan: EOPNOTSUPP)
                                     remedy: use the conflist of mode eniip-veth; or load it with "modprobe -a ipvlan", or boot a kernel with CONFIG_IPVLAN (Linux 4.2 or later)
eni-exclusive            yes
trunk                    yes
eniip-cilium             not yet   plugin cilium-cni is not in /opt/cni/bin
                                     remedy: put the binary into /opt/cni/bin
standalone-ipam-bridge   yes
standalone-ipam-ptp      yes
standalone-ipam-macvlan  yes
* in force on this node
without bandwidth (terway-bandwidth): plugin terway-bandwidth is not in /opt/cni/bin
    remedy: put the binary into /opt/cni/bin

warning: Weave: is or was on this node: links weave
    remedy: remove them, or restart the node once its configuration is gone: stale rules drop packets of our pods

good`);
  });
});
