/** The elements of one set, changed one by one; the sorted list is made anew only when asked for and different. */
import { CidrSet } from "../../shared/policy/cidr-set.ts";
import { coverBlocks } from "./blocks.ts";
import type { ClusterNode, Selector } from "./objects.ts";
import { EVERYTHING, selects } from "./selector.ts";
import { portFits, type SetSpec } from "./set-spec.ts";
import type { PodState } from "./state.ts";

export class MemberSet {
  readonly spec: SetSpec;
  readonly selector: Selector;
  readonly namespace: string | undefined;
  /** How many pods stand behind each element: two objects may claim one address for a while. */
  readonly #counts = new Map<string, number>();
  /** undefined: nobody has asked yet, and what was touched is not written down. */
  #sorted: readonly string[] | undefined;
  #touched = new Set<string>();
  /** Blocks, for endpoints in them. */
  readonly #cover: CidrSet | undefined;

  constructor(spec: SetSpec) {
    this.spec = spec;
    const { peer } = spec;
    this.selector = peer.kind === "pods" ? peer.pods : EVERYTHING;
    this.namespace = peer.kind === "pods" && peer.namespaces === undefined ? peer.namespace : undefined;
    this.#cover = peer.kind === "blocks" ? new CidrSet(coverBlocks(peer.blocks)) : undefined;
  }

  /** Whether pods of such a namespace can be in it. */
  takesNamespace(name: string, labels: Readonly<Record<string, string>>): boolean {
    const { peer } = this.spec;
    if (peer.kind !== "pods") return peer.kind !== "nodes";
    return peer.namespaces === undefined ? peer.namespace === name : selects(peer.namespaces, labels);
  }

  takes(pod: PodState): boolean {
    return this.takesNamespace(pod.pod.namespace, pod.home.labels) && selects(this.selector, pod.pod.labels);
  }

  add(pod: PodState): void {
    for (const element of this.#elements(pod)) this.#count(element, 1);
  }

  remove(pod: PodState): void {
    for (const element of this.#elements(pod)) this.#count(element, -1);
  }

  setNodes(nodes: Iterable<ClusterNode>): void {
    const { peer } = this.spec;
    if (peer.kind !== "nodes") return;
    for (const element of [...this.#counts.keys()]) this.#count(element, -(this.#counts.get(element) ?? 0));
    for (const node of nodes)
      if (selects(peer.nodes, node.labels)) for (const ip of node.ips) this.#count(addressCidr(ip), 1);
  }

  #elements(pod: PodState): readonly string[] {
    const { port } = this.spec;
    if (port === undefined) return pod.cidrs;
    const ports = pod.pod.ports.filter((p) => portFits(port, p.name, p.protocol));
    if (ports.length === 0) return [];
    const at = [...new Set(ports.map((p) => `${p.protocol} ${p.port}`))];
    return pod.addresses
      .filter((address) => this.#cover?.has(address) ?? true)
      .flatMap((address) => at.map((where) => `${address} ${where}`));
  }

  #count(element: string, by: number): void {
    const count = (this.#counts.get(element) ?? 0) + by;
    if (count <= 0) this.#counts.delete(element);
    else this.#counts.set(element, count);
    if (this.#sorted !== undefined) this.#touched.add(element);
  }

  /** The same array as before when nothing differs. */
  elements(): readonly string[] {
    const old = this.#sorted;
    if (old === undefined) {
      this.#sorted = [...this.#counts.keys()].sort();
      return this.#sorted;
    }
    if (this.#touched.size === 0) return old;
    const gone = new Set<string>();
    const added: string[] = [];
    for (const element of this.#touched) {
      const was = has(old, element);
      if (was && !this.#counts.has(element)) gone.add(element);
      if (!was && this.#counts.has(element)) added.push(element);
    }
    this.#touched = new Set();
    if (gone.size === 0 && added.length === 0) return old;
    this.#sorted = merge(gone.size === 0 ? old : old.filter((element) => !gone.has(element)), added.sort());
    return this.#sorted;
  }
}

/** Both sorted. */
function merge(a: readonly string[], b: readonly string[]): string[] {
  if (b.length === 0) return [...a];
  const out: string[] = [];
  let i = 0;
  for (const element of b) {
    while (i < a.length && (a[i] ?? "") < element) out.push(a[i++] ?? "");
    out.push(element);
  }
  while (i < a.length) out.push(a[i++] ?? "");
  return out;
}

function has(sorted: readonly string[], element: string): boolean {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] ?? "") < element) low = middle + 1;
    else high = middle;
  }
  return sorted[low] === element;
}

export function addressCidr(address: string): string {
  return address.includes(":") ? `${address}/128` : `${address}/32`;
}
