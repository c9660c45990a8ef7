/**
 * NetworkPolicies after compiling, and before they are nftables: what the compiler writes, the store keeps, and the
 * datapath turns into sets and chains. Says nothing of labels or namespaces, everything of addresses and ports.
 *
 * Profiles are shared: pods under the same rules have the same profile, so that a node's rules do not grow with pods.
 */
export type Protocol = "tcp" | "udp" | "sctp";

/** Inclusive. All ports of a protocol are 0 to 65535. */
export interface PortRange {
  readonly protocol: Protocol;
  readonly first: number;
  readonly last: number;
}

/** Addresses behind one selector or ipBlock, both families. The id names the selector, not its content: it outlives changes. */
export interface AddressSet {
  readonly id: string;
  /** Canonical CIDR texts, disjoint within a family, sorted; single addresses as /32 and /128. */
  readonly cidrs: readonly string[];
}

/** Ports of peers: what a named port means at each address (egress rules only). The id outlives changes. */
export interface EndpointSet {
  readonly id: string;
  /** "ADDRESS PROTOCOL PORT", sorted. */
  readonly endpoints: readonly string[];
}

export interface PolicyRule {
  /** pass: on to the next tier (admin rules only). */
  readonly verdict: "accept" | "drop" | "pass";
  /** Ids of address sets, any of which matches the peer; absent: every peer. */
  readonly peers?: readonly string[];
  /** Any of which matches; absent: every protocol and port, ICMP too. */
  readonly ports?: readonly PortRange[];
  /** Ids of endpoint sets, any of which matches peer and port at once; stands in place of peers and ports. */
  readonly endpoints?: readonly string[];
  /** For people: "NetworkPolicy NAMESPACE/NAME ingress[0]". */
  readonly origin: string;
  /** For people, what it matches: "from pods app=web in namespace shop, on tcp 80". */
  readonly about?: string;
}

/** Rules of one direction; the first that matches decides in its tier. */
export interface Profile {
  /** Hash of the content: a changed profile is another one. */
  readonly id: string;
  readonly direction: "ingress" | "egress";
  readonly admin: readonly PolicyRule[];
  /** Absent: no NetworkPolicy isolates the pod in this direction. Present: what no rule accepts is dropped. */
  readonly policies?: readonly PolicyRule[];
  /** Judges what neither tier above decided, where no NetworkPolicy isolates. After it: accept. */
  readonly baseline: readonly PolicyRule[];
}

/** What holds for one pod of this node. */
export interface PodPolicy {
  readonly namespace: string;
  readonly name: string;
  /** Profile ids; absent: everything is allowed in that direction. */
  readonly ingress?: string;
  readonly egress?: string;
}

/** All that this node needs. */
export interface CompiledPolicy {
  /** Counts changes; a pod's "revision N applied" refers to it. */
  readonly revision: number;
  readonly sets: readonly AddressSet[];
  readonly endpointSets: readonly EndpointSet[];
  readonly profiles: readonly Profile[];
  readonly pods: readonly PodPolicy[];
}
