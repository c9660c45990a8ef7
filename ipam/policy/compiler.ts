/**
 * The compiler: takes changes of the cluster's objects, gives what this node's datapath needs. Parts that did not
 * change are the same objects as before, so that whoever compares need not look into them.
 */
import type { CompiledPolicy, PodPolicy, Profile } from "../../shared/policy/compiled.ts";
import { isolationRules } from "./isolation.ts";
import { addressCidr } from "./member-set.ts";
import {
  type ClusterNode,
  type ClusterObject,
  type IsolationDomain,
  type Labels,
  type ObjectEvent,
  objectKey,
  type Pod,
  type Policy,
} from "./objects.ts";
import { PeerSets } from "./peer-sets.ts";
import { type Applying, type BuiltProfile, buildProfile, type Direction, usesNames } from "./profile.ts";
import { selects } from "./selector.ts";
import type { SetSpec } from "./set-spec.ts";
import { type NamespaceState, namespaceLabels, type PodState } from "./state.ts";

/** A pod that is attached to this node: its addresses are those that it really has. */
export interface AttachedPod {
  readonly namespace: string;
  readonly name: string;
  /** Canonical texts; empty: not known here, and the Pod object says them. */
  readonly addresses: readonly string[];
}

export interface CompilerOptions {
  /** Pods of this node get profiles. Absent: the node's name is not known; attached pods are its pods. */
  readonly nodeName?: string;
  /** Pods of every node get profiles: for explaining. */
  readonly everyNode?: boolean;
  /** Tags of this node's ENIs, for isolation domains. */
  readonly eniTags?: Labels;
  /** Of the last compiled policy that this one continues. */
  readonly revision?: number;
}

interface Local {
  readonly ingress: BuiltProfile | undefined;
  readonly egress: BuiltProfile | undefined;
}

const NO_POLICY: CompiledPolicy = { revision: 0, sets: [], endpointSets: [], profiles: [], pods: [] };

export class PolicyCompiler {
  readonly #options: CompilerOptions;
  readonly #objects = new Map<string, ClusterObject>();
  readonly #namespaces = new Map<string, NamespaceState>();
  readonly #pods = new Map<string, PodState>();
  readonly #nodes = new Map<string, ClusterNode>();
  readonly #policies = new Map<string, Map<string, Policy>>();
  #domains: readonly IsolationDomain[] = [];
  #attached = new Map<string, AttachedPod>();
  readonly #sets = new PeerSets();
  readonly #locals = new Map<string, Local>();
  readonly #stale = new Set<string>();
  /** Versions of policies, for the names of cached profiles. */
  readonly #versions = new Map<string, number>();
  #version = 0;
  #built = new Map<string, BuiltProfile>();
  #compiled: CompiledPolicy;
  /** The first result is another one than that of before this compiler, whatever it holds. */
  #compiledOnce = false;

  constructor(options: CompilerOptions = {}) {
    this.#options = options;
    this.#compiled = { ...NO_POLICY, revision: options.revision ?? 0 };
  }

  apply(events: readonly ObjectEvent[]): void {
    for (const event of events) {
      const key = event.type === "set" ? objectKey(event.object) : event.key;
      const before = this.#objects.get(key);
      const after = event.type === "set" ? event.object : undefined;
      if (before === undefined && after === undefined) continue;
      if (after === undefined) this.#objects.delete(key);
      else this.#objects.set(key, after);
      this.#change(key, before, after);
    }
  }

