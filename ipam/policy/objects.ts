/**
 * The objects that policies are made of, as the compiler takes them: read, checked, and of one shape whatever API they
 * came from. `read/` makes them from manifests; a Kubernetes watch makes the same ones.
 */
import type { PolicyRule, PortRange, Protocol } from "../../shared/policy/compiled.ts";

export type Labels = Readonly<Record<string, string>>;

export interface Requirement {
  readonly key: string;
  readonly operator: "In" | "NotIn" | "Exists" | "DoesNotExist";
  /** Empty for the last two. */
  readonly values: readonly string[];
}

/** All requirements hold; none: everything is selected. matchLabels are requirements `In` with one value. */
export interface Selector {
  readonly requirements: readonly Requirement[];
}

export interface NamedPort {
  readonly name: string;
  readonly protocol: Protocol;
  readonly port: number;
}

export interface Pod {
  readonly kind: "Pod";
  readonly namespace: string;
  readonly name: string;
  readonly labels: Labels;
  /** Canonical texts. Of local pods the store's attachments say them, and these are not looked at. */
  readonly ips: readonly string[];
  readonly ports: readonly NamedPort[];
  readonly hostNetwork: boolean;
  /** Succeeded or Failed: its addresses may be another pod's already. */
  readonly finished: boolean;
  /** Absent: not said (or not scheduled). */
  readonly node?: string;
  readonly uid?: string;
  /** Those that plugins read. */
  readonly annotations?: Readonly<Record<string, string>>;
  /** Absent: the pod asks for nothing of its own. */
  readonly request?: PodRequest;
}

/** What a Pod object says of the interfaces that it wants; what a node makes of it is resolved there. */
export interface PodRequest {
  /** Faults of what it asks for, one text. The rest is not to be used then. */
  readonly faults?: string;
  /** An ENI of the pod's own. */
  readonly ownEni?: true;
  readonly securityGroups?: readonly string[];
  readonly networks?: readonly NetworkRef[];
}

/** An entry of the annotation pod-networks-request. */
export interface NetworkRef {
  readonly ifname: string;
  /** Name of a PodNetworking. */
  readonly network: string;
  readonly defaultRoute?: true;
  /** CIDRs. */
  readonly routes?: readonly string[];
}

/** A network plane: where its ENIs are, and the groups on them. */
export interface PodNetworking {
  readonly kind: "PodNetworking";
  readonly name: string;
  readonly eniType: "Default" | "ENI" | "Trunk";
  /** Absent: the node's own. One of them is used, in a zone of the node's. */
  readonly vswitches?: readonly { readonly id: string; readonly zone?: string }[];
  /** Absent: the node's own. */
  readonly securityGroups?: readonly string[];
  /** Pods that use it without naming it; absent: none. */
  readonly pods?: Selector;
  readonly namespaces?: Selector;
}

export interface Namespace {
  readonly kind: "Namespace";
  readonly name: string;
  readonly labels: Labels;
}

export interface ClusterNode {
  readonly kind: "Node";
  readonly name: string;
  readonly labels: Labels;
  readonly ips: readonly string[];
}

/** Pods of one namespace, or of the namespaces that a selector selects. */
export interface PodPeer {
  readonly kind: "pods";
  readonly namespace?: string;
  readonly namespaces?: Selector;
  readonly pods: Selector;
}

export interface BlockPeer {
  readonly kind: "block";
  readonly cidr: string;
  readonly except: readonly string[];
}

export interface NodePeer {
  readonly kind: "nodes";
  readonly nodes: Selector;
}

export type Peer = PodPeer | BlockPeer | NodePeer;

/** A port by its name in the destination pod; without protocol: of any. */
export interface PortByName {
  readonly name: string;
  readonly protocol?: Protocol;
}

export type PortMatch = PortRange | PortByName;

export interface Rule {
  readonly verdict: PolicyRule["verdict"];
  /** Absent: everybody. */
  readonly peers?: readonly Peer[];
  /** Absent: every protocol and port. */
  readonly ports?: readonly PortMatch[];
  readonly origin: string;
}

export type PolicyKind = "NetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy" | "ClusterNetworkPolicy";

export interface Policy {
  readonly kind: PolicyKind;
  /** "" for kinds of the whole cluster. */
  readonly namespace: string;
  readonly name: string;
  readonly tier: "admin" | "policies" | "baseline";
  /** Lower comes first in its tier. Of no meaning among NetworkPolicies. */
  readonly priority: number;
  readonly subject: PodPeer;
  /** Absent: says nothing of this direction. */
  readonly ingress?: readonly Rule[];
  readonly egress?: readonly Rule[];
}

/** `network_domains` of the isolation configuration. */
export interface IsolationDomains {
  readonly kind: "IsolationDomains";
  readonly domains: readonly IsolationDomain[];
}

export interface IsolationDomain {
  readonly name: string;
  readonly cidr: string;
  /** Tags that the pod's ENI carries. */
  readonly tags: Labels;
  readonly allowedDestinations: readonly string[];
}

/** ENIs of nodes themselves, and what goes by which (K8S-50). */
export interface MultiEniConfig {
  readonly kind: "MultiENIConfig";
  readonly namespace: string;
  readonly name: string;
  readonly enis: readonly EniEntry[];
  /** Name of an entry; absent: the instance's primary ENI. */
  readonly defaultEni?: string;
  readonly routes: readonly { readonly destination: string; readonly eni: string; readonly priority: number }[];
}

export interface EniEntry {
  /** Logical, or the id of an ENI that exists. */
  readonly name: string;
  /** The instance's own: nothing is made. */
  readonly primary: boolean;
  /** Absent: every zone. */
  readonly zone?: string;
  readonly vswitchId?: string;
  readonly securityGroup?: string;
  readonly tags: Labels;
}

export type ClusterObject = Pod | Namespace | ClusterNode | Policy | IsolationDomains | PodNetworking | MultiEniConfig;

/** One object under this key, in whatever source. */
export function objectKey(object: ClusterObject): string {
  switch (object.kind) {
    case "Namespace":
    case "Node":
    case "PodNetworking":
      return `${object.kind}/${object.name}`;
    case "IsolationDomains":
      return object.kind;
    default:
      return `${object.kind}/${object.namespace}/${object.name}`;
  }
}

export type ObjectEvent =
  | { readonly type: "set"; readonly object: ClusterObject }
  | { readonly type: "delete"; readonly key: string };

/** Where objects come from: a folder of manifests, or a watch. */
export interface ObjectSource {
  /** Calls back with every change; the first call carries everything. @returns Stops it. */
  start(onEvents: (events: readonly ObjectEvent[]) => void): () => void;
}
