/** What the kernel tells of changes to tables, whoever made them: who, and which tables. Pure. */
import { NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN, NFTA_GEN_PROC_NAME, NFTA_GEN_PROC_PID } from "../uapi/nf-tables.ts";
import { eachAttribute, type Message, readBe32, readString } from "../wire/reader.ts";
import { NFGENMSG_BYTES } from "./message.ts";

/** One batch that was applied. */
export interface NftChange {
  /** Names of the tables that it touched, of any family. */
  readonly tables: ReadonlySet<string>;
  /** As the initial pid namespace numbers it. */
  readonly pid: number;
  readonly program: string;
}

/** In every message about an object, attribute 1 is its table's name (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, …). */
const TABLE_ATTRIBUTE = 1;

/** Collects messages until the one that ends a batch (NFT_MSG_NEWGEN) says who it was. */
export function createNftMonitor(): (messages: readonly Message[]) => NftChange[] {
  let tables = new Set<string>();
  return (messages) => {
    const changes: NftChange[] = [];
    for (const { type, payload } of messages) {
      if (type >> 8 !== NFNL_SUBSYS_NFTABLES) continue;
      const isEnd = (type & 0xff) === NFT_MSG_NEWGEN;
      let pid = 0;
      let program = "";
      eachAttribute(payload, NFGENMSG_BYTES, (attribute, value) => {
        if (!isEnd && attribute === TABLE_ATTRIBUTE) tables.add(readString(value));
        if (isEnd && attribute === NFTA_GEN_PROC_PID) pid = readBe32(value, 0);
        if (isEnd && attribute === NFTA_GEN_PROC_NAME) program = readString(value);
      });
      if (!isEnd) continue;
      changes.push({ tables, pid, program });
      tables = new Set();
    }
    return changes;
  };
}
