/** Arithmetic on sets of addresses: ipBlocks with their exceptions become disjoint CIDRs. Pure. */
import { lastOf, networkOf, parseCidr } from "../../shared/net/cidr.ts";
import { formatIp, type Ip } from "../../shared/net/ip.ts";

/** From `first` to before `end`, as numbers of one family. */
interface Range {
  readonly first: bigint;
  readonly end: bigint;
}

export interface Block {
  readonly cidr: string;
  readonly except: readonly string[];
}

const BITS = { 4: 32, 6: 128 } as const;

function toNumber(ip: Ip): bigint {
  let value = 0n;
  if (ip.family === 4) {
    const [a = 0, b = 0, c = 0, d = 0] = ip.bytes;
    return BigInt(((a * 256 + b) * 256 + c) * 256 + d);
  }
  for (const byte of ip.bytes) value = (value << 8n) | BigInt(byte);
  return value;
}

function toText(value: bigint, family: 4 | 6): string {
  const bytes = new Uint8Array(BITS[family] / 8);
  let rest = value;
  for (let i = bytes.length - 1; i >= 0; i--) {
    bytes[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  return formatIp({ family, bytes });
}

function rangeOf(text: string): Range & { readonly family: 4 | 6 } {
  const cidr = parseCidr(text);
  return { family: cidr.ip.family, first: toNumber(networkOf(cidr)), end: toNumber(lastOf(cidr)) + 1n };
}

/** Sorted; overlapping and touching ranges become one. */
function union(ranges: readonly Range[]): Range[] {
  const sorted = [...ranges].sort((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0));
  const out: Range[] = [];
  for (const range of sorted) {
    const last = out.at(-1);
    if (last === undefined || range.first > last.end) out.push(range);
    else if (range.end > last.end) out[out.length - 1] = { first: last.first, end: range.end };
  }
  return out;
}

/** Both sorted and disjoint. */
function subtract(from: readonly Range[], holes: readonly Range[]): Range[] {
  const out: Range[] = [];
  let h = 0;
  for (const { first, end } of from) {
    let at = first;
    while (h < holes.length && (holes[h]?.end ?? 0n) <= at) h += 1;
    for (let i = h; i < holes.length; i++) {
      const hole = holes[i];
      if (hole === undefined || hole.first >= end) break;
      if (hole.first > at) out.push({ first: at, end: hole.first });
      if (hole.end > at) at = hole.end;
    }
    if (at < end) out.push({ first: at, end });
  }
  return out;
}

/** The fewest CIDRs that make up a range. */
function cidrsOf({ first, end }: Range, family: 4 | 6, out: string[]): void {
  const bits = BITS[family];
  let at = first;
  while (at < end) {
    let size = at === 0n ? bits : trailingZeros(at);
    while (1n << BigInt(size) > end - at) size -= 1;
    out.push(`${toText(at, family)}/${bits - size}`);
    at += 1n << BigInt(size);
  }
}

function trailingZeros(value: bigint): number {
  return (value & -value).toString(2).length - 1;
}

/** What the blocks cover together; each exception holds for its own block only. IPv4 first, sorted, disjoint. */
export function coverBlocks(blocks: readonly Block[]): string[] {
  const whole: Record<4 | 6, Range[]> = { 4: [], 6: [] };
  for (const block of blocks) {
    const { family, ...range } = rangeOf(block.cidr);
    if (block.except.length === 0) whole[family].push(range);
    else {
      const holes = block.except.map(rangeOf).filter((hole) => hole.family === family);
      whole[family].push(...subtract([range], union(holes)));
    }
  }
  return cidrTexts({ 4: union(whole[4]), 6: union(whole[6]) });
}

/** Of all that `from` covers, what `without` does not. */
export function subtractBlocks(from: readonly string[], without: readonly string[]): string[] {
  const ranges = (texts: readonly string[], family: 4 | 6) =>
    union(texts.map(rangeOf).filter((range) => range.family === family));
  return cidrTexts({
    4: subtract(ranges(from, 4), ranges(without, 4)),
    6: subtract(ranges(from, 6), ranges(without, 6)),
  });
}

function cidrTexts(ranges: Readonly<Record<4 | 6, readonly Range[]>>): string[] {
  const out: string[] = [];
  for (const family of [4, 6] as const) for (const range of ranges[family]) cidrsOf(range, family, out);
  return out;
}
