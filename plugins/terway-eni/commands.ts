/** The verbs of terway-eni: a veth between node and pod, routed through the ENI that owns the pod's address. */
import { type Leased, leasesOf } from "../../ipam/store/allocate.ts";
import {
  type Attachment,
  getAttachment,
  hostIfnameTaken,
  markReady,
  othersInNetns,
  putAttachment,
} from "../../ipam/store/attachments.ts";
import { type Eni, getEni, setEniLink } from "../../ipam/store/enis.ts";
import { getFacts, type NodeFacts } from "../../ipam/store/facts.ts";
import { planGc } from "../../ipam/store/gc.ts";
import { appendJournal } from "../../ipam/store/journal.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import { type Store, storeNow, wallClock } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { delegate } from "../../shared/cni/delegate.ts";
import type { Verb } from "../../shared/cni/environment.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { Result } from "../../shared/cni/result.ts";
import { asFailure, type CniCall, type Handlers } from "../../shared/cni/run-plugin.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { type NetlinkSocket, openNetlink } from "../../shared/netlink/socket.ts";
import { writeSysctl } from "../../shared/netlink/sysctl.ts";
import {
  ipamHandlers,
  ipamResult,
  keyOf,
  type PluginHost,
  podOf,
  release,
  withStore,
} from "../terway-ipam/commands.ts";
import { parseIpamConfig } from "../terway-ipam/config.ts";
import { rangeSets, takeLease } from "../terway-ipam/lease.ts";
import { type EniConfig, parseEniConfig } from "./config.ts";
import { buildVeth, forgetConnections, prepareEni, removeVeth, vethProblems } from "./kernel.ts";
import { openPodNetns, type PodNetns } from "./netns.ts";
import { hostIfnameOf, planPodLink, resultOf, routedAddresses, sharedAddresses } from "./plan.ts";

const ACTOR = "terway-eni";
const DEFAULT_MTU = 1500;
const GC_GRACE_MS = 30_000;

interface Work {
  readonly host: PluginHost;
  readonly call: CniCall;
  readonly config: EniConfig;
  readonly store: Store;
  readonly key: AttachmentKey;
  readonly nl: NetlinkSocket;
}

export function eniHandlers(host: PluginHost): Handlers {
  const open = <T>(call: CniCall, key: AttachmentKey, work: (w: Work) => T): T => {
    const config = parseEniConfig(call, host.env);
    return withStore(host, config, (store) => work({ host, call, config, store, key, nl: openNetlink(host.sys) }));
  };
  return {
    add: (call) => open(call, keyOf(call), add),
    del: (call) => open(lenient(call), keyOf(call), (w) => remove(w, "DEL")),
    check: (call) => open(call, keyOf(call), check),
    gc: (call) => open(lenient(call), keyOf(call), collect),
    status(call) {
      const config = parseEniConfig(call, host.env);
      if (config.ipamInProcess) ipamHandlers(host).status(call);
      else runIpam(host, call, config, "STATUS");
    },
  };
}

/** A configuration that became wrong must not keep a pod from being deleted: only what DEL needs is read. */
function lenient(call: CniCall): CniCall {
  const { mode, mtu: _mtu, ...raw } = call.conf.raw;
  const known = mode === "shared" || mode === "vpc" ? { mode } : {};
  const ipam = typeof raw.ipam === "object" && raw.ipam !== null ? raw.ipam : { type: "terway-ipam" };
  return { ...call, conf: { ...call.conf, raw: { ...raw, ...known, ipam }, runtimeConfig: {}, cniArgs: {} } };
}

function runIpam(host: PluginHost, call: CniCall, config: EniConfig, verb: Verb): Result | undefined {
  return delegate(host.sys, {
    verb,
    type: config.ipamType,
    path: call.env.path,
    env: host.env,
    stdin: call.stdin,
    cniVersion: call.conf.cniVersion,
  });
}

// ---- ADD ----

