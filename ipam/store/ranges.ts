/**
 * Handing out addresses of local ranges, as host-local does: one of each range set, the next after the last given,
 * so that a container that restarts in a loop does not get the same address again.
 */
import { addToIp, compareIp, distanceIp, formatIp, type Ip, parseIp } from "../../shared/net/ip.ts";
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { type Allocation, type Leased, leasesOf } from "./allocate.ts";
import { type AttachmentKey, keyParams } from "./key.ts";

/** From `first` to `last`, both included; `excluded` (the gateway) is never given. */
export interface AddressRange {
  readonly first: Ip;
  readonly last: Ip;
  readonly excluded: Ip | undefined;
}

/** Ranges that count as one: a container gets one address of the set. */
export type RangeSet = readonly AddressRange[];

/** A freed address may be used again before its cool-down has passed, but not sooner than this, if nothing else is left. */
const SHORTEST_COOL_DOWN_MS = 1000;

export function localPool(network: string): string {
  return `local:${network}`;
}

function inSet(set: RangeSet, ip: Ip): boolean {
  return set.some(
    (r) =>
      r.first.family === ip.family &&
      compareIp(ip, r.first) >= 0 &&
      compareIp(ip, r.last) <= 0 &&
      !(r.excluded && compareIp(ip, r.excluded) === 0),
  );
}

/**
 * Gives `key` one address of each set. Inside a transaction.
 *
 * @param requested Canonical addresses; each must lie in a set of its own.
 * @param cooldownMs For choosing among freed addresses when no other is left.
 */
export function allocateFromRanges(
  db: SqlHandle,
  key: AttachmentKey,
  sets: readonly RangeSet[],
  requested: readonly string[],
  nowMs: number,
  cooldownMs: number,
): Allocation {
  const held = leasesOf(db, key);
  if (held.length > 0) return { kind: "already-held", leases: held };
  const pool = localPool(key.network);
  const wanted = new Map<number, Ip>();
  for (const text of requested) {
    const ip = parseIp(text);
    const slot = sets.findIndex((set, i) => !wanted.has(i) && inSet(set, ip));
    if (slot < 0) return { kind: "unavailable", address: text, why: "it is in no range of this network" };
    const why = takenBy(db, pool, text);
    if (why !== undefined) return { kind: "unavailable", address: text, why };
    wanted.set(slot, ip);
  }
  const chosen: string[] = [];
  for (const [slot, set] of sets.entries()) {
    const ip = wanted.get(slot) ?? nextFree(db, pool, slot, set, nowMs, cooldownMs);
    if (ip === undefined) return { kind: "pool-empty", counts: rangeCounts(db, pool, set, nowMs) };
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
      db.run("INSERT INTO range_cursor VALUES(?,?,?) ON CONFLICT(pool, slot) DO UPDATE SET last = excluded.last", [
        pool,
        slot,
        address,
      ]);
    }
    return { address, family, eniId: undefined };
  });
  return { kind: "assigned", leases };
}

function takenBy(db: SqlHandle, pool: string, address: string): string | undefined {
  const row = db.get("SELECT state, container_id, network FROM address WHERE pool = ? AND address = ?", [
    pool,
    address,
  ]);
  if (row === undefined || row.state === "idle") return undefined;
  return row.state === "reserved" ? "it is reserved" : `container ${row.container_id} of network ${row.network} has it`;
}

/** Walks the set once, beginning behind the last address given. */
function nextFree(
  db: SqlHandle,
  pool: string,
  slot: number,
  set: RangeSet,
  nowMs: number,
  cooldownMs: number,
): Ip | undefined {
  const last = db.get("SELECT last FROM range_cursor WHERE pool = ? AND slot = ?", [pool, slot])?.last;
  const start = last === undefined ? undefined : parseIp(String(last));
  const at =
    start === undefined
      ? -1
      : set.findIndex(
          (r) => r.first.family === start.family && compareIp(start, r.first) >= 0 && compareIp(start, r.last) <= 0,
        );
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

  let fallback: { readonly ip: Ip; readonly coolUntilMs: number } | undefined;
  for (const part of parts) {
    // Only taken addresses have rows: one query for the part, then the first gap.
    const taken = takenIn(db, pool, part);
    for (let ip: Ip | undefined = part.first; ip !== undefined && compareIp(ip, part.last) <= 0; ip = addToIp(ip, 1)) {
      if (part.excluded && compareIp(ip, part.excluded) === 0) continue;
      const row = taken(ip);
      if (row === undefined) return ip;
      if (row.state !== "idle") continue;
      if (row.coolUntilMs <= nowMs) return ip;
      const free = row.coolUntilMs <= nowMs + cooldownMs - SHORTEST_COOL_DOWN_MS;
      if (free && (fallback === undefined || row.coolUntilMs < fallback.coolUntilMs))
        fallback = { ip, coolUntilMs: row.coolUntilMs };
    }
  }
  return fallback?.ip;
}

interface TakenRow {
  readonly state: string;
  readonly coolUntilMs: number;
}

/** Looks single addresses up at first; a range that turns out crowded is read whole. */
function takenIn(db: SqlHandle, pool: string, part: AddressRange): (ip: Ip) => TakenRow | undefined {
  let lookups = 0;
  let all: Map<string, TakenRow> | undefined;
  return (ip) => {
    const text = formatIp(ip);
    if (all === undefined && lookups++ > 8) {
      all = new Map(
        db
          .all("SELECT address, state, cool_until_ms FROM address WHERE pool = ? AND family = ?", [
            pool,
            part.first.family,
          ])
          .map((row) => [String(row.address), { state: String(row.state), coolUntilMs: Number(row.cool_until_ms) }]),
      );
    }
    if (all !== undefined) return all.get(text);
    const row = db.get("SELECT state, cool_until_ms FROM address WHERE pool = ? AND address = ?", [pool, text]);
    return row && { state: String(row.state), coolUntilMs: Number(row.cool_until_ms) };
  };
}

function rangeCounts(db: SqlHandle, pool: string, set: RangeSet, nowMs: number) {
  const rows = db.all("SELECT state, cool_until_ms FROM address WHERE pool = ?", [pool]);
  const cooling = rows
    .filter((r) => r.state === "idle" && Number(r.cool_until_ms) > nowMs)
    .map((r) => Number(r.cool_until_ms) - nowMs);
  const size = set.reduce(
    (n, r) =>
      n + distanceIp(r.first, r.last) + 1 - (r.excluded && inSet([{ ...r, excluded: undefined }], r.excluded) ? 1 : 0),
    0,
  );
  const allocated = rows.filter((r) => r.state === "allocated").length;
  return {
    idle: Math.max(0, size - rows.length),
    cooling: cooling.length,
    allocated,
    reserved: rows.filter((r) => r.state === "reserved").length,
    nextFreeInMs: cooling.length > 0 ? Math.min(...cooling) : undefined,
  };
}
