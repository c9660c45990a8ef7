/**
 * Builds netlink messages into one growing buffer. Integers are in host order, which is little-endian on every
 * target (x86-64, arm64); values that the kernel wants in network order come as bytes.
 */
import { NLA_F_NESTED, NLM_F_REQUEST } from "../uapi/netlink.ts";

export class Writer {
  bytes = new Uint8Array(2048);
  /** The same memory: a word is one store where bytes are four, which an interpreter feels. */
  private words = new Uint32Array(this.bytes.buffer);
  length = 0;

  /** Makes room behind what is written; it is all zeros there. @returns Where that is. */
  private room(count: number): number {
    const at = this.length;
    if (at + count > this.bytes.length) {
      const larger = new Uint8Array((Math.max(this.bytes.length * 2, at + count) + 3) & ~3);
      larger.set(this.bytes.subarray(0, at));
      this.bytes = larger;
      this.words = new Uint32Array(larger.buffer);
    }
    return at;
  }

  /** At a multiple of 4, as everything in netlink is. */
  u32(value: number): void {
    const at = this.room(4);
    this.words[at / 4] = value;
    this.length = at + 4;
  }

  /** Four fields of a byte, as most family headers begin. */
  bytes4(first: number, second: number, third: number, fourth: number): void {
    this.u32(first | (second << 8) | (third << 16) | (fourth << 24));
  }

  raw(bytes: Uint8Array): void {
    const at = this.room(bytes.length);
    this.bytes.set(bytes, at);
    this.length = at + bytes.length;
  }

  /** To the next multiple of 4 (NLMSG_ALIGNTO, NLA_ALIGNTO). */
  private align(): void {
    const at = this.room(3);
    this.length = (at + 3) & ~3;
  }

  /** A struct nlattr; attributes begin at multiples of 4. */
  private header(type: number, bytes: number): void {
    this.u32(bytes | (type << 16));
  }

  attrU8(type: number, value: number): void {
    this.header(type, 5);
    this.u32(value & 0xff); // the value and its padding
  }

  attrU16(type: number, value: number): void {
    this.header(type, 6);
    this.u32(value & 0xffff);
  }

  attrU32(type: number, value: number): void {
    this.header(type, 8);
    this.u32(value);
  }

  /** In network order, as nfnetlink wants its integers. */
  attrBe32(type: number, value: number): void {
    this.header(type, 8);
    this.be32(value);
  }

  /** In network order. @param value A whole number below 2^53. */
  attrBe64(type: number, value: number): void {
    this.header(type, 12);
    this.be32(Math.floor(value / 0x1_0000_0000));
    this.be32(value);
  }

  private be32(value: number): void {
    this.u32((value >>> 24) | ((value >>> 8) & 0xff00) | ((value << 8) & 0xff0000) | (value << 24));
  }

  attrBytes(type: number, value: Uint8Array): void {
    this.header(type, 4 + value.length);
    this.raw(value);
    this.align();
  }

  /** A NUL-terminated string of ASCII. */
  attrString(type: number, value: string): void {
    this.header(type, 5 + value.length);
    const at = this.room(value.length + 1);
    for (let i = 0; i < value.length; i++) this.bytes[at + i] = value.charCodeAt(i);
    this.length = at + value.length + 1;
    this.align();
  }

  /** Opens a nested attribute; give the result to {@link endNest}. */
  beginNest(type: number, flag = NLA_F_NESTED): number {
    const at = this.length;
    this.header(type | flag, 0);
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
    this.u32(type | ((flags | NLM_F_REQUEST) << 16));
    this.u32(seq);
    this.u32(0);
    return at;
  }

  endMessage(at: number): void {
    this.words[at / 4] = this.length - at;
    this.align();
  }

  finish(): Uint8Array {
    return this.bytes.subarray(0, this.length);
  }
}