function add(w: Work): Result {
  const { sys } = w.host;
  const startedMs = storeNow(sys);
  const netns = openPodNetns(sys, w.call.env.netns);
  const before = getAttachment(w.store.db, w.key);
  const done = before && alreadyDone(w, before, netns);
  if (done) return done;
  const facts = getFacts(w.store.db);
  let planned: Planned & { readonly ipam: Result };
  try {
    planned = obtain(w, netns, facts);
  } catch (error) {
    journal(w, "ADD", startedMs, asFailure(error));
    throw error;
  }
  const leasedMs = storeNow(sys);
  try {
    prepareOnce(w, planned);
    forgetConnections(
      sys,
      planned.link.addresses.map((a) => a.address),
    );
    buildVeth(sys, w.nl, netns, planned.link);
    const builtMs = storeNow(sys);
    inTransaction(w.store.db, () => {
      markReady(w.store.db, w.key);
      const phases = `addresses ${(leasedMs - startedMs).toFixed(2)} ms, kernel ${(builtMs - leasedMs).toFixed(2)} ms`;
      journalRow(
        w,
        "ADD",
        startedMs,
        undefined,
        `${planned.link.addresses.map((a) => a.address).join(" ")}: ${phases}`,
      );
    });
    return resultOf(planned.link, netns.path, planned.ipam);
  } catch (error) {
    undo(w, planned.link);
    journal(w, "ADD", startedMs, asFailure(error));
    throw error;
  }
}

/** ADD came twice for one attachment: the same answer, if what was built is still there. */
function alreadyDone(w: Work, before: Attachment, netns: PodNetns): Result | undefined {
  if (
    before.state !== "ready" ||
    before.netnsIno !== netns.ino ||
    before.netnsDev !== netns.dev ||
    before.datapath === undefined
  )
    return undefined;
  const link = JSON.parse(before.datapath) as PodLink;
  return vethProblems(w.host.sys, w.nl, netns, link).length === 0 ? resultOf(link, netns.path, {}) : undefined;
}

interface Planned {
  readonly link: PodLink;
  /** Owner of the addresses, in mode shared. */
  readonly eni: Eni | undefined;
}

/** Addresses and the attachment's row, in one transaction where IPAM runs in this process. */
function obtain(w: Work, netns: PodNetns, facts: Partial<NodeFacts>): Planned & { readonly ipam: Result } {
  const { host, call, config, store, key } = w;
  refuseOthersNetns(w, netns);
  if (config.ipamInProcess) {
    const ipamConfig = parseIpamConfig(call, host.env);
    let planned: (Planned & { readonly ipam: Result }) | undefined;
    takeLease(host.sys, store, {
      key,
      config: ipamConfig,
      facts,
      pod: podOf(call),
      inSameTransaction(leases) {
        const eni = config.mode === "shared" ? eniOfLeases(w, leases) : undefined;
        const sets = eni ? [] : (rangeSets(facts, ipamConfig) ?? []);
        const ipam = ipamResult(host, ipamConfig, { leases, sets }, () => eni);
        planned = { ...record(w, netns, facts, leases, eni, ipam), ipam };
      },
    });
    if (planned === undefined) throw new Error("addresses were leased without a plan");
    return planned;
  }
  const ipam = runIpam(host, call, config, "ADD") ?? {};
  try {
    return inTransaction(store.db, () => {
      const leases = leasesOf(store.db, key);
      const eni = config.mode === "shared" ? eniOfLeases(w, leases) : undefined;
      return { ...record(w, netns, facts, leases, eni, ipam), ipam };
    });
  } catch (error) {
    runIpam(host, call, config, "DEL");
    throw error;
  }
}

