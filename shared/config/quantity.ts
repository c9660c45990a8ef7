/** Rates, sizes and durations as people write them in annotations, conflists and QoS profiles (QOS-3). */

/** `none`: said that there is no limit. `absent`: nothing was said, so whoever is asked next may. */
export type Rate =
  | { readonly kind: "rate"; readonly bitsPerSecond: number }
  | { readonly kind: "none" | "absent" }
  | { readonly kind: "wrong"; readonly why: string };

/** Kubernetes accepts the same range for its bandwidth annotations. */
const LEAST_BITS = 1e3;
const MOST_BITS = 1e15;

export const RATE_FORMS =
  "bits per second as a Kubernetes quantity (10M, 1.5G, 500k, 1e6, 512Ki), with bps if you like (1Gbps, 100Mbps), from 1k to 1P; 0 for no limit";
export const SIZE_FORMS = "bytes such as 32KB, 1MiB or 4096 (K, KB and KiB are 1024)";
export const DURATION_FORMS = "a duration such as 10ms, 1.5s or 500us";

const DECIMAL: Readonly<Record<string, number>> = { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18 };
const SMALL: Readonly<Record<string, number>> = { m: 1e-3, u: 1e-6, n: 1e-9 };
const BINARY: Readonly<Record<string, number>> = {
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};
// A number has an exponent or a suffix, never both: 1e3M is no quantity to Kubernetes either.
const QUANTITY = /^([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,3})|(Ki|Mi|Gi|Ti|Pi|Ei|[kMGTPEmun])?)$/;
const RATE_WITH_UNIT = /^([+-]?(?:\d+\.?\d*|\.\d+))\s?([kKMGTP]|Ki|Mi|Gi|Ti)?(?:bps|bit\/s|bit)$/;

function numberOf(value: unknown): number | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? value : undefined;
  if (typeof value !== "string") return undefined;
  const text = value.trim();
  const unit = RATE_WITH_UNIT.exec(text);
  if (unit) {
    const suffix = unit[2] === "K" ? "k" : (unit[2] ?? "");
    return Number(unit[1]) * (DECIMAL[suffix] ?? BINARY[suffix] ?? Number.NaN);
  }
  const plain = QUANTITY.exec(text);
  if (!plain) return undefined;
  if (plain[2] !== undefined) return Number(`${plain[1]}e${plain[2]}`);
  const suffix = plain[3] ?? "";
  return Number(plain[1]) * (DECIMAL[suffix] ?? BINARY[suffix] ?? SMALL[suffix] ?? Number.NaN);
}

/**
 * A rate in bits per second. The empty string, null and undefined are as if nothing had been said; 0 says that there is
 * no limit, whatever a profile or a default would give.
 *
 * @param value Text, or a number of bits per second.
 */
export function parseRate(value: unknown): Rate {
  if (value === undefined || value === null || value === "") return { kind: "absent" };
  const bits = numberOf(value);
  const wrong = (cause: string): Rate => ({ kind: "wrong", why: `${cause}: want ${RATE_FORMS}` });
  if (bits === undefined) return wrong(`${JSON.stringify(value)} is no rate`);
  if (bits === 0) return { kind: "none" };
  if (bits < 0) return wrong(`${JSON.stringify(value)} is negative`);
  if (bits < LEAST_BITS || bits > MOST_BITS)
    return wrong(`${JSON.stringify(value)} is ${bits < LEAST_BITS ? "less than 1 kbit/s" : "more than 1 Pbit/s"}`);
  return { kind: "rate", bitsPerSecond: Math.round(bits) };
}

const SIZE = /^(\d+(?:\.\d+)?)\s?(?:([KMG])(?:i?B)?|B)?$/i;
const SHIFT: Readonly<Record<string, number>> = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

/** @returns Whole bytes above 0; undefined when it is no size. */
export function parseSize(value: unknown): number | undefined {
  const text = typeof value === "number" ? String(value) : value;
  const match = typeof text === "string" ? SIZE.exec(text.trim()) : null;
  if (!match) return undefined;
  const bytes = Math.round(Number(match[1]) * (SHIFT[(match[2] ?? "").toUpperCase()] ?? 1));
  return bytes > 0 ? bytes : undefined;
}

const DURATION = /^(\d+(?:\.\d+)?)(us|ms|s|m)$/;
const MS_PER: Readonly<Record<string, number>> = { us: 1e-3, ms: 1, s: 1e3, m: 6e4 };

/** @returns Milliseconds above 0; undefined when it is no duration. */
export function parseDurationMs(value: unknown): number | undefined {
  const match = typeof value === "string" ? DURATION.exec(value.trim()) : null;
  const ms = match ? Number(match[1]) * (MS_PER[match[2] ?? ""] ?? 0) : 0;
  return ms > 0 ? ms : undefined;
}
