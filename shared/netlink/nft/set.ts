/** Sets, maps of verdicts, and their elements. */
import type { Request } from "../request.ts";
import { NLM_F_CREATE, NLM_F_EXCL } from "../uapi/netlink.ts";
import * as N from "../uapi/nf-tables.ts";
import { eachAttribute, MalformedNetlink, readBe32, readString } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";
import { familyOf, NFGENMSG_BYTES, nftRequest, type TableRef } from "./message.ts";
import { parseVerdict, type Verdict, writeVerdict } from "./verdict.ts";

/** Numbers of nft's data types (its datatype.h): the kernel keeps them for whoever lists, and looks at lengths only. */
const KEY_TYPES = {
  ipv4_addr: { number: 7, bytes: 4 },
  ipv6_addr: { number: 8, bytes: 16 },
  inet_proto: { number: 12, bytes: 1 },
  inet_service: { number: 13, bytes: 2 },
  mark: { number: 19, bytes: 4 },
  ifname: { number: 41, bytes: 16 },
} as const;
export type KeyType = keyof typeof KEY_TYPES;
const CONCAT_SHIFT = 6;

export interface SetRef extends TableRef {
  readonly name: string;
}

export interface NftSet extends SetRef {
  /** One, or the fields of a concatenation. */
  readonly key: readonly KeyType[];
  /** Elements are ranges. */
  readonly interval?: boolean;
  /** A verdict for each element: `vmap`. */
  readonly verdicts?: boolean;
  /** May not change once a rule uses it. */
  readonly constant?: boolean;
}

/**
 * An element's key: the fields of a concatenation each padded to 4 bytes. Intervals of one field are two elements, the
 * second an `intervalEnd` with the first key beyond; intervals of concatenations are one element with `keyEnd`, inclusive.
 */
export interface SetElement {
  readonly key: Uint8Array;
  readonly keyEnd?: Uint8Array;
  readonly intervalEnd?: boolean;
  readonly verdict?: Verdict;
}

const padded = (bytes: number) => (bytes + 3) & ~3;

/** Bytes of a key of these types. */
export function keyLength(key: readonly KeyType[]): number {
  if (key.length === 1) return KEY_TYPES[key[0] as KeyType].bytes;
  return key.reduce((sum, type) => sum + padded(KEY_TYPES[type].bytes), 0);
}

/** One key of its fields' values. */
export function concatKey(...fields: readonly Uint8Array[]): Uint8Array {
  const key = new Uint8Array(fields.reduce((sum, f) => sum + padded(f.length), 0));
  let at = 0;
  for (const field of fields) {
    key.set(field, at);
    at += padded(field.length);
  }
  return key;
}

function flagsOf(set: NftSet): number {
  return (
    (set.interval ? N.NFT_SET_INTERVAL : 0) |
    (set.interval && set.key.length > 1 ? N.NFT_SET_CONCAT : 0) |
    (set.verdicts ? N.NFT_SET_MAP : 0) |
    (set.constant ? N.NFT_SET_CONSTANT : 0)
  );
}

/** nft add set, add map; no error when it exists in the same form. `id` tells new sets of one batch apart. */
export function newSet(set: NftSet, id: number): Request {
  return nftRequest(
    N.NFT_MSG_NEWSET,
    NLM_F_CREATE,
    set.family,
    (w) => {
      w.attrString(N.NFTA_SET_TABLE, set.table);
      w.attrString(N.NFTA_SET_NAME, set.name);
      w.attrBe32(N.NFTA_SET_FLAGS, flagsOf(set));
      w.attrBe32(
        N.NFTA_SET_KEY_TYPE,
        set.key.reduce((sum, type) => (sum << CONCAT_SHIFT) | KEY_TYPES[type].number, 0),
      );
      w.attrBe32(N.NFTA_SET_KEY_LEN, keyLength(set.key));
      if (set.verdicts) w.attrBe32(N.NFTA_SET_DATA_TYPE, N.NFT_DATA_VERDICT);
      w.attrBe32(N.NFTA_SET_ID, id);
      if (!set.interval || set.key.length === 1) return;
      const desc = w.beginNest(N.NFTA_SET_DESC);
      const concat = w.beginNest(N.NFTA_SET_DESC_CONCAT);
      for (const type of set.key) {
        const field = w.beginNest(N.NFTA_LIST_ELEM);
        w.attrBe32(N.NFTA_SET_FIELD_LEN, KEY_TYPES[type].bytes);
        w.endNest(field);
      }
      w.endNest(concat);
      w.endNest(desc);
    },
    () =>
      `add ${set.verdicts ? "map" : "set"} ${set.family} ${set.table} ${set.name} { type ${set.key.join(" . ")}${
        set.verdicts ? " : verdict" : ""
      };${set.interval ? " flags interval;" : ""} }`,
  );
}

