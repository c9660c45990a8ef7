/**
 * The expressions of a rule: a program for a machine with registers. Each loads, tests or acts; a test that fails ends
 * the rule. Values in registers are in network order, but for what the kernel itself computes (meta, ct): host order.
 */
import * as N from "../uapi/nf-tables.ts";
import { eachAttribute, MalformedNetlink, readBe32, readBe64, readString } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";
import { parseVerdict, type Verdict, writeVerdict } from "./verdict.ts";

const META = {
  mark: N.NFT_META_MARK,
  iifname: N.NFT_META_IIFNAME,
  oifname: N.NFT_META_OIFNAME,
  nfproto: N.NFT_META_NFPROTO,
  l4proto: N.NFT_META_L4PROTO,
} as const;
const CT = {
  state: N.NFT_CT_STATE,
  direction: N.NFT_CT_DIRECTION,
  status: N.NFT_CT_STATUS,
  mark: N.NFT_CT_MARK,
} as const;
const BASES = { link: 0, network: 1, transport: 2 } as const;
const CMP = { eq: 0, neq: 1, lt: 2, lte: 3, gt: 4, gte: 5 } as const;

/** `reg`: NFT_REG_1 (16 bytes) or NFT_REG32_00 + n (4 bytes). */
export type Expression =
  | {
      readonly kind: "payload";
      readonly reg: number;
      readonly base: keyof typeof BASES;
      readonly offset: number;
      readonly length: number;
    }
  | { readonly kind: "meta"; readonly reg: number; readonly key: keyof typeof META }
  | { readonly kind: "ct"; readonly reg: number; readonly key: keyof typeof CT }
  | { readonly kind: "cmp"; readonly reg: number; readonly op: keyof typeof CMP; readonly value: Uint8Array }
  | {
      readonly kind: "range";
      readonly reg: number;
      readonly outside?: boolean;
      readonly from: Uint8Array;
      readonly to: Uint8Array;
    }
  /** The mark of the packet (meta) or of its connection (ct) is the register's value. */
  | { readonly kind: "set-mark"; readonly of: "meta" | "ct"; readonly reg: number }
  /** The packet leaves with an address of the interface that it leaves by; in chains of type nat. */
  | { readonly kind: "masquerade" }
  /** reg = (reg & mask) ^ xor */
  | { readonly kind: "bitwise"; readonly reg: number; readonly mask: Uint8Array; readonly xor: Uint8Array }
  /** `map`: the verdict found is carried out. Else: a test. */
  | {
      readonly kind: "lookup";
      readonly reg: number;
      readonly set: string;
      readonly map?: boolean;
      readonly not?: boolean;
    }
  | { readonly kind: "verdict"; readonly verdict: Verdict }
  | { readonly kind: "counter"; readonly packets: number; readonly bytes: number }
  /** Passes `rate` packets in `perSeconds`, and `burst` at once. */
  | { readonly kind: "limit"; readonly rate: number; readonly perSeconds: number; readonly burst: number }
  /** To the listeners of an nflog group. */
  | { readonly kind: "nflog"; readonly group: number; readonly prefix: string }
  /** To the kernel's log; syslog levels. */
  | { readonly kind: "log"; readonly level: number; readonly prefix: string }
  /** Type of an address by routing: 2 is RTN_LOCAL. */
  | { readonly kind: "fib-type"; readonly reg: number; readonly of: "saddr" | "daddr" }
  /** One that this codec does not know; only ever read. */
  | { readonly kind: "other"; readonly name: string };

const NAMES: Readonly<Record<Exclude<Expression["kind"], "set-mark">, string>> = {
  masquerade: "masq",
  payload: "payload",
  meta: "meta",
  ct: "ct",
  cmp: "cmp",
  range: "range",
  bitwise: "bitwise",
  lookup: "lookup",
  verdict: "immediate",
  counter: "counter",
  limit: "limit",
  nflog: "log",
  log: "log",
  "fib-type": "fib",
  other: "",
};

function writeValue(w: Writer, type: number, value: Uint8Array): void {
  const nest = w.beginNest(type);
  w.attrBytes(N.NFTA_DATA_VALUE, value);
  w.endNest(nest);
}

/** Appends one expression as an element of a list. */
export function writeExpression(w: Writer, e: Expression): void {
  const element = w.beginNest(N.NFTA_LIST_ELEM);
  w.attrString(N.NFTA_EXPR_NAME, e.kind === "set-mark" ? e.of : NAMES[e.kind]);
  const data = w.beginNest(N.NFTA_EXPR_DATA);
  writeData(w, e);
  w.endNest(data);
  w.endNest(element);
}

