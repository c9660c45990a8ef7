/** Says of one flow which rule decides in each direction, and of one pod what its rules are. Pure. */
import type { CompiledPolicy, PodPolicy, PolicyRule, Profile } from "../../shared/policy/compiled.ts";
import { createEvaluator, type Flow, type FlowEnd, type Judgement } from "../../shared/policy/evaluate.ts";

export type Direction = "ingress" | "egress";

export const POLICY_OFF = "NetworkPolicy is off on this node";

export interface SideExplained {
  readonly direction: Direction;
  readonly allowed: boolean;
  /** "NetworkPolicy shop/db ingress[0]", when a rule decides. */
  readonly origin?: string;
  readonly because: string;
}

export interface FlowExplained {
  readonly from: string;
  readonly to: string;
  readonly protocol: Flow["protocol"];
  readonly port: number;
  readonly allowed: boolean;
  readonly sides: readonly SideExplained[];
}

export function endName(end: FlowEnd): string {
  return end.pod === undefined ? end.address : `${end.pod.namespace}/${end.pod.name} (${end.address})`;
}

function ruleWords(rule: PolicyRule): string {
  return rule.about === undefined ? rule.origin : `${rule.origin} (${rule.about})`;
}

const TIERS = { admin: "the admin tier", policies: "the NetworkPolicies", baseline: "the baseline tier" } as const;