  /** All pods that are attached to this node now. */
  setAttached(pods: readonly AttachedPod[]): void {
    const before = this.#attached;
    this.#attached = new Map(pods.map((pod) => [`${pod.namespace}/${pod.name}`, pod]));
    for (const key of new Set([...before.keys(), ...this.#attached.keys()])) {
      const was = before.get(key);
      const is = this.#attached.get(key);
      if ((was === undefined) === (is === undefined) && was?.addresses.join() === is?.addresses.join()) continue;
      const pod = this.#pods.get(key)?.pod;
      if (pod !== undefined) this.#changePod(pod.namespace, key, pod);
    }
  }

  get objects(): ReadonlyMap<string, ClusterObject> {
    return this.#objects;
  }

  /** Addresses by which a pod is known: those of its attachment, else of its object. */
  addressesOf(namespace: string, name: string): readonly string[] {
    return this.#pods.get(`${namespace}/${name}`)?.addresses ?? [];
  }

  /** "NAMESPACE/NAME" of a pod that is known by this address. */
  podAt(address: string): string | undefined {
    for (const { key, addresses } of this.#pods.values()) if (addresses.includes(address)) return key;
    return undefined;
  }

  // ---- changes ----

  #change(key: string, before: ClusterObject | undefined, after: ClusterObject | undefined): void {
    const object = after ?? before;
    if (object === undefined) return;
    switch (object.kind) {
      case "Pod":
        this.#changePod(object.namespace, `${object.namespace}/${object.name}`, after as Pod | undefined);
        break;
      case "Namespace":
        this.#changeNamespace(object.name, after?.kind === "Namespace" ? after.labels : {});
        break;
      case "Node":
        this.#changeNode(object.name, before as ClusterNode | undefined, after as ClusterNode | undefined);
        break;
      case "IsolationDomains":
        this.#domains = after?.kind === "IsolationDomains" ? after.domains : [];
        this.#version += 1;
        this.#versions.set("isolation", this.#version);
        this.#staleAll();
        break;
      case "PodNetworking":
      case "MultiENIConfig":
        break; // says nothing of what may talk to whom
      default:
        this.#changePolicy(key, object, after as Policy | undefined);
    }
  }

  #namespace(name: string): NamespaceState {
    let state = this.#namespaces.get(name);
    if (state === undefined) {
      state = { name, labels: namespaceLabels(name, {}), pods: new Set() };
      this.#namespaces.set(name, state);
    }
    return state;
  }

  #changePod(namespace: string, key: string, pod: Pod | undefined): void {
    const home = this.#namespace(namespace);
    const old = this.#pods.get(key);
    if (old !== undefined) {
      this.#sets.podRemoved(old);
      home.pods.delete(old);
      this.#pods.delete(key);
    }
    this.#stale.add(key);
    if (pod === undefined) return;
    const addresses = this.#addresses(key, pod);
    const state: PodState = { key, pod, home, addresses, cidrs: addresses.map(addressCidr), sets: [] };
    this.#pods.set(key, state);
    home.pods.add(state);
    this.#sets.podAdded(state);
  }

