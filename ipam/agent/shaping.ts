/**
 * Keeps pods' limits as annotations, profiles and the store say: changes them on live pods, puts back what foreign hands
 * took away, orders the ENIs by priority, and counts for the metrics.
 */
import { readFileSync, statSync } from "node:fs";
import { parsePodFacts } from "../../shared/config/pod-facts.ts";
import { type PodLimits, resolveLimits } from "../../shared/config/pod-limits.ts";
import { NO_QOS, parseQosConfig, type QosConfig } from "../../shared/config/qos-config.ts";
import { applyEniQos, type EniQosOutcome } from "../../shared/datapath/eni-qos-kernel.ts";
import { parseShaping } from "../../shared/datapath/shaping.ts";
import {
  applyShaping,
  findShapedLinks,
  openShapingSockets,
  type QdiscsOfLinks,
  readQdiscs,
  readShaping,
  type ShapedLinks,
  type ShapingSockets,
  shapingOf,
} from "../../shared/datapath/shaping-kernel.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { isSameNetns } from "../../shared/sys/netns.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";
import { listAttachments } from "../store/attachments.ts";
import { listEnis } from "../store/enis.ts";
import { getFact, setFacts } from "../store/facts.ts";
import type { AttachmentKey } from "../store/key.ts";
import { listPodFacts, type PodFacts } from "../store/pod-facts.ts";
import { dropShaping, listShaping, putShaping, type ShapingRow, updateShapingPlan } from "../store/shaping.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, journal, nowMs } from "./context.ts";
import { createShapingMetrics, type Direction, type PodLabels } from "./shaping-metrics.ts";
import { countedSince, isViolation, type Readings, readingsOf } from "./shaping-sample.ts";

const LOOK_EVERY_MS = 1000;
const SAMPLE_EVERY_MS = 5000;
const VERIFY_EVERY_MS = 30_000;
/** An ADD writes its row before it builds: it is left alone meanwhile. */
const YOUNG_MS = 5000;

type ShapingContext = Pick<AgentContext, "store" | "log" | "metrics">;

export interface ShapingKeeper {
  /** One look; `verify` also compares with the kernel where nothing changed in the store. */
  look(verify: boolean): void;
  sample(): void;
  /** Looks and samples from now on. */
  start(): void;
  stop(): void;
}

/** An attachment that has or could get limits. */
interface Candidate extends AttachmentKey {
  readonly netns: string;
  readonly netnsDev: number;
  readonly netnsIno: number;
  readonly podNamespace: string | undefined;
  readonly podName: string | undefined;
  readonly createdMs: number;
  readonly row: ShapingRow | undefined;
}

const idOf = (k: AttachmentKey) => `${k.network}/${k.containerId}/${k.ifname}`;
const podId = (c: Candidate) => `${c.podNamespace ?? ""}/${c.podName ?? c.containerId}`;
/** None where the row is damaged: what is wanted is built and written down again. */
const builtOf = (c: Candidate): PodLimits => (c.row && parseShaping(c.row.plan)?.limits) ?? {};
const labelsOf = (c: Candidate): PodLabels => ({ namespace: c.podNamespace ?? "", pod: c.podName ?? c.containerId });

/**
 * Limits that the sources give a pod now.
 *
 * @param clusterQos Counts unless the pod's conflist has its own.
 * @returns undefined with the faults when they cannot be read.
 */
export function limitsNow(
  explicitJson: string | undefined,
  facts: PodFacts | undefined,
  clusterQos: QosConfig,
): { readonly limits?: PodLimits; readonly faults: readonly string[] } {
  const explicit = JSON.parse(explicitJson ?? "{}") as { runtime?: object; conf?: object; qos?: QosConfig };
  const { labels, annotations } = facts ? parsePodFacts(facts.facts) : { labels: {}, annotations: {} };
  const { limits, faults } = resolveLimits({
    runtime: explicit.runtime ?? {},
    conf: explicit.conf ?? {},
    labels,
    annotations,
    qos: explicit.qos ?? clusterQos,
  });
  return faults.length > 0 ? { faults } : { limits, faults };
}

