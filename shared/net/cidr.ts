/** An address with a prefix length, e.g. `10.0.1.7/24`; the host bits are kept. */
import { compareIp, formatIp, type Ip, tryParseIp } from "./ip.ts";

export interface Cidr {
  readonly ip: Ip;
  /** 0 to 32, or 0 to 128. */
  readonly prefixLength: number;
}

/** @returns undefined when `text` is not `ADDRESS/LENGTH`. */
export function tryParseCidr(text: string): Cidr | undefined {
  const slash = text.indexOf("/");
  const ip = slash < 0 ? undefined : tryParseIp(text.slice(0, slash));
  const digits = text.slice(slash + 1);
  if (ip === undefined || !/^(0|[1-9]\d{0,2})$/.test(digits)) return undefined;
  const prefixLength = Number(digits);
  return prefixLength <= ip.bytes.length * 8 ? { ip, prefixLength } : undefined;
}

/** @throws {TypeError} When `text` is not a CIDR. */
export function parseCidr(text: string): Cidr {
  const cidr = tryParseCidr(text);
  if (cidr === undefined)
    throw new TypeError(`Cannot read a CIDR: got "${text}", want the form 10.0.0.0/24 or 2001:db8::/64`);
  return cidr;
}

export function formatCidr(cidr: Cidr): string {
  return `${formatIp(cidr.ip)}/${cidr.prefixLength}`;
}

function withHostBits(cidr: Cidr, bit: 0 | 1): Ip {
  const bytes = new Uint8Array(cidr.ip.bytes);
  for (let i = 0; i < bytes.length; i++) {
    const kept = Math.min(8, Math.max(0, cidr.prefixLength - 8 * i));
    const mask = 0xff >> kept;
    bytes[i] = bit === 0 ? (bytes[i] ?? 0) & ~mask : (bytes[i] ?? 0) | mask;
  }
  return { family: cidr.ip.family, bytes };
}

/** First address: the network's own. */
export function networkOf(cidr: Cidr): Ip {
  return withHostBits(cidr, 0);
}

/** Last address: the broadcast address in IPv4. */
export function lastOf(cidr: Cidr): Ip {
  return withHostBits(cidr, 1);
}

export function cidrContains(cidr: Cidr, ip: Ip): boolean {
  return ip.family === cidr.ip.family && compareIp(ip, networkOf(cidr)) >= 0 && compareIp(ip, lastOf(cidr)) <= 0;
}

export function cidrsOverlap(a: Cidr, b: Cidr): boolean {
  return a.ip.family === b.ip.family && (cidrContains(a, networkOf(b)) || cidrContains(b, networkOf(a)));
}
