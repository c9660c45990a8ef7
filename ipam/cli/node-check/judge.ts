/** What the facts of a node mean: which modes it can do, and what stands in the way of pods. Pure. */
import { KERNEL_FEATURES, type KernelReport, lacking, remedyFor } from "../../../shared/kernel/features.ts";
import { lintConflist } from "../../conflist/lint.ts";
import { MODE_NAMES, type ModeName, modeInfo, PART_NEEDS, type Part } from "../../conflist/modes.ts";
import { mustRender } from "../../conflist/render.ts";
import type { AddressCounts, ConfFile, NodeCheckFacts } from "./facts.ts";
import { FOREIGN_CNIS } from "./foreign.ts";

export interface Reason {
  readonly message: string;
  readonly remedy: string;
}

export interface ModeVerdict {
  readonly mode: ModeName;
  /** no: the kernel cannot. not yet: something is to be installed. */
  readonly possible: "yes" | "not yet" | "no";
  readonly because: readonly Reason[];
}

export interface NodeFinding extends Reason {
  readonly level: "error" | "warning";
  /** The part of the node that it is about: a file, a sysctl, a program. */
  readonly subject: string;
}

export interface NodeReport {
  readonly kernelRelease: string;
  /** undefined: nothing could be tried. */
  readonly kernel: KernelReport | undefined;
  /** Empty when the kernel could not be tried. */
  readonly modes: readonly ModeVerdict[];
  readonly parts: Readonly<Record<Part, readonly Reason[]>>;
  readonly findings: readonly NodeFinding[];
  /** Of the file that runtimes take, as far as it is one of ours. */
  readonly modeInForce: ModeName | undefined;
  /** Why it is not good; empty: good. */
  readonly notGood: readonly string[];
  /** 0: good. 1: pods would fail. 2: it could not be found out. */
  readonly exitCode: 0 | 1 | 2;
}

/** @param wanted The mode that the node is to do; absent: the one in force. */
export function judgeNode(facts: NodeCheckFacts, wanted?: ModeName): NodeReport {
  const kernel = "problem" in facts.kernel ? undefined : facts.kernel;
  const inForce = facts.confFiles?.find((file) => !isLoopback(file));
  const modeInForce = inForce && modeOfFile(inForce);
  const modes = kernel === undefined ? [] : MODE_NAMES.map((mode) => judgeMode(mode, kernel, facts));
  const findings: NodeFinding[] = [];
  if ("problem" in facts.kernel)
    findings.push({
      level: "error",
      subject: "kernel",
      message: `what the kernel can do was not tried: ${facts.kernel.problem}`,
      remedy: "run as root, outside of a container without CAP_SYS_ADMIN",
    });
  const asked = modes.find((m) => m.mode === (wanted ?? modeInForce));
  // Of the mode in force lint says it, with line and column.
  if (asked !== undefined && asked.mode !== modeInForce)
    for (const reason of asked.because) findings.push({ level: "error", subject: `mode ${asked.mode}`, ...reason });
  findings.push(
    ...confFindings(facts, kernel),
    ...ipv6Findings(facts),
    ...sysctlFindings(facts),
    ...filterFindings(facts, wanted ?? modeInForce),
    ...storeFindings(facts, wanted ?? modeInForce),
    ...leftovers(facts, wanted ?? modeInForce),
  );
  const errors = findings.filter((f) => f.level === "error").length;
  const notGood = [
    ...(errors === 0 ? [] : [errors === 1 ? "1 error" : `${errors} errors`]),
    ...(kernel !== undefined && asked === undefined ? noMode(modes) : []),
  ];
  return {
    kernelRelease: facts.release,
    kernel,
    modes,
    parts: partReasons(facts, kernel),
    findings,
    modeInForce,
    notGood,
    exitCode: kernel === undefined ? 2 : notGood.length > 0 ? 1 : 0,
  };
}

/** What to say when no mode of ours is possible; empty: one is. */
function noMode(modes: readonly ModeVerdict[]): string[] {
  const ours = modes.filter((m) => !m.mode.startsWith("standalone"));
  if (ours.some((m) => m.possible === "yes")) return [];
  const but = modes.some((m) => m.possible === "yes") ? " but standalone" : "";
  const yet = ours.some((m) => m.possible === "not yet") ? " yet" : "";
  return [`no mode${but} is possible${yet}`];
}

