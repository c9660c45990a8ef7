/**
 * What plugins need to know of a pod beyond CNI_ARGS: the JSON in `pod_fact.facts` of the store. The agent writes it from
 * the API server's Pod object; the plugins read it.
 */
export interface PodFactsJson {
  /** `metadata.labels`; absent: none. */
  readonly labels?: Readonly<Record<string, string>>;
  /** Of `metadata.annotations`, those that a plugin reads ({@link POD_ANNOTATIONS}). */
  readonly annotations?: Readonly<Record<string, string>>;
  /** Interfaces that are to be another way than the conflist says; absent: all as the conflist says. */
  readonly interfaces?: readonly PodInterfaceFacts[] | undefined;
  /** The pod asks for something that it cannot have: its ADD fails with this. */
  readonly refused?: Refusal | undefined;
}

/** One interface of a pod that asks for something, resolved for this node. */
export interface PodInterfaceFacts {
  readonly ifname: string;
  /** Of which ENIs its addresses are. */
  readonly kind: "shared" | "exclusive" | "member";
  /** Absent: any of the node's. */
  readonly vswitchIds?: readonly string[];
  /** Exactly these, sorted. Absent: the node's. */
  readonly securityGroups?: readonly string[];
  /** One interface of a pod has its default route in table main; eth0 unless another one says so. */
  readonly defaultRoute?: boolean;
  /** CIDRs that the pod reaches by it, whatever its source address. */
  readonly routes?: readonly string[];
}

export interface Refusal {
  readonly why: string;
  /** It passes by itself: the runtime should try again. */
  readonly again?: boolean;
}

export const INGRESS_BANDWIDTH = "kubernetes.io/ingress-bandwidth";
export const EGRESS_BANDWIDTH = "kubernetes.io/egress-bandwidth";
export const NETWORK_PRIORITY = "k8s.aliyun.com/network-priority";

/** The annotations worth mirroring. Others would only wake the plugins' readers for nothing. */
export const POD_ANNOTATIONS: readonly string[] = [INGRESS_BANDWIDTH, EGRESS_BANDWIDTH, NETWORK_PRIORITY];

/** The pod gets an ENI of its own ("true"). */
export const OWN_ENI = "k8s.aliyun.com/eni";
export const SECURITY_GROUP = "k8s.aliyun.com/security-group";
export const SECURITY_GROUPS = "k8s.aliyun.com/security-groups";
/** JSON list of interfaces, each with the PodNetworking that describes it. */
export const POD_NETWORKS_REQUEST = "k8s.aliyun.com/pod-networks-request";
/** Extended resource of a container: the same as {@link OWN_ENI}. */
export const ENI_RESOURCE = "aliyun/eni";

function textMap(value: unknown): Readonly<Record<string, string>> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return {};
  return Object.fromEntries(Object.entries(value).filter((e): e is [string, string] => typeof e[1] === "string"));
}

/** Reads what {@link formatPodFacts} wrote, by this version or another. @throws {SyntaxError} when it is no JSON. */
export function parsePodFacts(json: string): PodFactsJson & Required<Pick<PodFactsJson, "labels" | "annotations">> {
  const value = JSON.parse(json) as Partial<PodFactsJson> | null;
  return {
    labels: textMap(value?.labels),
    annotations: textMap(value?.annotations),
    ...(Array.isArray(value?.interfaces) ? { interfaces: value.interfaces } : {}),
    ...(typeof value?.refused?.why === "string" ? { refused: value.refused } : {}),
  };
}

/**
 * Pods that ask for interfaces of their own kind, as one fact of the node: what plugins read anyway says that there is
 * nothing more to read. Each name stands between two line ends.
 */
export function formatAskingPods(pods: readonly string[]): string {
  return pods.length === 0 ? "" : `\n${[...pods].sort().join("\n")}\n`;
}

export function asksForInterfaces(fact: string | undefined, namespace: string, name: string): boolean {
  return (fact ?? "").includes(`\n${namespace}/${name}\n`);
}

/** From a Pod's metadata; the same pod gives the same text, so that nothing is written when nothing changed. */
export function formatPodFacts(metadata: PodFactsJson): string {
  const sorted = (map: Readonly<Record<string, string>> | undefined, keep: (key: string) => boolean) =>
    Object.fromEntries(
      Object.entries(map ?? {})
        .filter(([key]) => keep(key))
        .sort(([a], [b]) => (a < b ? -1 : 1)),
    );
  return JSON.stringify({
    labels: sorted(metadata.labels, () => true),
    annotations: sorted(metadata.annotations, (key) => POD_ANNOTATIONS.includes(key)),
    ...(metadata.interfaces ? { interfaces: metadata.interfaces } : {}),
    ...(metadata.refused ? { refused: metadata.refused } : {}),
  });
}
