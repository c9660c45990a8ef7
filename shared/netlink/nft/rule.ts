/** Rules. */
import { decodeUtf8, encodeUtf8 } from "../../sys/sys.ts";
import type { Request } from "../request.ts";
import { NLM_F_APPEND, NLM_F_CREATE } from "../uapi/netlink.ts";
import {
  NFT_MSG_DELRULE,
  NFT_MSG_GETRULE,
  NFT_MSG_NEWRULE,
  NFTA_LIST_ELEM,
  NFTA_RULE_CHAIN,
  NFTA_RULE_EXPRESSIONS,
  NFTA_RULE_HANDLE,
  NFTA_RULE_TABLE,
  NFTA_RULE_USERDATA,
} from "../uapi/nf-tables.ts";
import { eachAttribute, MalformedNetlink, readBe64, readString } from "../wire/reader.ts";
import { type Expression, parseExpression, writeExpression } from "./expression.ts";
import { familyOf, NFGENMSG_BYTES, nftRequest, type TableRef } from "./message.ts";

export interface Rule extends TableRef {
  readonly chain: string;
  readonly expressions: readonly Expression[];
  /** For people; `nft list` shows it. At most {@link MAX_COMMENT_BYTES} bytes of UTF-8. */
  readonly comment?: string;
}

export interface RuleEntry extends Rule {
  readonly handle: number;
}

/** NFTNL_UDATA_COMMENT_MAXLEN of libnftnl. */
export const MAX_COMMENT_BYTES = 128;
/** NFTNL_UDATA_RULE_COMMENT of libnftnl: the kernel keeps user data and does not look inside. */
const UDATA_RULE_COMMENT = 0;

/** The comment as one type-length-value of libnftnl, with its NUL. */
function commentData(comment: string): Uint8Array {
  const text = encodeUtf8(comment);
  if (text.length > MAX_COMMENT_BYTES)
    throw new TypeError(`Cannot write a comment of ${text.length} bytes: at most ${MAX_COMMENT_BYTES} fit`);
  return Uint8Array.of(UDATA_RULE_COMMENT, text.length + 1, ...text, 0);
}

function parseComment(data: Uint8Array): string | undefined {
  for (let at = 0; at + 2 <= data.length; at += 2 + (data[at + 1] ?? 0)) {
    const length = data[at + 1] ?? 0;
    if (data[at] === UDATA_RULE_COMMENT && length > 0) return decodeUtf8(data.subarray(at + 2, at + 1 + length));
  }
  return undefined;
}

/** nft add rule: after those that the chain has. */
export function newRule(rule: Rule): Request {
  return nftRequest(
    NFT_MSG_NEWRULE,
    NLM_F_CREATE | NLM_F_APPEND,
    rule.family,
    (w) => {
      w.attrString(NFTA_RULE_TABLE, rule.table);
      w.attrString(NFTA_RULE_CHAIN, rule.chain);
      const list = w.beginNest(NFTA_RULE_EXPRESSIONS);
      for (const expression of rule.expressions) writeExpression(w, expression);
      w.endNest(list);
      if (rule.comment !== undefined) w.attrBytes(NFTA_RULE_USERDATA, commentData(rule.comment));
    },
    () => `add rule ${rule.family} ${rule.table} ${rule.chain} (${rule.expressions.map((e) => e.kind).join(" ")})`,
  );
}

/** nft flush chain, or with a handle: nft delete rule. */
export function delRules(ref: TableRef & { readonly chain: string; readonly handle?: number }): Request {
  return nftRequest(
    NFT_MSG_DELRULE,
    0,
    ref.family,
    (w) => {
      w.attrString(NFTA_RULE_TABLE, ref.table);
      w.attrString(NFTA_RULE_CHAIN, ref.chain);
      if (ref.handle !== undefined) w.attrBe64(NFTA_RULE_HANDLE, ref.handle);
    },
    () =>
      ref.handle === undefined
        ? `flush chain ${ref.family} ${ref.table} ${ref.chain}`
        : `delete rule ${ref.family} ${ref.table} ${ref.chain} handle ${ref.handle}`,
  );
}

/** nft list table, or with a chain: nft list chain; for a dump. */
export function getRules(ref: TableRef & { readonly chain?: string }): Request {
  return nftRequest(
    NFT_MSG_GETRULE,
    0,
    ref.family,
    (w) => {
      w.attrString(NFTA_RULE_TABLE, ref.table);
      if (ref.chain !== undefined) w.attrString(NFTA_RULE_CHAIN, ref.chain);
    },
    () => `list table ${ref.family} ${ref.table}`,
  );
}

/** @throws {MalformedNetlink} */
export function parseRule(payload: Uint8Array): RuleEntry {
  let table: string | undefined;
  let chain: string | undefined;
  let handle = 0;
  let comment: string | undefined;
  const expressions: Expression[] = [];
  eachAttribute(payload, NFGENMSG_BYTES, (type, value) => {
    if (type === NFTA_RULE_TABLE) table = readString(value);
    else if (type === NFTA_RULE_CHAIN) chain = readString(value);
    else if (type === NFTA_RULE_HANDLE) handle = readBe64(value, 0);
    else if (type === NFTA_RULE_USERDATA) comment = parseComment(value);
    else if (type === NFTA_RULE_EXPRESSIONS)
      eachAttribute(value, 0, (inner, element) => {
        if (inner === NFTA_LIST_ELEM) expressions.push(parseExpression(element));
      });
  });
  if (table === undefined || chain === undefined) throw new MalformedNetlink("a rule names no chain", 0);
  return {
    family: familyOf(payload),
    table,
    chain,
    expressions,
    ...(comment === undefined ? {} : { comment }),
    handle,
  };
}
