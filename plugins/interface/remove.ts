/** Taking an attachment away: DEL, GC, and the undoing of an ADD that failed. */
import { leasesOf } from "../../ipam/store/allocate.ts";
import { type Attachment, getAttachment, hostIfnameTaken, lessOthers } from "../../ipam/store/attachments.ts";
import { withBallast } from "../../ipam/store/ballast.ts";
import { storeNow } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import type { CniFailure } from "../../shared/cni/failure.ts";
import { asFailure, type CniCall } from "../../shared/cni/run-plugin.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import type { NetlinkSocket } from "../../shared/netlink/socket.ts";
import { forgetPolicy, release } from "../terway-ipam/commands.ts";
import { journal } from "./journal.ts";
import { forgetConnections, openConntrack, removeRoutes, removeVeth } from "./kernel.ts";
import { findPodNetns, type PodNetns } from "./netns.ts";
import { hostIfnameOf } from "./plan.ts";
import { clearPod, leavesTraces } from "./uplink.ts";
import { type InterfacePlugin, runIpam, type Work } from "./work.ts";

/** A configuration that became wrong must not keep a pod from being deleted: only what DEL needs is read. */
export function lenient(plugin: InterfacePlugin, call: CniCall): CniCall {
  const { mode, mtu: _mtu, serviceCIDRs: _services, hostStackCIDRs: _hostStack, ...raw } = call.conf.raw;
  const given = (typeof raw.ipam === "object" && raw.ipam !== null ? raw.ipam : {}) as { readonly type?: unknown };
  const hasType = typeof given.type === "string" && given.type !== "";
  const [first = ""] = Object.keys(plugin.modes);
  const known = String(mode) in plugin.modes ? String(mode) : first;
  const isForeign = hasType && given.type !== "terway-ipam" && plugin.modes[known]?.eniKind !== undefined;
  // Addresses of an IPAM plugin that knows no ENIs: only a mode without them can have had it.
  const withoutEni = Object.keys(plugin.modes).find((name) => plugin.modes[name]?.eniKind === undefined);
  const ipam = hasType && !(isForeign && withoutEni === undefined) ? given : { ...given, type: "terway-ipam" };
  const conf = { ...raw, mode: isForeign ? (withoutEni ?? known) : known, ipam };
  return { ...call, conf: { ...call.conf, raw: conf, runtimeConfig: {}, cniArgs: {} } };
}

/**
 * Every step runs; the first failure is told. The addresses come free even when the kernel balks: they cool down. What was
 * made with this interface goes before it: as long as that fails, the next call finds it again.
 */
export function remove(w: Work, op: "DEL" | "GC", entered: Entered = {}): void {
  const startedMs = storeNow(w.host.sys);
  const before = getAttachment(w.store.db, w.key);
  const link = before?.datapath === undefined ? undefined : (JSON.parse(before.datapath) as PodLink);
  for (const ifname of link?.others ?? []) remove({ ...w, key: { ...w.key, ifname } }, op, entered);
  const held = () => leasesOf(w.store.db, w.key).map((l) => l.address);
  const addresses = link ? link.addresses.map((a) => a.address) : held();
  // Another IPAM plugin frees them before the row goes: in a DEL that comes again they may be another pod's.
  const areOurs = link === undefined || before?.eniId !== undefined || held().length > 0;
  const hostIfname = link?.hostIfname ?? hostIfnameOf(w.key, 0);
  let failure: CniFailure | undefined;
  const attempt = (step: () => void) => {
    try {
      step();
    } catch (error) {
      failure ??= asFailure(error);
    }
  };
  let ct: NetlinkSocket | undefined;
  attempt(() => {
    ct = addresses.length > 0 ? openConntrack(w.host.sys) : undefined;
  });
  // The removal's child process keeps the socket: whoever closes it soon after terway-policy's DEL waits (closeLater()).
  // Without a row the name is only a guess: another key may have it by right.
  if (link !== undefined || !hostIfnameTaken(w.store.db, hostIfname, w.key))
    attempt(() => removeVeth(w.host.sys, w.nl, hostIfname, ct?.fd));
  for (const clear of [
    (own: readonly string[]) => removeRoutes(w.nl, own),
    (own: readonly string[]) => forgetConnections(ct, own),
  ])
    attempt(() => (areOurs ? clear(addresses) : clearOwn(w, addresses, clear)));
  ct?.close();
  // Last: the kernel keeps everybody else waiting while it moves an ENI back.
  if (before && link && leavesTraces(link)) {
    const wasBuilt = before.state === "ready";
    attempt(() => clearPod(w.host.sys, w.nl, enter(w, before, entered), link, wasBuilt));
  }
  if (failure === undefined) attempt(() => giveBack(w));
  if (before !== undefined || failure !== undefined)
    journal(w, { op, startedMs, failure, detail: addresses.join(" "), before });
  if (failure !== undefined) throw failure;
}

/** With the store locked nobody is given the addresses while what is left of them is cleared. */
function clearOwn(w: Work, addresses: readonly string[], clear: (own: readonly string[]) => void): void {
  inTransaction(w.store.db, () => clear(lessOthers(w.store.db, w.key, addresses)));
}

/** The namespace of the pod, which is locked once for all of its interfaces. */
interface Entered {
  netns?: PodNetns | undefined;
}

function enter(w: Work, before: Attachment, entered: Entered): PodNetns | undefined {
  const { netns } = entered;
  if (netns === undefined || netns.ino !== before.netnsIno || netns.dev !== before.netnsDev)
    entered.netns = findPodNetns(w.host.sys, before);
  return entered.netns;
}

/** Takes back what a failed ADD made. What cannot be taken back now is left to DEL and to the agent's sweep. */
export function undo(w: Work, netns: PodNetns, link: PodLink): void {
  const { sys } = w.host;
  const addresses = link.addresses.map((a) => a.address);
  const steps = [
    () => removeVeth(sys, w.nl, link.hostIfname),
    // A DEL may have freed them meanwhile.
    () => clearOwn(w, addresses, (own) => removeRoutes(w.nl, own)),
    () => clearPod(sys, w.nl, netns, link, false),
    () => giveBack(w),
  ];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      const msg = `undo: ${asFailure(error).message}`;
      w.host.log(w.config.logDir, { level: "error", op: "ADD", containerId: w.key.containerId, msg });
    }
  }
}

function giveBack(w: Work): void {
  if (!w.config.ipamInProcess) {
    // Its DEL frees the addresses, not release().
    withBallast(w.host.sys, w.store.path, () => inTransaction(w.store.db, () => forgetPolicy(w.host, w.store, w.key)));
    runIpam(w.host, w.call, w.config, "DEL");
  }
  release(w.host, w.store, { cooldownMs: cooldownOf(w) }, w.key, undefined);
}

function cooldownOf(w: Work): number | undefined {
  const seconds = (w.call.conf.raw.ipam as { cooldownSeconds?: unknown } | undefined)?.cooldownSeconds;
  return typeof seconds === "number" && seconds >= 0 ? seconds * 1000 : undefined;
}
