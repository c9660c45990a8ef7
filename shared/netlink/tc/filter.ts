/** Filters: RTM_*TFILTER. */
import type { Request } from "../request.ts";
import { NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE } from "../uapi/netlink.ts";
import * as C from "../uapi/pkt-cls.ts";
import { RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TCA_KIND, TCA_OPTIONS } from "../uapi/rtnetlink.ts";
import { eachAttribute, readString, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";
import { type Action, describeAction, readActions, writeActions } from "./action.ts";
import { formatTcHandle, readTcMessage, TCMSG_BYTES, writeTcMessage } from "./tcmsg.ts";

/** One 32-bit word of the packet, from its network header on, compared under a mask. */
export interface U32Key {
  readonly value: number;
  readonly mask: number;
  readonly offset: number;
}
export interface U32Match {
  readonly kind: "u32";
  /** All must hold; one key with mask 0 matches everything. */
  readonly keys: readonly U32Key[];
  readonly classId?: number;
  readonly actions: readonly Action[];
}
export interface BpfMatch {
  readonly kind: "bpf";
  /** A loaded program; the filter keeps it alive. Only in requests. */
  readonly fd?: number;
  /** What `tc filter show` prints: says what the program does. Up to 255 characters. */
  readonly name: string;
  /** The program's result is the verdict (TC_ACT_…); otherwise it is the class. */
  readonly direct: boolean;
  /** Only in what the kernel says. */
  readonly programId?: number;
}
export type FilterMatch = U32Match | BpfMatch;

export interface FilterSpec {
  readonly linkIndex: number;
  /** A qdisc or class, or a hook of clsact. */
  readonly parent: number;
  /** 1 to 65535; the lowest is asked first. */
  readonly preference: number;
  /** 0 or absent: the kernel chooses. */
  readonly handle?: number;
  /** ETH_P_…; ETH_P_ALL when absent. */
  readonly protocol?: number;
  readonly match: FilterMatch;
}

export const ETH_P_ALL = 3;
/** struct tc_u32_sel and tc_u32_key */
const SEL_BYTES = 16;
const KEY_BYTES = 16;

function infoOf(preference: number, protocol: number): number {
  const swapped = ((protocol & 0xff) << 8) | (protocol >>> 8);
  return ((preference << 16) | swapped) >>> 0;
}

/** Values on the wire are in network order, as the packet has them. */
function u32Selector(keys: readonly U32Key[]): Uint8Array {
  const bytes = new Uint8Array(SEL_BYTES + keys.length * KEY_BYTES);
  const view = new DataView(bytes.buffer);
  bytes[0] = C.TC_U32_TERMINAL;
  bytes[2] = keys.length;
  for (const [i, key] of keys.entries()) {
    const at = SEL_BYTES + i * KEY_BYTES;
    view.setUint32(at, key.mask);
    view.setUint32(at + 4, key.value);
    view.setInt32(at + 8, key.offset, true);
  }
  return bytes;
}

function writeMatch(w: Writer, m: FilterMatch): void {
  const nest = w.beginNest(TCA_OPTIONS);
  if (m.kind === "u32") {
    if (m.classId !== undefined) w.attrU32(C.TCA_U32_CLASSID, m.classId);
    w.attrBytes(C.TCA_U32_SEL, u32Selector(m.keys));
    writeActions(w, C.TCA_U32_ACT, m.actions);
  } else {
    if (m.fd !== undefined) w.attrU32(C.TCA_BPF_FD, m.fd);
    w.attrString(C.TCA_BPF_NAME, m.name);
    w.attrU32(C.TCA_BPF_FLAGS, m.direct ? C.TCA_BPF_FLAG_ACT_DIRECT : 0);
  }
  w.endNest(nest);
}

function filterRequest(flags: number, verb: string, spec: FilterSpec): Request {
  const { linkIndex, parent, handle = 0, preference, protocol = ETH_P_ALL, match } = spec;
  return {
    type: RTM_NEWTFILTER,
    flags,
    write(w) {
      writeTcMessage(w, { linkIndex, handle, parent, info: infoOf(preference, protocol) });
      w.attrString(TCA_KIND, match.kind);
      writeMatch(w, match);
    },
    describe: () =>
      `tc filter ${verb} dev if${linkIndex} parent ${formatTcHandle(parent)} pref ${preference} ${describeMatch(match)}`,
  };
}

/** tc filter add …; EEXIST when the handle is taken. */
export function newFilter(spec: FilterSpec): Request {
  return filterRequest(NLM_F_CREATE | NLM_F_EXCL, "add", spec);
}

/** tc filter replace …: with a handle, the filter changes between two packets. */
export function replaceFilter(spec: FilterSpec): Request {
  return filterRequest(NLM_F_CREATE | NLM_F_REPLACE, "replace", spec);
}

/** tc filter del … with all handles of a preference; ENOENT when there is none. */
export function delFilter(spec: Pick<FilterSpec, "linkIndex" | "parent" | "preference" | "protocol">): Request {
  const { linkIndex, parent, preference, protocol = ETH_P_ALL } = spec;
  return {
    type: RTM_DELTFILTER,
    flags: 0,
    write: (w) => writeTcMessage(w, { linkIndex, handle: 0, parent, info: infoOf(preference, protocol) }),
    describe: () => `tc filter del dev if${linkIndex} parent ${formatTcHandle(parent)} pref ${preference}`,
  };
}

/** tc filter show dev … parent …, for a dump. */
export function getFilters(linkIndex: number, parent: number): Request {
  return {
    type: RTM_GETTFILTER,
    flags: 0,
    write: (w) => writeTcMessage(w, { linkIndex, handle: 0, parent, info: 0 }),
    describe: () => `tc filter show dev if${linkIndex} parent ${formatTcHandle(parent)}`,
  };
}

export interface Filter {
  readonly linkIndex: number;
  readonly parent: number;
  readonly preference: number;
  readonly protocol: number;
  readonly handle: number;
  readonly kind: string;
  /** Absent for kinds that this codec does not know, and for what the kernel says of a preference as a whole. */
  readonly match: FilterMatch | undefined;
}

function readKeys(sel: Uint8Array): U32Key[] {
  const view = new DataView(sel.buffer, sel.byteOffset, sel.byteLength);
  const count = Math.min(sel[2] ?? 0, Math.floor((sel.length - SEL_BYTES) / KEY_BYTES));
  return Array.from({ length: Math.max(0, count) }, (_, i) => {
    const at = SEL_BYTES + i * KEY_BYTES;
    return { mask: view.getUint32(at), value: view.getUint32(at + 4), offset: view.getInt32(at + 8, true) };
  });
}

function readMatch(kind: string, options: Uint8Array): FilterMatch | undefined {
  const found = new Map<number, Uint8Array>();
  eachAttribute(options, 0, (type, value) => void found.set(type, value));
  const number = (type: number) => {
    const value = found.get(type);
    return value === undefined ? undefined : readU32(value, 0);
  };
  if (kind === "u32") {
    const sel = found.get(C.TCA_U32_SEL);
    if (sel === undefined || sel.length < SEL_BYTES) return undefined;
    const classId = number(C.TCA_U32_CLASSID);
    const keys = readKeys(sel);
    return {
      kind,
      keys,
      ...(classId === undefined ? {} : { classId }),
      actions: readActions(found.get(C.TCA_U32_ACT) ?? new Uint8Array(0)),
    };
  }
  const name = found.get(C.TCA_BPF_NAME);
  if (kind !== "bpf" || name === undefined) return undefined;
  const [fd, programId] = [number(C.TCA_BPF_FD), number(C.TCA_BPF_ID)];
  return {
    kind,
    name: readString(name),
    direct: ((number(C.TCA_BPF_FLAGS) ?? 0) & C.TCA_BPF_FLAG_ACT_DIRECT) !== 0,
    ...(fd === undefined ? {} : { fd }),
    ...(programId === undefined ? {} : { programId }),
  };
}

/** @throws {MalformedNetlink} */
export function parseFilter(payload: Uint8Array): Filter {
  const { linkIndex, handle, parent, info } = readTcMessage(payload);
  let kind = "";
  let options: Uint8Array = new Uint8Array(0);
  eachAttribute(payload, TCMSG_BYTES, (type, value) => {
    if (type === TCA_KIND) kind = readString(value);
    else if (type === TCA_OPTIONS) options = value;
  });
  return {
    linkIndex,
    parent,
    preference: info >>> 16,
    protocol: ((info & 0xff) << 8) | ((info >>> 8) & 0xff),
    handle,
    kind,
    match: readMatch(kind, options),
  };
}

export function describeMatch(m: FilterMatch): string {
  if (m.kind === "bpf") return `bpf ${m.name}${m.direct ? " direct-action" : ""}`;
  return [m.kind, ...m.actions.map(describeAction)].join(" ");
}
