/** Queueing disciplines: RTM_*QDISC. */
import type { Request } from "../request.ts";
import { NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE } from "../uapi/netlink.ts";
import * as S from "../uapi/pkt-sched.ts";
import { RTM_DELQDISC, RTM_GETQDISC, RTM_NEWQDISC, TCA_KIND, TCA_OPTIONS, TCA_STATS2 } from "../uapi/rtnetlink.ts";
import { eachAttribute, readString, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";
import {
  bytesOf,
  needsRate64,
  RATESPEC_BYTES,
  readRateSpec,
  readU64,
  ticksOf,
  u64Bytes,
  writeRateSpec,
} from "./rate.ts";
import { parseTcStats, type TcStats } from "./stats.ts";
import { formatTcHandle, readTcMessage, TCMSG_BYTES, writeTcMessage } from "./tcmsg.ts";

/** Token bucket: segments what is longer than the burst, keeps at most `limitBytes` waiting. */
export interface TbfOptions {
  readonly kind: "tbf";
  readonly bytesPerSecond: number;
  readonly burstBytes: number;
  readonly limitBytes: number;
}
export interface HtbOptions {
  readonly kind: "htb";
  /** Minor of the class for what no filter sorts; 0: such packets are not held at all. */
  readonly defaultClass: number;
}
export interface PrioOptions {
  readonly kind: "prio";
  readonly bands: number;
  /** The band for each of the 16 values of skb priority. */
  readonly bandOf: readonly number[];
}
export interface PlainOptions {
  readonly kind: "clsact" | "ingress" | "noqueue" | "mq" | "fq";
}
export type QdiscOptions = TbfOptions | HtbOptions | PrioOptions | PlainOptions;

export interface QdiscSpec {
  readonly linkIndex: number;
  /** TC_H_ROOT, or the handle of a class. For clsact and ingress it is left out. */
  readonly parent?: number;
  /** 0 or absent: the kernel chooses. */
  readonly handle?: number;
  readonly options: QdiscOptions;
}

const TBF_PARMS = { peak: RATESPEC_BYTES, limit: 24, buffer: 28, bytes: 36 };
/** struct tc_htb_glob */
const HTB_VERSION = 3;
const HTB_RATE2QUANTUM = 10;

function place(spec: QdiscSpec): { readonly parent: number; readonly handle: number } {
  const { kind } = spec.options;
  // Both have a hook of their own, and a fixed handle.
  if (kind === "clsact" || kind === "ingress") return { parent: S.TC_H_CLSACT, handle: 0xffff0000 };
  return { parent: spec.parent ?? S.TC_H_ROOT, handle: spec.handle ?? 0 };
}

function writeOptions(w: Writer, o: QdiscOptions): void {
  switch (o.kind) {
    case "tbf": {
      const nest = w.beginNest(TCA_OPTIONS);
      const parms = w.beginNest(S.TCA_TBF_PARMS, 0);
      writeRateSpec(w, o.bytesPerSecond);
      for (let i = 0; i < RATESPEC_BYTES; i += 4) w.u32(0); // no peak rate
      w.u32(o.limitBytes);
      w.u32(ticksOf(o.burstBytes, o.bytesPerSecond));
      w.u32(0);
      w.endNest(parms);
      w.attrU32(S.TCA_TBF_BURST, o.burstBytes);
      if (needsRate64(o.bytesPerSecond)) w.attrBytes(S.TCA_TBF_RATE64, u64Bytes(o.bytesPerSecond));
      w.endNest(nest);
      return;
    }
    case "htb": {
      const nest = w.beginNest(TCA_OPTIONS);
      const init = w.beginNest(S.TCA_HTB_INIT, 0);
      for (const value of [HTB_VERSION, HTB_RATE2QUANTUM, o.defaultClass, 0, 0]) w.u32(value);
      w.endNest(init);
      w.endNest(nest);
      return;
    }
    case "prio": {
      const value = new Uint8Array(20); // struct tc_prio_qopt, without a nest
      value[0] = o.bands;
      value.set(o.bandOf.slice(0, S.TC_PRIO_MAX + 1), 4);
      w.attrBytes(TCA_OPTIONS, value);
      return;
    }
    case "clsact":
    case "ingress":
    case "noqueue":
    case "mq":
    case "fq":
      return;
    default:
      o satisfies never;
  }
}

function qdiscRequest(flags: number, verb: string, spec: QdiscSpec): Request {
  const { parent, handle } = place(spec);
  return {
    type: RTM_NEWQDISC,
    flags,
    write(w) {
      writeTcMessage(w, { linkIndex: spec.linkIndex, handle, parent, info: 0 });
      w.attrString(TCA_KIND, spec.options.kind);
      writeOptions(w, spec.options);
    },
    describe: () => `tc qdisc ${verb} dev if${spec.linkIndex} parent ${formatTcHandle(parent)} ${describeQdisc(spec)}`,
  };
}

/** tc qdisc add …; EEXIST when the place is taken, ENOENT when the kernel lacks the kind. */
export function newQdisc(spec: QdiscSpec): Request {
  return qdiscRequest(NLM_F_CREATE | NLM_F_EXCL, "add", spec);
}

/** tc qdisc replace …: with the same kind and handle the options change in place and no packet is lost. */
export function replaceQdisc(spec: QdiscSpec): Request {
  return qdiscRequest(NLM_F_CREATE | NLM_F_REPLACE, "replace", spec);
}

/** tc qdisc change …: never makes one; ENOENT when there is none. */
export function changeQdisc(spec: QdiscSpec): Request {
  return qdiscRequest(0, "change", spec);
}

/** tc qdisc del …; ENOENT or EINVAL when there is none. */
export function delQdisc(spec: QdiscSpec): Request {
  const { parent, handle } = place(spec);
  return {
    type: RTM_DELQDISC,
    flags: 0,
    write: (w) => writeTcMessage(w, { linkIndex: spec.linkIndex, handle, parent, info: 0 }),
    describe: () => `tc qdisc del dev if${spec.linkIndex} parent ${formatTcHandle(parent)} ${spec.options.kind}`,
  };
}

/** tc -s qdisc show dev …, for a dump. NB: the kernel ignores the link and sends those of all: compare the index. */
export function getQdiscs(linkIndex: number): Request {
  return {
    type: RTM_GETQDISC,
    flags: 0,
    write: (w) => writeTcMessage(w, { linkIndex, handle: 0, parent: 0, info: 0 }),
    describe: () => `tc -s qdisc show dev if${linkIndex}`,
  };
}

export interface Qdisc {
  readonly linkIndex: number;
  readonly handle: number;
  readonly parent: number;
  readonly kind: string;
  /** Absent for kinds that this codec does not know. */
  readonly options: QdiscOptions | undefined;
  readonly stats: TcStats | undefined;
}

function readTbf(value: Uint8Array): TbfOptions {
  let [bytesPerSecond, limitBytes, ticks] = [0, 0, 0];
  let rate64: number | undefined;
  let burst: number | undefined;
  eachAttribute(value, 0, (type, v) => {
    if (type === S.TCA_TBF_PARMS && v.length >= TBF_PARMS.bytes) {
      bytesPerSecond = readRateSpec(v, 0);
      limitBytes = readU32(v, TBF_PARMS.limit);
      ticks = readU32(v, TBF_PARMS.buffer);
    } else if (type === S.TCA_TBF_RATE64) rate64 = readU64(v, 0);
    else if (type === S.TCA_TBF_BURST) burst = readU32(v, 0);
  });
  bytesPerSecond = rate64 ?? bytesPerSecond;
  // The kernel tells the burst only as a time.
  return { kind: "tbf", bytesPerSecond, burstBytes: burst ?? bytesOf(ticks, bytesPerSecond), limitBytes };
}

function readHtb(value: Uint8Array): HtbOptions {
  let defaultClass = 0;
  eachAttribute(value, 0, (type, v) => {
    if (type === S.TCA_HTB_INIT) defaultClass = readU32(v, 8);
  });
  return { kind: "htb", defaultClass };
}

function readOptions(kind: string, value: Uint8Array): QdiscOptions | undefined {
  if (kind === "tbf") return readTbf(value);
  if (kind === "htb") return readHtb(value);
  if (kind === "prio") return { kind, bands: readU32(value, 0), bandOf: [...value.subarray(4, 20)] };
  if (kind === "clsact" || kind === "ingress" || kind === "noqueue" || kind === "mq") return { kind };
  return undefined;
}

/** @throws {MalformedNetlink} */
export function parseQdisc(payload: Uint8Array): Qdisc {
  const { linkIndex, handle, parent } = readTcMessage(payload);
  let kind = "";
  let raw: Uint8Array = new Uint8Array(0);
  let stats: TcStats | undefined;
  eachAttribute(payload, TCMSG_BYTES, (type, value) => {
    if (type === TCA_KIND) kind = readString(value);
    else if (type === TCA_OPTIONS) raw = value;
    else if (type === TCA_STATS2) stats = parseTcStats(value);
  });
  return { linkIndex, handle, parent, kind, options: readOptions(kind, raw), stats };
}

/** As `tc qdisc` has it. */
export function describeQdisc(q: { readonly handle?: number; readonly options: QdiscOptions }): string {
  const o = q.options;
  const name = `${q.handle ? `handle ${formatTcHandle(q.handle)} ` : ""}${o.kind}`;
  if (o.kind === "tbf") return `${name} rate ${o.bytesPerSecond * 8}bit burst ${o.burstBytes}b limit ${o.limitBytes}b`;
  if (o.kind === "htb") return `${name} default ${o.defaultClass.toString(16)}`;
  if (o.kind === "prio") return `${name} bands ${o.bands} priomap ${o.bandOf.join(" ")}`;
  return name;
}
