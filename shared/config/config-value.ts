/** Kinds of values a configuration key takes: how to read one strictly, and how to say what was wanted. */

import { networkOf, tryParseCidr } from "../net/cidr.ts";
import { compareIp } from "../net/ip.ts";

export interface ValueKind<T> {
  /** What a person may write, for messages. */
  readonly accepted: string;
  /** @returns undefined when `value` is not of this kind. */
  read(value: unknown): T | undefined;
}

export const text: ValueKind<string> = {
  accepted: 'a string such as "prod"',
  read: (value) => (typeof value === "string" ? value : undefined),
};

/** A string that begins with `prefix`, as the cloud's ids do. */
export function cloudId(prefix: string): ValueKind<string> {
  return {
    accepted: `a string that begins with "${prefix}"`,
    read: (value) => (typeof value === "string" && isId(value, prefix) ? value : undefined),
  };
}

function isId(value: string, prefix: string): boolean {
  return value.startsWith(prefix) && /^[A-Za-z0-9-]+$/.test(value.slice(prefix.length));
}

export const flag: ValueKind<boolean> = {
  accepted: "true or false, without quotes",
  read: (value) => (typeof value === "boolean" ? value : undefined),
};

/** A boolean that some documents quote: ConfigMap values and add-on options are strings. */
export const quotedFlag: ValueKind<boolean> = {
  accepted: '"true" or "false"',
  read: (value) =>
    value === true || value === "true" ? true : value === false || value === "false" ? false : undefined,
};

export function whole(min: number, max = 1_000_000): ValueKind<number> {
  return {
    accepted: `a whole number from ${min} to ${max}, without quotes`,
    read: (value) =>
      typeof value === "number" && Number.isInteger(value) && value >= min && value <= max ? value : undefined,
  };
}

/** A number above zero, fractions allowed: calls per second. */
export const rate: ValueKind<number> = {
  accepted: "a number above 0 and up to 10000, without quotes",
  read: (value) => (typeof value === "number" && value > 0 && value <= 10_000 ? value : undefined),
};

/** One of several words; some of them other names of the same thing. */
export function oneOf<T extends string>(words: Readonly<Record<string, T>>): ValueKind<T> {
  return {
    accepted: `one of ${Object.keys(words)
      .map((word) => `"${word}"`)
      .join(", ")}`,
    read: (value) => (typeof value === "string" && Object.hasOwn(words, value) ? words[value] : undefined),
  };
}

/** One range, or an IPv4 and an IPv6 one with a comma between. No host bits. */
export const cidrs: ValueKind<readonly string[]> = {
  accepted: 'a network such as "172.16.0.0/16", or an IPv4 and an IPv6 one with a comma between; no host bits',
  read(value) {
    if (typeof value !== "string") return undefined;
    const parts = value.split(",").map((part) => part.trim());
    const families = new Set<number>();
    for (const part of parts) {
      const cidr = tryParseCidr(part);
      if (cidr === undefined || compareIp(cidr.ip, networkOf(cidr)) !== 0 || families.has(cidr.ip.family))
        return undefined;
      families.add(cidr.ip.family);
    }
    return parts;
  },
};

/** Zone → vSwitch ids, in the order given. */
export const zoneVSwitches: ValueKind<Readonly<Record<string, readonly string[]>>> = {
  accepted: 'an object such as {"cn-hangzhou-h": ["vsw-1", "vsw-2"]}: at least one zone, each with at least one id',
  read(value) {
    const entries = entriesOf(value);
    if (entries === undefined || entries.length === 0) return undefined;
    const out: [string, readonly string[]][] = [];
    for (const [zone, ids] of entries) {
      if (zone === "" || !Array.isArray(ids) || ids.length === 0) return undefined;
      const list: string[] = [];
      for (const id of ids) {
        if (typeof id !== "string" || !isId(id, "vsw-")) return undefined;
        if (!list.includes(id)) list.push(id);
      }
      out.push([zone, list]);
    }
    return Object.fromEntries(out);
  },
};

const TAGS_PER_ENI = 20;
/** Tags that we put on ENIs ourselves: who made it, for which cluster, node and purpose. */
const OWN_TAGS = 4;

/** Tag key → value, within what the cloud takes (alicloud-api section 6). */
export const tags: ValueKind<Readonly<Record<string, string>>> = {
  accepted: `an object of at most ${TAGS_PER_ENI - OWN_TAGS} strings such as {"Environment": "production"}; keys of 1 to 128 characters that do not begin with "aliyun" or "acs:"`,
  read(value) {
    const entries = entriesOf(value);
    if (entries === undefined || entries.length > TAGS_PER_ENI - OWN_TAGS) return undefined;
    const out: [string, string][] = [];
    for (const [key, tag] of entries) {
      if (typeof tag !== "string" || tag.length > 128 || key.length === 0 || key.length > 128) return undefined;
      if (/^(aliyun|acs:)/i.test(key)) return undefined;
      out.push([key, tag]);
    }
    return Object.fromEntries(out);
  },
};

/** @returns undefined when `value` is not a plain object. */
export function entriesOf(value: unknown): [string, unknown][] | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? Object.entries(value) : undefined;
}
