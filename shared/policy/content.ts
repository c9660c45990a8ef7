/**
 * What is, or should be, in the policy table, as values that can be compared. Elements are texts, in the same words
 * that the compiler uses; they become bytes only when they change.
 */
import { parseCidr } from "../net/cidr.ts";
import { type Ip, parseIp } from "../net/ip.ts";
import type { Expression } from "../netlink/nft/expression.ts";
import { concatKey, type KeyType, type NftSet, type SetElement } from "../netlink/nft/set.ts";
import type { Hook } from "../netlink/nft/table.ts";
import { readVerdict } from "../netlink/nft/verdict.ts";
import type { Protocol } from "./compiled.ts";
import { isLinkText, POLICY_TABLE } from "./names.ts";

/**
 * - addresses: `10.0.0.1/32`. A hash: for sets of single addresses, any number of them.
 * - networks: `10.0.0.0/8`. A tree of ranges.
 * - endpoints: `10.0.0.1 tcp 80`
 * - ports: `tcp 80-90`. Neither family.
 * - verdicts: `10.0.0.1 : goto in-1234`
 * - pairs: `10.0.0.1`, for that address with itself
 * - links: `%veth0 : goto out-1234`. By name of the link; neither family.
 */
export type SetKind = "addresses" | "networks" | "endpoints" | "ports" | "verdicts" | "pairs" | "links";

/** Sets of these kinds lead packets to chains or past them. */
export function leads({ kind }: Pick<SetContent, "kind">): boolean {
  return kind === "verdicts" || kind === "pairs" || kind === "links";
}

export interface SetContent {
  readonly kind: SetKind;
  /** Absent for ports and links. */
  readonly family?: 4 | 6;
  readonly elements: readonly string[];
}

export interface ChainRule {
  readonly expressions: readonly Expression[];
  readonly comment?: string;
}

export interface ChainContent {
  readonly hook?: Hook;
  readonly rules: readonly ChainRule[];
  /** Same basis, same rules: spares the comparison. Absent when read from the kernel. */
  readonly basis?: string;
}

export interface TableContent {
  readonly sets: ReadonlyMap<string, SetContent>;
  readonly chains: ReadonlyMap<string, ChainContent>;
}

export const EMPTY_CONTENT: TableContent = { sets: new Map(), chains: new Map() };

const PROTOCOLS: Readonly<Record<Protocol, number>> = { tcp: 6, udp: 17, sctp: 132 };

export function protocolNumber(protocol: string): number {
  const number = PROTOCOLS[protocol as Protocol];
  if (number === undefined) throw new TypeError(`Cannot use the protocol "${protocol}": want tcp, udp or sctp`);
  return number;
}

export function protocolName(number: number): Protocol | undefined {
  return (Object.keys(PROTOCOLS) as Protocol[]).find((name) => PROTOCOLS[name] === number);
}

export function portBytes(port: number): Uint8Array {
  return Uint8Array.of(port >>> 8, port);
}

/** The kernel's form of such a set. */
export function setForm(name: string, content: Pick<SetContent, "kind" | "family">): NftSet {
  const address: KeyType = content.family === 6 ? "ipv6_addr" : "ipv4_addr";
  const ref = { ...POLICY_TABLE, name };
  switch (content.kind) {
    case "addresses":
      return { ...ref, key: [address] };
    case "networks":
      return { ...ref, key: [address], interval: true };
    case "endpoints":
      return { ...ref, key: [address, "inet_proto", "inet_service"] };
    case "ports":
      return { ...ref, key: ["inet_proto", "inet_service"], interval: true };
    case "verdicts":
      return { ...ref, key: [address], verdicts: true };
    case "pairs":
      return { ...ref, key: [address, address] };
    case "links":
      return { ...ref, key: ["ifname"], verdicts: true };
    default:
      return content.kind satisfies never;
  }
}

