/**
 * What plugins need to know of this node's pods, kept in the store as the manifests say. Each look is one transaction. A
 * pod that lives keeps its facts when its manifest goes, and one whose manifest became faulty keeps its last good ones.
 */
import { formatAskingPods, formatPodFacts, type PodFactsJson, parsePodFacts } from "../../shared/config/pod-facts.ts";
import { resolveLimits } from "../../shared/config/pod-limits.ts";
import { type NodeMeans, type Resolved, resolveRequest, type Surroundings } from "../pods/resolve.ts";
import type { Labels, Pod, PodNetworking } from "../policy/objects.ts";
import type { Refresh } from "../policy/source-dir.ts";
import { namespaceLabels } from "../policy/state.ts";
import { listAttachments } from "../store/attachments.ts";
import { getFact, setFacts } from "../store/facts.ts";
import { dropPodFacts, listPodFacts, type PodFacts, putPodFacts } from "../store/pod-facts.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, isStoreLost, journal, nowMs, wallMs } from "./context.ts";
import type { Manifests } from "./manifests.ts";
import { pauseAfter } from "./pause.ts";

export interface PodFactsOptions {
  readonly nodeName: string;
  /** What is in force now. */
  means(): NodeMeans;
  /** Zones of vSwitches that nobody has named one for; those that do not exist are left out. */
  zonesOf(vswitchIds: readonly string[]): Promise<ReadonlyMap<string, string>>;
}

export interface PodFactsKeeper {
  stop(): void;
}

const RETRY_MS = 5000;
/** How soon the facts of a pod go that ended after its manifest. */
const LINGER_MS = 1000;

