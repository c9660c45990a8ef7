/** Neighbours (ARP, ND): struct ndmsg (12 bytes) and NDA_ attributes, include/uapi/linux/neighbour.h. */
import { formatIp, type Ip } from "../../net/ip.ts";
import { formatMac } from "../../net/mac.ts";
import type { Request } from "../request.ts";
import { NDA_DST, NDA_LLADDR, NTF_PROXY, NUD_PERMANENT } from "../uapi/neighbour.ts";
import { NLM_F_CREATE, NLM_F_REPLACE } from "../uapi/netlink.ts";
import { RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH } from "../uapi/rtnetlink.ts";
import { eachAttribute, MalformedNetlink, readU16, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";
import { type Family, familyNumber, readIp } from "./family.ts";

const NDMSG_BYTES = 12;

export interface Neighbour {
  readonly linkIndex: number;
  readonly ip: Ip;
  readonly mac: Uint8Array;
}

function header(w: Pick<Writer, "u32">, family: number, index: number, state: number, flags: number): void {
  w.u32(family);
  w.u32(index);
  w.u32(state | (flags << 16));
}

/** ip neigh replace IP lladdr MAC dev LINK nud permanent */
export function replaceNeighbour(n: Neighbour): Request {
  return {
    type: RTM_NEWNEIGH,
    flags: NLM_F_CREATE | NLM_F_REPLACE,
    write(w) {
      header(w, familyNumber(n.ip), n.linkIndex, NUD_PERMANENT, 0);
      w.attrBytes(NDA_DST, n.ip.bytes);
      w.attrBytes(NDA_LLADDR, n.mac);
    },
    describe: () => `ip neigh replace ${formatIp(n.ip)} lladdr ${formatMac(n.mac)} dev if${n.linkIndex} nud permanent`,
  };
}

/** ip neigh add proxy IP dev LINK */
export function newProxy(n: Pick<Neighbour, "ip" | "linkIndex">): Request {
  return {
    type: RTM_NEWNEIGH,
    flags: NLM_F_CREATE | NLM_F_REPLACE,
    write(w) {
      header(w, familyNumber(n.ip), n.linkIndex, NUD_PERMANENT, NTF_PROXY);
      w.attrBytes(NDA_DST, n.ip.bytes);
    },
    describe: () => `ip neigh add proxy ${formatIp(n.ip)} dev if${n.linkIndex}`,
  };
}

/** ip neigh del IP dev LINK */
export function delNeighbour(n: Pick<Neighbour, "ip" | "linkIndex">): Request {
  return {
    type: RTM_DELNEIGH,
    flags: 0,
    write(w) {
      header(w, familyNumber(n.ip), n.linkIndex, 0, 0);
      w.attrBytes(NDA_DST, n.ip.bytes);
    },
    describe: () => `ip neigh del ${formatIp(n.ip)} dev if${n.linkIndex}`,
  };
}

/** ip neigh show, for a dump. */
export function getNeighbours(family: Family): Request {
  return {
    type: RTM_GETNEIGH,
    flags: 0,
    write: (w) => header(w, family === 4 ? 2 : 10, 0, 0, 0),
    describe: () => `ip -${family} neigh show`,
  };
}

export interface NeighbourEntry {
  readonly linkIndex: number;
  readonly ip: Ip;
  readonly mac: Uint8Array | undefined;
  /** NUD_… */
  readonly state: number;
}

/** @throws {MalformedNetlink} */
export function parseNeighbour(payload: Uint8Array): NeighbourEntry {
  if (payload.length < NDMSG_BYTES) throw new MalformedNetlink("ndmsg is cut off", 0);
  let ip: Ip | undefined;
  let mac: Uint8Array | undefined;
  eachAttribute(payload, NDMSG_BYTES, (type, value) => {
    if (type === NDA_DST) ip = readIp(value);
    else if (type === NDA_LLADDR) mac = value;
  });
  if (ip === undefined) throw new MalformedNetlink("a neighbour has no address", 0);
  return { linkIndex: readU32(payload, 4), ip, mac, state: readU16(payload, 8) };
}
