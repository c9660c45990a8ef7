/** Handing out an address of the ENI pool. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { type AttachmentKey, keyParams } from "./key.ts";

export interface Leased {
  readonly address: string;
  readonly family: 4 | 6;
  readonly eniId: string | undefined;
}

export interface PoolCounts {
  readonly idle: number;
  readonly cooling: number;
  readonly allocated: number;
  readonly reserved: number;
  /** Until the first cooling address is free; undefined when none cools. */
  readonly nextFreeInMs: number | undefined;
}

export type Allocation =
  | { readonly kind: "assigned" | "already-held"; readonly leases: readonly Leased[] }
  | { readonly kind: "pool-empty"; readonly counts: PoolCounts }
  /** A requested address is not ours, or somebody else's. */
  | { readonly kind: "unavailable"; readonly address: string; readonly why: string };

export interface EniWant {
  readonly families: readonly (4 | 6)[];
  /** Exactly these, canonical text. */
  readonly requested?: readonly string[];
  readonly pod?: { readonly namespace: string; readonly name: string };
}

/** The addresses that `key` holds now, in slot order. */
export function leasesOf(db: SqlHandle, key: AttachmentKey): Leased[] {
  return db
    .all(
      "SELECT address, family, eni_id FROM address WHERE network = ? AND container_id = ? AND ifname = ? ORDER BY slot",
      keyParams(key),
    )
    .map(leased);
}

function leased(row: SqlRow): Leased {
  return {
    address: String(row.address),
    family: row.family === 6 ? 6 : 4,
    eniId: row.eni_id === null ? undefined : String(row.eni_id),
  };
}

/**
 * Gives `key` one address of each wanted family, all of one ENI. Inside a transaction. The same key gets the same
 * addresses again.
 *
 * @param nowMs CLOCK_BOOTTIME.
 */
export function allocateFromEnis(db: SqlHandle, key: AttachmentKey, want: EniWant, nowMs: number): Allocation {
  const held = leasesOf(db, key);
  if (held.length > 0) return { kind: "already-held", leases: held };
  const reserved = want.pod ? reservedFor(db, want.pod) : [];
  const exact = want.requested ?? (reserved.length > 0 ? reserved : undefined);
  if (exact) return takeExactly(db, key, exact, reserved, nowMs);
  const first = want.families[0] ?? 4;
  const row = takeAny(db, key, first, want.families[1], nowMs);
  if (row === undefined) return { kind: "pool-empty", counts: poolCounts(db, "eni", first, nowMs) };
  const leases = [leased(row)];
  const second = want.families[1];
  if (second !== undefined) {
    const other = takeOn(db, key, second, String(row.eni_id), nowMs);
    // takeAny looked for an ENI with both, in this same transaction.
    if (other === undefined)
      throw new Error(`ENI ${row.eni_id} lost its free IPv${second} address inside a transaction`);
    leases.push(leased(other));
  }
  return { kind: "assigned", leases };
}

const OWN = "state = 'allocated', network = ?, container_id = ?, ifname = ?, slot = ?, since_ms = ?";

/** Of the ENI with the most (or fewest) allocated addresses, the one that has been free the longest. */
function takeAny(
  db: SqlHandle,
  key: AttachmentKey,
  family: 4 | 6,
  also: 4 | 6 | undefined,
  nowMs: number,
): SqlRow | undefined {
  const both =
    also === undefined
      ? ""
      : `AND EXISTS (SELECT 1 FROM address b WHERE b.eni_id = a.eni_id AND b.family = ${also} AND b.state = 'idle' AND b.cool_until_ms <= ${nowMs})`;
  const fewest = db.get("SELECT value FROM fact WHERE name = 'eni_pick'")?.value === "fewest";
  return db.get(
    `UPDATE address SET ${OWN} WHERE pool = 'eni' AND address = (
       SELECT a.address FROM address a JOIN eni e ON e.id = a.eni_id
        WHERE a.pool = 'eni' AND a.family = ? AND a.state = 'idle' AND a.cool_until_ms <= ? AND e.state = 'ready' AND e.kind = 'shared' ${both}
        ORDER BY (SELECT count(*) FROM address u WHERE u.eni_id = a.eni_id AND u.state = 'allocated') ${fewest ? "ASC" : "DESC"},
                 a.cool_until_ms, a.address LIMIT 1)
     RETURNING address, family, eni_id`,
    [...keyParams(key), 0, nowMs, family, nowMs],
  );
}

