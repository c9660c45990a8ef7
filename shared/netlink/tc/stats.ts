/** TCA_STATS2: what a qdisc or class has counted. include/uapi/linux/gen_stats.h */
import * as S from "../uapi/pkt-sched.ts";
import { eachAttribute, readU32 } from "../wire/reader.ts";
import { readU64 } from "./rate.ts";

export interface TcStats {
  readonly bytes: number;
  readonly packets: number;
  /** Packets that wait now. */
  readonly queued: number;
  /** Bytes that wait now. */
  readonly backlogBytes: number;
  readonly drops: number;
  readonly requeues: number;
  /** How often a packet had to wait for the rate. */
  readonly overlimits: number;
}

/** @throws {MalformedNetlink} */
export function parseTcStats(attributes: Uint8Array): TcStats {
  let stats: TcStats = { bytes: 0, packets: 0, queued: 0, backlogBytes: 0, drops: 0, requeues: 0, overlimits: 0 };
  let packets64: number | undefined;
  eachAttribute(attributes, 0, (type, value) => {
    if (type === S.TCA_STATS_BASIC) stats = { ...stats, bytes: readU64(value, 0), packets: readU32(value, 8) };
    else if (type === S.TCA_STATS_PKT64) packets64 = readU64(value, 0);
    else if (type === S.TCA_STATS_QUEUE)
      stats = {
        ...stats,
        queued: readU32(value, 0),
        backlogBytes: readU32(value, 4),
        drops: readU32(value, 8),
        requeues: readU32(value, 12),
        overlimits: readU32(value, 16),
      };
  });
  return packets64 === undefined ? stats : { ...stats, packets: packets64 };
}
