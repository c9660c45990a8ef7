/** The verbs of terway-bandwidth: chained; the previous result goes through unchanged. */
import { getAttachment } from "../../ipam/store/attachments.ts";
import { withBallast } from "../../ipam/store/ballast.ts";
import { getFact, setFacts } from "../../ipam/store/facts.ts";
import { appendJournal } from "../../ipam/store/journal.ts";
import { type Store, storeNow, wallClock } from "../../ipam/store/open.ts";
import { getPodFacts } from "../../ipam/store/pod-facts.ts";
import { dropShaping, getShaping, listShaping, putShaping, type ShapingRow } from "../../ipam/store/shaping.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import type { AttachmentId } from "../../shared/cni/conf.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { asFailure, type CniCall } from "../../shared/cni/run-plugin.ts";
import type { PodLimits } from "../../shared/config/pod-limits.ts";
import { parseShaping } from "../../shared/datapath/shaping.ts";
import {
  applyShaping,
  findShapedLinks,
  openShapingSockets,
  removeIfb,
  removeShaping,
  type ShapedLinks,
  ShapingError,
  type ShapingSockets,
  shapingOf,
  shapingProblems,
} from "../../shared/datapath/shaping-kernel.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import type { Plugin, PluginHost } from "../host/plugin.ts";
import { findPodNetns, openPodNetns, type PodNetns } from "../interface/netns.ts";
import { keyOf, podOf, withStore } from "../terway-ipam/commands.ts";
import { placesOf } from "../terway-ipam/config.ts";
import { type BandwidthConfig, type ExplicitSources, isUnlimited, limitsOf, parseBandwidthConfig } from "./config.ts";

const ACTOR = "terway-bandwidth";
/** GC leaves alone what is younger than this: the runtime made its list before it called us. */
const GC_GRACE_MS = 30_000;

export const bandwidthPlugin: Plugin = {
  add(call, host) {
    const { prevResult } = call;
    if (prevResult === undefined)
      throw new CniFailure(
        CODE.invalidConfig,
        `network "${call.conf.name}" has no prevResult for terway-bandwidth`,
        "terway-bandwidth is a chained plugin: put it after the interface plugin in the conflist",
      );
    const config = parseBandwidthConfig(call, host.env);
    // Nothing but the pod's own facts or the cluster's profiles could still limit it, and both need a pod's name.
    const hasSay = podOf(call) !== undefined || config.qos !== undefined || isExplicit(config);
    if (hasSay) withStore(host, config, (store) => add(host, call, config, store));
    return prevResult;
  },
  del: (call, host) => withStore(host, placesOf(call, host.env), (store) => del(host, call, store)),
  check(call, host) {
    const config = parseBandwidthConfig(call, host.env);
    withStore(host, config, (store) => check(host, call, config, store));
  },
  gc(call, host) {
    const valid = call.conf.validAttachments;
    if (valid === undefined) return;
    withStore(host, placesOf(call, host.env), (store) => collect(host, store, call.conf.name, valid));
  },
  status(call, host) {
    const config = parseBandwidthConfig(call, host.env);
    withStore(host, config, (store) => void getFact(store.db, "qos_config"));
  },
};

/**
 * What was built went with the links; only rows are left to collect. Runtimes do not list a pod's further interfaces: while
 * their interface plugin, which collects before, keeps them, the agent's limits on them stay.
 */
function collect(host: PluginHost, store: Store, network: string, valid: readonly AttachmentId[]): void {
  const alive = new Set(valid.map((a) => `${a.containerId}/${a.ifname}`));
  const oldestMs = storeNow(host.sys) - GC_GRACE_MS;
  const dead = listShaping(store.db, network).filter(
    (row) =>
      !alive.has(`${row.containerId}/${row.ifname}`) &&
      row.createdMs < oldestMs &&
      getAttachment(store.db, row) === undefined,
  );
  if (dead.length === 0) return;
  inTransaction(store.db, () => {
    for (const row of dead) dropShaping(store.db, row);
  });
}

function isExplicit(config: BandwidthConfig): boolean {
  return Object.keys(config.runtime).length > 0 || Object.keys(config.conf).length > 0;
}

function wanted(call: CniCall, config: BandwidthConfig, store: Store): PodLimits {
  const pod = podOf(call);
  const facts = pod && getPodFacts(store.db, pod.namespace, pod.name);
  // The successor of a pod by the same name must not get its predecessor's limits.
  const current = facts?.uid === undefined || pod?.uid === "" || facts.uid === pod?.uid ? facts?.facts : undefined;
  const qos = config.qos === undefined && pod ? getFact(store.db, "qos_config") : undefined;
  return limitsOf(config, pod ? `pod ${pod.namespace}/${pod.name}` : `container ${call.env.containerId}`, current, qos);
}

/** Runs `work` with sockets in both namespaces, and says what the kernel refuses as a CNI failure. */
function inNamespaces<T>(host: PluginHost, netns: PodNetns, work: (s: ShapingSockets) => T): T {
  try {
    const sockets = openShapingSockets(host.sys, netns.fd, netns.ownFd);
    try {
      return work(sockets);
    } finally {
      sockets.close();
    }
  } catch (error) {
    if (error instanceof ShapingError)
      throw new CniFailure(
        error.kind === "conflict" ? CODE.invalidConfig : CODE.kernel,
        error.message,
        error.remedy,
        error,
      );
    if (error instanceof NetlinkError)
      throw new CniFailure(
        CODE.kernel,
        `limiting ${netns.path}: the kernel refused "${error.message}"`,
        "run the same command with tc(8) to see more",
        error,
      );
    throw error;
  }
}