function featureReasons(kernel: KernelReport, features: Parameters<typeof lacking>[1]): Reason[] {
  return lacking(kernel, features).map((feature) => {
    const verdict = kernel[feature];
    const refusal = verdict.there ? "" : ` (${verdict.refusal})`;
    return { message: `the kernel has no ${KERNEL_FEATURES[feature].what}${refusal}`, remedy: remedyFor(feature) };
  });
}

function missing(types: readonly string[], facts: NodeCheckFacts): Reason[] {
  return types.flatMap((type): Reason[] => {
    const binary = facts.binaryOf(type);
    if (binary.kind === "installed") return [];
    return binary.kind === "missing"
      ? [{ message: `plugin ${type} is not in ${binary.looked}`, remedy: `put the binary into ${facts.binDirs[0]}` }]
      : [{ message: `${binary.looked} is not executable`, remedy: `chmod 755 ${binary.looked}` }];
  });
}

function judgeMode(mode: ModeName, kernel: KernelReport, facts: NodeCheckFacts): ModeVerdict {
  const cannot = featureReasons(kernel, modeInfo(mode).needs);
  const types = mustRender({ mode }).plugins.map((p) => p.type);
  const part: Readonly<Record<string, Part>> = { "terway-policy": "networkPolicy", "terway-bandwidth": "bandwidth" };
  // What a chained plugin lacks can be left out of the chain: it does not make the mode impossible.
  const install = missing([...types.filter((t) => part[t] === undefined), "terway-ipam"], facts);
  const instead =
    mode === "eniip-ipvlan" && cannot.length > 0
      ? cannot.map((r) => ({ ...r, remedy: `use the conflist of mode eniip-veth; or ${r.remedy}` }))
      : cannot;
  return {
    mode,
    possible: cannot.length > 0 ? "no" : install.length > 0 ? "not yet" : "yes",
    because: [...instead, ...install],
  };
}

function partReasons(facts: NodeCheckFacts, kernel: KernelReport | undefined): Record<Part, readonly Reason[]> {
  const plugin: Readonly<Record<Part, string>> = {
    networkPolicy: "terway-policy",
    portmap: "portmap",
    bandwidth: "terway-bandwidth",
  };
  const of = (part: Part) => [
    ...(kernel === undefined ? [] : featureReasons(kernel, PART_NEEDS[part])),
    ...missing([plugin[part]], facts),
  ];
  return { networkPolicy: of("networkPolicy"), portmap: of("portmap"), bandwidth: of("bandwidth") };
}

const isLoopback = (file: ConfFile) => file.types.length === 1 && file.types[0] === "loopback";

/** Ours, by its interface plugin. */
export function modeOfFile(file: ConfFile): ModeName | undefined {
  if (file.types.includes("cilium-cni") && file.types.includes("terway-eni")) return "eniip-cilium";
  if (file.types.includes("terway-eni"))
    return ({ vpc: "vpc", exclusive: "eni-exclusive" } as const)[file.pluginMode ?? ""] ?? "eniip-veth";
  if (file.types.includes("terway-ipvlan")) return "eniip-ipvlan";
  if (file.types.includes("terway-trunk")) return "trunk";
  return undefined;
}

