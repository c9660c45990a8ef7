/** Pool sizes that a node's annotations set for that node alone (K8S-4, K8S-5, CFG-6, CFG-9). */
import type { ConfigWarning } from "./eni-conf.ts";

export const MAX_POOL_ANNOTATION = "k8s.aliyun.com/eni-max-pool-size";
export const MIN_POOL_ANNOTATION = "k8s.aliyun.com/eni-min-pool-size";

export interface PoolSizes {
  /** Most idle addresses. */
  readonly maxPoolSize: number;
  /** Fewest idle addresses. */
  readonly minPoolSize: number;
}

/**
 * The sizes in force on a node: the cluster's, with those that the node sets. Judged as a pair after merging; a bad pair
 * changes nothing and comes back as a warning, for an event.
 */
export function applyNodeAnnotations<T extends PoolSizes>(
  cluster: T,
  annotations: Readonly<Record<string, string>>,
): { readonly config: T; readonly warnings: readonly ConfigWarning[] } {
  const warnings: ConfigWarning[] = [];
  const read = (key: string, fallback: number): number => {
    const value = annotations[key];
    if (value === undefined) return fallback;
    if (/^\d{1,6}$/.test(value.trim())) return Number(value);
    warnings.push({
      key,
      message: `Node annotation ${key} is "${value}": want a whole number such as "80"; the pair is ignored`,
    });
    return fallback;
  };
  const maxPoolSize = read(MAX_POOL_ANNOTATION, cluster.maxPoolSize);
  const minPoolSize = read(MIN_POOL_ANNOTATION, cluster.minPoolSize);
  if (warnings.length === 0 && minPoolSize > maxPoolSize)
    warnings.push({
      key: MIN_POOL_ANNOTATION,
      message: `With the node's annotations the pool would have min ${minPoolSize} and max ${maxPoolSize}: want min at most max; the pair is ignored`,
    });
  return warnings.length > 0
    ? { config: cluster, warnings }
    : { config: { ...cluster, maxPoolSize, minPoolSize }, warnings };
}