function because(direction: Direction, end: FlowEnd, judgement: Judgement, profile: Profile | undefined): string {
  const { allowed, tier, rule, passedBy } = judgement;
  const passed = passedBy === undefined ? "" : `passed on by ${ruleWords(passedBy)}; `;
  if (end.pod === undefined) return `${end.address} is no pod that is known here: nothing is judged at its end`;
  if (rule !== undefined && tier !== undefined) {
    const verb = allowed ? "accepts" : "drops";
    return `${passed}${ruleWords(rule)} ${verb} it, in ${TIERS[tier]}`;
  }
  if (tier === "policies") {
    const policies = [...new Set((profile?.policies ?? []).map((r) => r.origin.replace(/ (ingress|egress)\[.*/, "")))];
    const which = policies.length === 0 ? "without any rule" : `and no rule of ${policies.join(", ")} matches`;
    return `${passed}the pod is isolated for ${direction} ${which}`;
  }
  if (profile === undefined) return `no policy selects the pod for ${direction}`;
  return `${passed}no rule matches, and no NetworkPolicy isolates the pod for ${direction}`;
}

export function explainFlow(compiled: CompiledPolicy, flow: Flow): FlowExplained {
  const { from, to, protocol, port } = flow;
  const judged = createEvaluator(compiled).judge(flow);
  const self = from.pod !== undefined && from.pod.namespace === to.pod?.namespace && from.pod.name === to.pod.name;
  const side = (direction: Direction, end: FlowEnd, judgement: Judgement): SideExplained => {
    const id = end.pod && podOf(compiled, end.pod)?.[direction];
    const profile = id === undefined ? undefined : compiled.profiles.find((p) => p.id === id);
    return {
      direction,
      allowed: judgement.allowed,
      ...(judgement.rule === undefined ? {} : { origin: judgement.rule.origin }),
      because: self ? "a pod always reaches itself" : because(direction, end, judgement, profile),
    };
  };
  return {
    from: endName(from),
    to: endName(to),
    protocol,
    port,
    allowed: judged.allowed,
    sides: [side("egress", from, judged.egress), side("ingress", to, judged.ingress)],
  };
}

/** Where NetworkPolicy is switched off, whatever is compiled. */
export function explainOff({ from, to, protocol, port }: Flow): FlowExplained {
  const side = (direction: Direction): SideExplained => ({ direction, allowed: true, because: POLICY_OFF });
  const sides = [side("egress"), side("ingress")];
  return { from: endName(from), to: endName(to), protocol, port, allowed: true, sides };
}

export function podOf(
  compiled: Pick<CompiledPolicy, "pods">,
  pod: { readonly namespace: string; readonly name: string },
): PodPolicy | undefined {
  return compiled.pods.find((p) => p.namespace === pod.namespace && p.name === pod.name);
}

export interface RuleShown {
  readonly verdict: PolicyRule["verdict"];
  readonly origin: string;
  readonly about: string;
  /** Addresses, or address and port pairs, that the rule's peers stand for now. Absent: everybody. */
  readonly peers?: number;
  readonly packets?: number;
  readonly bytes?: number;
}

export interface DirectionShown {
  readonly direction: Direction;
  readonly profile: string | undefined;
  /** A NetworkPolicy isolates the pod: what no rule accepts is dropped. */
  readonly isolated: boolean;
  readonly admin: readonly RuleShown[];
  readonly policies: readonly RuleShown[];
  readonly baseline: readonly RuleShown[];
}

/** Packets and bytes of a rule in a profile; undefined: the kernel was not asked or has not got it. */
export type Count = (
  profile: Profile,
  origin: string,
) => { readonly packets: number; readonly bytes: number } | undefined;

export function showDirection(
  compiled: CompiledPolicy,
  policy: PodPolicy,
  direction: Direction,
  count: Count,
): DirectionShown {
  const id = policy[direction];
  const profile = id === undefined ? undefined : compiled.profiles.find((p) => p.id === id);
  if (profile === undefined)
    return { direction, profile: undefined, isolated: false, admin: [], policies: [], baseline: [] };
  const sizes = new Map<string, number>([
    ...compiled.sets.map((s) => [s.id, s.cidrs.length] as const),
    ...compiled.endpointSets.map((s) => [s.id, s.endpoints.length] as const),
  ]);
  const show = (rule: PolicyRule): RuleShown => {
    const ids = rule.endpoints ?? rule.peers;
    const counted = count(profile, rule.origin);
    return {
      verdict: rule.verdict,
      origin: rule.origin,
      about: rule.about ?? "",
      ...(ids === undefined ? {} : { peers: ids.reduce((n, set) => n + (sizes.get(set) ?? 0), 0) }),
      ...(counted ?? {}),
    };
  };
  return {
    direction,
    profile: profile.id,
    isolated: profile.policies !== undefined,
    admin: profile.admin.map(show),
    policies: (profile.policies ?? []).map(show),
    baseline: profile.policies === undefined ? profile.baseline.map(show) : [],
  };
}

function ruleLine(rule: RuleShown): string {
  const peers = rule.peers === undefined ? "" : ` [${rule.peers} now]`;
  const counted = rule.packets === undefined ? "" : `  ${rule.packets} packets, ${rule.bytes} bytes`;
  return `  ${rule.verdict.padEnd(6)} ${rule.about}${peers}  (${rule.origin})${counted}`;
}

export function formatDirection(shown: DirectionShown): string[] {
  const title = shown.direction === "ingress" ? "Ingress" : "Egress";
  if (shown.profile === undefined) return [`${title}: everything is allowed`];
  const tier = (name: string, rules: readonly RuleShown[]) =>
    rules.length === 0 ? [] : [` ${name}`, ...rules.map(ruleLine)];
  return [
    `${title}: profile ${shown.profile}`,
    ...tier("admin tier, first match decides:", shown.admin),
    ...tier("NetworkPolicies, any match accepts:", shown.policies),
    ...tier("baseline tier, first match decides:", shown.baseline),
    shown.isolated ? "  else   dropped" : "  else   allowed",
  ];
}

export function formatFlow(explained: FlowExplained): string {
  const port = explained.protocol === "icmp" ? "icmp" : `${explained.protocol} ${explained.port}`;
  return [
    `${explained.from} → ${explained.to}, ${port}: ${explained.allowed ? "ALLOWED" : "DENIED"}`,
    ...explained.sides.map((s) => `  ${s.direction.padEnd(7)} ${s.allowed ? "allowed" : "denied "}  ${s.because}`),
  ].join("\n");
}
