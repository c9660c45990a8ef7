/** The verbs of terway-policy: a pod's addresses are under its NetworkPolicies before ADD returns. */

import { getAttachment } from "../../ipam/store/attachments.ts";
import { withBallast } from "../../ipam/store/ballast.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import { type Store, storeNow } from "../../ipam/store/open.ts";
import {
  dropPolicyAddresses,
  getPodPolicy,
  getPolicyRevision,
  getPolicySets,
  getProfiles,
  isPolicyOff,
  planPolicyGc,
  policyAddressesOf,
  putPolicyAddress,
} from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { Result } from "../../shared/cni/result.ts";
import { asFailure, type CniCall } from "../../shared/cni/run-plugin.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { formatIp, tryParseIp } from "../../shared/net/ip.ts";
import { readSysctl } from "../../shared/netlink/sysctl.ts";
import type { PodPolicy } from "../../shared/policy/compiled.ts";
import type { TableContent } from "../../shared/policy/content.ts";
import { difference } from "../../shared/policy/difference.ts";
import { insideContent } from "../../shared/policy/inside.ts";
import { isBridged, nodeLinks } from "../../shared/policy/pod-links.ts";
import { type PodPlan, podProblems, putPod } from "../../shared/policy/pod-program.ts";
import { type Posture, verdictsOf } from "../../shared/policy/pod-verdicts.ts";
import { programContent } from "../../shared/policy/program.ts";
import { readTable } from "../../shared/policy/read.ts";
import { referenced } from "../../shared/policy/render.ts";
import type { Plugin, PluginHost } from "../host/plugin.ts";
import { forgetPolicy, keyOf, podOf, withStore } from "../terway-ipam/commands.ts";
import { placesOf } from "../terway-ipam/config.ts";
import { type PolicyConfig, parsePolicyConfig } from "./config.ts";
import { areJudged, forgetConnections, inKernel, openTables, openTablesOf, removeAddresses } from "./kernel.ts";

/** GC leaves alone what is younger than this: the runtime made its list before it called us. */
const GC_GRACE_MS = 30_000;
const LOOK_AGAIN_MS = 20;

interface Pod {
  readonly namespace: string;
  readonly name: string;
}

interface Work {
  readonly host: PluginHost;
  readonly call: CniCall;
  readonly config: PolicyConfig;
  readonly store: Store;
  readonly key: AttachmentKey;
}

function withWork<T>(call: CniCall, host: PluginHost, work: (w: Work) => T): T {
  const config = parsePolicyConfig(call, host.env);
  return withStore(host, config, (store) => work({ host, call, config, store, key: keyOf(call) }));
}

export const policyPlugin: Plugin = {
  add: (call, host) => withWork(call, host, add),
  check: (call, host) => withWork(call, host, check),
  del: (call, host) => withStore(host, placesOf(call, host.env), (store) => remove(host, store, call)),
  gc(call, host) {
    const valid = call.conf.validAttachments;
    if (valid === undefined) return;
    withStore(host, placesOf(call, host.env), (store) => collect(host, store, call.conf.name, valid));
  },
  status: (call, host) => withWork(call, host, status),
};

// ---- who, and under what ----

/** Under a runtime that is no kubelet, policies name the container. */
function identityOf(call: CniCall): Pod {
  return podOf(call) ?? { namespace: "", name: call.env.containerId };
}

/**
 * Canonical addresses of the pod, as the plugins before us made them.
 *
 * @param refuse Called with what is no address; without it that is left out.
 */
function addressesIn(result: Result | undefined, refuse?: (text: string) => never): string[] {
  return (result?.ips ?? []).flatMap(({ address }) => {
    const ip = tryParseIp(address.split("/")[0] ?? "");
    return ip === undefined ? (refuse?.(address) ?? []) : [formatIp(ip)];
  });
}

/** Where the pod's policy must hold for every one of them: in ADD and CHECK. */
function addressesOf(call: CniCall): string[] {
  if (call.prevResult === undefined)
    throw new CniFailure(
      CODE.invalidConfig,
      `network "${call.conf.name}" has no prevResult for terway-policy`,
      "terway-policy is a chained plugin: put it after the interface plugin in the conflist",
    );
  return addressesIn(call.prevResult, (text) => {
    throw new CniFailure(CODE.decode, `prevResult.ips has the address ${JSON.stringify(text)}`, "");
  });
}

function postureOf(config: PolicyConfig): Posture {
  return config.unknown === "allow" ? "allow" : "deny";
}

/** Verdicts of a pod, and where its profiles are found if the kernel has not got them. */
function planOf(w: Work, addresses: readonly string[], policy: PodPolicy | undefined): PodPlan {
  const { db } = w.store;
  return {
    verdicts: verdictsOf(addresses, policy, postureOf(w.config)),
    parts() {
      const ids = [policy?.ingress, policy?.egress].filter((id) => id !== undefined);
      const profiles = getProfiles(db, ids);
      if (profiles.length < new Set(ids).size)
        throw new CniFailure(
          CODE.tryAgainLater,
          `the store lacks a policy profile of ${policy?.namespace}/${policy?.name} (${ids.join(", ")})`,
          "the policies are being written at this moment, or run `terway-cli policy sync` again",
        );
      return { profiles, ...getPolicySets(db, [...new Set(profiles.flatMap(referenced))]) };
    },
  };
}

