/**
 * From compiled policy to the store and the kernel, by difference. The store first: an ADD that comes in between reads
 * the new policy there, and finds or makes in the kernel what it needs.
 */
import { networkInterfaces } from "node:os";
import { formatIp, tryParseIp } from "../../shared/net/ip.ts";
import type { NftSocket } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { cutDenied } from "../../shared/policy/cut.ts";
import { isLinkText } from "../../shared/policy/names.ts";
import type { LocalPod } from "../../shared/policy/pod-verdicts.ts";
import { type Programmed, programPolicy } from "../../shared/policy/program.ts";
import { listAddresses } from "../store/addresses.ts";
import { listAttachments } from "../store/attachments.ts";
import type { Store } from "../store/open.ts";
import { getCompiled, getPolicyRevision, listLocalPods, localPodsText, putCompiled } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AttachedPod } from "./compiler.ts";
import { keepEnded } from "./ended-pods.ts";
import { InsideEnforcer, type Mended } from "./inside.ts";

/** Pods of this node with the addresses that they really have, by the chained plugin's rows and by our IPAM's. */
export function attachedPods(store: Store): AttachedPod[] {
  const { db } = store;
  const pods = new Map<string, { readonly namespace: string; readonly name: string; readonly addresses: string[] }>();
  const add = (namespace: string, name: string, addresses: readonly string[]) => {
    const key = `${namespace}/${name}`;
    const pod = pods.get(key) ?? { namespace, name, addresses: [] };
    pods.set(key, pod);
    for (const address of addresses) if (!pod.addresses.includes(address)) pod.addresses.push(address);
  };
  for (const { namespace, name, addresses } of listLocalPods(db))
    add(
      namespace,
      name,
      addresses.filter((text) => !isLinkText(text)),
    );
  const ofAttachment = new Map<string, string[]>();
  for (const { network, containerId, ifname, address } of listAddresses(db)) {
    if (containerId === undefined) continue;
    const key = `${network}/${containerId}/${ifname}`;
    ofAttachment.set(key, [...(ofAttachment.get(key) ?? []), address]);
  }
  for (const { network, containerId, ifname, podNamespace, podName } of listAttachments(db))
    if (podNamespace !== undefined && podName !== undefined)
      add(podNamespace, podName, ofAttachment.get(`${network}/${containerId}/${ifname}`) ?? []);
  return [...pods.values()];
}

/** Of this node, in the network namespace of this process. */
function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((list) =>
    (list ?? []).flatMap(({ address }) => {
      const ip = tryParseIp(address.replace(/%.*/, ""));
      return ip === undefined ? [] : [formatIp(ip)];
    }),
  );
}

export interface Enforced extends Mended {
  /** Rows of the store that were written. */
  readonly rows: number;
}

export interface Enforcer {
  /** What the store holds. */
  readonly compiled: CompiledPolicy | undefined;
  /** Pods are kept under a policy whose objects ended: `bring` is wanted again when one of them is gone. */
  readonly keepsEnded: boolean;
  /**
   * Brings store and kernel to it; pods that it does not name keep what they have while they are attached.
   *
   * @param keepEnded false: whatever it does not name is under no policy.
   * @throws {NetlinkError} When the kernel refuses what is the node's; the store has it then.
   */
  bring(compiled: CompiledPolicy, keepEnded?: boolean): Enforced;
  /**
   * Compares with the whole of what the kernel has, and mends. Where judging itself was away (a flushed table or chain),
   * connections that began meanwhile and are not allowed end, whatever `cutEstablished` says.
   *
   * @throws {NetlinkError} As `bring` does.
   */
  mend(): Mended;
  /** Somebody else may have written the store's compiled policy. @returns Whether it is another one now. */
  reread(): boolean;
}

export interface EnforcerOptions {
  /** Absent: as it is found. */
  readonly logDrops?: boolean | undefined;
  /** A changed policy also ends connections that it no longer allows. Reads all connections at every change. */
  readonly cutEstablished?: boolean;
}

/** Packets passed that should have been judged. */
function isHole(what: string): boolean {
  return /^(table|chain) .*(is missing$|was changed:)/.test(what);
}

/** @param nft undefined: the store only. */
export function createEnforcer(store: Store, nft: NftSocket | undefined, given: EnforcerOptions = {}): Enforcer {
  const { db } = store;
  const always = given.cutEstablished === true;
  let compiled = getCompiled(db);
  let programmed: Programmed | undefined;
  const inside = new InsideEnforcer(store);
  let keepsEnded = false;
  /** The kernel judges by something else than the connections began under, and they were not looked through yet. */
  let owesCut = false;
  let local: { readonly text: string; readonly pods: readonly LocalPod[] } | undefined;

  /** The same list while it is the same pods: what was made of it holds. */
  function localPods(): readonly LocalPod[] {
    const text = localPodsText(db);
    if (local?.text !== text) local = { text, pods: listLocalPods(db) };
    return local.pods;
  }

  /** @param isCutting Of what differed on the node: whether connections that are not allowed end because of it. */
  function program(from: Programmed | undefined, isCutting: (what: string) => boolean): Mended {
    if (compiled === undefined || nft === undefined) return { changed: [], failures: [] };
    const wanted = compiled;
    const options = given.logDrops === undefined ? {} : { logDrops: given.logDrops };
    const desired = () => ({ compiled: wanted, pods: localPods(), ...options });
    programmed = undefined; // unless it succeeds, what is there is not known
    const report = programPolicy(nft, desired, from);
    programmed = report.programmed;
    owesCut ||= report.changed.some(isCutting);
    const { changed: inPods, failures } = inside.bring(wanted, { verify: from === undefined, cut: always });
    const cut = owesCut ? cutDenied(nft, { compiled: wanted, pods: localPods() }, ownAddresses()) : [];
    owesCut = false;
    return { changed: [...report.changed, ...inPods, ...cut.map((text) => `cut ${text}`)], failures };
  }

  return {
    get compiled() {
      return compiled;
    },
    get keepsEnded() {
      return keepsEnded;
    },
    bring(given, keep = true) {
      const before = compiled;
      const next = keep ? keepEnded(given, before, localPods()) : given;
      keepsEnded = next !== given;
      const rows = next === before ? 0 : inTransaction(db, () => putCompiled(db, next, before));
      compiled = next;
      return { rows, ...program(programmed, () => always) };
    },
    mend() {
      return program(undefined, (what) => always || isHole(what));
    },
    reread() {
      if (getPolicyRevision(db) === compiled?.revision) return false;
      compiled = getCompiled(db);
      return true;
    },
  };
}
