/** Verdicts, as rules and verdict maps hold them. */
import {
  NF_ACCEPT,
  NF_DROP,
  NFT_CONTINUE,
  NFT_GOTO,
  NFT_JUMP,
  NFT_RETURN,
  NFTA_DATA_VERDICT,
  NFTA_VERDICT_CHAIN,
  NFTA_VERDICT_CODE,
} from "../uapi/nf-tables.ts";
import { eachAttribute, MalformedNetlink, readBe32, readString } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";

export type Verdict =
  | { readonly to: "accept" | "drop" | "continue" | "return" }
  | { readonly to: "jump" | "goto"; readonly chain: string };

const CODES: Readonly<Record<Verdict["to"], number>> = {
  accept: NF_ACCEPT,
  drop: NF_DROP,
  continue: NFT_CONTINUE,
  return: NFT_RETURN,
  jump: NFT_JUMP,
  goto: NFT_GOTO,
};

/** Into the attribute `type`, as struct nft_data has it. */
export function writeVerdict(w: Writer, type: number, verdict: Verdict): void {
  const data = w.beginNest(type);
  const inner = w.beginNest(NFTA_DATA_VERDICT);
  w.attrBe32(NFTA_VERDICT_CODE, CODES[verdict.to]);
  if (verdict.to === "jump" || verdict.to === "goto") w.attrString(NFTA_VERDICT_CHAIN, verdict.chain);
  w.endNest(inner);
  w.endNest(data);
}

/** @param data The value of NFTA_DATA_VERDICT. @throws {MalformedNetlink} */
export function parseVerdict(data: Uint8Array): Verdict {
  let code: number | undefined;
  let chain: string | undefined;
  eachAttribute(data, 0, (type, value) => {
    if (type === NFTA_VERDICT_CODE) code = readBe32(value, 0) | 0;
    else if (type === NFTA_VERDICT_CHAIN) chain = readString(value);
  });
  const to = (Object.keys(CODES) as Verdict["to"][]).find((name) => CODES[name] === code);
  if (to === undefined) throw new MalformedNetlink(`a verdict has code ${code}`, 0);
  if (to !== "jump" && to !== "goto") return { to };
  if (chain === undefined) throw new MalformedNetlink(`a verdict ${to} has no chain`, 0);
  return { to, chain };
}

/** As nft writes it: `goto CHAIN`. */
export function formatVerdict(verdict: Verdict): string {
  return verdict.to === "jump" || verdict.to === "goto" ? `${verdict.to} ${verdict.chain}` : verdict.to;
}

/** The inverse of {@link formatVerdict}. @throws {TypeError} */
export function readVerdict(text: string): Verdict {
  const space = text.indexOf(" ");
  const to = (space < 0 ? text : text.slice(0, space)) as Verdict["to"];
  if (CODES[to] === undefined) throw new TypeError(`Cannot read a verdict: got "${text}", want accept, goto CHAIN, …`);
  return to === "jump" || to === "goto" ? { to, chain: text.slice(space + 1) } : { to };
}
