/** The cluster-wide policies of policy.networking.k8s.io: v1alpha1 (Admin, BaselineAdmin) and v1alpha2 (Cluster). */
import type { Peer, PodPeer, Policy, PolicyKind, Rule } from "../objects.ts";
import { EVERYTHING } from "../selector.ts";
import { type Field, readAll } from "./check.ts";
import { readSelector } from "./names.ts";
import { readNetwork } from "./network-policy.ts";
import { exactlyOne, readAdminPort, readClusterProtocol } from "./ports.ts";

interface Dialect {
  readonly kind: PolicyKind;
  readonly ports: "ports" | "protocols";
  readonly allow: "Allow" | "Accept";
  readonly mayPass: boolean;
  readonly maxRules: number;
}

const DIALECTS: Readonly<Record<Exclude<PolicyKind, "NetworkPolicy">, Dialect>> = {
  AdminNetworkPolicy: { kind: "AdminNetworkPolicy", ports: "ports", allow: "Allow", mayPass: true, maxRules: 100 },
  BaselineAdminNetworkPolicy: {
    kind: "BaselineAdminNetworkPolicy",
    ports: "ports",
    allow: "Allow",
    mayPass: false,
    maxRules: 100,
  },
  ClusterNetworkPolicy: {
    kind: "ClusterNetworkPolicy",
    ports: "protocols",
    allow: "Accept",
    mayPass: true,
    maxRules: 25,
  },
};

function readPods(field: Field): PodPeer | undefined {
  const which = exactlyOne(field, ["namespaces", "pods"]);
  if (which === undefined) return undefined;
  return podPeer(field, which);
}

function podPeer(field: Field, which: "namespaces" | "pods"): PodPeer {
  if (which === "namespaces")
    return { kind: "pods", namespaces: readSelector(field.at("namespaces")) ?? EVERYTHING, pods: EVERYTHING };
  const pods = field.at("pods");
  pods.map(["namespaceSelector", "podSelector"]);
  pods.at("podSelector").required(0);
  return {
    kind: "pods",
    namespaces: readSelector(pods.at("namespaceSelector")) ?? EVERYTHING,
    pods: readSelector(pods.at("podSelector")) ?? EVERYTHING,
  };
}

function readDestination(field: Field): Peer[] {
  const which = exactlyOne(field, ["namespaces", "pods", "nodes", "networks", "domainNames"]);
  if (which === undefined) return [];
  if (which === "domainNames") {
    field.at(which).fault("is not supported: terway-policy decides by address; name the networks instead");
    return [];
  }
  if (which === "nodes") return [{ kind: "nodes", nodes: readSelector(field.at(which)) ?? EVERYTHING }];
  if (which === "networks") {
    const networks = field.at(which).list(25);
    if (networks.length === 0) field.at(which).fault("must have an entry");
    return readAll(networks, readNetwork).map((cidr) => ({ kind: "block", cidr, except: [] }));
  }
  return [podPeer(field, which)];
}

function readRules(field: Field, direction: "ingress" | "egress", dialect: Dialect, policy: string): Rule[] {
  const side = direction === "ingress" ? "from" : "to";
  const actions = dialect.mayPass ? [dialect.allow, "Deny", "Pass"] : [dialect.allow, "Deny"];
  return field.list(dialect.maxRules).flatMap((entry, i): Rule[] => {
    entry.required(entry.map(["name", "action", side, dialect.ports]));
    const name = entry.at("name").text();
    if (name !== undefined && name.length > 100) entry.at("name").fault("must be at most 100 characters");
    const action = entry.at("action").required(entry.at("action").oneOf(actions));
    const given = entry.at(side).list(100);
    if (given.length === 0) entry.at(side).fault("must have an entry");
    const peers: readonly Peer[] = direction === "egress" ? given.flatMap(readDestination) : readAll(given, readPods);
    const ports = entry.at(dialect.ports).list(100);
    if (!entry.at(dialect.ports).absent && ports.length === 0) entry.at(dialect.ports).fault("must have an entry");
    const matches = readAll(ports, dialect.ports === "ports" ? readAdminPort : readClusterProtocol);
    if (matches.some((match) => "name" in match) && peers.some((peer) => peer.kind !== "pods"))
      entry
        .at(dialect.ports)
        .fault("may not name a port when a peer is not made of pods: nodes and networks have no named ports");
    return [
      {
        verdict: action === "Deny" ? "drop" : action === "Pass" ? "pass" : "accept",
        peers,
        origin: `${dialect.kind} ${policy} ${direction}[${i}]${name === undefined || name === "" ? "" : ` "${name}"`}`,
        ...(matches.length > 0 ? { ports: matches } : {}),
      },
    ];
  });
}

export function readClusterPolicy(spec: Field, kind: Exclude<PolicyKind, "NetworkPolicy">, name: string): Policy {
  const dialect = DIALECTS[kind];
  const isBaseline = kind === "BaselineAdminNetworkPolicy";
  spec.required(
    spec.map([
      ...(kind === "ClusterNetworkPolicy" ? ["tier"] : []),
      ...(isBaseline ? [] : ["priority"]),
      "subject",
      "ingress",
      "egress",
    ]),
  );
  const priority = isBaseline ? 0 : spec.at("priority").required(spec.at("priority").integer(0, 1000));
  const tier =
    kind === "ClusterNetworkPolicy"
      ? spec.at("tier").required(spec.at("tier").oneOf(["Admin", "Baseline"]))
      : undefined;
  const ingress = readRules(spec.at("ingress"), "ingress", dialect, name);
  const egress = readRules(spec.at("egress"), "egress", dialect, name);
  return {
    kind,
    namespace: "",
    name,
    tier: isBaseline || tier === "Baseline" ? "baseline" : "admin",
    // The one BaselineAdminNetworkPolicy has no priority: it comes after every ClusterNetworkPolicy of its tier.
    priority: isBaseline ? 1001 : (priority ?? 0),
    subject: readPods(spec.at("subject")) ?? { kind: "pods", namespaces: EVERYTHING, pods: EVERYTHING },
    ...(ingress.length > 0 ? { ingress } : {}),
    ...(egress.length > 0 ? { egress } : {}),
  };
}