export function keepPodFacts(
  ctx: Pick<AgentContext, "store" | "log" | "storeLost">,
  manifests: Manifests,
  options: PodFactsOptions,
): PodFactsKeeper {
  const { db } = ctx.store;
  const pods = new Map<string, Pod>();
  const namespaces = new Map<string, Labels>();
  const networkings = new Map<string, PodNetworking>();
  const zones = new Map<string, string | null>();
  let faulty: ReadonlySet<string> = new Set();
  let broken = false;
  let asking = false;
  /** Of the question for zones: how often in a row it failed, and when it may be put again. */
  let failures = 0;
  let askFromMs = 0;
  let retry: NodeJS.Timeout | undefined;
  let retryAtMs = Number.POSITIVE_INFINITY;
  const told = new Map<string, string>();

  function take({ events, ...rest }: Refresh): void {
    ({ faulty, broken } = rest);
    for (const event of events) {
      if (event.type === "delete") {
        const [kind = "", ...name] = event.key.split("/");
        const of = { Pod: pods, Namespace: namespaces, PodNetworking: networkings }[kind];
        of?.delete(name.join("/"));
        continue;
      }
      const { object } = event;
      if (object.kind === "Pod") pods.set(`${object.namespace}/${object.name}`, object);
      else if (object.kind === "Namespace") namespaces.set(object.name, object.labels);
      else if (object.kind === "PodNetworking") networkings.set(object.name, object);
    }
    guarded();
  }

  function isHere({ node, hostNetwork, finished }: Pod): boolean {
    return !hostNetwork && !finished && (node === undefined || node === options.nodeName);
  }

  function around(unknown: Set<string>): Surroundings {
    return {
      networkings,
      namespaceLabels: (name) => namespaceLabels(name, namespaces.get(name) ?? {}),
      zoneOf(id) {
        const zone = zones.get(id);
        if (zone === undefined) unknown.add(id);
        return zone;
      },
    };
  }

  function bring(): void {
    const unknown = new Set<string>();
    const means = options.means();
    const surroundings = around(unknown);
    const rows = new Map(listPodFacts(db).map((row) => [`${row.namespace}/${row.name}`, row]));
    const asks: string[] = [];
    const changes: PodFacts[] = [];
    for (const [key, pod] of pods) {
      if (!isHere(pod)) continue;
      const row = rows.get(key);
      const resolved = resolveRequest(pod, means, surroundings);
      const json = factsOf(pod, resolved, row);
      if (json.interfaces ?? json.refused) asks.push(key);
      say(key, resolved);
      const facts = formatPodFacts(json);
      if (row?.facts !== facts || row.uid !== pod.uid)
        changes.push({ namespace: pod.namespace, name: pod.name, uid: pod.uid, facts, at: wallMs() });
      rows.delete(key);
    }
    // Left: rows without a pod of this node. Of what cannot be read nobody knows that it is gone.
    const undecided = [...rows].filter(([key]) => broken || faulty.has(`Pod/${key}`));
    for (const [key] of undecided) rows.delete(key);
    const live = rows.size === 0 ? new Set<string>() : livePods();
    const gone = [...rows].filter(([key]) => !live.has(key));
    if (gone.length < rows.size) again(LINGER_MS);
    for (const [key, row] of [...undecided, ...rows]) {
      if (gone.some(([other]) => other === key)) continue;
      const { interfaces, refused } = parsePodFacts(row.facts);
      if (interfaces ?? refused) asks.push(key);
    }
    for (const key of told.keys()) if (!pods.has(key)) told.delete(key);
    const asking_pods = formatAskingPods(asks);
    if (changes.length > 0 || gone.length > 0 || (getFact(db, "asking_pods") ?? "") !== asking_pods)
      inTransaction(db, () => {
        for (const row of changes) putPodFacts(db, row);
        for (const [, row] of gone) dropPodFacts(db, row.namespace, row.name);
        setFacts(db, { asking_pods });
      });
    if (unknown.size > 0) void askZones([...unknown]);
  }

  function livePods(): Set<string> {
    return new Set(listAttachments(db).map((a) => `${a.podNamespace}/${a.podName}`));
  }

  /** What the operator should know of it, once while it lasts. */
  function say(key: string, { refused, warning }: Resolved): void {
    const text = refused?.why ?? warning ?? "";
    if (told.get(key) === text || (text === "" && !told.has(key))) return;
    told.set(key, text);
    if (text === "") return;
    ctx.log(refused && !refused.again ? "error" : "warn", `pod ${key}: ${text}`);
    journal(ctx, "pod-request", refused ? "refused" : "ignored", `${key}: ${text}`);
  }

  async function askZones(ids: readonly string[]): Promise<void> {
    if (asking) return;
    const waitMs = askFromMs - nowMs();
    if (waitMs > 0) return again(waitMs);
    asking = true;
    try {
      const found = await options.zonesOf(ids);
      for (const id of ids) zones.set(id, found.get(id) ?? null);
      failures = 0;
    } catch (error) {
      ctx.log("warn", `zones of ${ids.join(", ")}: ${(error as Error).message}`);
      const pauseMs = pauseAfter(error, ++failures, Math.random());
      askFromMs = nowMs() + pauseMs;
      again(pauseMs);
      return;
    } finally {
      asking = false;
    }
    guarded();
  }

  function again(afterMs = RETRY_MS): void {
    const atMs = nowMs() + afterMs;
    if (atMs >= retryAtMs) return;
    retryAtMs = atMs;
    clearTimeout(retry);
    retry = setTimeout(() => {
      retryAtMs = Number.POSITIVE_INFINITY;
      guarded();
    }, afterMs);
  }

  function guarded(): void {
    try {
      bring();
    } catch (error) {
      if (isStoreLost(error)) ctx.storeLost(error);
      ctx.log("error", `facts of pods: ${(error as Error).message}`);
      again();
    }
  }

  manifests.subscribe(take);
  return { stop: () => clearTimeout(retry) };
}

/** What is faulty now stays as it was last, for the same pod. */
function factsOf(pod: Pod, resolved: Resolved, row: PodFacts | undefined): PodFactsJson {
  const before = row !== undefined && row.uid === pod.uid ? parsePodFacts(row.facts) : undefined;
  const annotations = { ...pod.annotations };
  for (const [key, value] of Object.entries(annotations)) {
    const last = before?.annotations[key];
    if (last !== undefined && !isGood(key, value) && isGood(key, last)) annotations[key] = last;
  }
  const keeps = resolved.refused !== undefined && before !== undefined && before.refused === undefined;
  return {
    labels: pod.labels,
    annotations,
    interfaces: keeps ? before.interfaces : resolved.interfaces,
    refused: keeps ? undefined : resolved.refused,
  };
}

function isGood(key: string, value: string): boolean {
  const { faults } = resolveLimits({
    runtime: {},
    conf: {},
    labels: {},
    annotations: { [key]: value },
    qos: undefined,
  });
  return faults.length === 0;
}
