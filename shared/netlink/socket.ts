/** A netlink socket: many requests in one send, each answered by one outcome; and dumps. */
import { errnoName } from "../sys/errno.ts";
import { AF_NETLINK, CLONE_NEWNET, SOCK_RAW } from "../sys/linux.ts";
import type { Sys } from "../sys/sys.ts";
import type { Request } from "./request.ts";
import {
  NETLINK_EXT_ACK,
  NETLINK_GET_STRICT_CHK,
  NETLINK_ROUTE,
  NLM_F_ACK,
  NLM_F_ACK_TLVS,
  NLM_F_CAPPED,
  NLM_F_DUMP,
  NLM_F_DUMP_INTR,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_HDRLEN,
  NLMSGERR_ATTR_MSG,
  NLMSGERR_ATTR_OFFS,
  SOL_NETLINK,
} from "./uapi/netlink.ts";
import { eachAttribute, type Message, parseMessages, readS32, readString, readU32 } from "./wire/reader.ts";
import { Writer } from "./wire/writer.ts";

export interface Refusal {
  readonly errno: string;
  /** The kernel's own words (NLMSGERR_ATTR_MSG), if it had any. */
  readonly extack: string;
  /** Byte of the request that it disliked (NLMSGERR_ATTR_OFFS). */
  readonly offset: number | undefined;
  /** The request as an `ip` command. */
  readonly request: string;
}

/** `replies`: payloads that came before the acknowledgement, e.g. of a get. */
export type Outcome =
  | { readonly ok: true; readonly replies: readonly Uint8Array[]; readonly refusal?: undefined }
  /** Refused with an errno that the request accepts. */
  | { readonly ok: true; readonly replies: readonly Uint8Array[]; readonly refusal: Refusal }
  | { readonly ok: false; readonly refusal: Refusal };

/** A request that the kernel refused. Decide by `errno`. */
export class NetlinkError extends Error {
  readonly errno: string;
  readonly extack: string;
  /** The request as a command. */
  readonly request: string;

  constructor(refusal: Refusal) {
    super(`${refusal.request}: ${refusal.errno}${refusal.extack ? ` (${refusal.extack})` : ""}`);
    this.name = "NetlinkError";
    this.errno = refusal.errno;
    this.extack = refusal.extack;
    this.request = refusal.request;
  }
}

export interface NetlinkSocket {
  readonly fd: number;
  /** Sends all at once; one outcome each, in order. The kernel goes on after a refusal. */
  transact(requests: readonly Request[]): Outcome[];
  /** Sends all at once. @throws {NetlinkError} for the first that is refused with an errno it does not accept. */
  apply(requests: readonly Request[]): Outcome[];
  /** All objects of a kind, as payloads. @throws {NetlinkError} */
  dump(request: Request): Uint8Array[];
  close(): void;
}

/** What a socket needs of the system: messages out, messages in. The seam for tests. */
export interface Exchange {
  send(bytes: Uint8Array): void;
  /** One datagram, in a buffer that the next call may overwrite. */
  receive(): Uint8Array;
}

const DUMP_TRIES = 8;
const RECEIVE_BYTES = 64 << 10; // more than the kernel puts into one datagram (NLMSG_GOODSIZE, dumps up to 32 KiB)
let received: Uint8Array | undefined;

/** One for all sockets: no datagram is looked at any more when the next is asked for, and memory that is new costs time. */
export function receiveBuffer(): Uint8Array {
  received ??= new Uint8Array(RECEIVE_BYTES);
  return received;
}

/**
 * Opens a socket in the calling thread's network namespace, or in that of `netnsFd`. The thread is back in
 * `ownNetnsFd` afterwards; the socket stays where it was opened.
 */
export function openNetlink(
  sys: Sys,
  protocol = NETLINK_ROUTE,
  inside?: { readonly netnsFd: number; readonly ownNetnsFd: number },
): NetlinkSocket {
  if (inside) sys.setns(inside.netnsFd, CLONE_NEWNET);
  let fd: number;
  try {
    fd = sys.socket(AF_NETLINK, SOCK_RAW, protocol);
  } finally {
    if (inside) sys.setns(inside.ownNetnsFd, CLONE_NEWNET);
  }
  sys.setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
  const exchange: Exchange = {
    send: (bytes) => void sys.send(fd, bytes),
    receive() {
      const buffer = receiveBuffer();
      return buffer.subarray(0, sys.recv(fd, buffer));
    },
  };
  const { dump, ...rest } = talk(exchange);
  let strict = false;
  return {
    fd,
    ...rest,
    dump(request) {
      // Lets the kernel filter a dump by what the request says; of no use to anything else.
      if (!strict) sys.setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
      strict = true;
      return dump(request);
    },
    close: () => sys.close(fd),
  };
}