/** The elements of one text: two for a range of addresses, else one. */
export function encodeElement(kind: SetKind, text: string): SetElement[] {
  switch (kind) {
    case "addresses":
      return [{ key: parseIp(text.slice(0, text.indexOf("/"))).bytes }];
    case "networks":
      return rangeElements(text);
    case "endpoints": {
      const [address = "", protocol = "", port = ""] = text.split(" ");
      const fields = [parseIp(address).bytes, Uint8Array.of(protocolNumber(protocol)), portBytes(Number(port))];
      return [{ key: concatKey(...fields) }];
    }
    case "ports": {
      const [protocol = "", range = ""] = text.split(" ");
      const [first = "", last = first] = range.split("-");
      const key = (port: string) => concatKey(Uint8Array.of(protocolNumber(protocol)), portBytes(Number(port)));
      return [{ key: key(first), keyEnd: key(last) }];
    }
    case "verdicts":
    case "pairs":
    case "links":
      return [podElement(text)];
    default:
      return kind satisfies never;
  }
}

const IFNAME_BYTES = 16;

/** As the kernel compares a link's name: padded with zeros. */
export function ifnameBytes(name: string): Uint8Array {
  const bytes = new Uint8Array(IFNAME_BYTES);
  for (let i = 0; i < name.length; i++) bytes[i] = name.charCodeAt(i);
  return bytes;
}

/** An element of a map of verdicts, or of the set of pairs. */
export function podElement(text: string): SetElement {
  const at = text.indexOf(" : ");
  if (at < 0) {
    const { bytes } = parseIp(text);
    return { key: concatKey(bytes, bytes) };
  }
  const [of, verdict] = [text.slice(0, at), readVerdict(text.slice(at + 3))];
  return { key: isLinkText(of) ? ifnameBytes(of.slice(1)) : parseIp(of).bytes, verdict };
}

/** From `ADDRESS/LENGTH` or `FIRST-LAST`. A range that reaches the end of the address space has no end element. */
function rangeElements(text: string): SetElement[] {
  const dash = text.indexOf("-");
  const [first, last] =
    dash < 0 ? ends(text) : [parseIp(text.slice(0, dash)).bytes, parseIp(text.slice(dash + 1)).bytes];
  const beyond = next(last);
  return beyond === undefined ? [{ key: first }] : [{ key: first }, { key: beyond, intervalEnd: true }];
}

/** First and last address of a CIDR. */
export function ends(text: string): [Uint8Array, Uint8Array] {
  const { ip, prefixLength } = parseCidr(text);
  const first = new Uint8Array(ip.bytes);
  const last = new Uint8Array(ip.bytes);
  for (let i = 0; i < first.length; i++) {
    const mask = 0xff >> Math.min(8, Math.max(0, prefixLength - 8 * i));
    first[i] = (first[i] ?? 0) & ~mask;
    last[i] = (last[i] ?? 0) | mask;
  }
  return [first, last];
}

/** undefined past the last address. */
function next(address: Uint8Array): Uint8Array | undefined {
  const out = new Uint8Array(address);
  for (let i = out.length - 1; i >= 0; i--) {
    out[i] = (out[i] ?? 0) + 1;
    if (out[i] !== 0) return out;
  }
  return undefined;
}

export function familyOfText(text: string): 4 | 6 {
  return text.includes(":") ? 6 : 4;
}

export function ipOf(bytes: Uint8Array): Ip {
  return { family: bytes.length === 4 ? 4 : 6, bytes };
}

/** Rules in words that are equal when the rules are; counters do not count. */
export function ruleKey(rule: ChainRule): string {
  return JSON.stringify([rule.comment ?? "", rule.expressions.map(expressionKey)]);
}

function expressionKey(e: Expression): unknown {
  if (e.kind === "counter") return "counter";
  return Object.entries(e)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => [name, value instanceof Uint8Array ? Array.from(value) : value]);
}
