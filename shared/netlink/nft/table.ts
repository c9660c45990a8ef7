/** Tables and chains. */
import type { Request } from "../request.ts";
import { NLM_F_CREATE } from "../uapi/netlink.ts";
import {
  NF_ACCEPT,
  NF_DROP,
  NF_INET_FORWARD,
  NF_INET_LOCAL_IN,
  NF_INET_LOCAL_OUT,
  NF_INET_POST_ROUTING,
  NF_INET_PRE_ROUTING,
  NFT_MSG_DELCHAIN,
  NFT_MSG_DELTABLE,
  NFT_MSG_GETCHAIN,
  NFT_MSG_GETTABLE,
  NFT_MSG_NEWCHAIN,
  NFT_MSG_NEWTABLE,
  NFTA_CHAIN_HOOK,
  NFTA_CHAIN_NAME,
  NFTA_CHAIN_POLICY,
  NFTA_CHAIN_TABLE,
  NFTA_CHAIN_TYPE,
  NFTA_HOOK_HOOKNUM,
  NFTA_HOOK_PRIORITY,
  NFTA_TABLE_NAME,
} from "../uapi/nf-tables.ts";
import { eachAttribute, MalformedNetlink, readBe32, readString } from "../wire/reader.ts";
import { familyOf, NFGENMSG_BYTES, type NftFamily, nftRequest, type TableRef } from "./message.ts";

const HOOKS = {
  prerouting: NF_INET_PRE_ROUTING,
  input: NF_INET_LOCAL_IN,
  forward: NF_INET_FORWARD,
  output: NF_INET_LOCAL_OUT,
  postrouting: NF_INET_POST_ROUTING,
} as const;
export type HookName = keyof typeof HOOKS;

/** Where a base chain hangs. */
export interface Hook {
  /** Absent: filter. A nat chain sees the first packet of each connection. */
  readonly type?: "nat";
  readonly name: HookName;
  /** Lower comes first; 0 is "filter". */
  readonly priority: number;
  readonly policy: "accept" | "drop";
}

export interface Chain extends TableRef {
  readonly name: string;
  /** Absent: a regular chain, reached by jump and goto. */
  readonly hook?: Hook;
}

function describeRef(ref: TableRef, name?: string): string {
  return `${ref.family} ${ref.table}${name === undefined ? "" : ` ${name}`}`;
}

function tableRequest(message: number, flags: number, verb: string, ref: TableRef): Request {
  return nftRequest(
    message,
    flags,
    ref.family,
    (w) => w.attrString(NFTA_TABLE_NAME, ref.table),
    () => `${verb} table ${describeRef(ref)}`,
  );
}

/** nft add table; no error when it exists. */
export function newTable(ref: TableRef): Request {
  return tableRequest(NFT_MSG_NEWTABLE, NLM_F_CREATE, "add", ref);
}

/** nft delete table, with everything in it; ENOENT when there is none. */
export function delTable(ref: TableRef): Request {
  return tableRequest(NFT_MSG_DELTABLE, 0, "delete", ref);
}

/** nft list tables FAMILY, for a dump. */
export function getTables(family?: NftFamily): Request {
  return nftRequest(
    NFT_MSG_GETTABLE,
    0,
    family,
    () => undefined,
    () => "list tables",
  );
}

/** @throws {MalformedNetlink} */
export function parseTable(payload: Uint8Array): TableRef {
  let table: string | undefined;
  eachAttribute(payload, NFGENMSG_BYTES, (type, value) => {
    if (type === NFTA_TABLE_NAME) table = readString(value);
  });
  if (table === undefined) throw new MalformedNetlink("a table has no name", 0);
  return { family: familyOf(payload), table };
}

function describeHook(hook: Hook): string {
  return ` { type ${hook.type ?? "filter"} hook ${hook.name} priority ${hook.priority}; policy ${hook.policy}; }`;
}

/** nft add chain; no error when it exists with the same hook. */
export function newChain(chain: Chain): Request {
  const { hook } = chain;
  return nftRequest(
    NFT_MSG_NEWCHAIN,
    NLM_F_CREATE,
    chain.family,
    (w) => {
      w.attrString(NFTA_CHAIN_TABLE, chain.table);
      w.attrString(NFTA_CHAIN_NAME, chain.name);
      if (hook === undefined) return;
      const nest = w.beginNest(NFTA_CHAIN_HOOK);
      w.attrBe32(NFTA_HOOK_HOOKNUM, HOOKS[hook.name]);
      w.attrBe32(NFTA_HOOK_PRIORITY, hook.priority);
      w.endNest(nest);
      w.attrBe32(NFTA_CHAIN_POLICY, hook.policy === "accept" ? NF_ACCEPT : NF_DROP);
      w.attrString(NFTA_CHAIN_TYPE, hook.type ?? "filter");
    },
    () => `add chain ${describeRef(chain, chain.name)}${hook === undefined ? "" : describeHook(hook)}`,
  );
}

/** nft delete chain; EBUSY while something jumps to it. */
export function delChain(chain: TableRef & { readonly name: string }): Request {
  return nftRequest(
    NFT_MSG_DELCHAIN,
    0,
    chain.family,
    (w) => {
      w.attrString(NFTA_CHAIN_TABLE, chain.table);
      w.attrString(NFTA_CHAIN_NAME, chain.name);
    },
    () => `delete chain ${describeRef(chain, chain.name)}`,
  );
}

/** nft list chains, of all tables of the family: the kernel filters a dump of chains by nothing else. */
export function getChains(family?: NftFamily): Request {
  return nftRequest(
    NFT_MSG_GETCHAIN,
    0,
    family,
    () => undefined,
    () => "list chains",
  );
}

/** @throws {MalformedNetlink} */
export function parseChain(payload: Uint8Array): Chain {
  let table: string | undefined;
  let name: string | undefined;
  let hookNumber: number | undefined;
  let priority = 0;
  let policy = NF_ACCEPT;
  let chainType = "";
  eachAttribute(payload, NFGENMSG_BYTES, (type, value) => {
    if (type === NFTA_CHAIN_TABLE) table = readString(value);
    else if (type === NFTA_CHAIN_NAME) name = readString(value);
    else if (type === NFTA_CHAIN_TYPE) chainType = readString(value);
    else if (type === NFTA_CHAIN_POLICY) policy = readBe32(value, 0);
    else if (type === NFTA_CHAIN_HOOK)
      eachAttribute(value, 0, (inner, v) => {
        if (inner === NFTA_HOOK_HOOKNUM) hookNumber = readBe32(v, 0);
        else if (inner === NFTA_HOOK_PRIORITY) priority = readBe32(v, 0) | 0;
      });
  });
  if (table === undefined || name === undefined) throw new MalformedNetlink("a chain has no name", 0);
  const hookName = (Object.keys(HOOKS) as HookName[]).find((h) => HOOKS[h] === hookNumber);
  const hook: Hook | undefined = hookName && {
    ...(chainType === "nat" ? { type: "nat" as const } : {}),
    name: hookName,
    priority,
    policy: policy === NF_DROP ? "drop" : "accept",
  };
  return { family: familyOf(payload), table, name, ...(hook ? { hook } : {}) };
}