function optionsOf(config: PolicyConfig): { readonly logDrops?: boolean } {
  return config.logDrops === undefined ? {} : { logDrops: config.logDrops };
}

// ---- ADD ----

function add(w: Work): Result {
  const addresses = addressesOf(w.call);
  const result = w.call.prevResult ?? {};
  if (addresses.length === 0) return result; // nothing that a policy could speak of
  const pod = identityOf(w.call);
  const claimed = [...addresses, ...nodeLinks(result)];
  try {
    let policy = claim(w, pod, claimed);
    if (policy === undefined && w.config.unknown === "wait") policy = waitForPolicy(w, pod);
    if (policy === "off") return result;
    const nft = openTables(w.host.sys);
    let first: PodPolicy | undefined | "again" = policy;
    const done = inKernel(`policy of ${pod.namespace}/${pod.name}`, () =>
      putPod(
        nft,
        () => {
          const now = first === "again" ? getPodPolicy(w.store.db, pod.namespace, pod.name) : first;
          first = "again";
          return now === "off" ? undefined : planOf(w, claimed, now);
        },
        optionsOf(w.config),
      ),
    );
    if (done.plan === undefined) return result;
    const inside = uplinkOf(w, result);
    if (inside) enforceInside(w, inside, policy, pod);
    const judged = done.plan.verdicts.some((v) => v.element.includes(" : goto "));
    // Whoever reached the address since the interface exists was not judged yet.
    if (judged && w.config.cutEstablished) forgetConnections(nft, addresses);
    if (done.made.length > 0) tell(w, `made what was missing in the kernel: ${done.made.join("; ")}`, pod);
    warnOfBridge(w, result, pod);
    return result;
  } catch (error) {
    undo(w, error, pod);
    throw error;
  }
}

/** The pod's link, if its packets do not pass the node: then the policy must be in force in the pod itself. */
function uplinkOf(w: Work, result: Result): PodLink | undefined {
  // With an uplink the pod has two interfaces: no need to ask the store for every other pod.
  if ((result.interfaces ?? []).filter((i) => (i.sandbox ?? "") !== "").length < 2) return undefined;
  const linkOf = (ifname: string): PodLink | undefined => {
    const datapath = getAttachment(w.store.db, { ...w.key, ifname })?.datapath;
    return datapath === undefined ? undefined : (JSON.parse(datapath) as PodLink);
  };
  const first = linkOf(w.key.ifname);
  if (first?.uplink) return first;
  // One table is for all interfaces of the pod.
  return (first?.others ?? []).map(linkOf).find((link) => link?.uplink);
}

function insideOf(w: Work, link: PodLink, policy: PodPolicy | undefined): TableContent {
  const posture = postureOf(w.config);
  return insideContent({ compiled: planOf(w, [], policy).parts(), policy, posture, link });
}

function enforceInside(w: Work, link: PodLink, policy: PodPolicy | undefined, pod: Pod): void {
  const nft = openTablesOf(w.host.sys, w.call.env.netns);
  try {
    inKernel(`policy in ${pod.namespace}/${pod.name}`, () => programContent(nft, insideOf(w, link, policy)));
  } finally {
    nft.close();
  }
}

/**
 * Says in the store that the addresses are this pod's, and then reads its policy: whoever changes the policy afterwards
 * finds the addresses.
 */
function claim(w: Work, pod: Pod, addresses: readonly string[]): PodPolicy | "off" | undefined {
  const sinceMs = storeNow(w.host.sys);
  const posture = postureOf(w.config);
  return inTransaction(w.store.db, () => {
    for (const address of addresses) putPolicyAddress(w.store.db, { ...w.key, address, ...pod, posture, sinceMs });
    return getPodPolicy(w.store.db, pod.namespace, pod.name);
  });
}

function waitForPolicy(w: Work, pod: Pod): PodPolicy | "off" {
  const deadline = storeNow(w.host.sys) + w.config.waitMs;
  for (;;) {
    const policy = getPodPolicy(w.store.db, pod.namespace, pod.name);
    if (policy !== undefined) return policy;
    const left = deadline - storeNow(w.host.sys);
    if (left <= 0)
      throw new CniFailure(
        CODE.tryAgainLater,
        `the policy of pod ${pod.namespace}/${pod.name} did not become known within ${w.config.waitMs / 1000} s`,
        'start terway-agent or run `terway-cli policy sync DIR`; or set "default" to "allow" or "deny"',
      );
    w.host.sys.pollIn([], Math.min(LOOK_AGAIN_MS, left));
  }
}

function undo(w: Work, cause: unknown, pod: Pod): void {
  try {
    removeAddresses(w.host.sys, policyAddressesOf(w.store.db, w.key));
    inTransaction(w.store.db, () => dropPolicyAddresses(w.store.db, w.key));
  } catch (error) {
    tell(w, `undo: ${asFailure(error).message}`, pod, "error");
  }
  tell(w, asFailure(cause).message, pod, "error");
}