  /** None for pods that no selector can mean: on the host's network, or finished. */
  #addresses(key: string, pod: Pod): readonly string[] {
    if (pod.hostNetwork || pod.finished) return [];
    const attached = this.#isHere(pod) ? this.#attached.get(key) : undefined;
    return attached === undefined || attached.addresses.length === 0 ? pod.ips : attached.addresses;
  }

  /** An attachment of a pod that now runs elsewhere under the same name is a leftover. */
  #isHere(pod: Pod): boolean {
    return pod.node === undefined || this.#options.nodeName === undefined || pod.node === this.#options.nodeName;
  }

  #isLocal({ key, pod }: PodState): boolean {
    if (pod.hostNetwork || pod.finished) return false;
    if (this.#options.everyNode) return true;
    if (this.#attached.has(key)) return this.#isHere(pod);
    return pod.node === undefined ? pod.ips.length === 0 : pod.node === this.#options.nodeName;
  }

  #changeNamespace(name: string, given: Labels): void {
    const state = this.#namespace(name);
    const before = state.labels;
    state.labels = namespaceLabels(name, given);
    this.#sets.namespaceChanged(state, before);
    for (const pod of state.pods) if (this.#locals.has(pod.key)) this.#stale.add(pod.key);
  }

  #changeNode(name: string, before: ClusterNode | undefined, after: ClusterNode | undefined): void {
    if (JSON.stringify(before) === JSON.stringify(after)) return; // a heartbeat
    if (after === undefined) this.#nodes.delete(name);
    else this.#nodes.set(name, after);
    this.#sets.nodesChanged(this.#nodes.values());
  }

  #changePolicy(key: string, { namespace }: Policy, after: Policy | undefined): void {
    let policies = this.#policies.get(namespace);
    if (policies === undefined) {
      policies = new Map();
      this.#policies.set(namespace, policies);
    }
    this.#version += 1;
    if (after === undefined) {
      policies.delete(key);
      this.#versions.delete(key);
    } else {
      policies.set(key, after);
      this.#versions.set(key, this.#version);
    }
    if (namespace === "") this.#staleAll();
    else for (const pod of this.#namespace(namespace).pods) if (this.#locals.has(pod.key)) this.#stale.add(pod.key);
  }

  #staleAll(): void {
    for (const key of this.#locals.keys()) this.#stale.add(key);
  }

  // ---- results ----

  #selecting(pod: PodState): Policy[] {
    const out: Policy[] = [];
    for (const namespace of ["", pod.pod.namespace]) {
      for (const policy of this.#policies.get(namespace)?.values() ?? []) {
        const { subject } = policy;
        if (subject.namespaces !== undefined && !selects(subject.namespaces, pod.home.labels)) continue;
        if (selects(subject.pods, pod.pod.labels)) out.push(policy);
      }
    }
    return out.sort(inOrder);
  }

  #build(pod: PodState, direction: Direction, selecting: readonly Policy[]): BuiltProfile | undefined {
    const mine = selecting.filter((policy) => policy[direction] !== undefined);
    const isolation = direction === "egress" && this.#domains.length > 0 ? pod.addresses : [];
    if (mine.length === 0 && isolation.length === 0) return undefined;
    const ports = direction === "ingress" && mine.some((p) => usesNames(p.ingress)) ? pod.pod.ports : [];
    const name = JSON.stringify([
      direction,
      mine.map((policy) => this.#versions.get(objectKey(policy))),
      ports,
      isolation.length > 0 ? [this.#versions.get("isolation"), isolation] : 0,
    ]);
    const known = this.#built.get(name);
    if (known !== undefined) return known;
    const tier = (wanted: Policy["tier"]) => mine.filter((policy) => policy.tier === wanted);
    const applying: Applying = {
      admin: tier("admin"),
      policies: tier("policies"),
      baseline: tier("baseline"),
      isolation: isolationRules(this.#domains, isolation, this.#options.eniTags),
    };
    if (mine.length === 0 && applying.isolation.length === 0) return undefined;
    const built = buildProfile(direction, applying, ports);
    this.#built.set(name, built);
    return built;
  }

  /** The same object as last time when nothing that matters here has changed. */
  compile(): CompiledPolicy {
    const podsChanged = this.#refresh();
    const inUse = podsChanged ? this.#collect() : undefined;
    const { sets, endpointSets } = this.#sets.shown();
    const last = this.#compiled;
    const pods = inUse?.pods ?? last.pods;
    const profiles = inUse?.profiles ?? last.profiles;
    const same =
      this.#compiledOnce &&
      sameList(sets, last.sets) &&
      sameList(endpointSets, last.endpointSets) &&
      sameList(profiles, last.profiles) &&
      sameList(pods, last.pods);
    this.#compiledOnce = true;
    if (!same) this.#compiled = { revision: last.revision + 1, sets, endpointSets, profiles, pods };
    return this.#compiled;
  }

  /** Looks again at pods whose labels, ports or policies changed. @returns Whether any profile is another one. */
  #refresh(): boolean {
    let changed = false;
    for (const key of this.#stale) {
      const pod = this.#pods.get(key);
      const before = this.#locals.get(key);
      if (pod === undefined || !this.#isLocal(pod)) {
        changed = this.#locals.delete(key) || changed;
        continue;
      }
      const selecting = this.#selecting(pod);
      const now: Local = {
        ingress: this.#build(pod, "ingress", selecting),
        egress: this.#build(pod, "egress", selecting),
      };
      if (before !== undefined && before.ingress === now.ingress && before.egress === now.egress) continue;
      this.#locals.set(key, now);
      changed = true;
    }
    this.#stale.clear();
    return changed;
  }

  #collect(): { readonly pods: readonly PodPolicy[]; readonly profiles: readonly Profile[] } {
    const inUse = new Map<string, BuiltProfile>();
    const pods: PodPolicy[] = [];
    const podsBefore = new Map(this.#compiled.pods.map((pod) => [`${pod.namespace}/${pod.name}`, pod]));
    for (const [key, { ingress, egress }] of this.#locals) {
      const slash = key.indexOf("/");
      for (const built of [ingress, egress])
        if (built !== undefined && !inUse.has(built.profile.id)) inUse.set(built.profile.id, built);
      const now: PodPolicy = {
        namespace: key.slice(0, slash),
        name: key.slice(slash + 1),
        ...(ingress === undefined ? {} : { ingress: ingress.profile.id }),
        ...(egress === undefined ? {} : { egress: egress.profile.id }),
      };
      const before = podsBefore.get(key);
      const same = before !== undefined && before.ingress === now.ingress && before.egress === now.egress;
      pods.push(same ? before : now);
    }
    const used = new Set<BuiltProfile | undefined>([...this.#locals.values()].flatMap((l) => [l.ingress, l.egress]));
    for (const [name, built] of this.#built) if (!used.has(built)) this.#built.delete(name);
    const specs = new Map<string, SetSpec>();
    for (const built of inUse.values()) for (const spec of built.needs) specs.set(spec.id, spec);
    this.#sets.require(specs, this.#namespaces, this.#nodes);
    const before = new Map(this.#compiled.profiles.map((profile) => [profile.id, profile]));
    return {
      pods: pods.sort((a, b) => (`${a.namespace}/${a.name}` < `${b.namespace}/${b.name}` ? -1 : 1)),
      profiles: [...inUse.values()]
        .map(({ profile }) => before.get(profile.id) ?? profile)
        .sort((a, b) => (a.id < b.id ? -1 : 1)),
    };
  }
}

/** Priority, then kind and name: the API leaves open which of two with the same priority comes first. */
function inOrder(a: Policy, b: Policy): number {
  if (a.priority !== b.priority) return a.priority - b.priority;
  return objectKey(a) < objectKey(b) ? -1 : 1;
}

function sameList(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}
