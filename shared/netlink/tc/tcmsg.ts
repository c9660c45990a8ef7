/** struct tcmsg (20 bytes), which qdiscs, classes and filters begin with, and tc's handles. */
import { MalformedNetlink, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";

export const TCMSG_BYTES = 20;

export interface TcMessage {
  readonly linkIndex: number;
  /** `major:minor`, see {@link tcHandle}; 0 lets the kernel choose. */
  readonly handle: number;
  readonly parent: number;
  /** Filters: preference in the upper 16 bits, protocol in network order in the lower. Qdiscs: references. */
  readonly info: number;
}

export function tcHandle(major: number, minor = 0): number {
  return ((major << 16) | minor) >>> 0;
}

/** As tc writes it: hexadecimal, `root`, or the two hooks of clsact. */
export function formatTcHandle(handle: number): string {
  if (handle === 0xffffffff) return "root";
  if (handle === 0) return "none";
  const [major, minor] = [handle >>> 16, handle & 0xffff];
  if (major === 0xffff && minor === 0xfff1) return "clsact";
  return `${major === 0 ? "" : major.toString(16)}:${minor === 0 ? "" : minor.toString(16)}`;
}

export function writeTcMessage(w: Writer, m: TcMessage): void {
  w.u32(0); // AF_UNSPEC and padding
  w.u32(m.linkIndex);
  w.u32(m.handle);
  w.u32(m.parent);
  w.u32(m.info);
}

/** @throws {MalformedNetlink} */
export function readTcMessage(payload: Uint8Array): TcMessage {
  if (payload.length < TCMSG_BYTES) throw new MalformedNetlink("tcmsg is cut off", 0);
  return {
    linkIndex: readU32(payload, 4),
    handle: readU32(payload, 8),
    parent: readU32(payload, 12),
    info: readU32(payload, 16),
  };
}
