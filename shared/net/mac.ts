/** Ethernet addresses. */

/** @returns 6 bytes, or undefined when `text` is not six hex pairs between colons. */
export function tryParseMac(text: string): Uint8Array | undefined {
  if (!/^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/.test(text)) return undefined;
  return Uint8Array.from(text.split(":"), (pair) => Number.parseInt(pair, 16));
}

/** @throws {TypeError} When `text` is not a MAC address. */
export function parseMac(text: string): Uint8Array {
  const mac = tryParseMac(text);
  if (mac === undefined)
    throw new TypeError(`Cannot read a MAC address: got "${text}", want the form 02:00:5e:10:00:01`);
  return mac;
}

export function formatMac(mac: Uint8Array): string {
  let text = "";
  for (let i = 0; i < mac.length; i++) text += (i === 0 ? "" : ":") + (mac[i] ?? 0).toString(16).padStart(2, "0");
  return text;
}

/** A locally administered unicast address made of the first 46 bits given. */
export function localMac(seed: Uint8Array): Uint8Array {
  const mac = seed.slice(0, 6);
  mac[0] = ((mac[0] ?? 0) & 0xfc) | 0x02;
  return mac;
}