function writeData(w: Writer, e: Expression): void {
  switch (e.kind) {
    case "payload":
      w.attrBe32(N.NFTA_PAYLOAD_DREG, e.reg);
      w.attrBe32(N.NFTA_PAYLOAD_BASE, BASES[e.base]);
      w.attrBe32(N.NFTA_PAYLOAD_OFFSET, e.offset);
      w.attrBe32(N.NFTA_PAYLOAD_LEN, e.length);
      return;
    case "meta":
      w.attrBe32(N.NFTA_META_DREG, e.reg);
      w.attrBe32(N.NFTA_META_KEY, META[e.key]);
      return;
    case "ct":
      w.attrBe32(N.NFTA_CT_DREG, e.reg);
      w.attrBe32(N.NFTA_CT_KEY, CT[e.key]);
      return;
    case "set-mark":
      w.attrBe32(e.of === "ct" ? N.NFTA_CT_SREG : N.NFTA_META_SREG, e.reg);
      w.attrBe32(e.of === "ct" ? N.NFTA_CT_KEY : N.NFTA_META_KEY, e.of === "ct" ? N.NFT_CT_MARK : N.NFT_META_MARK);
      return;
    case "masquerade":
      return;
    case "cmp":
      w.attrBe32(N.NFTA_CMP_SREG, e.reg);
      w.attrBe32(N.NFTA_CMP_OP, CMP[e.op]);
      writeValue(w, N.NFTA_CMP_DATA, e.value);
      return;
    case "range":
      w.attrBe32(N.NFTA_RANGE_SREG, e.reg);
      w.attrBe32(N.NFTA_RANGE_OP, e.outside ? 1 : 0);
      writeValue(w, N.NFTA_RANGE_FROM_DATA, e.from);
      writeValue(w, N.NFTA_RANGE_TO_DATA, e.to);
      return;
    case "bitwise":
      w.attrBe32(N.NFTA_BITWISE_SREG, e.reg);
      w.attrBe32(N.NFTA_BITWISE_DREG, e.reg);
      w.attrBe32(N.NFTA_BITWISE_LEN, e.mask.length);
      writeValue(w, N.NFTA_BITWISE_MASK, e.mask);
      writeValue(w, N.NFTA_BITWISE_XOR, e.xor);
      return;
    case "lookup":
      w.attrString(N.NFTA_LOOKUP_SET, e.set);
      w.attrBe32(N.NFTA_LOOKUP_SREG, e.reg);
      if (e.map) w.attrBe32(N.NFTA_LOOKUP_DREG, N.NFT_REG_VERDICT);
      if (e.not) w.attrBe32(N.NFTA_LOOKUP_FLAGS, N.NFT_LOOKUP_F_INV);
      return;
    case "verdict":
      w.attrBe32(N.NFTA_IMMEDIATE_DREG, N.NFT_REG_VERDICT);
      writeVerdict(w, N.NFTA_IMMEDIATE_DATA, e.verdict);
      return;
    case "counter":
      w.attrBe64(N.NFTA_COUNTER_BYTES, e.bytes);
      w.attrBe64(N.NFTA_COUNTER_PACKETS, e.packets);
      return;
    case "limit":
      w.attrBe64(N.NFTA_LIMIT_RATE, e.rate);
      w.attrBe64(N.NFTA_LIMIT_UNIT, e.perSeconds);
      w.attrBe32(N.NFTA_LIMIT_BURST, e.burst);
      w.attrBe32(N.NFTA_LIMIT_TYPE, 0); // packets
      w.attrBe32(N.NFTA_LIMIT_FLAGS, 0);
      return;
    case "nflog":
      w.attrBytes(N.NFTA_LOG_GROUP, Uint8Array.of(e.group >>> 8, e.group));
      w.attrString(N.NFTA_LOG_PREFIX, e.prefix);
      return;
    case "log":
      w.attrBe32(N.NFTA_LOG_LEVEL, e.level);
      w.attrString(N.NFTA_LOG_PREFIX, e.prefix);
      return;
    case "fib-type":
      w.attrBe32(N.NFTA_FIB_DREG, e.reg);
      w.attrBe32(N.NFTA_FIB_RESULT, 3); // NFT_FIB_RESULT_ADDRTYPE
      w.attrBe32(N.NFTA_FIB_FLAGS, e.of === "saddr" ? 1 : 2);
      return;
    case "other":
      throw new TypeError(`Cannot write the expression "${e.name}": this codec only reads it`);
    default:
      e satisfies never;
  }
}

type Attributes = Map<number, Uint8Array>;

function attributesOf(bytes: Uint8Array): Attributes {
  const attributes: Attributes = new Map();
  eachAttribute(bytes, 0, (type, value) => void attributes.set(type, value));
  return attributes;
}

function nameOf<T extends string>(table: Readonly<Record<T, number>>, value: number): T | undefined {
  return (Object.keys(table) as T[]).find((key) => table[key] === value);
}

/** @param element The value of one NFTA_LIST_ELEM. @throws {MalformedNetlink} */
export function parseExpression(element: Uint8Array): Expression {
  const outer = attributesOf(element);
  const name = outer.get(N.NFTA_EXPR_NAME);
  if (name === undefined) throw new MalformedNetlink("an expression has no name", 0);
  const text = readString(name);
  return (
    parseData(text, attributesOf(outer.get(N.NFTA_EXPR_DATA) ?? new Uint8Array(0))) ?? { kind: "other", name: text }
  );
}