/** nft delete set; EBUSY while a rule uses it. */
export function delSet(ref: SetRef): Request {
  return nftRequest(
    N.NFT_MSG_DELSET,
    0,
    ref.family,
    (w) => {
      w.attrString(N.NFTA_SET_TABLE, ref.table);
      w.attrString(N.NFTA_SET_NAME, ref.name);
    },
    () => `delete set ${ref.family} ${ref.table} ${ref.name}`,
  );
}

/** nft list sets, of one table; for a dump. */
export function getSets(ref: TableRef): Request {
  return nftRequest(
    N.NFT_MSG_GETSET,
    0,
    ref.family,
    (w) => w.attrString(N.NFTA_SET_TABLE, ref.table),
    () => `list sets table ${ref.family} ${ref.table}`,
  );
}

/** @throws {MalformedNetlink} */
export function parseSet(payload: Uint8Array): NftSet {
  let table: string | undefined;
  let name: string | undefined;
  let flags = 0;
  let keyType = 0;
  eachAttribute(payload, NFGENMSG_BYTES, (type, value) => {
    if (type === N.NFTA_SET_TABLE) table = readString(value);
    else if (type === N.NFTA_SET_NAME) name = readString(value);
    else if (type === N.NFTA_SET_FLAGS) flags = readBe32(value, 0);
    else if (type === N.NFTA_SET_KEY_TYPE) keyType = readBe32(value, 0);
  });
  if (table === undefined || name === undefined) throw new MalformedNetlink("a set has no name", 0);
  return {
    family: familyOf(payload),
    table,
    name,
    key: keyTypes(keyType),
    ...((flags & N.NFT_SET_INTERVAL) !== 0 ? { interval: true } : {}),
    ...((flags & N.NFT_SET_MAP) !== 0 ? { verdicts: true } : {}),
    ...((flags & N.NFT_SET_CONSTANT) !== 0 ? { constant: true } : {}),
  };
}

/** Types that are none of ours are left out: such a set equals none of ours. */
function keyTypes(number: number): KeyType[] {
  const types: KeyType[] = [];
  for (let rest = number; rest > 0; rest >>>= CONCAT_SHIFT) {
    const low = rest & ((1 << CONCAT_SHIFT) - 1);
    const found = (Object.keys(KEY_TYPES) as KeyType[]).find((name) => KEY_TYPES[name].number === low);
    if (found !== undefined) types.unshift(found);
  }
  return types;
}

function writeKey(w: Writer, type: number, key: Uint8Array): void {
  const nest = w.beginNest(type);
  w.attrBytes(N.NFTA_DATA_VALUE, key);
  w.endNest(nest);
}

function writeElement(w: Writer, e: SetElement): void {
  const nest = w.beginNest(N.NFTA_LIST_ELEM);
  writeKey(w, N.NFTA_SET_ELEM_KEY, e.key);
  if (e.keyEnd !== undefined) writeKey(w, N.NFTA_SET_ELEM_KEY_END, e.keyEnd);
  if (e.intervalEnd) w.attrBe32(N.NFTA_SET_ELEM_FLAGS, N.NFT_SET_ELEM_INTERVAL_END);
  if (e.verdict !== undefined) writeVerdict(w, N.NFTA_SET_ELEM_DATA, e.verdict);
  w.endNest(nest);
}

/** The list is one attribute, whose length is a u16: so many elements fit whatever their kind (at most 400 bytes each). */
const ELEMENTS_PER_MESSAGE = 128;

