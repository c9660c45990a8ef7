/** Tracked connections: reading all, marking and removing particular ones (nfnetlink_conntrack.h). */
import { formatIp } from "../net/ip.ts";
import type { Request } from "./request.ts";
import { readIp } from "./rtnl/family.ts";
import { eachAttribute, MalformedNetlink, readBe32 } from "./wire/reader.ts";
import type { Writer } from "./wire/writer.ts";

const NFNL_SUBSYS_CTNETLINK = 1;
const IPCTNL_MSG_CT_NEW = 0;
const IPCTNL_MSG_CT_GET = 1;
const IPCTNL_MSG_CT_DELETE = 2;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_MARK = 8;
const CTA_ID = 12;
const CTA_ZONE = 18;
const CTA_MARK_MASK = 21;
const CTA_TUPLE_IP = 1;
const CTA_TUPLE_PROTO = 2;
const CTA_IP_V4_SRC = 1;
const CTA_IP_V6_SRC = 3;
const CTA_PROTO_NUM = 1;
const CTA_PROTO_SRC_PORT = 2;

/** One connection. */
export interface Connection {
  /** AF_INET or AF_INET6. */
  readonly family: number;
  /** Who began it. */
  readonly from: string;
  /** Who answers: the real backend, after every DNAT. */
  readonly to: string;
  /** The port that answers; 0 for protocols without ports. */
  readonly port: number;
  /** IPPROTO_… */
  readonly protocol: number;
  readonly mark: number;
  /** As the kernel wrote them: its name in a deletion. */
  readonly original: Uint8Array;
  readonly zone: Uint8Array | undefined;
  readonly id: Uint8Array | undefined;
}

function ctRequest(message: number, family: number, write: Request["write"], describe: () => string): Request {
  return {
    type: (NFNL_SUBSYS_CTNETLINK << 8) | message,
    flags: 0,
    write(w) {
      w.u32(family);
      write(w);
    },
    describe,
  };
}

/** conntrack -L, for a dump. */
export function getConnections(): Request {
  return ctRequest(
    IPCTNL_MSG_CT_GET,
    0,
    () => undefined,
    () => "conntrack -L",
  );
}

function writeName(w: Writer, c: Connection): void {
  const nest = w.beginNest(CTA_TUPLE_ORIG);
  w.raw(c.original);
  w.endNest(nest);
  if (c.zone !== undefined) w.attrBytes(CTA_ZONE, c.zone);
  if (c.id !== undefined) w.attrBytes(CTA_ID, c.id);
}

function describe(verb: string, c: Connection): string {
  return `conntrack ${verb} --orig-src ${c.from} --reply-src ${c.to} -p ${c.protocol}`;
}

/** conntrack -D, exactly this one; gone already is no error. */
export function deleteConnection(c: Connection): Request {
  const request = ctRequest(
    IPCTNL_MSG_CT_DELETE,
    c.family,
    (w) => writeName(w, c),
    () => describe("-D", c),
  );
  return { ...request, accept: ["ENOENT"] };
}

/** conntrack -U --mark, these bits of it; gone already is no error. */
export function markConnection(c: Connection, bits: number): Request {
  const request = ctRequest(
    IPCTNL_MSG_CT_NEW,
    c.family,
    (w) => {
      writeName(w, c);
      w.attrBe32(CTA_MARK, bits);
      w.attrBe32(CTA_MARK_MASK, bits);
    },
    () => describe(`-U --mark 0x${bits.toString(16)}/0x${bits.toString(16)}`, c),
  );
  return { ...request, accept: ["ENOENT"] };
}

interface Tuple {
  source: string;
  protocol: number;
  sourcePort: number;
}

function parseTuple(bytes: Uint8Array): Tuple {
  const tuple: Tuple = { source: "", protocol: 0, sourcePort: 0 };
  eachAttribute(bytes, 0, (type, value) => {
    eachAttribute(value, 0, (inner, v) => {
      if (type === CTA_TUPLE_IP && (inner === CTA_IP_V4_SRC || inner === CTA_IP_V6_SRC))
        tuple.source = formatIp(readIp(v));
      else if (type === CTA_TUPLE_PROTO && inner === CTA_PROTO_NUM) tuple.protocol = v[0] ?? 0;
      else if (type === CTA_TUPLE_PROTO && inner === CTA_PROTO_SRC_PORT)
        tuple.sourcePort = (v[0] ?? 0) * 256 + (v[1] ?? 0);
    });
  });
  return tuple;
}

/** @throws {MalformedNetlink} */
export function parseConnection(payload: Uint8Array): Connection {
  let original: Uint8Array | undefined;
  let reply: Uint8Array | undefined;
  let zone: Uint8Array | undefined;
  let id: Uint8Array | undefined;
  let mark = 0;
  eachAttribute(payload, 4, (type, value) => {
    if (type === CTA_TUPLE_ORIG) original = value;
    else if (type === CTA_TUPLE_REPLY) reply = value;
    else if (type === CTA_ZONE) zone = value;
    else if (type === CTA_ID) id = value;
    else if (type === CTA_MARK) mark = readBe32(value, 0);
  });
  if (original === undefined || reply === undefined) throw new MalformedNetlink("a connection has no tuple", 0);
  const [there, back] = [parseTuple(original), parseTuple(reply)];
  return {
    family: payload[0] ?? 0,
    from: there.source,
    to: back.source,
    port: back.sourcePort,
    protocol: there.protocol,
    mark,
    original,
    zone,
    id,
  };
}
