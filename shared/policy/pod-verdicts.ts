/** Which verdict each address of a pod has in the maps. Small: it is all that an ADD needs. */
import type { PodPolicy } from "./compiled.ts";
import { type Direction, dropChain, isLinkText, LINK_MAP, podMap, profileChain, selfSet } from "./names.ts";

/** What becomes of a pod whose policy is not known yet. */
export type Posture = "allow" | "deny";

/** A pod that is attached to this node. */
export interface LocalPod {
  readonly namespace: string;
  readonly name: string;
  /** Canonical texts without prefix length, of both families; and the node's ends of its links, as `linkText` writes them. */
  readonly addresses: readonly string[];
  /** Holds while no compiled policy names the pod; absent: allow. */
  readonly posture?: Posture;
}

function verdictText(direction: Direction, policy: Pick<PodPolicy, Direction> | undefined, posture: Posture): string {
  if (policy === undefined) return posture === "deny" ? `goto ${dropChain(direction)}` : "return";
  const profile = policy[direction];
  return profile === undefined ? "return" : `goto ${profileChain(direction, profile)}`;
}

/**
 * Set and element for each address and direction, `return` where nothing is judged: what is there is always known. And
 * the pair of the address with itself. For a link the one of egress: nobody but the node sends there by it.
 */
export function verdictsOf(
  addresses: readonly string[],
  policy: Pick<PodPolicy, Direction> | undefined,
  posture: Posture = "allow",
): { readonly map: string; readonly element: string }[] {
  return addresses.flatMap((address) => {
    if (isLinkText(address))
      return [{ map: LINK_MAP, element: `${address} : ${verdictText("egress", policy, posture)}` }];
    const family = address.includes(":") ? 6 : 4;
    const verdicts = (["egress", "ingress"] as const).map((direction) => ({
      map: podMap(direction, family),
      element: `${address} : ${verdictText(direction, policy, posture)}`,
    }));
    return [...verdicts, { map: selfSet(family), element: address }];
  });
}

interface Made {
  readonly policy: PodPolicy | undefined;
  readonly verdicts: ReturnType<typeof verdictsOf>;
}

const madeOf = new WeakMap<LocalPod, Made>();

function verdictsOfPod(pod: LocalPod, policy: PodPolicy | undefined): Made["verdicts"] {
  const known = madeOf.get(pod);
  if (known !== undefined && known.policy === policy) return known.verdicts;
  const verdicts = verdictsOf(pod.addresses, policy, pod.posture);
  madeOf.set(pod, { policy, verdicts });
  return verdicts;
}

type PodVerdicts = ReadonlyMap<string, readonly string[]>;
let last: { readonly policies: unknown; readonly pods: unknown; readonly verdicts: PodVerdicts } | undefined;

/**
 * All elements of all maps. An address that two pods claim is the later one's. For the same lists as last time the same
 * result, for the same pod and policy the same elements.
 */
export function podVerdicts(policies: readonly PodPolicy[], pods: readonly LocalPod[]): PodVerdicts {
  if (last !== undefined && last.policies === policies && last.pods === pods) return last.verdicts;
  const byPod = new Map(policies.map((p) => [`${p.namespace}/${p.name}`, p]));
  const maps = new Map<string, Map<string, string>>();
  for (const pod of pods) {
    for (const { map, element } of verdictsOfPod(pod, byPod.get(`${pod.namespace}/${pod.name}`))) {
      const elements = maps.get(map) ?? new Map<string, string>();
      maps.set(map, elements);
      const end = element.indexOf(" ");
      elements.set(end < 0 ? element : element.slice(0, end), element);
    }
  }
  const verdicts: PodVerdicts = new Map([...maps].map(([map, elements]) => [map, [...elements.values()].sort()]));
  last = { policies, pods, verdicts };
  return verdicts;
}