/** undefined: not one that this codec writes. */
function parseData(name: string, a: Attributes): Expression | undefined {
  const number = (type: number) => readBe32(a.get(type) ?? new Uint8Array(4), 0);
  const long = (type: number) => readBe64(a.get(type) ?? new Uint8Array(8), 0);
  const text = (type: number) => readString(a.get(type) ?? new Uint8Array(0));
  const value = (type: number) =>
    (attributesOf(a.get(type) ?? new Uint8Array(0)).get(N.NFTA_DATA_VALUE) ?? new Uint8Array(0)).slice();
  switch (name) {
    case "payload": {
      const base = nameOf(BASES, number(N.NFTA_PAYLOAD_BASE));
      if (base === undefined || !a.has(N.NFTA_PAYLOAD_DREG)) return undefined;
      const [offset, length] = [number(N.NFTA_PAYLOAD_OFFSET), number(N.NFTA_PAYLOAD_LEN)];
      return { kind: "payload", reg: number(N.NFTA_PAYLOAD_DREG), base, offset, length };
    }
    case "meta": {
      const key = nameOf(META, number(N.NFTA_META_KEY));
      if (key === "mark" && a.has(N.NFTA_META_SREG))
        return { kind: "set-mark", of: "meta", reg: number(N.NFTA_META_SREG) };
      return key && a.has(N.NFTA_META_DREG) ? { kind: "meta", reg: number(N.NFTA_META_DREG), key } : undefined;
    }
    case "ct": {
      const key = nameOf(CT, number(N.NFTA_CT_KEY));
      if (key === "mark" && a.has(N.NFTA_CT_SREG)) return { kind: "set-mark", of: "ct", reg: number(N.NFTA_CT_SREG) };
      if (key === undefined || !a.has(N.NFTA_CT_DREG) || a.has(N.NFTA_CT_DIRECTION)) return undefined;
      return { kind: "ct", reg: number(N.NFTA_CT_DREG), key };
    }
    case "masq":
      return a.size === 0 ? { kind: "masquerade" } : undefined;
    case "cmp": {
      const op = nameOf(CMP, number(N.NFTA_CMP_OP));
      return op && { kind: "cmp", reg: number(N.NFTA_CMP_SREG), op, value: value(N.NFTA_CMP_DATA) };
    }
    case "range": {
      const outside = number(N.NFTA_RANGE_OP) === 1;
      const [from, to] = [value(N.NFTA_RANGE_FROM_DATA), value(N.NFTA_RANGE_TO_DATA)];
      return { kind: "range", reg: number(N.NFTA_RANGE_SREG), ...(outside ? { outside } : {}), from, to };
    }
    case "bitwise": {
      const reg = number(N.NFTA_BITWISE_SREG);
      if (reg !== number(N.NFTA_BITWISE_DREG) || !a.has(N.NFTA_BITWISE_MASK)) return undefined;
      return { kind: "bitwise", reg, mask: value(N.NFTA_BITWISE_MASK), xor: value(N.NFTA_BITWISE_XOR) };
    }
    case "lookup": {
      const map = a.has(N.NFTA_LOOKUP_DREG);
      if (map && number(N.NFTA_LOOKUP_DREG) !== N.NFT_REG_VERDICT) return undefined;
      const not = (number(N.NFTA_LOOKUP_FLAGS) & N.NFT_LOOKUP_F_INV) !== 0;
      const found = { kind: "lookup", reg: number(N.NFTA_LOOKUP_SREG), set: text(N.NFTA_LOOKUP_SET) } as const;
      return { ...found, ...(map ? { map } : {}), ...(not ? { not } : {}) };
    }
    case "immediate": {
      const verdict = attributesOf(a.get(N.NFTA_IMMEDIATE_DATA) ?? new Uint8Array(0)).get(N.NFTA_DATA_VERDICT);
      return verdict && { kind: "verdict", verdict: parseVerdict(verdict) };
    }
    case "counter":
      return { kind: "counter", packets: long(N.NFTA_COUNTER_PACKETS), bytes: long(N.NFTA_COUNTER_BYTES) };
    case "limit":
      if (number(N.NFTA_LIMIT_TYPE) !== 0 || number(N.NFTA_LIMIT_FLAGS) !== 0) return undefined;
      return {
        kind: "limit",
        rate: long(N.NFTA_LIMIT_RATE),
        perSeconds: long(N.NFTA_LIMIT_UNIT),
        burst: number(N.NFTA_LIMIT_BURST),
      };
    case "log": {
      const group = a.get(N.NFTA_LOG_GROUP);
      const prefix = text(N.NFTA_LOG_PREFIX);
      return group
        ? { kind: "nflog", group: (group[0] ?? 0) * 256 + (group[1] ?? 0), prefix }
        : { kind: "log", level: number(N.NFTA_LOG_LEVEL), prefix };
    }
    case "fib": {
      const flags = number(N.NFTA_FIB_FLAGS);
      if (number(N.NFTA_FIB_RESULT) !== 3 || (flags !== 1 && flags !== 2)) return undefined;
      return { kind: "fib-type", reg: number(N.NFTA_FIB_DREG), of: flags === 1 ? "saddr" : "daddr" };
    }
    default:
      return undefined;
  }
}
