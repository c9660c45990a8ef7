/** Takes netlink messages and attributes apart. Every length is checked against the buffer. */
import { NLA_TYPE_MASK, NLMSG_HDRLEN } from "../uapi/netlink.ts";

/** Bytes that are no valid netlink. The message says where. */
export class MalformedNetlink extends Error {
  constructor(what: string, offset: number) {
    super(`malformed netlink: ${what} at byte ${offset}`);
    this.name = "MalformedNetlink";
  }
}

export interface Message {
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  /** After the nlmsghdr. */
  readonly payload: Uint8Array;
}

export function readU16(b: Uint8Array, at: number): number {
  return (b[at] ?? 0) | ((b[at + 1] ?? 0) << 8);
}

export function readU32(b: Uint8Array, at: number): number {
  return ((b[at] ?? 0) | ((b[at + 1] ?? 0) << 8) | ((b[at + 2] ?? 0) << 16) | ((b[at + 3] ?? 0) << 24)) >>> 0;
}

export function readS32(b: Uint8Array, at: number): number {
  return readU32(b, at) | 0;
}

/** In network order, as nfnetlink has its integers. */
export function readBe32(b: Uint8Array, at: number): number {
  return (((b[at] ?? 0) << 24) | ((b[at + 1] ?? 0) << 16) | ((b[at + 2] ?? 0) << 8) | (b[at + 3] ?? 0)) >>> 0;
}

/** In network order; exact below 2^53. */
export function readBe64(b: Uint8Array, at: number): number {
  return readBe32(b, at) * 0x1_0000_0000 + readBe32(b, at + 4);
}

/** The messages of one datagram. @throws {MalformedNetlink} */
export function parseMessages(bytes: Uint8Array): Message[] {
  const messages: Message[] = [];
  let at = 0;
  while (at < bytes.length) {
    if (at + NLMSG_HDRLEN > bytes.length) throw new MalformedNetlink("a header is cut off", at);
    const length = readU32(bytes, at);
    if (length < NLMSG_HDRLEN || at + length > bytes.length) throw new MalformedNetlink(`message length ${length}`, at);
    messages.push({
      type: readU16(bytes, at + 4),
      flags: readU16(bytes, at + 6),
      seq: readU32(bytes, at + 8),
      payload: bytes.subarray(at + NLMSG_HDRLEN, at + length),
    });
    at += (length + 3) & ~3;
  }
  return messages;
}

/**
 * Calls `visit` with each attribute's type (without flags) and value. @throws {MalformedNetlink}
 *
 * @param start Where the attributes begin: the size of the family header.
 * @param only Of a message with dozens of attributes, those that are wanted: no view is made of the others.
 */
export function eachAttribute(
  bytes: Uint8Array,
  start: number,
  visit: (type: number, value: Uint8Array) => void,
  only?: ReadonlySet<number>,
): void {
  let at = start;
  while (at + 4 <= bytes.length) {
    const length = readU16(bytes, at);
    if (length < 4 || at + length > bytes.length)
      throw new MalformedNetlink(`attribute ${readU16(bytes, at + 2)} has length ${length}`, at);
    const type = readU16(bytes, at + 2) & NLA_TYPE_MASK;
    if (only === undefined || only.has(type)) visit(type, bytes.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
}

/** A NUL-terminated string. */
export function readString(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < bytes.length && bytes[i] !== 0; i++) text += String.fromCharCode(bytes[i] ?? 0);
  return text;
}