function linksOf(s: ShapingSockets, call: CniCall): ShapedLinks {
  const links = findShapedLinks(s, call.env.ifname);
  if (links === undefined)
    throw new CniFailure(
      CODE.invalidEnvironment,
      `${call.env.netns} has no interface ${call.env.ifname} to limit`,
      "put terway-bandwidth behind the plugin that makes the interface",
    );
  return links;
}

function add(host: PluginHost, call: CniCall, config: BandwidthConfig, store: Store): void {
  const limits = wanted(call, config, store);
  claimNetwork(store, call.conf.name);
  // The agent knows the conflist's own QoS only from a row, and without one would take the cluster's.
  if (isUnlimited(limits) && config.qos === undefined) return;
  const startedMs = storeNow(host.sys);
  const netns = openPodNetns(host.sys, call.env.netns);
  inNamespaces(host, netns, (sockets) => {
    const links = linksOf(sockets, call);
    record(host, call, config, store, netns, links, limits, startedMs);
    try {
      applyShaping(sockets, links, limits);
    } catch (error) {
      undo(host, call, config, store, sockets, links);
      throw error;
    }
  });
}

/** Once for each network: a pod without limits may get some while it lives, and then the agent must know whose it is. */
function claimNetwork(store: Store, network: string): void {
  const named = () => JSON.parse(getFact(store.db, "shaped_networks") ?? "[]") as string[];
  if (named().includes(network)) return;
  inTransaction(store.db, () =>
    setFacts(store.db, { shaped_networks: JSON.stringify([...new Set([...named(), network])].sort()) }),
  );
}

/** What is going to be built is written down before. */
function record(
  host: PluginHost,
  call: CniCall,
  config: BandwidthConfig,
  store: Store,
  netns: PodNetns,
  links: ShapedLinks,
  limits: PodLimits,
  startedMs: number,
): void {
  const key = keyOf(call);
  const pod = podOf(call);
  const { runtime, conf, qos } = config;
  const explicit: ExplicitSources = { runtime, conf, ...(qos === undefined ? {} : { qos }) };
  inTransaction(store.db, () => {
    putShaping(store.db, {
      ...key,
      netns: netns.path,
      netnsDev: netns.dev,
      netnsIno: netns.ino,
      podNamespace: pod?.namespace,
      podName: pod?.name,
      explicit: JSON.stringify(explicit),
      plan: JSON.stringify(shapingOf(links, limits)),
      createdMs: startedMs,
    });
    appendJournal(store.db, {
      at: wallClock(host.sys),
      actor: ACTOR,
      op: "ADD",
      ...key,
      pod: pod && `${pod.namespace}/${pod.name}`,
      outcome: "ok",
      detail: describeLimits(limits),
    });
  });
}

export function describeLimits(limits: PodLimits): string {
  const of = (direction: "ingress" | "egress") => {
    const limit = limits[direction];
    return limit ? [`${direction} ${limit.bitsPerSecond} bit/s`] : [];
  };
  const profile = limits.profile === undefined ? [] : [`profile ${limits.profile}`];
  return [...of("ingress"), ...of("egress"), ...(limits.priority ? [limits.priority] : []), ...profile].join(", ");
}

function undo(
  host: PluginHost,
  call: CniCall,
  config: BandwidthConfig,
  store: Store,
  sockets: ShapingSockets,
  links: ShapedLinks,
): void {
  for (const step of [
    () => removeShaping(sockets, links),
    () => inTransaction(store.db, () => dropShaping(store.db, keyOf(call))),
  ]) {
    try {
      step();
    } catch (error) {
      const { containerId } = call.env;
      host.log(config.logDir, { level: "error", op: "ADD", containerId, msg: `undo: ${asFailure(error).message}` });
    }
  }
}

/**
 * What was built lies on the pod's links and goes with them. Only an ifb in the pod's namespace has a life of its own; it
 * ends with the namespace at the latest.
 */
function del(host: PluginHost, call: CniCall, store: Store): void {
  const row = getShaping(store.db, keyOf(call));
  if (row === undefined) return;
  removeFromNetns(host, row);
  withBallast(host.sys, store.path, () => inTransaction(store.db, () => dropShaping(store.db, row)));
}

function removeFromNetns(host: PluginHost, row: ShapingRow): void {
  const plan = parseShaping(row.plan);
  if (plan?.datapath === "veth") return;
  // Gone, or another one by the same name: then the device is gone too.
  const netns = findPodNetns(host.sys, row);
  if (netns) inNamespaces(host, netns, (s) => removeIfb(s, plan?.podIfname ?? row.ifname));
}

function check(host: PluginHost, call: CniCall, config: BandwidthConfig, store: Store): void {
  const row = getShaping(store.db, keyOf(call));
  const limits = row ? parseShaping(row.plan)?.limits : wanted(call, config, store);
  const problems = limits === undefined ? ["what the store says of them is damaged"] : problemsOf(host, call, limits);
  if (problems.length > 0)
    throw new CniFailure(
      CODE.changed,
      `the limits of container ${call.env.containerId} were changed: ${problems.join("; ")}`,
      "the agent puts them back; otherwise create the pod again",
    );
}

function problemsOf(host: PluginHost, call: CniCall, limits: PodLimits): string[] {
  if (isUnlimited(limits)) return [];
  const netns = openPodNetns(host.sys, call.env.netns);
  return inNamespaces(host, netns, (s) => shapingProblems(s, linksOf(s, call), limits));
}