function confFindings(facts: NodeCheckFacts, kernel: KernelReport | undefined): NodeFinding[] {
  const { confDir, confFiles } = facts;
  const findings: NodeFinding[] = [];
  const say = (level: NodeFinding["level"], subject: string, message: string, remedy: string) =>
    void findings.push({ level, subject, message, remedy });
  if (confFiles === undefined) {
    say(
      "error",
      confDir,
      "there is no such folder: runtimes find no network",
      `mkdir -p ${confDir}, or name the runtime's with --conf-dir`,
    );
    return findings;
  }
  const real = confFiles.filter((file) => !isLoopback(file));
  const first = real[0];
  if (first === undefined) {
    say(
      "warning",
      confDir,
      "no network is configured",
      `terway-cli conflist new --mode eniip-veth --out ${confDir}/10-terway.conflist`,
    );
    return findings;
  }
  const [lowest] = confFiles;
  if (lowest !== undefined && lowest !== first)
    say(
      "error",
      `${confDir}/${lowest.file}`,
      `is for lo alone and sorts before ${first.file}: runtimes take it for the pods' network`,
      `mv ${confDir}/${lowest.file} ${confDir}/99-loopback.conf`,
    );
  for (const file of real)
    if (file.network === undefined)
      say("error", `${confDir}/${file.file}`, "is not JSON", "see what is wrong with: terway-cli conflist lint");
  const ours = real.find((f) => modeOfFile(f) !== undefined);
  if (first.types.includes("terway"))
    say(
      "error",
      `${confDir}/${first.file}`,
      'is of the former plugin, type "terway"',
      `terway-cli conflist from-config ${confDir}/${first.file}`,
    );
  if (ours !== undefined && ours !== first)
    say(
      "error",
      `${confDir}/${first.file}`,
      `sorts before ${ours.file}: runtimes take it, and pods get the network "${first.network ?? "?"}" (${first.types.join(", ") || "unreadable"})`,
      `remove it, or give it a name that sorts after ${ours.file}`,
    );
  if (ours === undefined && !first.types.includes("terway"))
    say(
      "warning",
      `${confDir}/${first.file}`,
      `the node's network is "${first.network ?? "?"}" (${first.types.join(", ")}), not Terway`,
      "remove it before Terway's file goes there",
    );
  const names = new Map<string, string>();
  for (const { file, network } of real) {
    const other = network === undefined ? undefined : names.get(network);
    if (other !== undefined)
      say(
        "warning",
        `${confDir}/${file}`,
        `has the network name "${network}" of ${other}`,
        "give one of them another name: attachments are told apart by it",
      );
    if (network !== undefined) names.set(network, other ?? file);
  }
  // The kernel is told by mode already.
  const { binaryOf } = facts;
  if (ours !== undefined)
    for (const f of lintConflist(ours.text, { binaryOf, ...(kernel === undefined ? {} : { kernel }) })) {
      const subject = `${confDir}/${ours.file}:${f.line}:${f.column}`;
      if (!findings.some((g) => g.message === f.message)) say(f.level, subject, f.message, f.remedy);
    }
  if (binaryOf("loopback").kind !== "installed")
    say(
      "warning",
      facts.binDirs.join(", "),
      "the reference plugin loopback is missing: containerd calls it for every pod",
      "install it (containernetworking-plugins), or set use_internal_loopback in containerd 2",
    );
  return findings;
}

function podsHaveIpv6({ store }: NodeCheckFacts): boolean {
  return store.kind === "there" && store.ipStack !== undefined && store.ipStack !== "ipv4";
}

/** What pods with IPv6 take of the node besides the kernel's features. */
function ipv6Findings(facts: NodeCheckFacts): NodeFinding[] {
  if (facts.store.kind !== "there" || !podsHaveIpv6(facts)) return [];
  const { ipStack, hasIpv6Address } = facts.store;
  const findings: NodeFinding[] = [];
  if (!("problem" in facts.kernel) && !facts.kernel.policyRouting6.there)
    findings.push({
      level: "error",
      subject: `kernel ${facts.release}`,
      message: `has no ${KERNEL_FEATURES.policyRouting6.what}, and pods have ip_stack ${ipStack}`,
      remedy: "boot with IPv6 (no ipv6.disable=1), or set ip_stack ipv4",
    });
  if (facts.sysctls["net/ipv6/conf/default/disable_ipv6"] === "1")
    findings.push({
      level: "error",
      subject: "net.ipv6.conf.default.disable_ipv6",
      message: `is 1, and pods have ip_stack ${ipStack}: the node's end of a pod's link takes no IPv6 route`,
      remedy: "sysctl -w net.ipv6.conf.default.disable_ipv6=0, and look into /etc/sysctl.d for who sets it",
    });
  if (!hasIpv6Address)
    findings.push({
      level: "error",
      subject: "ip_stack",
      message: `is ${ipStack}, and the node's primary ENI has no IPv6 address: the node does not reach its pods by IPv6`,
      remedy: "assign an IPv6 address to the instance's primary ENI, and start terway-agent again",
    });
  return findings;
}