/** The bytes of several requests; the last asks for an acknowledgement. */
export function encodeRequests(requests: readonly Request[], firstSeq = 1): Uint8Array {
  const writer = new Writer();
  for (const [i, request] of requests.entries()) {
    // One acknowledgement, of the last: the kernel answers in order, and says a refusal also when not asked to.
    const ack = i === requests.length - 1 ? NLM_F_ACK : 0;
    const at = writer.beginMessage(request.type, request.flags | ack, firstSeq + i);
    request.write(writer);
    writer.endMessage(at);
  }
  return writer.finish();
}

/** The protocol over an {@link Exchange}. */
export function talk(exchange: Exchange): Pick<NetlinkSocket, "transact" | "apply" | "dump"> {
  let seq = 1;

  function transact(requests: readonly Request[]): Outcome[] {
    if (requests.length === 0) return [];
    const first = seq;
    exchange.send(encodeRequests(requests, first));
    seq += requests.length;
    const outcomes: Outcome[] = [];
    let replies: Uint8Array[] = [];
    // Whatever had no answer of its own before the one at `index` went well.
    const settleBefore = (index: number) => {
      while (outcomes.length < index) {
        outcomes.push({ ok: true, replies });
        replies = [];
      }
    };
    while (outcomes.length < requests.length) {
      for (const message of parseMessages(exchange.receive())) {
        const index = message.seq - first;
        const request = requests[index];
        if (request === undefined) continue; // an answer to somebody's earlier question
        settleBefore(index);
        if (message.type !== NLMSG_ERROR) {
          replies.push(message.payload.slice());
          continue;
        }
        outcomes.push(outcomeOf(message, request, replies));
        replies = [];
      }
    }
    return outcomes;
  }

  return {
    transact,
    apply(requests) {
      const outcomes = transact(requests);
      for (const outcome of outcomes) if (!outcome.ok) throw new NetlinkError(outcome.refusal);
      return outcomes;
    },
    dump(request) {
      for (let tries = 0; tries < DUMP_TRIES; tries++) {
        const writer = new Writer();
        // A dump ends with NLMSG_DONE: an acknowledgement besides would be left in the socket.
        const at = writer.beginMessage(request.type, NLM_F_DUMP, seq);
        request.write(writer);
        writer.endMessage(at);
        const payloads = collect(exchange, writer.finish(), seq++, request);
        if (payloads !== undefined) return payloads;
      }
      throw new NetlinkError({
        errno: "EINTR",
        extack: `the list changed during each of ${DUMP_TRIES} readings (NLM_F_DUMP_INTR)`,
        offset: undefined,
        request: request.describe(),
      });
    },
  };
}

/** @returns undefined when the kernel says that the list changed while it was read. */
function collect(exchange: Exchange, bytes: Uint8Array, seq: number, request: Request): Uint8Array[] | undefined {
  const payloads: Uint8Array[] = [];
  let interrupted = false;
  exchange.send(bytes);
  for (;;) {
    for (const message of parseMessages(exchange.receive())) {
      if (message.seq !== seq) continue;
      if ((message.flags & NLM_F_DUMP_INTR) !== 0) interrupted = true;
      if (message.type === NLMSG_ERROR) {
        const outcome = outcomeOf(message, request, []);
        if (!outcome.ok) throw new NetlinkError(outcome.refusal);
        return payloads;
      }
      if (message.type === NLMSG_DONE) {
        const errno = message.payload.length >= 4 ? -readS32(message.payload, 0) : 0;
        if (errno > 0)
          throw new NetlinkError({
            errno: errnoName(errno),
            extack: "",
            offset: undefined,
            request: request.describe(),
          });
        return interrupted ? undefined : payloads;
      }
      payloads.push(message.payload.slice());
    }
  }
}

function outcomeOf(message: Message, request: Request, replies: readonly Uint8Array[]): Outcome {
  if (readS32(message.payload, 0) === 0) return { ok: true, replies };
  const refusal = refusalOf(message, request);
  return request.accept?.includes(refusal.errno) ? { ok: true, replies, refusal } : { ok: false, refusal };
}

/** @param message NLMSG_ERROR with an error in it. */
export function refusalOf(message: Message, request: Request): Refusal {
  const errno = -readS32(message.payload, 0);
  let extack = "";
  let offset: number | undefined;
  // struct nlmsgerr: the error, the request (only its header when CAPPED), then attributes.
  const requestBytes = (message.flags & NLM_F_CAPPED) !== 0 ? NLMSG_HDRLEN : readU32(message.payload, 4);
  const attributes = (message.flags & NLM_F_ACK_TLVS) !== 0 ? 4 + ((requestBytes + 3) & ~3) : message.payload.length;
  eachAttribute(message.payload, attributes, (type, value) => {
    if (type === NLMSGERR_ATTR_MSG) extack = readString(value);
    else if (type === NLMSGERR_ATTR_OFFS) offset = readU32(value, 0);
  });
  return { errno: errnoName(errno), extack, offset, request: request.describe() };
}
