/** The verbs of terway-ipam. The interface plugins call the same functions in their own process. */
import { leasesOf } from "../../ipam/store/allocate.ts";
import { releaseAttachment } from "../../ipam/store/attachments.ts";
import { withBallast } from "../../ipam/store/ballast.ts";
import { countsOf } from "../../ipam/store/counts.ts";
import { type Eni, type EniKind, getEni } from "../../ipam/store/enis.ts";
import { getFacts } from "../../ipam/store/facts.ts";
import { planGc } from "../../ipam/store/gc.ts";
import { appendJournal } from "../../ipam/store/journal.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import {
  isDamage,
  openStore,
  repairStore,
  type Store,
  StoreError,
  StoreReplacedError,
  storeNow,
  wallClock,
} from "../../ipam/store/open.ts";
import { dropPolicyAddresses, policyAddressesOf } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { Dns, IpConfig, Result, Route } from "../../shared/cni/result.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { cidrContains, parseCidr } from "../../shared/net/cidr.ts";
import { formatIp, parseIp } from "../../shared/net/ip.ts";
import { SqlError } from "../../shared/sys/sql.ts";
import { decodeUtf8 } from "../../shared/sys/sys.ts";
import type { PluginHost } from "../host/plugin.ts";
import { removeAddresses } from "../terway-policy/kernel.ts";
import { type ConfiguredRange, type IpamConfig, parseIpamConfig, parseResolvConf } from "./config.ts";
import { agentAnswers, cooldownMs, familiesOn, type Lease, takeLease } from "./lease.ts";

/** GC leaves alone what is younger than this: the runtime made its list before it called us. */
const GC_GRACE_MS = 30_000;

export function keyOf(call: CniCall): AttachmentKey {
  return { network: call.conf.name, containerId: call.env.containerId, ifname: call.env.ifname };
}

export function podOf(
  call: CniCall,
): { readonly namespace: string; readonly name: string; readonly uid: string } | undefined {
  const { K8S_POD_NAMESPACE: namespace, K8S_POD_NAME: name, K8S_POD_UID: uid } = call.env.args;
  return namespace && name ? { namespace, name, uid: uid ?? "" } : undefined;
}

/** On a full disk these may have the ballast already for opening: what they do makes room, and must not fail. */
const FREES: ReadonlySet<string> = new Set(["DEL", "GC"]);

/** Opens the store for one call, and turns what SQLite says into a CNI failure. */
export function withStore<T>(
  host: PluginHost,
  places: { readonly store: string; readonly logDir: string },
  work: (store: Store) => T,
): T {
  let store: Store | undefined;
  try {
    store = openStore(host, places.store, { spendBallast: FREES.has(host.env.CNI_COMMAND ?? "") });
    if (store.notice !== undefined) host.log(places.logDir, { level: "error", msg: store.notice });
    // Not closed: the process ends with the call, and closing costs a syscall per mapping.
    return work(store);
  } catch (error) {
    // What a step of DEL threw comes as the cause of that step's failure.
    const cause = error instanceof CniFailure ? error.cause : error;
    if (store !== undefined && isDamage(cause)) throw mended(host, places, store, cause);
    if (cause instanceof StoreReplacedError)
      throw new CniFailure(CODE.tryAgainLater, cause.message, "nothing was written; the call is retried", cause);
    if (error instanceof StoreError)
      throw new CniFailure(CODE.store, error.message, "see that the folder is writable and the disk has room", error);
    if (error instanceof SqlError) {
      const busy = error.primary === 5;
      throw new CniFailure(
        busy ? CODE.tryAgainLater : CODE.store,
        `the store ${places.store} ${busy ? `is held by somebody else${holder(host, places.store)}` : `refused: ${error.message}`}`,
        busy
          ? "see what that process does; the call is retried"
          : "check the disk; the agent rebuilds a store that is lost",
        error,
      );
    }
    throw error;
  }
}

/** Damage that opening does not see. What can be read is saved, and the call fails this once. */
function mended(
  host: PluginHost,
  places: { readonly store: string; readonly logDir: string },
  store: Store,
  cause: unknown,
): CniFailure {
  store.db.close();
  const { notice } = repairStore(host, places.store);
  if (notice !== undefined) host.log(places.logDir, { level: "error", msg: notice });
  return new CniFailure(
    CODE.tryAgainLater,
    notice ?? `the store ${places.store} was damaged; another process has replaced it`,
    "the call is retried, on the new store; terway-agent brings back what could not be read",
    cause,
  );
}

