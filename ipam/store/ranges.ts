/**
 * Handing out addresses of local ranges, as host-local does: one of each range set, the next after the last given,
 * so that a container that restarts in a loop does not get the same address again.
 */
import { addToIp, compareIp, distanceIp, formatIp, type Ip, parseIp } from "../../shared/net/ip.ts";
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { type Allocation, type Leased, leasesOf, type PodName } from "./allocate.ts";
import { type PoolCounts, poolCounts } from "./counts.ts";
import { type AttachmentKey, keyParams } from "./key.ts";
import { reservedFor } from "./reservations.ts";

/** From `first` to `last`, both included; `excluded` (the gateway) is never given. */
export interface AddressRange {
  readonly first: Ip;
  readonly last: Ip;
  readonly excluded: Ip | undefined;
}

/** Ranges that count as one: a container gets one address of the set. */
export type RangeSet = readonly AddressRange[];

/**
 * A freed address may be used again before its cool-down has passed, but not sooner than this, if nothing else is left:
 * a small range would otherwise refuse pods that restart.
 */
const SHORTEST_COOL_DOWN_MS = 1000;

export function localPool(network: string): string {
  return `local:${network}`;
}

function isWithin(range: AddressRange, ip: Ip): boolean {
  return range.first.family === ip.family && compareIp(ip, range.first) >= 0 && compareIp(ip, range.last) <= 0;
}

function inSet(set: RangeSet, ip: Ip): boolean {
  return set.some((r) => isWithin(r, ip) && !(r.excluded && compareIp(ip, r.excluded) === 0));
}

/**
 * Gives `key` one address of each set: all or none. Inside a transaction. The same key gets the same addresses again.
 *
 * @param requested Canonical addresses; each must lie in a set of its own. One that cools down is given too: who asks for
 *   an address by name wants that one.
 * @param cooldownMs The cool-down now in force; see SHORTEST_COOL_DOWN_MS.
 * @param pod Whose reservations in this pool count; it gets exactly those where there are any.
 */
export function allocateFromRanges(
  db: SqlHandle,
  key: AttachmentKey,
  sets: readonly RangeSet[],
  requested: readonly string[],
  nowMs: number,
  cooldownMs: number,
  pod?: PodName,
): Allocation {
  const held = leasesOf(db, key);
  if (held.length > 0) return { kind: "already-held", leases: held };
  const pool = localPool(key.network);
  const reserved = pod ? reservedFor(db, pod, pool, key) : [];
  const stray = reserved.length > 0 ? requested.find((address) => !reserved.includes(address)) : undefined;
  if (stray !== undefined)
    return { kind: "unavailable", address: stray, why: `its pod has ${reserved.join(" and ")} reserved` };
  const wanted = new Map<number, Ip>();
  for (const text of requested.length > 0 ? requested : reserved) {
    const ip = parseIp(text);
    const slot = sets.findIndex((set, i) => !wanted.has(i) && inSet(set, ip));
    if (slot < 0) return { kind: "unavailable", address: text, why: "it is in no range of this network" };
    const why = takenBy(db, pool, text, reserved.includes(text));
    if (why !== undefined) return { kind: "unavailable", address: text, why };
    wanted.set(slot, ip);
  }
  const chosen: string[] = [];
  for (const [slot, set] of sets.entries()) {
    const ip = wanted.get(slot) ?? nextFree(db, pool, slot, set, chosen, nowMs, cooldownMs);
    if (ip === undefined) {
      const counts = rangeCounts(db, pool, set, nowMs);
      return { kind: "pool-empty", counts, perFamily: [counts] };
    }
    chosen.push(formatIp(ip));
  }
  const leases = chosen.map((address, slot): Leased => {
    const family = address.includes(":") ? 6 : 4;
    db.run(
      `INSERT INTO address(pool, address, family, state, network, container_id, ifname, slot, since_ms) VALUES(?,?,?,'allocated',?,?,?,?,?)
       ON CONFLICT(pool, address) DO UPDATE SET state = 'allocated', network = excluded.network, container_id = excluded.container_id,
         ifname = excluded.ifname, slot = excluded.slot, since_ms = excluded.since_ms`,
      [pool, address, family, ...keyParams(key), slot, nowMs],
    );
    if (!wanted.has(slot)) {
      db.run(
        "INSERT INTO range_cursor(pool, slot, last) VALUES(?,?,?) ON CONFLICT(pool, slot) DO UPDATE SET last = excluded.last",
        [pool, slot, address],
      );
    }
    return { address, family, eniId: undefined };
  });
  return { kind: "assigned", leases };
}

