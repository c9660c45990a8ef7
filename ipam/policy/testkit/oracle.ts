/**
 * The meaning of the policies, written down once more from the text of the APIs and sharing nothing with the compiler:
 * slow, on raw manifests, one flow at a time.
 */
// biome-ignore-all lint/suspicious/noExplicitAny: manifests are raw on purpose

export interface OracleEnd {
  readonly address: string;
  /** The Pod manifest; absent: an address outside. */
  readonly pod?: any;
}

export interface OracleFlow {
  readonly from: OracleEnd;
  readonly to: OracleEnd;
  readonly protocol: "tcp" | "udp" | "sctp" | "icmp";
  readonly port: number;
}

type Cluster = readonly any[];

const nsOf = (object: any): string => object.metadata.namespace ?? "default";

function namespaceLabels(cluster: Cluster, name: string): Record<string, string> {
  const found = cluster.find((o) => o.kind === "Namespace" && o.metadata.name === name);
  return { ...(found?.metadata.labels ?? {}), "kubernetes.io/metadata.name": name };
}

function labelsMatch(selector: any, labels: Record<string, string> = {}): boolean {
  for (const [k, v] of Object.entries(selector?.matchLabels ?? {})) if (labels[k] !== v) return false;
  for (const e of selector?.matchExpressions ?? []) {
    const present = e.key in labels;
    const value = labels[e.key] ?? "";
    if (e.operator === "In" && !(present && e.values.includes(value))) return false;
    if (e.operator === "NotIn" && present && e.values.includes(value)) return false;
    if (e.operator === "Exists" && !present) return false;
    if (e.operator === "DoesNotExist" && present) return false;
  }
  return true;
}

/** Bits as a string: the slowest and plainest way to compare prefixes. */
function bits(address: string): string {
  let known = bitsKnown.get(address);
  if (known === undefined) {
    known = bitsOf(address);
    bitsKnown.set(address, known);
  }
  return known;
}
const bitsKnown = new Map<string, string>();

function bitsOf(address: string): string {
  if (!address.includes(":"))
    return address
      .split(".")
      .map((n) => Number(n).toString(2).padStart(8, "0"))
      .join("");
  const [head = "", tail] = address.split("::");
  const words = (text: string) => text.split(":").filter((w) => w !== "");
  const left = words(head);
  const right = tail === undefined ? [] : words(tail);
  const zeros = tail === undefined ? [] : Array.from({ length: 8 - left.length - right.length }, () => "0");
  return [...left, ...zeros, ...right].map((w) => Number.parseInt(w, 16).toString(2).padStart(16, "0")).join("");
}

export function inCidr(address: string, cidr: string): boolean {
  const [network = "", length = "0"] = cidr.split("/");
  if (network.includes(":") !== address.includes(":")) return false;
  return bits(address).slice(0, Number(length)) === bits(network).slice(0, Number(length));
}

const isPeerPod = (end: OracleEnd): boolean =>
  end.pod !== undefined &&
  end.pod.spec?.hostNetwork !== true &&
  !["Succeeded", "Failed"].includes(end.pod.status?.phase ?? "");

function portsOfName(pod: any, name: string): { protocol: string; port: number }[] {
  return [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])]
    .flatMap((c: any) => c.ports ?? [])
    .filter((p: any) => p.name === name)
    .map((p: any) => ({ protocol: (p.protocol ?? "TCP").toLowerCase(), port: p.containerPort }));
}

function namedPortHit(flow: OracleFlow, name: string, protocol: string | undefined): boolean {
  if (!isPeerPod(flow.to)) return false;
  if (protocol !== undefined && protocol !== flow.protocol) return false;
  return portsOfName(flow.to.pod, name).some((p) => p.protocol === flow.protocol && p.port === flow.port);
}

// ---- NetworkPolicy ----

function npPorts(ports: any[] | undefined, flow: OracleFlow): boolean {
  if (ports === undefined || ports === null || ports.length === 0) return true;
  return ports.some((p) => {
    const protocol = (p.protocol ?? "TCP").toLowerCase();
    if (protocol !== flow.protocol) return false;
    if (p.port === undefined) return true;
    if (typeof p.port === "string") return namedPortHit(flow, p.port, protocol);
    return flow.port >= p.port && flow.port <= (p.endPort ?? p.port);
  });
}

function npPeers(cluster: Cluster, peers: any[] | undefined, peer: OracleEnd, policyNamespace: string): boolean {
  if (peers === undefined || peers === null || peers.length === 0) return true;
  return peers.some((p) => {
    if (p.ipBlock)
      return (
        inCidr(peer.address, p.ipBlock.cidr) && !(p.ipBlock.except ?? []).some((e: string) => inCidr(peer.address, e))
      );
    if (!isPeerPod(peer)) return false;
    const inNamespace = p.namespaceSelector
      ? labelsMatch(p.namespaceSelector, namespaceLabels(cluster, nsOf(peer.pod)))
      : nsOf(peer.pod) === policyNamespace;
    return inNamespace && labelsMatch(p.podSelector ?? {}, peer.pod.metadata.labels);
  });
}

/** undefined: not isolated. */
function byNetworkPolicies(
  cluster: Cluster,
  subject: any,
  direction: "Ingress" | "Egress",
  peer: OracleEnd,
  flow: OracleFlow,
): boolean | undefined {
  const applying = cluster.filter((o) => {
    if (o.kind !== "NetworkPolicy" || nsOf(o) !== nsOf(subject)) return false;
    if (!labelsMatch(o.spec.podSelector ?? {}, subject.metadata.labels)) return false;
    const types: string[] = o.spec.policyTypes ?? [];
    if (types.length > 0) return types.includes(direction);
    return direction === "Ingress" || (o.spec.egress ?? []).length > 0;
  });
  if (applying.length === 0) return undefined;
  return applying.some((o) =>
    ((direction === "Ingress" ? o.spec.ingress : o.spec.egress) ?? []).some(
      (rule: any) =>
        npPorts(rule.ports, flow) && npPeers(cluster, direction === "Ingress" ? rule.from : rule.to, peer, nsOf(o)),
    ),
  );
}