function holder(host: PluginHost, path: string): string {
  const pid = host.sys.lockHolder(`${path}-shm`, 120);
  return pid > 0 ? ` (pid ${pid})` : "";
}

function rangeOf(sets: Lease["sets"], address: string): ConfiguredRange | undefined {
  const ip = parseIp(address);
  return sets.flat().find((r) => cidrContains(r.subnet, ip));
}

/** What an IPAM plugin prints: addresses with gateway, routes, DNS. */
export function ipamResult(
  host: PluginHost,
  config: IpamConfig,
  lease: Lease,
  eniOf: (id: string) => Eni | undefined,
): Result {
  const ips = lease.leases.map((l): IpConfig => {
    const range = rangeOf(lease.sets, l.address);
    if (range) return { address: `${l.address}/${range.subnet.prefixLength}`, gateway: formatIp(range.gateway) };
    const eni = l.eniId === undefined ? undefined : eniOf(l.eniId);
    const cidr = l.family === 4 ? eni?.cidr4 : eni?.cidr6;
    const gateway = l.family === 4 ? eni?.gateway4 : eni?.gateway6;
    const prefixLength = cidr === undefined ? (l.family === 4 ? 32 : 128) : parseCidr(cidr).prefixLength;
    return { address: `${l.address}/${prefixLength}`, ...(gateway === undefined ? {} : { gateway }) };
  });
  // An address of a vSwitch is of use only with the way out; for ranges the operator says which routes there are.
  const defaults = lease.leases
    .filter((l) => l.eniId !== undefined)
    .map((l): Route => ({ dst: l.family === 4 ? "0.0.0.0/0" : "::/0" }));
  return { ips, routes: config.routes.length > 0 ? config.routes : defaults, dns: dnsOf(host, config) };
}

function dnsOf(host: PluginHost, config: IpamConfig): Dns {
  if (config.resolvConf === undefined) return {};
  return parseResolvConf(decodeUtf8(host.sys.readFile(config.resolvConf, 1 << 16)));
}

/**
 * Inside a transaction, before the key's addresses come free: terway-policy may have been taken out of the conflist, and
 * its verdicts must not meet the next pod. In a chain its own DEL came before, and nothing is found here.
 */
export function forgetPolicy(host: PluginHost, store: Store, key: AttachmentKey): void {
  const addresses = policyAddressesOf(store.db, key);
  if (addresses.length === 0) return;
  removeAddresses(host.sys, addresses);
  dropPolicyAddresses(store.db, key);
}

/** Frees what the key holds, also on a full disk. With `op` the journal tells of it. */
export function release(
  host: PluginHost,
  store: Store,
  config: Pick<IpamConfig, "cooldownMs">,
  key: AttachmentKey,
  op: string | undefined,
): string[] {
  const startedMs = storeNow(host.sys);
  const cool = config.cooldownMs ?? cooldownMs(getFacts(store.db), config);
  return withBallast(host.sys, store.path, () =>
    inTransaction(store.db, () => {
      forgetPolicy(host, store, key);
      // By the clock with the lock held: what was waited for the lock is no part of the cool-down.
      const freed = releaseAttachment(store.db, key, storeNow(host.sys), cool).map((l) => l.address);
      if (freed.length > 0 && op !== undefined) {
        appendJournal(store.db, {
          at: wallClock(host.sys),
          actor: "terway-ipam",
          op,
          ...key,
          outcome: "ok",
          durationMs: storeNow(host.sys) - startedMs,
          detail: freed.join(" "),
        });
      }
      return freed;
    }),
  );
}

function setUp(call: CniCall, host: PluginHost): IpamConfig {
  const config = parseIpamConfig(call, host.env);
  if (config.ignored.length > 0)
    host.log(config.logDir, {
      level: "warn",
      op: call.env.verb,
      msg: `ipam keys without meaning here: ${config.ignored.join(", ")}`,
    });
  return config;
}

