/** What the kernel has of the policy table. */
import { compareIp, formatIp } from "../net/ip.ts";
import { getRules, parseRule } from "../netlink/nft/rule.ts";
import { getElements, getSets, type NftSet, parseElements, parseSet, type SetElement } from "../netlink/nft/set.ts";
import type { NftSocket } from "../netlink/nft/socket.ts";
import { getChains, getTables, parseChain, parseTable } from "../netlink/nft/table.ts";
import { formatVerdict } from "../netlink/nft/verdict.ts";
import {
  type ChainContent,
  type ChainRule,
  ends,
  ipOf,
  protocolName,
  type SetContent,
  type SetKind,
  setForm,
  type TableContent,
} from "./content.ts";
import { linkText, POLICY_TABLE } from "./names.ts";

export type Dumper = Pick<NftSocket, "dump">;

/** undefined: there is no table. */
export function readTable(nft: Dumper): TableContent | undefined {
  if (!hasTable(nft)) return undefined;
  return { chains: readChains(nft), sets: readSets(nft, () => true) };
}

const LOOKS = 64;

/** The same as of one instant, if there is one: again if anybody has changed anything meanwhile. For whoever only looks. */
export function readTableAtOnce(nft: Dumper & Pick<NftSocket, "generation">): TableContent | undefined {
  for (let i = 0; ; i++) {
    const generation = nft.generation();
    try {
      const table = readTable(nft);
      if (nft.generation() === generation || i === LOOKS) return table;
    } catch (error) {
      if (nft.generation() === generation || i === LOOKS) throw error;
    }
  }
}

export function hasTable(nft: Dumper): boolean {
  return nft.dump(getTables(POLICY_TABLE.family)).some((p) => parseTable(p).table === POLICY_TABLE.table);
}

export function readChains(nft: Dumper): Map<string, ChainContent> {
  const chains = new Map<string, { hook?: ChainContent["hook"]; rules: ChainRule[] }>();
  for (const payload of nft.dump(getChains(POLICY_TABLE.family))) {
    const { table, name, hook } = parseChain(payload);
    if (table === POLICY_TABLE.table) chains.set(name, { ...(hook ? { hook } : {}), rules: [] });
  }
  for (const payload of nft.dump(getRules(POLICY_TABLE))) {
    const { chain, expressions, comment } = parseRule(payload);
    chains.get(chain)?.rules.push({ expressions, ...(comment === undefined ? {} : { comment }) });
  }
  return chains as Map<string, ChainContent>;
}

/** Sets with their elements; without those where `wanted` says no. */
export function readSets(nft: Dumper, wanted: (name: string) => boolean): Map<string, SetContent> {
  const sets = new Map<string, SetContent>();
  for (const payload of nft.dump(getSets(POLICY_TABLE))) {
    const set = parseSet(payload);
    const form = kindOf(set);
    sets.set(set.name, { ...form, elements: wanted(set.name) ? readSet(nft, set.name, form.kind) : [] });
  }
  return sets;
}

/** The elements of one set, sorted as the compiler sorts them where it does. */
export function readSet(nft: Dumper, name: string, kind: SetKind): string[] {
  const elements = nft.dump(getElements({ ...POLICY_TABLE, name })).flatMap(parseElements);
  return kind === "networks" ? formatRanges(elements) : elements.map((e) => formatElement(kind, e)).sort();
}

/** A form that is none of ours reads as ports without family: it equals nothing that is wanted under its name. */
function kindOf(set: NftSet): Pick<SetContent, "kind" | "family"> {
  const kinds: readonly SetKind[] = ["addresses", "networks", "endpoints", "verdicts", "pairs"];
  const same = (form: NftSet) =>
    form.key.join() === set.key.join() && form.interval === set.interval && form.verdicts === set.verdicts;
  if (same(setForm(set.name, { kind: "links" }))) return { kind: "links" };
  for (const kind of kinds)
    for (const family of [4, 6] as const) if (same(setForm(set.name, { kind, family }))) return { kind, family };
  return { kind: "ports" };
}

function formatElement(kind: SetKind, e: SetElement): string {
  const address = (bytes: Uint8Array) => formatIp(ipOf(bytes));
  switch (kind) {
    case "addresses":
      return `${address(e.key)}/${e.key.length * 8}`;
    case "verdicts":
      return `${address(e.key)} : ${e.verdict === undefined ? "" : formatVerdict(e.verdict)}`;
    case "links":
      return `${linkText(readIfname(e.key))} : ${e.verdict === undefined ? "" : formatVerdict(e.verdict)}`;
    case "pairs": {
      const [from, to] = [e.key.subarray(0, e.key.length / 2), e.key.subarray(e.key.length / 2)].map(address);
      return from === to ? `${from}` : `${from} . ${to}`;
    }
    case "endpoints": {
      const length = e.key.length - 8;
      return `${address(e.key.subarray(0, length))} ${protocolAndPort(e.key, length)}`;
    }
    case "ports": {
      const end = e.keyEnd ?? e.key;
      return `${protocolAndPort(e.key, 0)}-${(end[4] ?? 0) * 256 + (end[5] ?? 0)}`;
    }
    default:
      return "";
  }
}

function readIfname(key: Uint8Array): string {
  const end = key.indexOf(0);
  return String.fromCharCode(...key.subarray(0, end < 0 ? key.length : end));
}

function protocolAndPort(key: Uint8Array, at: number): string {
  const protocol = key[at] ?? 0;
  return `${protocolName(protocol) ?? protocol} ${(key[at + 4] ?? 0) * 256 + (key[at + 5] ?? 0)}`;
}

/** Each start with the end that follows it; a start without end reaches to the last address. */
function formatRanges(elements: readonly SetElement[]): string[] {
  const sorted = elements
    .map((e) => ({ ip: ipOf(e.key), isEnd: e.intervalEnd === true }))
    // An end comes before the start at the same address: ranges may touch.
    .sort((a, b) => compareIp(a.ip, b.ip) || Number(b.isEnd) - Number(a.isEnd));
  const out: string[] = [];
  for (const [i, { ip, isEnd }] of sorted.entries()) {
    if (isEnd) continue;
    const end = sorted[i + 1];
    const last = end?.isEnd ? before(end.ip.bytes) : new Uint8Array(ip.bytes.length).fill(255);
    out.push(cidrText(ip.bytes, last) ?? `${formatIp(ip)}-${formatIp(ipOf(last))}`);
  }
  return out;
}

function before(address: Uint8Array): Uint8Array {
  const out = new Uint8Array(address);
  for (let i = out.length - 1; i >= 0; i--) {
    out[i] = (out[i] ?? 0) - 1;
    if (out[i] !== 255) break;
  }
  return out;
}

/** undefined when the range is no CIDR. */
function cidrText(first: Uint8Array, last: Uint8Array): string | undefined {
  const bits = first.length * 8;
  let length = 0;
  while (length < bits && bit(first, length) === bit(last, length)) length += 1;
  const text = `${formatIp(ipOf(first))}/${length}`;
  const [a, b] = ends(text);
  return a.every((byte, i) => byte === first[i]) && b.every((byte, i) => byte === last[i]) ? text : undefined;
}

function bit(bytes: Uint8Array, at: number): number {
  return ((bytes[at >> 3] ?? 0) >> (7 - (at & 7))) & 1;
}
