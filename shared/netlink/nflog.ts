/** Packets that a rule told to an nflog group (nfnetlink_log.h): asking for them, and reading what they are. Pure. */
import { formatIp } from "../net/ip.ts";
import type { Request } from "./request.ts";
import { eachAttribute, type Message, readString } from "./wire/reader.ts";

const NFNL_SUBSYS_ULOG = 4;
const NFULNL_MSG_PACKET = 0;
const NFULNL_MSG_CONFIG = 1;
const NFULA_CFG_CMD = 1;
const NFULA_CFG_MODE = 2;
const NFULA_CFG_QTHRESH = 5;
const NFULNL_CFG_CMD_BIND = 1;
const NFULNL_COPY_PACKET = 2;
const NFULA_PAYLOAD = 9;
const NFULA_PREFIX = 10;
const NFGENMSG_BYTES = 4;
/** Both headers of IPv6 with room for extension headers. */
const COPY_BYTES = 128;

const PROTOCOLS: Readonly<Record<number, string>> = { 1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp" };
const WITH_PORTS: readonly number[] = [6, 17, 132];

export interface LoggedPacket {
  /** Of the rule. */
  readonly prefix: string;
  readonly from: string;
  readonly to: string;
  /** Its name, or the number as text. */
  readonly protocol: string;
  /** Of the destination; absent for protocols without, and in fragments. */
  readonly port?: number;
}

function config(group: number, write: Request["write"]): Request {
  return {
    type: (NFNL_SUBSYS_ULOG << 8) | NFULNL_MSG_CONFIG,
    flags: 0,
    write(w) {
      w.bytes4(0, 0, group >>> 8, group & 0xff); // in network order
      write(w);
    },
    describe: () => `listen to nflog group ${group}`,
  };
}

/** Makes the socket that sends them the group's one listener: EBUSY when there is another. Packets come one by one, cut. */
export function listenToGroup(group: number): Request[] {
  return [
    config(group, (w) => w.attrBytes(NFULA_CFG_CMD, Uint8Array.of(NFULNL_CFG_CMD_BIND))),
    config(group, (w) => w.attrBytes(NFULA_CFG_MODE, Uint8Array.of(0, 0, 0, COPY_BYTES, NFULNL_COPY_PACKET, 0))),
    config(group, (w) => w.attrBe32(NFULA_CFG_QTHRESH, 1)),
  ];
}

/** undefined: another message, or no IP packet. */
export function parseLogged(message: Message): LoggedPacket | undefined {
  if (message.type !== ((NFNL_SUBSYS_ULOG << 8) | NFULNL_MSG_PACKET)) return undefined;
  let prefix = "";
  let packet: Uint8Array | undefined;
  eachAttribute(message.payload, NFGENMSG_BYTES, (attribute, value) => {
    if (attribute === NFULA_PREFIX) prefix = readString(value);
    if (attribute === NFULA_PAYLOAD) packet = value;
  });
  const ends = packet && (packet[0] ?? 0) >> 4 === 6 ? parse6(packet) : packet && parse4(packet);
  return ends && { prefix, ...ends };
}

function parse4(p: Uint8Array): Omit<LoggedPacket, "prefix"> | undefined {
  if (p.length < 20 || (p[0] ?? 0) >> 4 !== 4) return undefined;
  const fragment = (((p[6] ?? 0) & 0x1f) << 8) | (p[7] ?? 0);
  return {
    from: formatIp({ family: 4, bytes: p.subarray(12, 16) }),
    to: formatIp({ family: 4, bytes: p.subarray(16, 20) }),
    ...transport(p, p[9] ?? 0, fragment === 0 ? ((p[0] ?? 0) & 15) * 4 : p.length),
  };
}

/** An extension header is named by its number: policies do not look behind it either. */
function parse6(p: Uint8Array): Omit<LoggedPacket, "prefix"> | undefined {
  if (p.length < 40) return undefined;
  return {
    from: formatIp({ family: 6, bytes: p.subarray(8, 24) }),
    to: formatIp({ family: 6, bytes: p.subarray(24, 40) }),
    ...transport(p, p[6] ?? 0, 40),
  };
}

function transport(p: Uint8Array, protocol: number, at: number): Pick<LoggedPacket, "protocol" | "port"> {
  const name = PROTOCOLS[protocol] ?? String(protocol);
  if (!WITH_PORTS.includes(protocol) || p.length < at + 4) return { protocol: name };
  return { protocol: name, port: (p[at + 2] ?? 0) * 256 + (p[at + 3] ?? 0) };
}