export function add(call: CniCall, host: PluginHost): Result {
  const config = setUp(call, host);
  const key = keyOf(call);
  const pod = podOf(call);
  return withStore(host, config, (store) => {
    const startedMs = storeNow(host.sys);
    const lease = takeLease(host.sys, store, {
      key,
      config,
      facts: getFacts(store.db),
      pod,
      inSameTransaction: (leases) =>
        appendJournal(store.db, {
          at: wallClock(host.sys),
          actor: "terway-ipam",
          op: "ADD",
          ...key,
          pod: pod && `${pod.namespace}/${pod.name}`,
          outcome: "ok",
          durationMs: storeNow(host.sys) - startedMs,
          detail: leases.map((l) => l.address).join(" "),
        }),
    });
    try {
      return ipamResult(host, config, lease, (id) => getEni(store.db, id));
    } catch (error) {
      release(host, store, config, key, "ADD undone");
      throw error;
    }
  });
}

export function del(call: CniCall, host: PluginHost): void {
  // A configuration that has become wrong must not keep an address.
  const config = lenientConfig(call, host);
  withStore(host, config, (store) => release(host, store, config, keyOf(call), "DEL"));
}

export function check(call: CniCall, host: PluginHost): void {
  const config = setUp(call, host);
  withStore(host, config, (store) => checkLease(store, call));
}

export function gc(call: CniCall, host: PluginHost): void {
  const config = setUp(call, host);
  const valid = call.conf.validAttachments;
  if (valid === undefined) return;
  withStore(host, config, (store) => {
    for (const key of planGc(store.db, call.conf.name, valid, storeNow(host.sys) - GC_GRACE_MS))
      release(host, store, config, key, "GC");
  });
}

/** @param eniKind Which ENIs the pods of an interface plugin are for; a program of its own is told by `ipam.eniKind`. */
export function status(call: CniCall, host: PluginHost, eniKind?: EniKind): void {
  const given = setUp(call, host);
  const config = eniKind === undefined ? given : { ...given, eniKind };
  withStore(host, config, (store) => checkStatus(host, store, config));
}

function lenientConfig(call: CniCall, host: PluginHost): IpamConfig {
  try {
    return parseIpamConfig(call, host.env);
  } catch (error) {
    if (!(error instanceof CniFailure)) throw error;
    const { ipam: _broken, ...raw } = call.conf.raw;
    const places = { store: "", logDir: "" };
    const section = call.conf.raw.ipam as { store?: unknown; logDir?: unknown } | undefined;
    if (typeof section?.store === "string") places.store = section.store;
    if (typeof section?.logDir === "string") places.logDir = section.logDir;
    const rest = {
      ...call,
      conf: { ...call.conf, raw: { ...raw, ipam: places }, runtimeConfig: {}, cniArgs: {} },
      env: { ...call.env, args: {} },
    };
    return parseIpamConfig(rest, host.env);
  }
}

/** Every address that the result claims is held by this container. */
function checkLease(store: Store, call: CniCall): void {
  const held = leasesOf(store.db, keyOf(call)).map((l) => l.address);
  const claimed = (call.prevResult?.ips ?? []).map((ip) => ip.address.split("/")[0] ?? "");
  if (held.length === 0) {
    throw new CniFailure(
      CODE.unknownContainer,
      `container ${call.env.containerId} holds no address of network "${call.conf.name}"`,
      "delete and create the pod again",
    );
  }
  const lost = held.filter((address) => claimed.length > 0 && !claimed.includes(address));
  if (lost.length > 0) {
    throw new CniFailure(
      CODE.changed,
      `container ${call.env.containerId} holds ${held.join(" ")}, but prevResult has ${claimed.join(" ")}`,
      "delete and create the pod again",
    );
  }
}

function checkStatus(host: PluginHost, store: Store, config: IpamConfig): void {
  if (config.source.kind !== "eni") return;
  const now = storeNow(host.sys);
  const only = config.eniKind === undefined ? undefined : { kinds: [config.eniKind] };
  const short = familiesOn(getFacts(store.db))
    .map((family) => countsOf(store.db, "eni", family, now, only))
    .find((counts) => counts.idle === 0);
  if (short === undefined || agentAnswers(host.sys, store)) return;
  throw new CniFailure(
    CODE.notAvailable,
    `no idle IPv${short.family} address (${short.allocated} allocated, ${short.cooling} cooling) and terway-agent does not run`,
    "start terway-agent on this node",
  );
}
