/** From the policies that select a pod to its profile in one direction. Pure. */
import type { PolicyRule, PortRange, Profile } from "../../shared/policy/compiled.ts";
import type { NamedPort, Policy, PortByName, PortMatch, Rule } from "./objects.ts";
import { addressSpec, endpointSpec, groupPeers, portFits, type SetSpec, shortHash } from "./set-spec.ts";
import { describeMatch } from "./words.ts";

export type Direction = "ingress" | "egress";

export interface BuiltProfile {
  readonly profile: Profile;
  /** Sets that its rules name. */
  readonly needs: readonly SetSpec[];
}

/** Policies that select the pod and say something of the direction, in the order in which they are judged. */
export interface Applying {
  readonly admin: readonly Policy[];
  readonly policies: readonly Policy[];
  readonly baseline: readonly Policy[];
  /** Judged before everything else. */
  readonly isolation: readonly BuiltRule[];
}

export interface BuiltRule {
  readonly rule: PolicyRule;
  readonly needs: readonly SetSpec[];
}

const isNamed = (port: PortMatch): port is PortByName => "name" in port;

export function usesNames(rules: readonly Rule[] | undefined): boolean {
  return rules?.some((rule) => rule.ports?.some(isNamed)) ?? false;
}

/** Sorted, overlapping ranges joined. */
export function joinPorts(ports: readonly PortRange[]): PortRange[] {
  const sorted = [...ports].sort((a, b) =>
    a.protocol === b.protocol ? a.first - b.first : a.protocol < b.protocol ? -1 : 1,
  );
  const out: PortRange[] = [];
  for (const { protocol, first, last } of sorted) {
    const before = out.at(-1);
    if (before?.protocol === protocol && first <= before.last + 1)
      out[out.length - 1] = { protocol, first: before.first, last: Math.max(before.last, last) };
    else out.push({ protocol, first, last });
  }
  return out;
}

/** Ports of the destination: at ingress those of the pod itself, at egress unknown before the peer is. */
function portsAt(ports: readonly PortMatch[], pod: readonly NamedPort[]): PortRange[] {
  return joinPorts(
    ports.flatMap((port): readonly PortRange[] =>
      isNamed(port)
        ? pod
            .filter((p) => portFits(port, p.name, p.protocol))
            .map((p) => ({ protocol: p.protocol, first: p.port, last: p.port }))
        : [port],
    ),
  );
}

/** None when the rule can match nothing: a pod without the named port. */
function buildRule(rule: Rule, direction: Direction, podPorts: readonly NamedPort[]): BuiltRule[] {
  const { verdict, origin, ports } = rule;
  const groups = groupPeers(rule.peers);
  const out: BuiltRule[] = [];
  const numeric = ports === undefined ? undefined : portsAt(ports, direction === "ingress" ? podPorts : []);
  if (numeric === undefined || numeric.length > 0) {
    const needs = rule.peers === undefined ? [] : groups.map((peer) => addressSpec(peer, origin));
    const peers = rule.peers === undefined ? {} : { peers: [...new Set(needs.map((spec) => spec.id))] };
    const about = describeMatch(direction, rule.peers, numeric);
    out.push({
      rule: { verdict, ...peers, ...(numeric === undefined ? {} : { ports: numeric }), origin, about },
      needs,
    });
  }
  const names = direction === "egress" ? (ports ?? []).filter(isNamed) : [];
  if (names.length > 0) {
    // A node has no named ports.
    const of = groups.filter((peer) => peer.kind !== "nodes");
    const needs = of.flatMap((peer) => names.map((port) => endpointSpec(peer, port, origin)));
    const about = describeMatch(direction, rule.peers, names);
    if (needs.length > 0)
      out.push({ rule: { verdict, endpoints: [...new Set(needs.map((spec) => spec.id))], origin, about }, needs });
  }
  return out;
}

export function buildProfile(direction: Direction, applying: Applying, podPorts: readonly NamedPort[]): BuiltProfile {
  const needs: SetSpec[] = [];
  const rulesOf = (policies: readonly Policy[]): PolicyRule[] =>
    policies.flatMap((policy) =>
      (policy[direction] ?? []).flatMap((rule) =>
        buildRule(rule, direction, podPorts).map((built) => {
          needs.push(...built.needs);
          return built.rule;
        }),
      ),
    );
  for (const built of applying.isolation) needs.push(...built.needs);
  const content = {
    direction,
    admin: [...applying.isolation.map(({ rule }) => rule), ...rulesOf(applying.admin)],
    ...(applying.policies.length > 0 ? { policies: rulesOf(applying.policies) } : {}),
    // Nothing comes after the baseline: to pass there is to be let through.
    baseline: rulesOf(applying.baseline).map(
      (rule): PolicyRule => (rule.verdict === "pass" ? { ...rule, verdict: "accept" } : rule),
    ),
  };
  return { profile: { id: shortHash(JSON.stringify(content)), ...content }, needs };
}
