/** What all nftables messages share: struct nfgenmsg (4 bytes), and the brackets of a batch. */
import type { Request } from "../request.ts";
import {
  NFNL_BATCH_GENID,
  NFNL_MSG_BATCH_BEGIN,
  NFNL_MSG_BATCH_END,
  NFNL_SUBSYS_NFTABLES,
  NFPROTO_BRIDGE,
  NFPROTO_INET,
  NFPROTO_IPV4,
  NFPROTO_IPV6,
  NFPROTO_UNSPEC,
  NFT_MSG_GETGEN,
  NFTA_GEN_ID,
} from "../uapi/nf-tables.ts";
import { eachAttribute, MalformedNetlink, readBe32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";

export const NFGENMSG_BYTES = 4;

export type NftFamily = "inet" | "ip" | "ip6" | "bridge";

const FAMILIES: Readonly<Record<NftFamily, number>> = {
  inet: NFPROTO_INET,
  ip: NFPROTO_IPV4,
  ip6: NFPROTO_IPV6,
  bridge: NFPROTO_BRIDGE,
};

/** A table's name within its family: what every object is addressed by. */
export interface TableRef {
  readonly family: NftFamily;
  readonly table: string;
}

function writeHeader(w: Writer, family: number, resource: number): void {
  w.bytes4(family, 0, resource >>> 8, resource & 0xff); // NFNETLINK_V0; the resource in network order
}

/** A message of the nftables subsystem. */
export function nftRequest(
  message: number,
  flags: number,
  family: NftFamily | undefined,
  write: (w: Writer) => void,
  describe: () => string,
): Request {
  return {
    type: (NFNL_SUBSYS_NFTABLES << 8) | message,
    flags,
    write(w) {
      writeHeader(w, family === undefined ? NFPROTO_UNSPEC : FAMILIES[family], 0);
      write(w);
    },
    describe: () => `nft ${describe()}`,
  };
}

/** @throws {MalformedNetlink} When the header is cut off or its family is none of ours. */
export function familyOf(payload: Uint8Array): NftFamily {
  if (payload.length < NFGENMSG_BYTES) throw new MalformedNetlink("nfgenmsg is cut off", 0);
  const found = Object.entries(FAMILIES).find(([, number]) => number === payload[0]);
  if (found === undefined) throw new MalformedNetlink(`nfgenmsg has family ${payload[0]}`, 0);
  return found[0] as NftFamily;
}

/** @param generation With it the kernel refuses the batch (ERESTART) if anybody has changed anything since. */
export function batchBegin(generation: number | undefined): Request {
  return {
    type: NFNL_MSG_BATCH_BEGIN,
    flags: 0,
    write(w) {
      writeHeader(w, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
      if (generation !== undefined) w.attrBe32(NFNL_BATCH_GENID, generation);
    },
    describe: () => "nft batch",
  };
}

export function batchEnd(): Request {
  return {
    type: NFNL_MSG_BATCH_END,
    flags: 0,
    write: (w) => writeHeader(w, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES),
    describe: () => "nft batch end",
  };
}

/** The generation counts every change of any table of the network namespace. */
export function getGeneration(): Request {
  return nftRequest(
    NFT_MSG_GETGEN,
    0,
    undefined,
    () => undefined,
    () => "generation",
  );
}

/** @throws {MalformedNetlink} */
export function parseGeneration(payload: Uint8Array): number {
  let generation: number | undefined;
  eachAttribute(payload, NFGENMSG_BYTES, (type, value) => {
    if (type === NFTA_GEN_ID) generation = readBe32(value, 0);
  });
  if (generation === undefined) throw new MalformedNetlink("a generation has no id", 0);
  return generation;
}
