/**
 * A 128-bit hash for names and MAC addresses: four FNV-1a lanes with different starts, each mixed at the end. Spreads
 * well and costs microseconds in an interpreter; it is no protection against someone who wants a collision, so whoever
 * uses it must handle one.
 */
export function hash128(text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text);
  let [a, b, c, d] = [0, 1, 2, 3].map((lane) => Math.imul(0x811c9dc5 ^ lane, 0x9e3779b1)) as [
    number,
    number,
    number,
    number,
  ];
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] ?? 0;
    a = Math.imul(a ^ byte, 0x01000193);
    b = Math.imul(b ^ byte, 0x01000193);
    c = Math.imul(c ^ byte, 0x01000193);
    d = Math.imul(d ^ byte, 0x01000193);
  }
  const out = new Uint8Array(16);
  for (const [lane, sum] of [a, b, c, d].entries()) {
    let h = sum ^ (sum >>> 16);
    h = Math.imul(h, 0x85ebca6b);
    h ^= h >>> 13;
    h = Math.imul(h, 0xc2b2ae35);
    h ^= h >>> 16;
    out[4 * lane] = h;
    out[4 * lane + 1] = h >>> 8;
    out[4 * lane + 2] = h >>> 16;
    out[4 * lane + 3] = h >>> 24;
  }
  return out;
}

export function toHex(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < bytes.length; i++) text += (bytes[i] ?? 0).toString(16).padStart(2, "0");
  return text;
}
