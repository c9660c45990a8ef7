/** Finds, reads and changes what limits a pod. Decides nothing: the steps come from shaping.ts. */
import type { PodLimits } from "../config/pod-limits.ts";
import { deleteLink } from "../netlink/delete-link.ts";
import { findLink } from "../netlink/find-link.ts";
import { accepting, type Request } from "../netlink/request.ts";
import { getLink, type Link, newLink, parseLink } from "../netlink/rtnl/link.ts";
import { getNetnsId, parseNetnsId } from "../netlink/rtnl/netns-id.ts";
import { NetlinkError, type NetlinkSocket, openNetlink, type Refusal } from "../netlink/socket.ts";
import { getFilters, parseFilter } from "../netlink/tc/filter.ts";
import { getQdiscs, parseQdisc, type Qdisc } from "../netlink/tc/qdisc.ts";
import { BPF_PROG_TYPE_SCHED_CLS } from "../netlink/uapi/bpf.ts";
import { CLONE_NEWNET } from "../sys/linux.ts";
import { type Sys, SysError } from "../sys/sys.ts";
import { LIMITER_STATE_BYTES, type LimiterSpec, limiterProgram } from "./limiter-program.ts";
import {
  bareLink,
  CLSACT_EGRESS,
  CLSACT_INGRESS,
  type Difference,
  ifbNameOf,
  ifbUp,
  type LinkState,
  removalSteps,
  type Shaping,
  type ShapingState,
  type Step,
  shapingDifferences,
} from "./shaping.ts";

/** The message names the thing and the cause; the remedy says what to do. */
export class ShapingError extends Error {
  readonly kind: "conflict" | "kernel-lacks" | "no-link";
  readonly remedy: string;

  constructor(kind: ShapingError["kind"], message: string, remedy: string, cause?: unknown) {
    super(message, { cause });
    this.name = "ShapingError";
    this.kind = kind;
    this.remedy = remedy;
  }
}

/** Route netlink in the node's namespace and in the pod's, and the way from one to the other. */
export interface ShapingSockets {
  readonly sys: Sys;
  readonly host: NetlinkSocket;
  readonly pod: NetlinkSocket;
  readonly netnsFd: number;
  readonly ownNetnsFd: number;
}

export function openShapingSockets(sys: Sys, netnsFd: number, ownNetnsFd: number): ShapingSockets & { close(): void } {
  const host = openNetlink(sys);
  let pod: NetlinkSocket;
  try {
    pod = openNetlink(sys, undefined, { netnsFd, ownNetnsFd });
  } catch (error) {
    host.close();
    throw error;
  }
  return {
    sys,
    host,
    pod,
    netnsFd,
    ownNetnsFd,
    close() {
      pod.close();
      host.close();
    },
  };
}

// ---- which links ----

export interface ShapedLinks {
  readonly datapath: "veth" | "pod";
  readonly pod: Link;
  /** Node's end of a veth. */
  readonly host: Link | undefined;
}

/** What the store keeps of limits on these links. */
export function shapingOf({ datapath, pod, host }: ShapedLinks, limits: PodLimits): Shaping {
  return { version: 1, datapath, podIfname: pod.name, ...(host ? { hostIfname: host.name } : {}), limits };
}

/**
 * The pod's interface and, of a veth, its end in the node's namespace: whoever made it.
 *
 * @returns undefined when the pod has no such interface.
 */
export function findShapedLinks(s: ShapingSockets, podIfname: string): ShapedLinks | undefined {
  const pod = findLink(s.pod, { name: podIfname });
  if (pod === undefined) return undefined;
  const host = pod.kind === "veth" && pod.parentIndex !== undefined ? peerOf(s, pod, pod.parentIndex) : undefined;
  return { datapath: host ? "veth" : "pod", pod, host };
}

/** The peer's index means something only in the peer's namespace: what has it here must have its own peer in the pod. */
function peerOf(s: ShapingSockets, pod: Link, index: number): Link | undefined {
  const [found, known] = s.host.transact([getLink({ index }), getNetnsId(s.netnsFd)]);
  const host = found?.ok && found.replies[0] ? parseLink(found.replies[0]) : undefined;
  const netnsId = known?.ok && known.replies[0] ? parseNetnsId(known.replies[0]) : -1;
  const points =
    host?.kind === "veth" && host.parentIndex === pod.index && netnsId >= 0 && host.linkNetnsId === netnsId;
  return points ? host : undefined;
}

