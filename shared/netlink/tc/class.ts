/** Classes of htb: RTM_*TCLASS. */
import type { Request } from "../request.ts";
import { NLM_F_CREATE, NLM_F_REPLACE } from "../uapi/netlink.ts";
import * as S from "../uapi/pkt-sched.ts";
import { RTM_DELTCLASS, RTM_GETTCLASS, RTM_NEWTCLASS, TCA_KIND, TCA_OPTIONS, TCA_STATS2 } from "../uapi/rtnetlink.ts";
import { eachAttribute, readString, readU32 } from "../wire/reader.ts";
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

export interface HtbClass {
  readonly linkIndex: number;
  /** The qdisc, or the class that it borrows from. */
  readonly parent: number;
  readonly handle: number;
  /** What it gets in any case. */
  readonly rateBytesPerSecond: number;
  /** What it may borrow up to. */
  readonly ceilBytesPerSecond: number;
  readonly burstBytes: number;
  readonly ceilBurstBytes: number;
  /** Bytes it sends before another class of its priority has its turn; 0: the kernel computes it. */
  readonly quantumBytes: number;
  /** 0 to 7; the lowest is offered what is left over first. */
  readonly priority: number;
}

/** struct tc_htb_opt */
const PARMS = { ceil: RATESPEC_BYTES, buffer: 24, cbuffer: 28, quantum: 32, level: 36, prio: 40, bytes: 44 };

function write(c: HtbClass): Request["write"] {
  return (w) => {
    writeTcMessage(w, { linkIndex: c.linkIndex, handle: c.handle, parent: c.parent, info: 0 });
    w.attrString(TCA_KIND, "htb");
    const nest = w.beginNest(TCA_OPTIONS);
    if (needsRate64(c.rateBytesPerSecond)) w.attrBytes(S.TCA_HTB_RATE64, u64Bytes(c.rateBytesPerSecond));
    if (needsRate64(c.ceilBytesPerSecond)) w.attrBytes(S.TCA_HTB_CEIL64, u64Bytes(c.ceilBytesPerSecond));
    const parms = w.beginNest(S.TCA_HTB_PARMS, 0);
    writeRateSpec(w, c.rateBytesPerSecond);
    writeRateSpec(w, c.ceilBytesPerSecond);
    w.u32(ticksOf(c.burstBytes, c.rateBytesPerSecond));
    w.u32(ticksOf(c.ceilBurstBytes, c.ceilBytesPerSecond));
    w.u32(c.quantumBytes);
    w.u32(0); // level: the kernel's to say
    w.u32(c.priority);
    w.endNest(parms);
    w.endNest(nest);
  };
}

/** tc class replace …: made, or changed in place. */
export function replaceClass(c: HtbClass): Request {
  return {
    type: RTM_NEWTCLASS,
    flags: NLM_F_CREATE | NLM_F_REPLACE,
    write: write(c),
    describe: () => describeClass(c),
  };
}

/** tc class del …; ENOENT when there is none, EBUSY while it has children or filters. */
export function delClass(linkIndex: number, handle: number): Request {
  return {
    type: RTM_DELTCLASS,
    flags: 0,
    write: (w) => writeTcMessage(w, { linkIndex, handle, parent: 0, info: 0 }),
    describe: () => `tc class del dev if${linkIndex} classid ${formatTcHandle(handle)}`,
  };
}

/** tc -s class show dev …, for a dump. */
export function getClasses(linkIndex: number): Request {
  return {
    type: RTM_GETTCLASS,
    flags: 0,
    write: (w) => writeTcMessage(w, { linkIndex, handle: 0, parent: 0, info: 0 }),
    describe: () => `tc -s class show dev if${linkIndex}`,
  };
}

/** Kinds other than htb: undefined. @throws {MalformedNetlink} */
export function parseHtbClass(payload: Uint8Array): (HtbClass & { readonly stats: TcStats | undefined }) | undefined {
  const { linkIndex, handle, parent } = readTcMessage(payload);
  let kind = "";
  let parms: Uint8Array = new Uint8Array(PARMS.bytes);
  let [rate64, ceil64]: (number | undefined)[] = [];
  let stats: TcStats | undefined;
  eachAttribute(payload, TCMSG_BYTES, (type, value) => {
    if (type === TCA_KIND) kind = readString(value);
    else if (type === TCA_STATS2) stats = parseTcStats(value);
    else if (type === TCA_OPTIONS)
      eachAttribute(value, 0, (t, v) => {
        if (t === S.TCA_HTB_PARMS && v.length >= PARMS.bytes) parms = v;
        else if (t === S.TCA_HTB_RATE64) rate64 = readU64(v, 0);
        else if (t === S.TCA_HTB_CEIL64) ceil64 = readU64(v, 0);
      });
  });
  if (kind !== "htb") return undefined;
  const rate = rate64 ?? readRateSpec(parms, 0);
  const ceil = ceil64 ?? readRateSpec(parms, PARMS.ceil);
  return {
    linkIndex,
    handle,
    parent,
    rateBytesPerSecond: rate,
    ceilBytesPerSecond: ceil,
    burstBytes: bytesOf(readU32(parms, PARMS.buffer), rate),
    ceilBurstBytes: bytesOf(readU32(parms, PARMS.cbuffer), ceil),
    quantumBytes: readU32(parms, PARMS.quantum),
    priority: readU32(parms, PARMS.prio),
    stats,
  };
}

/** As `tc class` has it. */
export function describeClass(c: HtbClass): string {
  return `tc class replace dev if${c.linkIndex} parent ${formatTcHandle(c.parent)} classid ${formatTcHandle(c.handle)} htb rate ${c.rateBytesPerSecond * 8}bit ceil ${c.ceilBytesPerSecond * 8}bit prio ${c.priority}`;
}
