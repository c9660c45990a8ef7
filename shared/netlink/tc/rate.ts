/** Rates and times as the packet scheduler has them: struct tc_ratespec, ticks, and 64-bit rates. */
import { TC_LINKLAYER_ETHERNET } from "../uapi/pkt-sched.ts";
import { readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";

/** include/net/pkt_sched.h: PSCHED_SHIFT 6, so a tick is 64 ns whatever HZ is. */
export const TICK_NS = 64;
export const RATESPEC_BYTES = 12;
const MAX_U32 = 0xffffffff;

/** How long `bytes` last at a rate, in ticks; the most that fits is 275 s. */
export function ticksOf(bytes: number, bytesPerSecond: number): number {
  return bytesPerSecond === 0 ? 0 : Math.min(MAX_U32, Math.round((bytes * 1e9) / bytesPerSecond / TICK_NS));
}

export function bytesOf(ticks: number, bytesPerSecond: number): number {
  return Math.round((ticks * TICK_NS * bytesPerSecond) / 1e9);
}

/** A rate beyond 32 bits is written as all ones here and in full in its own attribute. */
export function writeRateSpec(w: Writer, bytesPerSecond: number): void {
  // Anything but "unaware" spares the kernel the table of sizes that old versions of tc had to send.
  w.bytes4(0, TC_LINKLAYER_ETHERNET, 0, 0); // cell_log, linklayer, overhead
  w.u32(0); // cell_align, mpu
  w.u32(Math.min(bytesPerSecond, MAX_U32));
}

/** Bytes per second; the caller overrides it by the 64-bit attribute. */
export function readRateSpec(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + 8);
}

export function needsRate64(bytesPerSecond: number): boolean {
  return bytesPerSecond >= MAX_U32;
}

/** An unsigned 64-bit value below 2^53. */
export function u64Bytes(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, value % 2 ** 32, true);
  view.setUint32(4, Math.floor(value / 2 ** 32), true);
  return bytes;
}

export function readU64(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at) + readU32(bytes, at + 4) * 2 ** 32;
}
