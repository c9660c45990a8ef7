/** Actions that filters carry: mirred and police. Nested lists, numbered from 1. */
import * as C from "../uapi/pkt-cls.ts";
import { eachAttribute, readS32, readString, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";
import {
  bytesOf,
  cellLogOf,
  needsRate64,
  RATESPEC_BYTES,
  rateTable,
  readRateSpec,
  readU64,
  ticksOf,
  u64Bytes,
  writeRateSpec,
} from "./rate.ts";

export interface MirredAction {
  readonly kind: "mirred";
  /** TCA_EGRESS_REDIR, … */
  readonly direction: number;
  readonly linkIndex: number;
}
export interface PoliceAction {
  readonly kind: "police";
  readonly bytesPerSecond: number;
  readonly burstBytes: number;
  readonly mtuBytes: number;
  /** TC_ACT_… for packets above the rate, and for those within. */
  readonly exceed: number;
  readonly conform: number;
}
export type Action = MirredAction | PoliceAction;

const MIRRED = { action: 8, eaction: 20, ifindex: 24, bytes: 28 };
const POLICE = { action: 4, burst: 12, mtu: 16, rate: 20, bytes: 20 + 2 * RATESPEC_BYTES + 12 };

function writeMirred(w: Writer, a: MirredAction): void {
  const parms = w.beginNest(C.TCA_MIRRED_PARMS, 0);
  const redirects = a.direction === C.TCA_EGRESS_REDIR || a.direction === C.TCA_INGRESS_REDIR;
  // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
  for (const v of [0, 0, redirects ? C.TC_ACT_STOLEN : C.TC_ACT_PIPE, 0, 0, a.direction, a.linkIndex]) w.u32(v);
  w.endNest(parms);
}

function writePolice(w: Writer, a: PoliceAction): void {
  const cellLog = cellLogOf(a.mtuBytes);
  const parms = w.beginNest(C.TCA_POLICE_TBF, 0);
  for (const v of [0, a.exceed, 0, ticksOf(a.burstBytes, a.bytesPerSecond), a.mtuBytes]) w.u32(v);
  writeRateSpec(w, a.bytesPerSecond, cellLog);
  for (let i = 0; i < RATESPEC_BYTES + 12; i += 4) w.u32(0); // no peak rate; counts of references
  w.endNest(parms);
  w.attrBytes(C.TCA_POLICE_RATE, rateTable(a.bytesPerSecond, cellLog));
  if (needsRate64(a.bytesPerSecond)) w.attrBytes(C.TCA_POLICE_RATE64, u64Bytes(a.bytesPerSecond));
  w.attrU32(C.TCA_POLICE_RESULT, a.conform);
}

/** @param type The filter's attribute for its actions, e.g. TCA_U32_ACT. */
export function writeActions(w: Writer, type: number, actions: readonly Action[]): void {
  if (actions.length === 0) return;
  const list = w.beginNest(type);
  for (const [i, action] of actions.entries()) {
    const one = w.beginNest(i + 1);
    w.attrString(C.TCA_ACT_KIND, action.kind);
    const options = w.beginNest(C.TCA_ACT_OPTIONS);
    if (action.kind === "mirred") writeMirred(w, action);
    else writePolice(w, action);
    w.endNest(options);
    w.endNest(one);
  }
  w.endNest(list);
}

function readMirred(options: Uint8Array): MirredAction {
  let action: MirredAction = { kind: "mirred", direction: 0, linkIndex: 0 };
  eachAttribute(options, 0, (type, v) => {
    if (type === C.TCA_MIRRED_PARMS && v.length >= MIRRED.bytes)
      action = { kind: "mirred", direction: readU32(v, MIRRED.eaction), linkIndex: readU32(v, MIRRED.ifindex) };
  });
  return action;
}

function readPolice(options: Uint8Array): PoliceAction {
  let [rate, ticks, mtuBytes, exceed, conform] = [0, 0, 0, 0, 0];
  eachAttribute(options, 0, (type, v) => {
    if (type === C.TCA_POLICE_TBF && v.length >= POLICE.bytes) {
      exceed = readS32(v, POLICE.action);
      ticks = readU32(v, POLICE.burst);
      mtuBytes = readU32(v, POLICE.mtu);
      rate = readRateSpec(v, POLICE.rate);
    } else if (type === C.TCA_POLICE_RATE64) rate = readU64(v, 0);
    else if (type === C.TCA_POLICE_RESULT) conform = readS32(v, 0);
  });
  return { kind: "police", bytesPerSecond: rate, burstBytes: bytesOf(ticks, rate), mtuBytes, exceed, conform };
}

/** Actions of kinds that this codec does not know are left out. @throws {MalformedNetlink} */
export function readActions(list: Uint8Array): Action[] {
  const actions: Action[] = [];
  eachAttribute(list, 0, (_index, one) => {
    let kind = "";
    let options: Uint8Array = new Uint8Array(0);
    eachAttribute(one, 0, (type, v) => {
      if (type === C.TCA_ACT_KIND) kind = readString(v);
      else if (type === C.TCA_ACT_OPTIONS) options = v;
    });
    if (kind === "mirred") actions.push(readMirred(options));
    else if (kind === "police") actions.push(readPolice(options));
  });
  return actions;
}

export function describeAction(a: Action): string {
  if (a.kind === "police") return `action police rate ${a.bytesPerSecond * 8}bit burst ${a.burstBytes}b`;
  const redirects = a.direction === C.TCA_EGRESS_REDIR || a.direction === C.TCA_INGRESS_REDIR;
  const side = a.direction <= C.TCA_EGRESS_MIRROR ? "egress" : "ingress";
  return `action mirred ${side} ${redirects ? "redirect" : "mirror"} dev if${a.linkIndex}`;
}
