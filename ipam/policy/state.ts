/** The cluster as the compiler keeps it. */
import type { MemberSet } from "./member-set.ts";
import type { Labels, Pod } from "./objects.ts";

export interface NamespaceState {
  readonly name: string;
  labels: Labels;
  readonly pods: Set<PodState>;
}

export interface PodState {
  readonly key: string;
  readonly pod: Pod;
  readonly home: NamespaceState;
  /** Canonical, of both families. Empty: no peer of anybody yet. */
  readonly addresses: readonly string[];
  /** The same as /32 and /128. */
  readonly cidrs: readonly string[];
  /** Those that it is in. */
  sets: MemberSet[];
}

/** The API server labels every namespace with its name. */
export const NAME_LABEL = "kubernetes.io/metadata.name";

export function namespaceLabels(name: string, labels: Labels): Labels {
  return { ...labels, [NAME_LABEL]: name };
}
