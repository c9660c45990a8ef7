/**
 * Builds netlink messages into one growing buffer. Integers are in host order, which is little-endian on every
 * target (x86-64, arm64); values that the kernel wants in network order come as bytes.
 */
import { NLA_F_NESTED, NLM_F_REQUEST } from "../uapi/netlink.ts";

export class Writer {
  bytes = new Uint8Array(2048);
  length = 0;

  private reserve(count: number): void {
    if (this.length + count <= this.bytes.length) return;
    const larger = new Uint8Array(Math.max(this.bytes.length * 2, this.length + count));
    larger.set(this.bytes.subarray(0, this.length));
    this.bytes = larger;
  }

  u8(value: number): void {
    this.reserve(1);
    this.bytes[this.length++] = value;
  }

  u16(value: number): void {
    this.reserve(2);
    this.bytes[this.length++] = value;
    this.bytes[this.length++] = value >>> 8;
  }

  u32(value: number): void {
    this.reserve(4);
    const at = this.length;
    this.bytes[at] = value;
    this.bytes[at + 1] = value >>> 8;
    this.bytes[at + 2] = value >>> 16;
    this.bytes[at + 3] = value >>> 24;
    this.length = at + 4;
  }

  raw(bytes: Uint8Array): void {
    this.reserve(bytes.length);
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  /** To the next multiple of 4 (NLMSG_ALIGNTO, NLA_ALIGNTO). */
  private align(): void {
    while (this.length % 4 !== 0) this.u8(0);
  }

  attrU8(type: number, value: number): void {
    this.u16(5);
    this.u16(type);
    this.u32(value & 0xff); // the value and its padding
  }

  attrU16(type: number, value: number): void {
    this.u16(6);
    this.u16(type);
    this.u32(value & 0xffff);
  }

  attrU32(type: number, value: number): void {
    this.u16(8);
    this.u16(type);
    this.u32(value);
  }

  /** In network order, as nfnetlink wants its integers. */
  attrBe32(type: number, value: number): void {
    this.u16(8);
    this.u16(type);
    this.be32(value);
  }

  /** In network order. @param value A whole number below 2^53. */
  attrBe64(type: number, value: number): void {
    this.u16(12);
    this.u16(type);
    this.be32(Math.floor(value / 0x1_0000_0000));
    this.be32(value);
  }

  private be32(value: number): void {
    this.u8(value >>> 24);
    this.u8(value >>> 16);
    this.u8(value >>> 8);
    this.u8(value);
  }

  attrBytes(type: number, value: Uint8Array): void {
    this.u16(4 + value.length);
    this.u16(type);
    this.raw(value);
    this.align();
  }

  /** A NUL-terminated string of ASCII. */
  attrString(type: number, value: string): void {
    this.u16(5 + value.length);
    this.u16(type);
    for (let i = 0; i < value.length; i++) this.u8(value.charCodeAt(i));
    this.u8(0);
    this.align();
  }

  /** Opens a nested attribute; give the result to {@link endNest}. */
  beginNest(type: number, flag = NLA_F_NESTED): number {
    const at = this.length;
    this.u16(0);
    this.u16(type | flag);
    return at;
  }

  endNest(at: number): void {
    const length = this.length - at;
    this.bytes[at] = length;
    this.bytes[at + 1] = length >>> 8;
  }

  /** Opens a message with its nlmsghdr; give the result to {@link endMessage}. */
  beginMessage(type: number, flags: number, seq: number): number {
    const at = this.length;
    this.u32(0);
    this.u16(type);
    this.u16(flags | NLM_F_REQUEST);
    this.u32(seq);
    this.u32(0);
    return at;
  }

  endMessage(at: number): void {
    const length = this.length - at;
    this.bytes[at] = length;
    this.bytes[at + 1] = length >>> 8;
    this.bytes[at + 2] = length >>> 16;
    this.align();
  }

  finish(): Uint8Array {
    return this.bytes.subarray(0, this.length);
  }
}