function tell(w: Work, msg: string, pod: Pod, level = "info"): void {
  const { containerId, ifname } = w.key;
  const fields = { level, op: w.call.env.verb, containerId, ifname, pod: `${pod.namespace}/${pod.name}`, msg };
  w.host.log(w.config.logDir, fields);
}

/** A bridge carries frames between its pods past the forward hook, unless br_netfilter is told otherwise. */
function warnOfBridge(w: Work, result: Result, pod: Pod): void {
  if (!isBridged(result)) return;
  for (const name of ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]) {
    let value = "absent";
    try {
      value = readSysctl(w.host.sys, name);
    } catch {
      // The module is not loaded.
    }
    if (value === "1") continue;
    const held = "traffic between pods of one bridge is not judged by NetworkPolicy";
    tell(w, `${held}: ${name} is ${value}; load br_netfilter and set it to 1`, pod, "warn");
    return;
  }
}

// ---- DEL, GC ----

/** The store forgets last: whoever is killed before leaves behind what DEL, GC and the agent go by. */
function remove(host: PluginHost, store: Store, call: CniCall): void {
  const key = keyOf(call);
  const addresses = policyAddressesOf(store.db, key);
  if (addresses.length === 0) {
    // Nonsense in what the runtime remembers keeps no pod from being deleted.
    removeStrays(host, store, [...addressesIn(call.prevResult), ...nodeLinks(call.prevResult)]);
    return;
  }
  // Outside of the transaction, which nobody need wait for: the IPAM plugin holds the addresses until its own DEL.
  removeAddresses(host.sys, addresses);
  withBallast(host.sys, store.path, () => inTransaction(store.db, () => dropPolicyAddresses(store.db, key)));
}

/**
 * The store was lost, or the node's boot is another: what nobody else has of these. In a transaction, as in GC; but mostly
 * the kernel has none, for a DEL that comes again, and then nobody need wait for it.
 */
function removeStrays(host: PluginHost, store: Store, addresses: readonly string[]): void {
  const free = () =>
    addresses.filter((a) => store.db.get("SELECT 1 FROM policy_address WHERE address = ?", [a]) === undefined);
  const candidates = free();
  if (candidates.length > 0 && areJudged(host.sys, candidates))
    inTransaction(store.db, () => removeAddresses(host.sys, free()));
}

function collect(
  host: PluginHost,
  store: Store,
  network: string,
  valid: readonly { readonly containerId: string; readonly ifname: string }[],
): void {
  let failure: unknown;
  for (const key of planPolicyGc(store.db, network, valid, storeNow(host.sys) - GC_GRACE_MS)) {
    try {
      // In a transaction: the addresses may be free already, and an ADD that claims one must find its verdict there.
      withBallast(host.sys, store.path, () => inTransaction(store.db, () => forgetPolicy(host, store, key)));
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
}

// ---- CHECK, STATUS ----

function check(w: Work): void {
  const addresses = addressesOf(w.call);
  const pod = identityOf(w.call);
  const mine = policyAddressesOf(w.store.db, w.key);
  const problems = addresses
    .filter((a) => !mine.includes(a))
    .map((a) => `the store does not have ${a} for container ${w.key.containerId}`);
  const policy = getPodPolicy(w.store.db, pod.namespace, pod.name);
  if (policy !== "off") problems.push(...kernelProblems(w, [...new Set([...addresses, ...mine])], policy));
  if (problems.length > 0)
    throw new CniFailure(
      CODE.changed,
      `the policy of pod ${pod.namespace}/${pod.name} is not in force: ${problems.join("; ")}`,
      "the agent mends it; without one run `terway-cli policy sync DIR`, or create the pod again",
    );
}

function kernelProblems(w: Work, addresses: readonly string[], policy: PodPolicy | undefined): string[] {
  const nft = openTables(w.host.sys);
  const plan = planOf(w, addresses, policy);
  const problems = inKernel("CHECK", () => podProblems(nft, plan, optionsOf(w.config)));
  const link = uplinkOf(w, w.call.prevResult ?? {});
  return link ? [...problems, ...insideProblems(w, link, policy)] : problems;
}

function insideProblems(w: Work, link: PodLink, policy: PodPolicy | undefined): string[] {
  const nft = openTablesOf(w.host.sys, w.call.env.netns);
  try {
    return inKernel("CHECK", () => [...difference(readTable(nft), insideOf(w, link, policy)).words]).map(
      (problem) => `in the pod: ${problem}`,
    );
  } finally {
    nft.close();
  }
}

function status(w: Work): void {
  const nft = openTables(w.host.sys);
  inKernel("STATUS", () => nft.generation());
  const { db } = w.store;
  if (w.config.unknown === "wait" && getPolicyRevision(db) === undefined && !isPolicyOff(db))
    throw new CniFailure(
      CODE.notAvailable,
      "no NetworkPolicy was compiled into the store yet, and pods wait for theirs (default: wait)",
      "start terway-agent or run `terway-cli policy sync DIR`",
    );
}
