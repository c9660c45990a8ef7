/** Tells whether an address is in a list of CIDRs, however long: one look-up for each prefix length in it. */
import { networkOf } from "../net/cidr.ts";
import { formatIp, tryParseIp } from "../net/ip.ts";

export class CidrSet {
  readonly #texts: ReadonlySet<string>;
  readonly #lengths: Readonly<Record<4 | 6, readonly number[]>>;

  /** @param cidrs Canonical texts, host bits zero. */
  constructor(cidrs: readonly string[]) {
    this.#texts = new Set(cidrs);
    const lengths = { 4: new Set<number>(), 6: new Set<number>() };
    for (const cidr of cidrs) lengths[cidr.includes(":") ? 6 : 4].add(Number(cidr.slice(cidr.indexOf("/") + 1)));
    this.#lengths = { 4: [...lengths[4]], 6: [...lengths[6]] };
  }

  has(address: string): boolean {
    const ip = tryParseIp(address);
    if (ip === undefined) return false;
    return this.#lengths[ip.family].some((prefixLength) =>
      this.#texts.has(`${formatIp(networkOf({ ip, prefixLength }))}/${prefixLength}`),
    );
  }
}