function takenBy(db: SqlHandle, pool: string, address: string, mine: boolean): string | undefined {
  const row = db.get("SELECT state, container_id, network FROM address WHERE pool = ? AND address = ?", [
    pool,
    address,
  ]);
  if (row === undefined || row.state === "idle") return undefined;
  if (row.state === "reserved") return mine ? undefined : "it is reserved for another pod";
  return `container ${row.container_id} of network ${row.network} has it`;
}

/** Walks the set once, beginning behind the last address given. */
function nextFree(
  db: SqlHandle,
  pool: string,
  slot: number,
  set: RangeSet,
  /** Of the sets before, in case sets overlap. */
  chosen: readonly string[],
  nowMs: number,
  cooldownMs: number,
): Ip | undefined {
  const last = db.get("SELECT last FROM range_cursor WHERE pool = ? AND slot = ?", [pool, slot])?.last;
  const start = last === undefined ? undefined : parseIp(String(last));
  const at = start === undefined ? -1 : set.findIndex((r) => isWithin(r, start));
  const after = at < 0 || start === undefined ? undefined : addToIp(start, 1);
  // Behind the last one given, then the other ranges, then what comes before it.
  const parts: AddressRange[] = [];
  for (let i = 0; i < set.length; i++) {
    const range = set[(Math.max(at, 0) + i) % set.length];
    if (range === undefined) continue;
    if (i === 0 && after !== undefined) {
      if (compareIp(after, range.last) <= 0) parts.push({ ...range, first: after });
    } else parts.push(range);
  }
  const range = at < 0 ? undefined : set[at];
  if (range !== undefined && start !== undefined) parts.push({ ...range, last: start });

  const freedBeforeMs = nowMs - Math.min(SHORTEST_COOL_DOWN_MS, cooldownMs);
  let fallback: { readonly ip: Ip; readonly coolUntilMs: number } | undefined;
  for (const part of parts) {
    // Only taken addresses have rows: one query for the part, then the first gap.
    const taken = takenIn(db, pool, part);
    for (let ip: Ip | undefined = part.first; ip !== undefined && compareIp(ip, part.last) <= 0; ip = addToIp(ip, 1)) {
      if (part.excluded && compareIp(ip, part.excluded) === 0) continue;
      if (chosen.length > 0 && chosen.includes(formatIp(ip))) continue;
      const row = taken(ip);
      if (row === undefined) return ip;
      if (row.state !== "idle") continue;
      if (row.coolUntilMs <= nowMs) return ip;
      if (row.sinceMs <= freedBeforeMs && (fallback === undefined || row.coolUntilMs < fallback.coolUntilMs))
        fallback = { ip, coolUntilMs: row.coolUntilMs };
    }
  }
  return fallback?.ip;
}

interface TakenRow {
  readonly state: string;
  readonly coolUntilMs: number;
  readonly sinceMs: number;
}

function takenRow(row: SqlRow): TakenRow {
  return { state: String(row.state), coolUntilMs: Number(row.cool_until_ms), sinceMs: Number(row.since_ms) };
}

/** Looks single addresses up at first; a range that turns out crowded is read whole. */
function takenIn(db: SqlHandle, pool: string, part: AddressRange): (ip: Ip) => TakenRow | undefined {
  let lookups = 0;
  let all: Map<string, TakenRow> | undefined;
  return (ip) => {
    const text = formatIp(ip);
    if (all === undefined && lookups++ > 8) {
      const rows = db.all("SELECT address, state, cool_until_ms, since_ms FROM address WHERE pool = ? AND family = ?", [
        pool,
        part.first.family,
      ]);
      all = new Map(rows.map((row) => [String(row.address), takenRow(row)]));
    }
    if (all !== undefined) return all.get(text);
    const row = db.get("SELECT state, cool_until_ms, since_ms FROM address WHERE pool = ? AND address = ?", [
      pool,
      text,
    ]);
    return row && takenRow(row);
  };
}

function rangeCounts(db: SqlHandle, pool: string, set: RangeSet, nowMs: number): PoolCounts {
  const family = set[0]?.first.family ?? 4;
  const counts = poolCounts(db, pool, family, nowMs);
  // Rows are only for what is not free; an expired one is idle.
  const size = set.reduce(
    (n, r) => n + distanceIp(r.first, r.last) + (r.excluded && isWithin(r, r.excluded) ? 0 : 1),
    0,
  );
  const gone = counts.allocated + counts.reserved + counts.cooling;
  return { ...counts, idle: Math.max(0, size - gone) };
}
