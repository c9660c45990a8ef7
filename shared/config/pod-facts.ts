/**
 * What plugins need to know of a pod beyond CNI_ARGS: the JSON in `pod_fact.facts` of the store. The agent writes it from
 * the API server's Pod object; the plugins read it.
 */
export interface PodFactsJson {
  /** `metadata.labels`; absent: none. */
  readonly labels?: Readonly<Record<string, string>>;
  /** Of `metadata.annotations`, those that a plugin reads ({@link POD_ANNOTATIONS}). */
  readonly annotations?: Readonly<Record<string, string>>;
}

export const INGRESS_BANDWIDTH = "kubernetes.io/ingress-bandwidth";
export const EGRESS_BANDWIDTH = "kubernetes.io/egress-bandwidth";
export const NETWORK_PRIORITY = "k8s.aliyun.com/network-priority";

/** The annotations worth mirroring. Others would only wake the plugins' readers for nothing. */
export const POD_ANNOTATIONS: readonly string[] = [INGRESS_BANDWIDTH, EGRESS_BANDWIDTH, NETWORK_PRIORITY];

function textMap(value: unknown): Readonly<Record<string, string>> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return {};
  return Object.fromEntries(Object.entries(value).filter((e): e is [string, string] => typeof e[1] === "string"));
}

/** Reads what {@link formatPodFacts} wrote, by this version or another. @throws {SyntaxError} when it is no JSON. */
export function parsePodFacts(json: string): Required<PodFactsJson> {
  const value = JSON.parse(json) as Partial<Record<keyof PodFactsJson, unknown>> | null;
  return { labels: textMap(value?.labels), annotations: textMap(value?.annotations) };
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
  });
}