/** Plans the veth and writes it down before anything is built. Inside a transaction. */
function record(
  w: Work,
  netns: PodNetns,
  facts: Partial<NodeFacts>,
  leases: readonly Leased[],
  eni: Eni | undefined,
  ipam: Result,
): Planned {
  const { call, config, store, key } = w;
  const addresses = eni ? sharedAddresses(leases, () => eni) : routedAddresses(ipam.ips ?? []);
  const limit = eni?.mtu ?? Number(facts.node_mtu ?? DEFAULT_MTU);
  if (config.mtuBytes !== undefined && config.mtuBytes > limit) {
    throw new CniFailure(
      CODE.invalidConfig,
      `mtu ${config.mtuBytes} is larger than the ${limit} bytes of ${eni ? `ENI ${eni.id}` : "the node's ENI"}`,
      "lower mtu in the conflist, or leave it out",
    );
  }
  let salt = 0;
  while (hostIfnameTaken(store.db, hostIfnameOf(key, salt), key)) salt += 1;
  const link = planPodLink({
    key,
    hostIfname: hostIfnameOf(key, salt),
    podMac: config.podMac,
    mtuBytes: config.mtuBytes ?? limit,
    addresses,
    nodeIps: [facts.node_ip, facts.node_ip6].filter((ip) => ip !== undefined && ip !== "") as string[],
  });
  const pod = podOf(call);
  putAttachment(store.db, {
    ...key,
    netns: netns.path,
    netnsDev: netns.dev,
    netnsIno: netns.ino,
    podNamespace: pod?.namespace,
    podName: pod?.name,
    podUid: pod?.uid,
    plugin: ACTOR,
    mode: config.mode,
    eniId: eni?.id,
    hostIfname: link.hostIfname,
    datapath: JSON.stringify(link),
    state: "building",
    createdMs: storeNow(w.host.sys),
    at: wallClock(w.host.sys),
  });
  return { link, eni };
}

function eniOfLeases(w: Work, leases: readonly Leased[]): Eni {
  const id = leases[0]?.eniId;
  const eni = id === undefined ? undefined : getEni(w.store.db, id);
  if (eni === undefined) {
    throw new CniFailure(
      CODE.store,
      `the address of ${w.key.containerId} belongs to no ENI in the store`,
      "use terway-ipam without ranges in mode shared",
    );
  }
  return eni;
}

/** A namespace in which another living container was attached is somebody else's. */
function refuseOthersNetns(w: Work, netns: PodNetns): void {
  for (const other of othersInNetns(w.store.db, w.key, netns.dev, netns.ino)) {
    const stat = w.host.sys.stat(other.netns);
    // Inode numbers of dead namespaces come again; a path that still leads here does not lie.
    if (stat?.ino === netns.ino && stat.dev === netns.dev && other.netns !== netns.path) {
      throw new CniFailure(
        CODE.invalidEnvironment,
        `CNI_NETNS ${netns.path} is the network namespace of container ${other.containerId}`,
        "check the runtime: each sandbox has its own",
      );
    }
  }
}

/** After a boot the ENI's link has no routes until the agent is up; a pod need not wait for it. */
function prepareOnce(w: Work, { link, eni }: Planned): void {
  const { store, host } = w;
  if (eni === undefined || eni.preparedBoot === store.bootId) return;
  enableForwarding(w, link);
  const prepared = prepareEni(w.nl, eni);
  inTransaction(store.db, () =>
    setEniLink(store.db, eni.id, { ...prepared, mtu: eni.mtu, preparedBoot: store.bootId }),
  );
  host.log(w.config.logDir, {
    level: "info",
    op: "ADD",
    msg: `set up ENI ${eni.id} (${prepared.ifname}) after a boot, before the agent`,
  });
}

function enableForwarding(w: Work, link: PodLink): void {
  writeSysctl(w.host.sys, "net/ipv4/ip_forward", "1");
  if (link.addresses.some((a) => a.address.includes(":"))) writeSysctl(w.host.sys, "net/ipv6/conf/all/forwarding", "1");
}

/** Takes back what a failed ADD made. What cannot be taken back now is left to DEL and to the agent's sweep. */
function undo(w: Work, link: PodLink): void {
  const steps = [
    () =>
      removeVeth(
        w.host.sys,
        w.nl,
        link.hostIfname,
        link.addresses.map((a) => a.address),
      ),
    () => giveBack(w),
  ];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      w.host.log(w.config.logDir, {
        level: "error",
        op: "ADD",
        containerId: w.key.containerId,
        msg: `undo: ${asFailure(error).message}`,
      });
    }
  }
}

// ---- DEL, GC ----

