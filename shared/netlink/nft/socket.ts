/** A socket to nftables: batches that are applied as a whole or not at all, and dumps. */
import { errnoName } from "../../sys/errno.ts";
import { SOL_SOCKET } from "../../sys/linux.ts";
import { isErrno, type Sys } from "../../sys/sys.ts";
import type { Request } from "../request.ts";
import { NetlinkError, type NetlinkSocket, openNetlink, type Refusal, refusalOf } from "../socket.ts";
import { NETLINK_NETFILTER, NLM_F_ACK, NLMSG_ERROR } from "../uapi/netlink.ts";
import { parseMessages, readS32 } from "../wire/reader.ts";
import { Writer } from "../wire/writer.ts";
import { batchBegin, batchEnd, getGeneration, parseGeneration } from "./message.ts";

export interface NftSocket extends Pick<NetlinkSocket, "fd" | "transact" | "apply" | "dump" | "close"> {
  /** Counts every change of any table in the network namespace. @throws {NetlinkError} */
  generation(): number;
  /**
   * Applies all of it or nothing, at one instant.
   *
   * @param generation Refused with ERESTART when anybody has changed anything since.
   * @throws {NetlinkError} For the first request that is refused.
   */
  commit(requests: readonly Request[], generation?: number): void;
}

const MSG_DONTWAIT = 0x40;
const SO_SNDBUFFORCE = 32;
/** A batch is one datagram: so much of it may be on its way. Room that is not used costs nothing. */
const SEND_BUFFER_BYTES = 64 << 20;
/** A batch of ADD or DEL fits into what every socket has (net.core.wmem_default, 212,992). */
const SMALL_BATCH_BYTES = 100_000;

/** The bytes of one batch, and the sequence number of each request's message. */
export function encodeBatch(requests: readonly Request[], generation?: number, firstSeq = 1): Uint8Array {
  const w = new Writer();
  let seq = firstSeq;
  const add = (request: Request, flags: number) => {
    const at = w.beginMessage(request.type, request.flags | flags, seq++);
    request.write(w);
    w.endMessage(at);
  };
  add(batchBegin(generation), 0);
  // Errors are told in any case; one acknowledgement says that the whole was applied.
  for (const [i, request] of requests.entries()) add(request, i === requests.length - 1 ? NLM_F_ACK : 0);
  add(batchEnd(), 0);
  return w.finish();
}

/** Opens a socket in the calling thread's network namespace, or in that of `inside` (see `openNetlink`). */
export function openNft(sys: Sys, inside?: { readonly netnsFd: number; readonly ownNetnsFd: number }): NftSocket {
  const nl = openNetlink(sys, NETLINK_NETFILTER, inside);
  let seq = 0x4000_0000; // clear of the requests that are no batch
  let large = false;
  const buffer = new Uint8Array(16 << 10);

  /** The kernel works a batch off inside of send(): its answers are here already. */
  function answers(first: number, requests: readonly Request[]): { acknowledged: boolean; refusal?: Refusal } {
    let acknowledged = false;
    let refusal: Refusal | undefined;
    for (;;) {
      let n: number;
      try {
        n = sys.recv(nl.fd, buffer, MSG_DONTWAIT);
      } catch (error) {
        if (isErrno(error, "EAGAIN")) return { acknowledged, ...(refusal ? { refusal } : {}) };
        // More refusals than fit: the first ones are what matters.
        if (isErrno(error, "ENOBUFS")) continue;
        throw error;
      }
      for (const message of parseMessages(buffer.subarray(0, n))) {
        const index = message.seq - first;
        if (message.type !== NLMSG_ERROR || index < 0 || index > requests.length) continue;
        if (readS32(message.payload, 0) !== 0)
          refusal ??= refusalOf(message, requests[index - 1] ?? batchBegin(undefined));
        else if (index === requests.length) acknowledged = true;
      }
    }
  }

  return {
    fd: nl.fd,
    transact: nl.transact,
    apply: nl.apply,
    dump: nl.dump,
    close: nl.close,
    generation() {
      const [outcome] = nl.apply([getGeneration()]);
      return parseGeneration((outcome?.ok ? outcome.replies[0] : undefined) ?? new Uint8Array(0));
    },
    commit(requests, generation) {
      if (requests.length === 0) return;
      const first = seq;
      seq += requests.length + 2;
      const bytes = encodeBatch(requests, generation, first);
      if (bytes.length > SMALL_BATCH_BYTES && !large) {
        sys.setsockopt(nl.fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES);
        large = true;
      }
      sys.send(nl.fd, bytes);
      const { acknowledged, refusal } = answers(first, requests);
      if (refusal !== undefined) throw new NetlinkError(refusal);
      if (!acknowledged)
        throw new NetlinkError({
          errno: errnoName(71), // EPROTO
          extack: "the kernel acknowledged nothing",
          offset: undefined,
          request: `nft batch of ${requests.length} requests`,
        });
    },
  };
}
