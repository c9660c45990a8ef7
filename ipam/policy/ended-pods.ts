/**
 * Pods whose object ended before their containers: deleted by force, failed while processes still end, or scheduled
 * elsewhere while this node was cut off. As long as a pod is attached here, its policy is in force.
 */
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import type { LocalPod } from "../../shared/policy/pod-verdicts.ts";
import { referenced } from "../../shared/policy/render.ts";

/**
 * @param next What is compiled: names every pod of this node that has an object, those under no policy too.
 * @param before What was in force.
 * @param attached Who has an address here.
 * @returns `next` itself when it names all of them.
 */
export function keepEnded(
  next: CompiledPolicy,
  before: CompiledPolicy | undefined,
  attached: readonly LocalPod[],
): CompiledPolicy {
  if (before === undefined) return next;
  const named = new Set(next.pods.map(nameOf));
  const ended = new Set(attached.map(nameOf).filter((name) => !named.has(name)));
  if (ended.size === 0) return next;
  const pods = before.pods.filter((pod) => ended.has(nameOf(pod)));
  if (pods.length === 0) return next;
  const ids = new Set(pods.flatMap((pod) => [pod.ingress, pod.egress]));
  const profiles = before.profiles.filter(({ id }) => ids.has(id));
  const needs = new Set(profiles.flatMap(referenced));
  const isNeeded = ({ id }: { readonly id: string }) => needs.has(id);
  return {
    revision: next.revision,
    pods: [...next.pods, ...pods].sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1)),
    profiles: together(next.profiles, profiles),
    sets: together(next.sets, before.sets.filter(isNeeded)),
    endpointSets: together(next.endpointSets, before.endpointSets.filter(isNeeded)),
  };
}

function nameOf(pod: { readonly namespace: string; readonly name: string }): string {
  return `${pod.namespace}/${pod.name}`;
}

/** By id; what `next` has is newer. */
function together<T extends { readonly id: string }>(next: readonly T[], before: readonly T[]): T[] {
  const known = new Set(next.map(({ id }) => id));
  return [...next, ...before.filter(({ id }) => !known.has(id))].sort((a, b) => (a.id < b.id ? -1 : 1));
}