/** Every step runs; the first failure is told. The addresses come free even when the kernel balks: they cool down. */
function remove(w: Work, op: "DEL" | "GC"): void {
  const startedMs = storeNow(w.host.sys);
  const before = getAttachment(w.store.db, w.key);
  const link = before?.datapath === undefined ? undefined : (JSON.parse(before.datapath) as PodLink);
  const addresses = link ? link.addresses.map((a) => a.address) : leasesOf(w.store.db, w.key).map((l) => l.address);
  const hostIfname = link?.hostIfname ?? hostIfnameOf(w.key, 0);
  let failure: CniFailure | undefined;
  const attempt = (step: () => void) => {
    try {
      step();
    } catch (error) {
      failure ??= asFailure(error);
    }
  };
  // Without a row the name is only a guess: another key may have it by right.
  if (link !== undefined || !hostIfnameTaken(w.store.db, hostIfname, w.key))
    attempt(() => removeVeth(w.host.sys, w.nl, hostIfname, addresses));
  if (addresses.length > 0) attempt(() => forgetConnections(w.host.sys, addresses));
  if (failure === undefined) attempt(() => giveBack(w));
  if (before !== undefined || failure !== undefined) journal(w, op, startedMs, failure, addresses.join(" "), before);
  if (failure !== undefined) throw failure;
}

function giveBack(w: Work): void {
  if (!w.config.ipamInProcess) runIpam(w.host, w.call, w.config, "DEL");
  release(w.host, w.store, { cooldownMs: cooldownOf(w) }, w.key, undefined);
}

function cooldownOf(w: Work): number | undefined {
  const seconds = (w.call.conf.raw.ipam as { cooldownSeconds?: unknown } | undefined)?.cooldownSeconds;
  return typeof seconds === "number" && seconds >= 0 ? seconds * 1000 : undefined;
}

function collect(w: Work): void {
  const valid = w.call.conf.validAttachments;
  if (valid === undefined) return;
  let failure: unknown;
  for (const key of planGc(w.store.db, w.call.conf.name, valid, storeNow(w.host.sys) - GC_GRACE_MS)) {
    try {
      remove({ ...w, key, config: { ...w.config, ipamInProcess: true } }, "GC");
    } catch (error) {
      failure ??= error;
    }
  }
  if (!w.config.ipamInProcess) runIpam(w.host, w.call, w.config, "GC");
  if (failure !== undefined) throw failure;
}

// ---- CHECK ----

function check(w: Work): void {
  const attachment = getAttachment(w.store.db, w.key);
  if (attachment?.datapath === undefined) {
    throw new CniFailure(
      CODE.unknownContainer,
      `container ${w.key.containerId} has no attachment ${w.key.ifname} in network "${w.key.network}"`,
      "delete and create the pod again",
    );
  }
  const netns = openPodNetns(w.host.sys, w.call.env.netns);
  const problems = vethProblems(w.host.sys, w.nl, netns, JSON.parse(attachment.datapath) as PodLink);
  if (problems.length > 0) {
    throw new CniFailure(
      CODE.changed,
      `the datapath of container ${w.key.containerId} was changed: ${problems.join("; ")}`,
      "the agent repairs the node's side; otherwise create the pod again",
    );
  }
  if (w.config.ipamInProcess) ipamHandlers(w.host).check(w.call);
  else runIpam(w.host, w.call, w.config, "CHECK");
}

// ---- journal ----

function journalRow(
  w: Work,
  op: string,
  startedMs: number,
  failure: CniFailure | undefined,
  detail: string,
  before?: Attachment,
): void {
  const pod =
    podOf(w.call) ??
    (before?.podName === undefined ? undefined : { namespace: before.podNamespace ?? "", name: before.podName });
  appendJournal(w.store.db, {
    at: wallClock(w.host.sys),
    actor: ACTOR,
    op,
    ...w.key,
    pod: pod && `${pod.namespace}/${pod.name}`,
    outcome: failure === undefined ? "ok" : failure.message,
    code: failure?.code,
    durationMs: storeNow(w.host.sys) - startedMs,
    detail,
  });
}

/** In a transaction of its own; never the reason for a failure. */
function journal(
  w: Work,
  op: string,
  startedMs: number,
  failure: CniFailure | undefined,
  detail = "",
  before?: Attachment,
): void {
  try {
    inTransaction(w.store.db, () => journalRow(w, op, startedMs, failure, detail, before));
  } catch (error) {
    w.host.log(w.config.logDir, { level: "error", op, msg: `journal: ${asFailure(error).message}` });
  }
}
