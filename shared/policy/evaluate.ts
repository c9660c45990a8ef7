/**
 * Runs a compiled policy on one flow, as the datapath would on its first packet. What `policy explain` predicts with,
 * and what the tests hold against the meaning of the policies. Pure.
 */
import { CidrSet } from "./cidr-set.ts";
import type { CompiledPolicy, PolicyRule, Profile, Protocol } from "./compiled.ts";

export interface FlowEnd {
  readonly address: string;
  /** Present when it is a pod that the compiled policy may name. */
  readonly pod?: { readonly namespace: string; readonly name: string };
}

export interface Flow {
  readonly from: FlowEnd;
  readonly to: FlowEnd;
  /** "icmp" stands for every protocol without ports. */
  readonly protocol: Protocol | "icmp";
  /** Of the destination. Of no meaning for icmp. */
  readonly port: number;
}

export type Tier = "admin" | "policies" | "baseline";

export interface Judgement {
  readonly allowed: boolean;
  /** What decided. Absent: nothing says anything of the flow. */
  readonly tier?: Tier;
  /** The rule that matched. Absent with tier `policies`: isolated, and no rule accepts. */
  readonly rule?: PolicyRule;
  /** Rule of the admin tier that passed it on. */
  readonly passedBy?: PolicyRule;
}

export interface FlowJudgement {
  readonly allowed: boolean;
  readonly egress: Judgement;
  readonly ingress: Judgement;
}

export interface Evaluator {
  judge(flow: Flow): FlowJudgement;
  /** One direction: what a profile says of a peer. */
  judgeProfile(profile: Profile, peer: string, protocol: Flow["protocol"], port: number): Judgement;
}

const OPEN: Judgement = { allowed: true };

export function createEvaluator(compiled: CompiledPolicy): Evaluator {
  const profiles = new Map(compiled.profiles.map((profile) => [profile.id, profile]));
  const pods = new Map(compiled.pods.map((pod) => [`${pod.namespace}/${pod.name}`, pod]));
  const sets = new Map(compiled.sets.map((set) => [set.id, lazy(() => new CidrSet(set.cidrs))]));
  const endpointSets = new Map(compiled.endpointSets.map((set) => [set.id, lazy(() => new Set(set.endpoints))]));

  function matches(rule: PolicyRule, peer: string, protocol: Flow["protocol"], port: number): boolean {
    if (rule.endpoints !== undefined)
      return rule.endpoints.some((id) => known(endpointSets, id)().has(`${peer} ${protocol} ${port}`));
    if (rule.ports !== undefined) {
      const hit = rule.ports.some((p) => p.protocol === protocol && p.first <= port && port <= p.last);
      if (!hit) return false;
    }
    return rule.peers === undefined || rule.peers.some((id) => known(sets, id)().has(peer));
  }

  function judgeProfile(profile: Profile, peer: string, protocol: Flow["protocol"], port: number): Judgement {
    const first = (rules: readonly PolicyRule[]) => rules.find((rule) => matches(rule, peer, protocol, port));
    const admin = first(profile.admin);
    if (admin !== undefined && admin.verdict !== "pass")
      return { allowed: admin.verdict === "accept", tier: "admin", rule: admin };
    const passed = admin === undefined ? {} : { passedBy: admin };
    if (profile.policies !== undefined) {
      const rule = first(profile.policies);
      return { allowed: rule !== undefined, tier: "policies", ...(rule === undefined ? {} : { rule }), ...passed };
    }
    const rule = first(profile.baseline);
    if (rule === undefined) return { ...OPEN, ...passed };
    return { allowed: rule.verdict === "accept", tier: "baseline", rule, ...passed };
  }

  function side(end: FlowEnd, direction: "ingress" | "egress", peer: string, flow: Flow): Judgement {
    const id = end.pod && pods.get(`${end.pod.namespace}/${end.pod.name}`)?.[direction];
    return id === undefined ? OPEN : judgeProfile(known(profiles, id), peer, flow.protocol, flow.port);
  }

  return {
    judgeProfile,
    judge(flow) {
      const { from, to } = flow;
      // A pod cannot be kept from itself.
      if (from.pod !== undefined && from.pod.namespace === to.pod?.namespace && from.pod.name === to.pod.name)
        return { allowed: true, egress: OPEN, ingress: OPEN };
      const egress = side(from, "egress", to.address, flow);
      const ingress = side(to, "ingress", from.address, flow);
      return { allowed: egress.allowed && ingress.allowed, egress, ingress };
    },
  };
}

function lazy<T>(make: () => T): () => T {
  let made: T | undefined;
  return () => {
    made ??= make();
    return made;
  };
}

function known<T>(map: ReadonlyMap<string, T>, id: string): T {
  const found = map.get(id);
  if (found === undefined) throw new TypeError(`Cannot use the compiled policy: it names "${id}" and does not have it`);
  return found;
}
