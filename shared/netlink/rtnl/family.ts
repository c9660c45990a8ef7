/** Address families in netlink headers. */
import type { Ip } from "../../net/ip.ts";
import { AF_INET, AF_INET6 } from "../../sys/linux.ts";
import { MalformedNetlink } from "../wire/reader.ts";

export type Family = 4 | 6;

export function familyNumber(ip: Pick<Ip, "family">): number {
  return ip.family === 4 ? AF_INET : AF_INET6;
}

/** @throws {MalformedNetlink} When the value is neither 4 nor 16 bytes. */
export function readIp(bytes: Uint8Array): Ip {
  if (bytes.length !== 4 && bytes.length !== 16) throw new MalformedNetlink(`an address of ${bytes.length} bytes`, 0);
  return { family: bytes.length === 4 ? 4 : 6, bytes };
}

export function zeroIp(family: Family): Ip {
  return { family, bytes: new Uint8Array(family === 4 ? 4 : 16) };
}
