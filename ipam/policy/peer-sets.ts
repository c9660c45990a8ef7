/**
 * Every set that some rule in use asks for, kept current as pods, namespaces and nodes change. A set comes to be when
 * it is first needed and goes when it is not: policies that select no pod of this node cost nothing.
 */
import type { AddressSet, EndpointSet } from "../../shared/policy/compiled.ts";
import { coverBlocks } from "./blocks.ts";
import { LabelIndex } from "./label-index.ts";
import { MemberSet } from "./member-set.ts";
import type { BlockPeer, ClusterNode, Labels } from "./objects.ts";
import { selects } from "./selector.ts";
import type { SetSpec } from "./set-spec.ts";
import type { NamespaceState, PodState } from "./state.ts";

interface FixedSet {
  readonly blocks: readonly BlockPeer[];
  readonly set: AddressSet;
}

export class PeerSets {
  readonly #members = new Map<string, MemberSet>();
  readonly #index = new LabelIndex<MemberSet>();
  readonly #fixed = new Map<string, FixedSet>();
  readonly #shown = new Map<string, AddressSet | EndpointSet>();

  podAdded(pod: PodState): void {
    this.#join(pod, this.#index);
  }

  podRemoved(pod: PodState): void {
    for (const set of pod.sets) set.remove(pod);
    pod.sets = [];
  }

  #join(pod: PodState, index: LabelIndex<MemberSet>): void {
    if (pod.addresses.length === 0) return;
    for (const set of index.candidates(pod.pod.namespace, pod.pod.labels)) {
      if (!set.takes(pod)) continue;
      set.add(pod);
      pod.sets.push(set);
    }
  }

  /** Call with the new labels in place. */
  namespaceChanged(namespace: NamespaceState, before: Labels): void {
    for (const set of this.#members.values()) {
      if (set.namespace !== undefined) continue;
      const was = set.takesNamespace(namespace.name, before);
      const is = set.takesNamespace(namespace.name, namespace.labels);
      if (was === is) continue;
      for (const pod of namespace.pods) {
        if (pod.addresses.length === 0 || !selects(set.selector, pod.pod.labels)) continue;
        if (is) set.add(pod);
        else set.remove(pod);
        pod.sets = is ? [...pod.sets, set] : pod.sets.filter((other) => other !== set);
      }
    }
  }

  nodesChanged(nodes: Iterable<ClusterNode>): void {
    const all = [...nodes];
    for (const set of this.#members.values()) set.setNodes(all);
  }

  /** Makes what is newly needed and forgets what is not. */
  require(
    specs: ReadonlyMap<string, SetSpec>,
    namespaces: ReadonlyMap<string, NamespaceState>,
    nodes: ReadonlyMap<string, ClusterNode>,
  ): void {
    const gone = [...this.#members.values()].filter((set) => !stillMeans(set.spec, specs.get(set.spec.id)));
    this.#drop(gone, namespaces.values());
    for (const id of this.#fixed.keys()) if (!specs.has(id)) this.#fixed.delete(id);
    for (const id of this.#shown.keys()) if (!specs.has(id)) this.#shown.delete(id);
    const fresh: MemberSet[] = [];
    for (const spec of specs.values()) {
      if (spec.peer.kind === "blocks" && spec.port === undefined) this.#fix(spec.id, spec.peer.blocks);
      else if (!this.#members.has(spec.id)) fresh.push(new MemberSet(spec));
    }
    this.#populate(fresh, namespaces, nodes);
  }

  #fix(id: string, blocks: readonly BlockPeer[]): void {
    const known = this.#fixed.get(id);
    if (known !== undefined && sameBlocks(known.blocks, blocks)) return;
    const cidrs = coverBlocks(blocks);
    const same = known !== undefined && known.set.cidrs.join() === cidrs.join();
    this.#fixed.set(id, { blocks, set: same ? known.set : { id, cidrs } });
  }

  #populate(
    fresh: readonly MemberSet[],
    namespaces: ReadonlyMap<string, NamespaceState>,
    nodes: ReadonlyMap<string, ClusterNode>,
  ): void {
    if (fresh.length === 0) return;
    const index = new LabelIndex<MemberSet>();
    for (const set of fresh) {
      this.#members.set(set.spec.id, set);
      this.#index.add(set);
      index.add(set);
      set.setNodes(nodes.values());
    }
    for (const namespace of namespaces.values()) {
      if (!fresh.some((set) => set.takesNamespace(namespace.name, namespace.labels))) continue;
      for (const pod of namespace.pods) this.#join(pod, index);
    }
  }

  #drop(gone: readonly MemberSet[], namespaces: Iterable<NamespaceState>): void {
    if (gone.length === 0) return;
    const dropped = new Set(gone);
    for (const set of gone) {
      this.#members.delete(set.spec.id);
      this.#index.remove(set);
    }
    for (const namespace of namespaces)
      for (const pod of namespace.pods)
        if (pod.sets.some((set) => dropped.has(set))) pod.sets = pod.sets.filter((set) => !dropped.has(set));
  }

  /** Sorted by id; the same objects while their content is the same. */
  shown(): { readonly sets: readonly AddressSet[]; readonly endpointSets: readonly EndpointSet[] } {
    const sets: AddressSet[] = [...this.#fixed.values()].map(({ set }) => set);
    const endpointSets: EndpointSet[] = [];
    for (const [id, set] of this.#members) {
      const elements = set.elements();
      const before = this.#shown.get(id);
      if (set.spec.port !== undefined) {
        const same = before !== undefined && "endpoints" in before && before.endpoints === elements;
        const now = same ? before : { id, endpoints: elements };
        this.#shown.set(id, now);
        endpointSets.push(now);
      } else {
        const same = before !== undefined && "cidrs" in before && before.cidrs === elements;
        const now = same ? before : { id, cidrs: elements };
        this.#shown.set(id, now);
        sets.push(now);
      }
    }
    const byId = (a: { readonly id: string }, b: { readonly id: string }) => (a.id < b.id ? -1 : 1);
    return { sets: sets.sort(byId), endpointSets: endpointSets.sort(byId) };
  }
}

function sameBlocks(a: readonly BlockPeer[], b: readonly BlockPeer[]): boolean {
  return a === b || (a.length === b.length && a.every((block, i) => block === b[i]));
}

/** Long lists of blocks are named by where they stand: another list may come under the same id. */
function stillMeans(spec: SetSpec, now: SetSpec | undefined): boolean {
  if (now === undefined) return false;
  return spec.peer.kind !== "blocks" || (now.peer.kind === "blocks" && sameBlocks(spec.peer.blocks, now.peer.blocks));
}
