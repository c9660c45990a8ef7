/**
 * Policy in the namespaces of pods whose packets pass no hook of the node. By difference: a pod's namespace is entered when
 * what holds for that pod has changed, or to compare with what is there.
 */
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy, PodPolicy, Profile } from "../../shared/policy/compiled.ts";
import { cutDenied } from "../../shared/policy/cut.ts";
import { insideContent } from "../../shared/policy/inside.ts";
import type { Posture } from "../../shared/policy/pod-verdicts.ts";
import { type Programmed, programContent, removePolicy } from "../../shared/policy/program.ts";
import { referenced } from "../../shared/policy/render.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { isSameNetns } from "../../shared/sys/netns.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";
import type { Store } from "../store/open.ts";
import { listUplinkPods, type UplinkPod } from "../store/policy.ts";

/** What a namespace was programmed with. */
interface Known {
  /** Of the namespace. */
  readonly netnsIno: number;
  /** Objects and texts that decide what is to be there; equal ones, equal content. */
  readonly inputs: readonly unknown[];
  readonly programmed: Programmed;
}

/** What of a compiled policy a pod's own namespace can need, by id. */
interface Parts {
  readonly pods: ReadonlyMap<string, PodPolicy>;
  readonly profiles: ReadonlyMap<string, Profile>;
  readonly sets: ReadonlyMap<string, object>;
}

export interface Mended {
  /** What differed in the kernel, one line each. */
  readonly changed: readonly string[];
  /** Of pods whose own namespace refuses: that held back nothing else. */
  readonly failures: readonly Error[];
}

/** @throws {AggregateError} That says all of them, if there are any. */
export function throwAll(failures: readonly Error[]): void {
  if (failures.length > 0) throw new AggregateError(failures, failures.map((f) => f.message).join("; "));
}

export class InsideEnforcer {
  readonly #store: Store;
  readonly #known = new Map<string, Known>();
  #partsOf: { readonly compiled: CompiledPolicy; readonly parts: Parts } | undefined;

  constructor(store: Store) {
    this.#store = store;
  }

  /**
   * Brings every such pod that terway-policy was run for to the compiled policy.
   *
   * @param options.verify Look into every namespace, whether something changed for its pod or not.
   * @param options.cut Connections that are no longer allowed end.
   */
  bring(compiled: CompiledPolicy, options: { readonly verify: boolean; readonly cut: boolean }): Mended {
    const pods = listUplinkPods(this.#store.db);
    const alive = new Set(pods.map(idOf));
    for (const id of this.#known.keys()) if (!alive.has(id)) this.#known.delete(id);
    const changed: string[] = [];
    const failures: Error[] = [];
    for (const pod of pods) {
      try {
        const lines = this.#bringPod(pod, compiled, options);
        changed.push(...lines.map((what) => `in pod ${pod.namespace}/${pod.name}: ${what}`));
      } catch (error) {
        this.#known.delete(idOf(pod)); // what is there is not known
        // A DEL under way takes the namespace from under our hands.
        if (isSameNetns(sys, pod))
          failures.push(new Error(`in pod ${pod.namespace}/${pod.name}: ${(error as Error).message}`));
      }
    }
    return { changed, failures };
  }

  #parts(compiled: CompiledPolicy): Parts {
    if (this.#partsOf?.compiled === compiled) return this.#partsOf.parts;
    const parts: Parts = {
      pods: new Map(compiled.pods.map((p) => [`${p.namespace}/${p.name}`, p])),
      profiles: new Map(compiled.profiles.map((p) => [p.id, p])),
      sets: new Map<string, object>([...compiled.sets, ...compiled.endpointSets].map((set) => [set.id, set])),
    };
    this.#partsOf = { compiled, parts };
    return parts;
  }

  #bringPod(
    pod: UplinkPod,
    compiled: CompiledPolicy,
    { verify, cut }: { readonly verify: boolean; readonly cut: boolean },
  ): readonly string[] {
    const parts = this.#parts(compiled);
    const policy = parts.pods.get(`${pod.namespace}/${pod.name}`);
    const inputs = inputsOf(pod, policy, parts);
    const known = this.#known.get(idOf(pod));
    const same = known?.netnsIno === pod.netnsIno ? known : undefined;
    if (!verify && same !== undefined && sameInputs(same.inputs, inputs)) return [];
    // A namespace that is gone, or another one's by now, needs no policy of ours.
    if (!isSameNetns(sys, pod)) return [];
    const link = JSON.parse(pod.datapath) as PodLink;
    const content = insideContent({ compiled, policy, posture: pod.posture, link });
    return inNamespace(pod.netns, (nft) => {
      const report = programContent(nft, content, verify ? undefined : same?.programmed);
      this.#known.set(idOf(pod), { netnsIno: pod.netnsIno, inputs, programmed: report.programmed });
      return cut && report.changed.length > 0
        ? [...report.changed, ...cutInside(nft, pod, compiled, link)]
        : report.changed;
    });
  }
}

/**
 * Takes the policy out of every such pod.
 *
 * @returns Of which pods it was.
 * @throws {AggregateError} When a kernel refuses; every other pod is free then.
 */
export function removeInside(store: Store): string[] {
  const freed: string[] = [];
  const failures: Error[] = [];
  for (const pod of listUplinkPods(store.db)) {
    try {
      if (isSameNetns(sys, pod) && inNamespace(pod.netns, removePolicy)) freed.push(`${pod.namespace}/${pod.name}`);
    } catch (error) {
      if (isSameNetns(sys, pod))
        failures.push(new Error(`in pod ${pod.namespace}/${pod.name}: ${(error as Error).message}`));
    }
  }
  throwAll(failures);
  return freed;
}

/** What goes to services the node judges, by the real backend. */
function cutInside(nft: NftSocket, pod: UplinkPod, compiled: CompiledPolicy, link: PodLink): string[] {
  const { namespace, name, posture } = pod;
  const addresses = link.addresses.map(({ address }) => address);
  const desired = { compiled, pods: [{ namespace, name, posture, addresses }] };
  return cutDenied(nft, desired, link.nodeIps, link.uplink?.viaNode).map((text) => `cut ${text}`);
}

function idOf(pod: UplinkPod): string {
  return `${pod.network}/${pod.containerId}/${pod.ifname}`;
}

function inputsOf(
  pod: { readonly posture: Posture; readonly datapath: string },
  policy: PodPolicy | undefined,
  { profiles, sets }: Parts,
): unknown[] {
  const inputs: unknown[] = [pod.posture, pod.datapath, policy?.ingress, policy?.egress];
  if (policy === undefined) return inputs;
  for (const id of [policy.ingress, policy.egress]) {
    const profile = profiles.get(id ?? "");
    if (profile !== undefined) for (const set of referenced(profile)) inputs.push(sets.get(set));
  }
  return inputs;
}

function sameInputs(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

function inNamespace<T>(netns: string, work: (nft: NftSocket) => T): T {
  const [netnsFd, ownNetnsFd] = [sys.open(netns, O_RDONLY), sys.open("/proc/thread-self/ns/net", O_RDONLY)];
  try {
    const nft = openNft(sys, { netnsFd, ownNetnsFd });
    try {
      return work(nft);
    } finally {
      nft.close();
    }
  } finally {
    sys.close(netnsFd);
    sys.close(ownNetnsFd);
  }
}