// ---- the cluster's policies ----

function selectsPod(cluster: Cluster, selector: any, pod: any): boolean {
  const labels = namespaceLabels(cluster, nsOf(pod));
  if (selector.namespaces) return labelsMatch(selector.namespaces, labels);
  return (
    labelsMatch(selector.pods.namespaceSelector ?? {}, labels) &&
    labelsMatch(selector.pods.podSelector ?? {}, pod.metadata.labels)
  );
}

function clusterPeer(cluster: Cluster, p: any, peer: OracleEnd): boolean {
  if (p.networks) return p.networks.some((cidr: string) => inCidr(peer.address, cidr));
  if (p.nodes)
    return cluster.some(
      (o) =>
        o.kind === "Node" &&
        labelsMatch(p.nodes, o.metadata.labels) &&
        (o.status?.addresses ?? []).some((a: any) => a.address === peer.address),
    );
  return isPeerPod(peer) && selectsPod(cluster, p, peer.pod);
}

function clusterPorts(rule: any, flow: OracleFlow, peers: any[]): boolean {
  // Named ports mean nothing at nodes; elsewhere only at the pod that has them.
  const nameable = peers.some((p) => !p.nodes);
  if (rule.ports)
    return rule.ports.some((p: any) => {
      if (p.namedPort) return nameable && namedPortHit(flow, p.namedPort, undefined);
      const form = p.portNumber ?? p.portRange;
      if ((form.protocol ?? "TCP").toLowerCase() !== flow.protocol) return false;
      return p.portNumber ? form.port === flow.port : flow.port >= form.start && flow.port <= form.end;
    });
  if (rule.protocols)
    return rule.protocols.some((p: any) => {
      if (p.destinationNamedPort) return nameable && namedPortHit(flow, p.destinationNamedPort, undefined);
      const form = p[flow.protocol];
      if (form === undefined) return false;
      const port = form.destinationPort;
      if (!port) return true;
      return port.number ? port.number === flow.port : flow.port >= port.range.start && flow.port <= port.range.end;
    });
  return true;
}

type Decision = "allow" | "deny" | "pass" | undefined;

function byClusterPolicies(
  cluster: Cluster,
  tier: "Admin" | "Baseline",
  subject: any,
  direction: "ingress" | "egress",
  peer: OracleEnd,
  flow: OracleFlow,
): Decision {
  const rank = (o: any) => (o.kind === "BaselineAdminNetworkPolicy" ? 1001 : o.spec.priority);
  const policies = cluster
    .filter(
      (o) =>
        (tier === "Admin" ? o.kind === "AdminNetworkPolicy" : o.kind === "BaselineAdminNetworkPolicy") ||
        (o.kind === "ClusterNetworkPolicy" && o.spec.tier === tier),
    )
    .sort((a, b) => rank(a) - rank(b) || (`${a.kind}//${a.metadata.name}` < `${b.kind}//${b.metadata.name}` ? -1 : 1));
  for (const policy of policies) {
    if (!selectsPod(cluster, policy.spec.subject, subject)) continue;
    for (const rule of policy.spec[direction] ?? []) {
      const peers: any[] = direction === "ingress" ? rule.from : rule.to;
      const hit = peers.some((p) => clusterPeer(cluster, p, peer) && clusterPorts(rule, flow, [p]));
      if (!hit) continue;
      if (rule.action === "Deny") return "deny";
      return rule.action === "Pass" ? "pass" : "allow";
    }
  }
  return undefined;
}

function oneSide(
  cluster: Cluster,
  subject: OracleEnd,
  peer: OracleEnd,
  direction: "ingress" | "egress",
  flow: OracleFlow,
) {
  if (!isPeerPod(subject)) return true;
  const admin = byClusterPolicies(cluster, "Admin", subject.pod, direction, peer, flow);
  if (admin === "allow" || admin === "deny") return admin === "allow";
  const np = byNetworkPolicies(cluster, subject.pod, direction === "ingress" ? "Ingress" : "Egress", peer, flow);
  if (np !== undefined) return np;
  return byClusterPolicies(cluster, "Baseline", subject.pod, direction, peer, flow) !== "deny";
}

/** Of every domain but one's own, only what is allowed; domains by CIDR alone. */
function crossesDomains(cluster: Cluster, flow: OracleFlow): boolean {
  const map = cluster.find((o) => o.kind === "ConfigMap" && o.metadata.name === "terway-network-isolation");
  if (map === undefined || !isPeerPod(flow.from)) return false;
  const domains: any[] = JSON.parse(map.data.isolation_config).network_domains;
  const own = domains.find((d) => inCidr(flow.from.address, d.cidr));
  if (own === undefined || inCidr(flow.to.address, own.cidr)) return false;
  const foreign = domains.some((d) => d !== own && inCidr(flow.to.address, d.cidr));
  return foreign && !own.allowed_destinations.some((cidr: string) => inCidr(flow.to.address, cidr));
}

/** Whether the flow's first packet arrives. */
export function oracleAllows(cluster: Cluster, flow: OracleFlow): boolean {
  const { from, to } = flow;
  if (from.pod !== undefined && from.pod === to.pod) return true;
  if (crossesDomains(cluster, flow)) return false;
  return oneSide(cluster, from, to, "egress", flow) && oneSide(cluster, to, from, "ingress", flow);
}