// ---- how it is ----

/** By the index of the link. The kernel tells those of all links or none: with a hundred pods, read them once for all. */
export type QdiscsOfLinks = ReadonlyMap<number, readonly Qdisc[]>;

export function readQdiscs(nl: Pick<NetlinkSocket, "dump">): QdiscsOfLinks {
  const found = new Map<number, Qdisc[]>();
  for (const qdisc of nl.dump(getQdiscs(0)).map(parseQdisc)) {
    const ofLink = found.get(qdisc.linkIndex);
    if (ofLink === undefined) found.set(qdisc.linkIndex, [qdisc]);
    else ofLink.push(qdisc);
  }
  return found;
}

function readLink(nl: NetlinkSocket, index: number, read: QdiscsOfLinks = readQdiscs(nl)): LinkState {
  const qdiscs = read.get(index) ?? [];
  const hooked = qdiscs.some((q) => q.kind === "clsact" || q.kind === "ingress");
  const filters = (parent: number) => (hooked ? nl.dump(getFilters(index, parent)).map(parseFilter) : []);
  return { index, qdiscs, ingress: filters(CLSACT_INGRESS), egress: filters(CLSACT_EGRESS) };
}

/** @param ofHost The node's qdiscs, if they were read just now. */
export function readShaping(s: ShapingSockets, links: ShapedLinks, ofHost?: QdiscsOfLinks): ShapingState {
  const ifb = links.host ? undefined : findLink(s.pod, { name: ifbNameOf(links.pod.name) });
  return {
    mtuBytes: links.pod.mtuBytes,
    pod: readLink(s.pod, links.pod.index),
    ...(links.host ? { host: readLink(s.host, links.host.index, ofHost) } : {}),
    ...(ifb ? { ifb: readLink(s.pod, ifb.index) } : {}),
  };
}

// ---- changing it ----

const NEEDED: readonly (readonly [pattern: RegExp, what: string, module: string])[] = [
  [/ tbf /, "token bucket", "sch_tbf (CONFIG_NET_SCH_TBF)"],
  [/ clsact/, "clsact hook", "sch_ingress (CONFIG_NET_SCH_INGRESS)"],
  [/ bpf /, "eBPF classifier", "cls_bpf (CONFIG_NET_CLS_BPF)"],
  [
    / u32 .*mirred/,
    "u32 classifier or redirect action",
    "cls_u32 and act_mirred (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)",
  ],
  [/type ifb/, "ifb device", "ifb (CONFIG_IFB)"],
];

/** A refusal that means that the kernel was built without something, in words. */
function explain(refusal: Refusal): Error {
  const error = new NetlinkError(refusal);
  if (refusal.errno !== "ENOENT" && refusal.errno !== "EOPNOTSUPP") return error;
  const lack = NEEDED.find(([pattern]) => pattern.test(refusal.request));
  if (lack === undefined) return error;
  return new ShapingError(
    "kernel-lacks",
    `the kernel has no ${lack[1]}: ${error.message}`,
    `load or build in ${lack[2]}, or take the bandwidth limits away`,
    error,
  );
}

function transact(nl: NetlinkSocket, requests: readonly Request[]): void {
  for (const outcome of nl.transact(requests)) if (!outcome.ok) throw explain(outcome.refusal);
}

function loadProgram(sys: Sys, program: LimiterSpec): number {
  try {
    const state = program.limit ? sys.bpfArray(LIMITER_STATE_BYTES) : -1;
    try {
      return sys.bpfLoad(BPF_PROG_TYPE_SCHED_CLS, limiterProgram(program, state));
    } finally {
      if (state >= 0) sys.close(state); // the program holds it
    }
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    throw new ShapingError(
      "kernel-lacks",
      `the kernel does not load the eBPF program that limits a pod at the node's end: ${error.message}`,
      "it needs Linux 5.10, CONFIG_BPF_SYSCALL, and CAP_BPF with CAP_NET_ADMIN or root",
      error,
    );
  }
}

