/**
 * IP addresses as bytes. Parsing is strict, digit by digit: no octal, no short forms, no zone, no surrounding space.
 */

export interface Ip {
  readonly family: 4 | 6;
  /** 4 or 16 bytes, network order. */
  readonly bytes: Uint8Array;
}

/** @returns undefined when `text` is not exactly one IPv4 or IPv6 address. */
export function tryParseIp(text: string): Ip | undefined {
  const bytes = text.includes(":") ? parse6(text) : parse4(text);
  return bytes && { family: bytes.length === 4 ? 4 : 6, bytes };
}

/** @throws {TypeError} When `text` is not an address. */
export function parseIp(text: string): Ip {
  const ip = tryParseIp(text);
  if (ip === undefined) {
    throw new TypeError(`Cannot read an IP address: got "${text}", want the form 10.0.0.1 or 2001:db8::1`);
  }
  return ip;
}

function parse4(text: string): Uint8Array | undefined {
  const parts = text.split(".");
  if (parts.length !== 4) return undefined;
  const bytes = new Uint8Array(4);
  for (let i = 0; i < 4; i++) {
    const part = parts[i] ?? "";
    // A leading zero means octal to some parsers: refuse what others may read differently.
    if (part.length === 0 || part.length > 3 || (part.length > 1 && part.startsWith("0"))) return undefined;
    let value = 0;
    for (let at = 0; at < part.length; at++) {
      const digit = part.charCodeAt(at) - 48;
      if (digit < 0 || digit > 9) return undefined;
      value = value * 10 + digit;
    }
    if (value > 255) return undefined;
    bytes[i] = value;
  }
  return bytes;
}

function parse6(text: string): Uint8Array | undefined {
  const halves = text.split("::");
  if (halves.length > 2) return undefined;
  const head = words(halves[0] ?? "", halves.length === 1);
  const tail = halves.length === 2 ? words(halves[1] ?? "", true) : [];
  if (head === undefined || tail === undefined) return undefined;
  const missing = 8 - head.length - tail.length;
  if (halves.length === 1 ? missing !== 0 : missing < 1) return undefined;
  const bytes = new Uint8Array(16);
  head.forEach((word, i) => {
    bytes[2 * i] = word >> 8;
    bytes[2 * i + 1] = word & 255;
  });
  tail.forEach((word, i) => {
    const at = 2 * (8 - tail.length + i);
    bytes[at] = word >> 8;
    bytes[at + 1] = word & 255;
  });
  return bytes;
}

/** Groups of one half; the last half may end in dotted IPv4 (RFC 4291 section 2.2). */
function words(text: string, last: boolean): number[] | undefined {
  if (text === "") return [];
  const groups = text.split(":");
  const out: number[] = [];
  for (let i = 0; i < groups.length; i++) {
    const group = groups[i] ?? "";
    if (last && i === groups.length - 1 && group.includes(".")) {
      const four = parse4(group);
      if (four === undefined) return undefined;
      const [a = 0, b = 0, c = 0, d = 0] = four;
      out.push(a * 256 + b, c * 256 + d);
      continue;
    }
    if (group.length === 0 || group.length > 4) return undefined;
    let value = 0;
    for (let at = 0; at < group.length; at++) {
      const digit = hexDigit(group.charCodeAt(at));
      if (digit < 0) return undefined;
      value = value * 16 + digit;
    }
    out.push(value);
  }
  return out;
}

function hexDigit(code: number): number {
  if (code >= 48 && code <= 57) return code - 48;
  const lower = code | 32;
  return lower >= 97 && lower <= 102 ? lower - 87 : -1;
}

/** Canonical text: dotted decimal, or RFC 5952. */
export function formatIp(ip: Ip): string {
  if (ip.family === 4) return ip.bytes.join(".");
  const groups: number[] = [];
  for (let i = 0; i < 16; i += 2) groups.push((ip.bytes[i] ?? 0) * 256 + (ip.bytes[i + 1] ?? 0));
  let best = { at: -1, length: 1 }; // a single zero group is not shortened
  for (let at = 0; at < 8; ) {
    let end = at;
    while (end < 8 && groups[end] === 0) end += 1;
    if (end - at > best.length) best = { at, length: end - at };
    at = Math.max(end, at + 1);
  }
  const hex = (from: number, to: number) =>
    groups
      .slice(from, to)
      .map((g) => g.toString(16))
      .join(":");
  return best.at < 0 ? hex(0, 8) : `${hex(0, best.at)}::${hex(best.at + best.length, 8)}`;
}

/** Negative, zero or positive; IPv4 sorts before IPv6. */
export function compareIp(a: Ip, b: Ip): number {
  if (a.family !== b.family) return a.family - b.family;
  for (let i = 0; i < a.bytes.length; i++) {
    const difference = (a.bytes[i] ?? 0) - (b.bytes[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

/**
 * The address `offset` (an integer, may be negative, |offset| < 2^53) further on.
 *
 * @returns undefined past either end of the address space.
 */
export function addToIp(ip: Ip, offset: number): Ip | undefined {
  const bytes = new Uint8Array(ip.bytes);
  let carry = offset;
  for (let i = bytes.length - 1; i >= 0 && carry !== 0; i--) {
    const sum = (bytes[i] ?? 0) + carry;
    const low = ((sum % 256) + 256) % 256;
    bytes[i] = low;
    carry = (sum - low) / 256;
  }
  return carry === 0 ? { family: ip.family, bytes } : undefined;
}

/** `to - from` as a number; exact up to 2^53, an approximation beyond. */
export function distanceIp(from: Ip, to: Ip): number {
  let distance = 0;
  for (let i = 0; i < from.bytes.length; i++) distance = distance * 256 + ((to.bytes[i] ?? 0) - (from.bytes[i] ?? 0));
  return distance;
}
