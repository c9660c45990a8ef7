/** The tests that policy rules are made of, as expressions. */
import type { Expression } from "../netlink/nft/expression.ts";
import type { Verdict } from "../netlink/nft/verdict.ts";
import {
  NF_CT_STATE_ESTABLISHED,
  NF_CT_STATE_RELATED,
  NFPROTO_IPV4,
  NFPROTO_IPV6,
  NFT_REG_1,
  NFT_REG32_00,
} from "../netlink/uapi/nf-tables.ts";
import type { PortRange } from "./compiled.ts";
import { ifnameBytes, portBytes, protocolNumber } from "./content.ts";
import { CUT_MARK } from "./names.ts";

export type Side = "saddr" | "daddr";

const OFFSETS = { 4: { saddr: 12, daddr: 16, length: 4 }, 6: { saddr: 8, daddr: 24, length: 16 } } as const;
const IPPROTO_ICMP = 1;
const IPPROTO_ICMPV6 = 58;

export const COUNTER: Expression = { kind: "counter", packets: 0, bytes: 0 };

export function verdict(v: Verdict): Expression {
  return { kind: "verdict", verdict: v };
}

/** Loads an address, after a test that the packet is of its family. */
function address(family: 4 | 6, side: Side): Expression[] {
  const { length, ...offset } = OFFSETS[family];
  return [
    { kind: "meta", reg: NFT_REG_1, key: "nfproto" },
    { kind: "cmp", reg: NFT_REG_1, op: "eq", value: Uint8Array.of(family === 4 ? NFPROTO_IPV4 : NFPROTO_IPV6) },
    { kind: "payload", reg: NFT_REG_1, base: "network", offset: offset[side], length },
  ];
}

/** ip saddr @SET */
export function addressIn(family: 4 | 6, side: Side, set: string): Expression[] {
  return [...address(family, side), { kind: "lookup", reg: NFT_REG_1, set }];
}

/** ip saddr . ip daddr @SET */
export function pairIn(family: 4 | 6, set: string): Expression[] {
  const to: Expression = {
    kind: "payload",
    reg: register(family === 4 ? 1 : 4),
    base: "network",
    offset: OFFSETS[family].daddr,
    length: OFFSETS[family].length,
  };
  return [...address(family, "saddr"), to, { kind: "lookup", reg: NFT_REG_1, set }];
}

/** ip saddr vmap @MAP */
export function addressMap(family: 4 | 6, side: Side, set: string): Expression[] {
  return [...address(family, side), { kind: "lookup", reg: NFT_REG_1, set, map: true }];
}

/** iifname vmap @MAP */
export function linkMap(set: string): Expression[] {
  return [
    { kind: "meta", reg: NFT_REG_1, key: "iifname" },
    { kind: "lookup", reg: NFT_REG_1, set, map: true },
  ];
}

/** The n-th register of 4 bytes, by the number that the kernel says it in. */
function register(n: number): number {
  return n % 4 === 0 ? NFT_REG_1 + n / 4 : NFT_REG32_00 + n;
}

/** Loads protocol and destination port into 4-byte registers from the n-th on, as a concatenation has them. */
function protocolAndPort(n: number): Expression[] {
  return [
    { kind: "meta", reg: register(n), key: "l4proto" },
    { kind: "payload", reg: register(n + 1), base: "transport", offset: 2, length: 2 },
  ];
}

/** ip daddr . meta l4proto . th dport @SET */
export function endpointIn(family: 4 | 6, side: Side, set: string): Expression[] {
  const fields = family === 4 ? 1 : 4;
  return [...address(family, side), ...protocolAndPort(fields), { kind: "lookup", reg: NFT_REG_1, set }];
}

/** meta l4proto . th dport @SET */
export function portIn(set: string): Expression[] {
  return [...protocolAndPort(0), { kind: "lookup", reg: NFT_REG_1, set }];
}

function protocol(number: number): Expression[] {
  return [
    { kind: "meta", reg: NFT_REG_1, key: "l4proto" },
    { kind: "cmp", reg: NFT_REG_1, op: "eq", value: Uint8Array.of(number) },
  ];
}

/** tcp dport 80-90; all ports of a protocol are the protocol. */
export function portRange(range: PortRange): Expression[] {
  const load: Expression[] = protocol(protocolNumber(range.protocol));
  if (range.first <= 0 && range.last >= 65_535) return load;
  load.push({ kind: "payload", reg: NFT_REG_1, base: "transport", offset: 2, length: 2 });
  const [first, last] = [portBytes(range.first), portBytes(range.last)];
  if (range.first === range.last) return [...load, { kind: "cmp", reg: NFT_REG_1, op: "eq", value: first }];
  return [
    ...load,
    { kind: "cmp", reg: NFT_REG_1, op: "gte", value: first },
    { kind: "cmp", reg: NFT_REG_1, op: "lte", value: last },
  ];
}

/** ct state established,related */
export const ESTABLISHED: readonly Expression[] = [
  { kind: "ct", reg: NFT_REG_1, key: "state" },
  // In host order: every target is little-endian.
  {
    kind: "bitwise",
    reg: NFT_REG_1,
    mask: Uint8Array.of(NF_CT_STATE_ESTABLISHED | NF_CT_STATE_RELATED, 0, 0, 0),
    xor: new Uint8Array(4),
  },
  { kind: "cmp", reg: NFT_REG_1, op: "neq", value: new Uint8Array(4) },
];

/** ct mark & CUT_MARK != 0 */
export const CUT: readonly Expression[] = [
  { kind: "ct", reg: NFT_REG_1, key: "mark" },
  { kind: "bitwise", reg: NFT_REG_1, mask: Uint8Array.of(0, 0, CUT_MARK >>> 16, 0), xor: new Uint8Array(4) },
  { kind: "cmp", reg: NFT_REG_1, op: "neq", value: new Uint8Array(4) },
];

/** icmp type destination-unreachable, code fragmentation-needed */
export const FRAGMENTATION_NEEDED: readonly Expression[] = [
  ...protocol(IPPROTO_ICMP),
  { kind: "payload", reg: NFT_REG_1, base: "transport", offset: 0, length: 2 },
  { kind: "cmp", reg: NFT_REG_1, op: "eq", value: Uint8Array.of(3, 4) },
];

/** icmpv6 type FIRST-LAST */
export function icmpv6Type(first: number, last = first): Expression[] {
  const load: Expression[] = [
    ...protocol(IPPROTO_ICMPV6),
    { kind: "payload", reg: NFT_REG_1, base: "transport", offset: 0, length: 1 },
  ];
  if (first === last) return [...load, { kind: "cmp", reg: NFT_REG_1, op: "eq", value: Uint8Array.of(first) }];
  return [
    ...load,
    { kind: "cmp", reg: NFT_REG_1, op: "gte", value: Uint8Array.of(first) },
    { kind: "cmp", reg: NFT_REG_1, op: "lte", value: Uint8Array.of(last) },
  ];
}

/** iifname "NAME" or oifname "NAME" */
export function interfaceIs(key: "iifname" | "oifname", name: string): Expression[] {
  return [
    { kind: "meta", reg: NFT_REG_1, key },
    { kind: "cmp", reg: NFT_REG_1, op: "eq", value: ifnameBytes(name) },
  ];
}