function run(s: ShapingSockets, steps: readonly Step[]): void {
  const fds: number[] = [];
  try {
    const requests = { host: [] as Request[], pod: [] as Request[] };
    for (const step of steps) {
      if (step.kind === "request") requests[step.side].push(step.request);
      else {
        const fd = loadProgram(s.sys, step.program);
        fds.push(fd);
        requests[step.side].push(step.request(fd));
      }
    }
    transact(s.host, requests.host);
    transact(s.pod, requests.pod);
  } finally {
    for (const fd of fds) s.sys.close(fd);
  }
}

function refuseConflicts(differences: readonly Difference[], where: string): void {
  const conflicts = differences.filter((d) => d.steps.length === 0);
  if (conflicts.length === 0) return;
  throw new ShapingError(
    "conflict",
    `${where}: ${conflicts.map((d) => d.what).join("; ")}`,
    "one plugin shapes an interface: take the other one (bandwidth, Cilium's bandwidth manager) out of the chain",
  );
}

/** Makes the ifb of a pod's own link, if it is not there. @returns Its index. */
function ensureIfb(s: ShapingSockets, podIfname: string): number {
  const name = ifbNameOf(podIfname);
  transact(s.pod, [accepting(newLink({ kind: "ifb", name }), "EEXIST")]);
  const ifb = findLink(s.pod, { name });
  if (ifb === undefined) throw new ShapingError("no-link", `${name} vanished while it was set up`, "try again");
  transact(s.pod, [ifbUp(ifb.index)]);
  return ifb.index;
}

/** u32 says ENOSPC of a handle that is taken. */
const TAKEN: ReadonlySet<string> = new Set(["EEXIST", "ENOSPC"]);

/**
 * Brings the kernel from `actual` to `desired`. Limits that change do so in place: no packet is dropped for it.
 *
 * @param actual Absent: nothing is there yet, as on a new link; what is there nevertheless is read and changed.
 * @returns What was different, one line each.
 * @throws {ShapingError} When somebody else shapes the link, or the kernel lacks something.
 */
export function applyShaping(
  s: ShapingSockets,
  links: ShapedLinks,
  desired: PodLimits,
  actual?: ShapingState,
): string[] {
  const needsIfb = links.host === undefined && desired.ingress !== undefined;
  const ifbIndex = needsIfb && actual?.ifb === undefined ? ensureIfb(s, links.pod.name) : undefined;
  const blank: ShapingState = {
    mtuBytes: links.pod.mtuBytes,
    pod: bareLink(links.pod.index),
    ...(links.host ? { host: bareLink(links.host.index) } : {}),
  };
  const state = { ...(actual ?? blank), ...(ifbIndex === undefined ? {} : { ifb: bareLink(ifbIndex) }) };
  const differences = shapingDifferences(desired, state);
  refuseConflicts(differences, links.host?.name ?? links.pod.name);
  try {
    run(
      s,
      differences.flatMap((d) => d.steps),
    );
  } catch (error) {
    // Something is there after all: an ADD that came twice, or somebody else.
    if (!(error instanceof NetlinkError) || !TAKEN.has(error.errno) || actual !== undefined) throw error;
    return applyShaping(s, links, desired, readShaping(s, links));
  }
  return differences.map((d) => d.what);
}

/** In what the kernel differs from `desired`, one line each. */
export function shapingProblems(s: ShapingSockets, links: ShapedLinks, desired: PodLimits): string[] {
  return shapingDifferences(desired, readShaping(s, links)).map((d) => d.what);
}

/** Takes everything of ours off the links; an ifb goes without waiting for the kernel's grace periods. */
export function removeShaping(s: ShapingSockets, links: ShapedLinks): void {
  const state = readShaping(s, links);
  run(s, removalSteps(state));
  if (state.ifb) removeIfb(s, links.pod.name);
}

/** Deletes the device that {@link ifbNameOf} names. @returns Whether it was there. */
export function removeIfb(s: ShapingSockets, podIfname: string): boolean {
  s.sys.setns(s.netnsFd, CLONE_NEWNET);
  try {
    return deleteLink(s.sys, s.pod, ifbNameOf(podIfname));
  } finally {
    s.sys.setns(s.ownNetnsFd, CLONE_NEWNET);
  }
}