function elementRequests(
  message: number,
  flags: number,
  verb: string,
  ref: SetRef,
  elements: readonly SetElement[],
): Request[] {
  const requests: Request[] = [];
  for (let at = 0; at < elements.length; at += ELEMENTS_PER_MESSAGE) {
    const part = elements.slice(at, at + ELEMENTS_PER_MESSAGE);
    requests.push(
      nftRequest(
        message,
        flags,
        ref.family,
        (w) => {
          w.attrString(N.NFTA_SET_ELEM_LIST_TABLE, ref.table);
          w.attrString(N.NFTA_SET_ELEM_LIST_SET, ref.name);
          const list = w.beginNest(N.NFTA_SET_ELEM_LIST_ELEMENTS);
          for (const element of part) writeElement(w, element);
          w.endNest(list);
        },
        () => `${verb} element ${ref.family} ${ref.table} ${ref.name} (${part.length} elements)`,
      ),
    );
  }
  return requests;
}

/**
 * nft add element. What is there already is no error, unless with another verdict (EEXIST; EBUSY before Linux 5.7).
 *
 * @param exclusive EEXIST when one is there already.
 */
export function addElements(ref: SetRef, elements: readonly SetElement[], exclusive = false): Request[] {
  const flags = NLM_F_CREATE | (exclusive ? NLM_F_EXCL : 0);
  return elementRequests(N.NFT_MSG_NEWSETELEM, flags, "add", ref, elements);
}

/** nft delete element, by key; ENOENT when one is not there. */
export function delElements(ref: SetRef, elements: readonly SetElement[]): Request[] {
  const keys = elements.map(({ verdict: _verdict, ...key }) => key);
  return elementRequests(N.NFT_MSG_DELSETELEM, 0, "delete", ref, keys);
}

/** nft list set, for a dump; or with elements, nft get element: ENOENT when one is not there. */
export function getElements(ref: SetRef, elements: readonly SetElement[] = []): Request {
  return (
    elementRequests(N.NFT_MSG_GETSETELEM, 0, "get", ref, elements)[0] ??
    nftRequest(
      N.NFT_MSG_GETSETELEM,
      0,
      ref.family,
      (w) => {
        w.attrString(N.NFTA_SET_ELEM_LIST_TABLE, ref.table);
        w.attrString(N.NFTA_SET_ELEM_LIST_SET, ref.name);
      },
      () => `list set ${ref.family} ${ref.table} ${ref.name}`,
    )
  );
}

/** The elements of one message. @throws {MalformedNetlink} */
export function parseElements(payload: Uint8Array): SetElement[] {
  const elements: SetElement[] = [];
  eachAttribute(payload, NFGENMSG_BYTES, (type, value) => {
    if (type !== N.NFTA_SET_ELEM_LIST_ELEMENTS) return;
    eachAttribute(value, 0, (inner, element) => {
      if (inner === N.NFTA_LIST_ELEM) elements.push(parseElement(element));
    });
  });
  return elements;
}

function parseElement(bytes: Uint8Array): SetElement {
  let key: Uint8Array | undefined;
  let keyEnd: Uint8Array | undefined;
  let intervalEnd = false;
  let verdict: Verdict | undefined;
  const data = (value: Uint8Array, visit: (type: number, v: Uint8Array) => void) => eachAttribute(value, 0, visit);
  eachAttribute(bytes, 0, (type, value) => {
    if (type === N.NFTA_SET_ELEM_KEY)
      data(value, (t, v) => {
        if (t === N.NFTA_DATA_VALUE) key = v.slice();
      });
    else if (type === N.NFTA_SET_ELEM_KEY_END)
      data(value, (t, v) => {
        if (t === N.NFTA_DATA_VALUE) keyEnd = v.slice();
      });
    else if (type === N.NFTA_SET_ELEM_FLAGS) intervalEnd = (readBe32(value, 0) & N.NFT_SET_ELEM_INTERVAL_END) !== 0;
    else if (type === N.NFTA_SET_ELEM_DATA)
      data(value, (t, v) => {
        if (t === N.NFTA_DATA_VERDICT) verdict = parseVerdict(v);
      });
  });
  if (key === undefined) throw new MalformedNetlink("an element has no key", 0);
  return {
    key,
    ...(keyEnd ? { keyEnd } : {}),
    ...(intervalEnd ? { intervalEnd } : {}),
    ...(verdict ? { verdict } : {}),
  };
}