function sysctlFindings(facts: NodeCheckFacts): NodeFinding[] {
  const pods = facts.store.kind === "there" ? facts.store.pods : 0;
  const off = (["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] as const).filter(
    (name) => facts.sysctls[name] === "0",
  );
  return off.flatMap((name): NodeFinding[] => {
    // Before the first pod nobody has turned it on yet, and IPv6 is not everybody's.
    if (pods === 0 || (name.startsWith("net/ipv6") && !podsHaveIpv6(facts))) return [];
    const dotted = name.replaceAll("/", ".");
    return [
      {
        level: "error",
        subject: dotted,
        message: `is 0 with ${pods} pods on the node: somebody turned forwarding off`,
        remedy: `sysctl -w ${dotted}=1, and look into /etc/sysctl.d for who does it`,
      },
    ];
  });
}

/** A pod's namespace begins with the node's values for IPv4 (net.core.devconf_inherit_init_net); the larger of the two counts. */
function filterFindings(facts: NodeCheckFacts, mode: ModeName | undefined): NodeFinding[] {
  const names = ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"];
  const strict = Math.max(...names.map((name) => Number(facts.sysctls[name] ?? 0))) === 1;
  if (!strict || mode === undefined || modeInfo(mode).path !== "uplink") return [];
  return [
    {
      level: "warning",
      subject: "net.ipv4.conf.default.rp_filter",
      message: `is strict, and pods inherit it: in mode ${mode} a host port's or NodePort's packets come to the pod by its own interface, with the node's address, and are dropped`,
      remedy: "sysctl -w net.ipv4.conf.default.rp_filter=2 before pods start, and the same in /etc/sysctl.d",
    },
  ];
}

function countsText({ idle, cooling, reserved, releasing, outOfService }: AddressCounts): string {
  const others = [
    [cooling, "cooling"],
    [reserved, "reserved"],
    [releasing, "releasing"],
    [outOfService, "of ENIs out of service"],
  ] as const;
  const named = others.filter(([n]) => n > 0).map(([n, words]) => `${n} ${words}`);
  return [String(idle), ...(named.length > 0 ? [named.join(", ")] : [])].join("; ");
}

function storeFindings(facts: NodeCheckFacts, mode: ModeName | undefined): NodeFinding[] {
  const { store } = facts;
  const standalone = mode?.startsWith("standalone") ?? false;
  if (store.kind === "missing")
    return standalone || mode === undefined
      ? []
      : [
          {
            level: "warning",
            subject: store.path,
            message: "there is no store: neither terway-agent nor a plugin has run here",
            remedy: "start terway-agent: it makes the store and fills the pool",
          },
        ];
  if (store.kind === "broken")
    return [
      {
        level: "error",
        subject: store.path,
        message: store.problem,
        remedy: "restart terway-agent: it sets a damaged store aside and saves what can be read",
      },
    ];
  if (store.agentRuns || standalone) return [];
  return [
    {
      level: "warning",
      subject: "terway-agent",
      message: `does not run: pods start while idle addresses are left (${countsText(store.addresses)})`,
      remedy: "start it, and see its log for why it stopped",
    },
  ];
}

function leftovers(facts: NodeCheckFacts, mode: ModeName | undefined): NodeFinding[] {
  return FOREIGN_CNIS.flatMap((cni): NodeFinding[] => {
    if (cni.name === "Cilium" && mode === "eniip-cilium") return [];
    if (cni.types.length === 0 && mode?.startsWith("standalone")) return [];
    const links = facts.links.filter((name) => cni.links?.test(name));
    const chains = facts.chains.filter((name) => cni.chains?.test(name));
    if (links.length + chains.length === 0) return [];
    const parts = [
      ...(links.length > 0 ? [`links ${some(links)}`] : []),
      ...(chains.length > 0 ? [`chains ${some(chains)}`] : []),
    ];
    return [
      {
        level: "warning",
        subject: cni.name,
        message: `is or was on this node: ${parts.join("; ")}`,
        remedy: "remove them, or restart the node once its configuration is gone: stale rules drop packets of our pods",
      },
    ];
  });
}

function some(names: readonly string[]): string {
  return names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
}