/** @param qosPath File with the QoS configuration (K8S-73); absent: what the store has. */
export function createShapingKeeper(ctx: ShapingContext, node: string, qosPath: string | undefined): ShapingKeeper {
  const { store, log } = ctx;
  const metrics = createShapingMetrics(ctx.metrics.registry, node);
  const ownFd = sys.open("/proc/thread-self/ns/net", O_RDONLY);
  const readings = new Map<
    string,
    { readonly atMs: number; readonly readings: Readings; readonly ifname: string; readonly labels: PodLabels }
  >();
  let qosMtimeMs = -1;
  let seenVersion = -1;
  let seenQosMtimeMs = -2;
  /** undefined: not known what a former agent left. */
  let orderedEnis: Set<string> | undefined;

  /** A file that is wrong changes nothing: the last good one stays in force. */
  function loadQos(): void {
    if (qosPath === undefined) return;
    try {
      const { mtimeMs } = statSync(qosPath);
      if (mtimeMs === qosMtimeMs) return;
      qosMtimeMs = mtimeMs;
      const text = readFileSync(qosPath, "utf8");
      const { config, faults } = parseQosConfig(JSON.parse(text));
      if (config === undefined) log("error", `${qosPath} is not used: ${faults.join("; ")}`);
      else inTransaction(store.db, () => setFacts(store.db, { qos_config: JSON.stringify(JSON.parse(text)) }));
    } catch (error) {
      log("error", `${qosPath} cannot be read: ${(error as Error).message}`);
    }
  }

  function qosInForce(): QosConfig {
    const text = getFact(store.db, "qos_config");
    return (text === undefined ? undefined : parseQosConfig(JSON.parse(text)).config) ?? NO_QOS;
  }

  function candidates(): Candidate[] {
    const rows = listShaping(store.db);
    const known = new Map<string, Candidate>(rows.map((row) => [idOf(row), { ...row, row }]));
    // A network without terway-bandwidth in its chain is not ours: somebody else may shape its pods, or nobody is to.
    const ours = JSON.parse(getFact(store.db, "shaped_networks") ?? "[]") as string[];
    for (const a of listAttachments(store.db)) {
      if (
        a.state !== "ready" ||
        known.has(idOf(a)) ||
        !ours.includes(a.network) ||
        a.netnsDev === undefined ||
        a.netnsIno === undefined
      )
        continue;
      known.set(idOf(a), { ...a, netnsDev: a.netnsDev, netnsIno: a.netnsIno, row: undefined });
    }
    return [...known.values()];
  }

  /** @returns undefined when the namespace is gone, or another one by now. */
  function inPod<T>(c: Candidate, work: (s: ShapingSockets, links: ShapedLinks) => T): T | undefined {
    if (!isSameNetns(sys, c)) return undefined;
    const netnsFd = sys.open(c.netns, O_RDONLY);
    try {
      const sockets = openShapingSockets(sys, netnsFd, ownFd);
      try {
        const links = findShapedLinks(sockets, c.ifname);
        return links && work(sockets, links);
      } finally {
        sockets.close();
      }
    } finally {
      sys.close(netnsFd);
    }
  }

  /** The node's qdiscs, read once in a pass when the first of its pods needs them. */
  function nodeQdiscs(): () => QdiscsOfLinks {
    let read: QdiscsOfLinks | undefined;
    return () => {
      if (read !== undefined) return read;
      const nl = openNetlink(sys);
      try {
        read = readQdiscs(nl);
      } finally {
        nl.close();
      }
      return read;
    };
  }

  function keep(c: Candidate, limits: PodLimits, cause: string, onNode: () => QdiscsOfLinks): void {
    inPod(c, (s, links) => {
      const changed = applyShaping(s, links, limits, readShaping(s, links, onNode()));
      const json = JSON.stringify(shapingOf(links, limits));
      if (c.row === undefined)
        inTransaction(store.db, () => putShaping(store.db, { ...c, explicit: "{}", plan: json }));
      else if (c.row.plan !== json)
        inTransaction(store.db, () => updateShapingPlan(store.db, c.row as ShapingRow, json));
      if (changed.length === 0) return;
      log("info", `limits of ${podId(c)} (${cause}): ${changed.join("; ")}`);
      if (cause === "put back") ctx.metrics.repaired(changed.length);
      journal(ctx, "limits", "ok", `${podId(c)} ${cause}: ${changed.join("; ")}`);
    });
  }

  /**
   * @param before What is built.
   * @returns The limits in force afterwards; undefined when the pod is gone.
   */
  function lookAt(
    c: Candidate,
    before: PodLimits,
    qos: QosConfig,
    facts: ReadonlyMap<string, PodFacts>,
    verify: boolean,
    onNode: () => QdiscsOfLinks,
  ): PodLimits | undefined {
    if (nowMs() - c.createdMs < YOUNG_MS) return before;
    // A container that is gone without DEL: what was on its links went with them.
    if (!isSameNetns(sys, c)) {
      if (c.row) inTransaction(store.db, () => dropShaping(store.db, c));
      return undefined;
    }
    const decided = limitsNow(c.row?.explicit, facts.get(podId(c)), qos);
    if (decided.limits === undefined) {
      log("warn", `limits of ${podId(c)} stay as they are: ${decided.faults.join("; ")}`);
      return before;
    }
    const { limits } = decided;
    const none = limits.ingress === undefined && limits.egress === undefined && limits.priority === undefined;
    if (c.row === undefined && none) return limits;
    const differs = JSON.stringify(before) !== JSON.stringify(limits);
    if (differs || verify) keep(c, limits, differs ? "changed" : "put back", onNode);
    return limits;
  }

  function orderEnis(qos: QosConfig, anyPriority: boolean, onNode: () => QdiscsOfLinks): void {
    const named = new Set(qos.tcRules.map((r) => r.interface));
    const enis = listEnis(store.db).flatMap((e) => (e.ifname === undefined ? [] : [e.ifname]));
    const wanted = new Set([...named, ...(anyPriority ? enis : [])]);
    const ordered = orderedEnis ?? new Set(enis);
    orderedEnis = ordered;
    if (wanted.size === 0 && ordered.size === 0) return;
    const nl = openNetlink(sys);
    try {
      for (const ifname of new Set([...wanted, ...ordered])) {
        const isWanted = wanted.has(ifname);
        const rules = qos.tcRules.filter((r) => r.interface === ifname);
        if (isWanted) ordered.add(ifname); // before: what stops half-way is there too
        try {
          const outcome = applyEniQos(sys, nl, ifname, isWanted, rules, onNode());
          if (!isWanted) ordered.delete(ifname);
          sayOrder(ifname, isWanted, named.has(ifname), outcome);
        } catch (error) {
          log("warn", `order in which ${ifname} sends: ${(error as Error).message}`);
        }
      }
    } finally {
      nl.close();
    }
  }

  function sayOrder(ifname: string, isWanted: boolean, isNamed: boolean, outcome: EniQosOutcome): void {
    if (outcome === "changed")
      log("info", `${ifname}: ${isWanted ? "sends in order of priority" : "sends as it comes"}`);
    else if (outcome === "no link") {
      // An ENI may be in a pod.
      if (isNamed) log("warn", `tc_rules name ${ifname}, which this node does not have`);
    } else if (outcome !== "right")
      log("warn", `${ifname} has somebody else's ${outcome.foreign}: network priority is not in force on it`);
  }

  function look(verify: boolean): void {
    loadQos();
    // Moves with every commit of others; our own do not count, and need not.
    const version = Number(store.db.get("PRAGMA data_version")?.data_version ?? 0);
    const all = candidates();
    const young = all.some((c) => nowMs() - c.createdMs < YOUNG_MS + LOOK_EVERY_MS);
    if (!verify && !young && version === seenVersion && qosMtimeMs === seenQosMtimeMs) return;
    seenVersion = version;
    seenQosMtimeMs = qosMtimeMs;
    const qos = qosInForce();
    const facts = new Map(listPodFacts(store.db).map((f) => [`${f.namespace}/${f.name}`, f]));
    const onNode = nodeQdiscs();
    let anyPriority = false;
    for (const c of all) {
      const before = builtOf(c);
      let inForce: PodLimits | undefined = before; // as long as a look brings nothing else
      try {
        inForce = lookAt(c, before, qos, facts, verify, onNode);
      } catch (error) {
        // A DEL under way takes links from under our hands; what is really wrong comes again at the next look.
        log("warn", `limits of ${podId(c)}: ${(error as Error).message}`);
      }
      if (inForce?.priority !== undefined) anyPriority = true;
    }
    orderEnis(qos, anyPriority, onNode);
  }
  function sample(): void {
    const rows = listShaping(store.db).map((row): Candidate => ({ ...row, row }));
    const alive = new Set(rows.map(idOf));
    for (const [id, last] of readings)
      if (!alive.has(id)) {
        metrics.forget(last.labels, last.ifname);
        readings.delete(id);
      }
    const onNode = nodeQdiscs();
    for (const c of rows) {
      try {
        sampleOne(c, onNode);
      } catch (error) {
        log("warn", `counters of ${podId(c)}: ${(error as Error).message}`);
      }
    }
  }

  function sampleOne(c: Candidate, onNode: () => QdiscsOfLinks): void {
    const limits = builtOf(c);
    inPod(c, (s, links) => {
      const now = readingsOf(limits, readShaping(s, links, onNode()));
      const last = readings.get(idOf(c));
      const atMs = nowMs();
      const ifname = links.host?.name ?? `${c.containerId}/${c.ifname}`;
      readings.set(idOf(c), { atMs, readings: now, ifname, labels: labelsOf(c) });
      for (const direction of ["ingress", "egress"] as const) {
        const bits = limits[direction]?.bitsPerSecond;
        metrics.allocate(labelsOf(c), direction, bits === undefined ? undefined : bits / 8);
        sampleDirection(c, limits, direction, now, last, atMs, ifname);
      }
    });
  }

  function sampleDirection(
    c: Candidate,
    limits: PodLimits,
    direction: Direction,
    now: Readings,
    last: { readonly atMs: number; readonly readings: Readings } | undefined,
    atMs: number,
    ifname: string,
  ): void {
    const reading = now[direction];
    if (reading === undefined) return;
    const counted = countedSince(last?.readings[direction], reading);
    const seconds = last === undefined ? undefined : (atMs - last.atMs) / 1000;
    const bytesPerSecond = seconds === undefined || seconds <= 0 ? 0 : counted.bytes / seconds;
    metrics.observe(labelsOf(c), direction, ifname, counted, bytesPerSecond);
    if (isViolation(limits, direction, reading, bytesPerSecond)) metrics.violated(limits.profile ?? "default");
  }

  const guard = (what: string, work: () => void) => () => {
    try {
      work();
    } catch (error) {
      log("error", `${what}: ${(error as Error).message}`);
    }
  };
  const timers: NodeJS.Timeout[] = [];
  return {
    look,
    sample,
    start() {
      timers.push(
        setInterval(
          guard("limits", () => look(false)),
          LOOK_EVERY_MS,
        ),
        setInterval(
          guard("limits", () => look(true)),
          VERIFY_EVERY_MS,
        ),
        setInterval(guard("counters", sample), SAMPLE_EVERY_MS),
      );
    },
    stop() {
      for (const timer of timers) clearInterval(timer);
      sys.close(ownFd);
    },
  };
}