function takeOn(db: SqlHandle, key: AttachmentKey, family: 4 | 6, eniId: string, nowMs: number): SqlRow | undefined {
  return db.get(
    `UPDATE address SET ${OWN} WHERE pool = 'eni' AND address = (
       SELECT address FROM address WHERE eni_id = ? AND family = ? AND state = 'idle' AND cool_until_ms <= ?
        ORDER BY cool_until_ms, address LIMIT 1)
     RETURNING address, family, eni_id`,
    [...keyParams(key), 1, nowMs, eniId, family, nowMs],
  );
}

function reservedFor(db: SqlHandle, pod: { readonly namespace: string; readonly name: string }): string[] {
  return db
    .all("SELECT address FROM reservation WHERE pool = 'eni' AND pod_namespace = ? AND pod_name = ? ORDER BY address", [
      pod.namespace,
      pod.name,
    ])
    .map((row) => String(row.address));
}

function takeExactly(
  db: SqlHandle,
  key: AttachmentKey,
  addresses: readonly string[],
  reserved: readonly string[],
  nowMs: number,
): Allocation {
  // All are looked at before the first is taken: a refusal must leave nothing taken.
  for (const address of addresses) {
    const row = db.get(
      "SELECT a.*, e.state AS eni_state FROM address a LEFT JOIN eni e ON e.id = a.eni_id WHERE a.pool = 'eni' AND a.address = ?",
      [address],
    );
    const why = refusalOf(row, reserved.includes(address), nowMs);
    if (why !== undefined) return { kind: "unavailable", address, why };
  }
  const leases = addresses.map((address, slot) =>
    leased(
      db.get(`UPDATE address SET ${OWN} WHERE pool = 'eni' AND address = ? RETURNING address, family, eni_id`, [
        ...keyParams(key),
        slot,
        nowMs,
        address,
      ]) ?? {},
    ),
  );
  return { kind: "assigned", leases };
}

function refusalOf(row: SqlRow | undefined, mine: boolean, nowMs: number): string | undefined {
  if (row === undefined) return "it is not an address of this node's ENIs";
  if (row.eni_state !== "ready") return `its ENI ${row.eni_id} is ${row.eni_state ?? "gone"}`;
  if (row.state === "allocated") return `container ${row.container_id} of network ${row.network} has it`;
  if (row.state === "reserved" && !mine) return "it is reserved for another pod";
  if (row.state === "releasing") return "it is being given back to the vSwitch";
  if (!mine && Number(row.cool_until_ms) > nowMs)
    return `it cools down for another ${Math.ceil((Number(row.cool_until_ms) - nowMs) / 1000)} s`;
  return undefined;
}

export function poolCounts(db: SqlHandle, pool: string, family: 4 | 6, nowMs: number): PoolCounts {
  const row = db.get(
    `SELECT count(*) FILTER (WHERE a.state = 'idle' AND a.cool_until_ms <= ?1 AND (e.state IS NULL OR e.state = 'ready')) AS idle,
            count(*) FILTER (WHERE a.state = 'idle' AND a.cool_until_ms > ?1) AS cooling,
            count(*) FILTER (WHERE a.state = 'allocated') AS allocated, count(*) FILTER (WHERE a.state = 'reserved') AS reserved,
            min(a.cool_until_ms) FILTER (WHERE a.state = 'idle' AND a.cool_until_ms > ?1) AS next
       FROM address a LEFT JOIN eni e ON e.id = a.eni_id
      WHERE a.pool = ?2 AND a.family = ?3`,
    [nowMs, pool, family],
  );
  return {
    idle: Number(row?.idle ?? 0),
    cooling: Number(row?.cooling ?? 0),
    allocated: Number(row?.allocated ?? 0),
    reserved: Number(row?.reserved ?? 0),
    nextFreeInMs: row?.next === null || row?.next === undefined ? undefined : Number(row.next) - nowMs,
  };
}
