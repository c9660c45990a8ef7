/** Handing out addresses of the ENI pool. */
import type { SqlHandle, SqlRow, SqlValue } from "../../shared/sys/sql.ts";
import { countsOf, type PoolCounts } from "./counts.ts";
import { conditionOf, type EniConstraint } from "./eni-constraint.ts";
import { type AttachmentKey, keyParams } from "./key.ts";
import { reservedFor } from "./reservations.ts";
import { textOf } from "./row.ts";

export { type PoolCounts, poolCounts } from "./counts.ts";
export type { EniConstraint } from "./eni-constraint.ts";

export interface Leased {
  readonly address: string;
  readonly family: 4 | 6;
  /** undefined: an address of a local range. */
  readonly eniId: string | undefined;
}

export type Allocation =
  | { readonly kind: "assigned" | "already-held"; readonly leases: readonly Leased[] }
  | {
      readonly kind: "pool-empty";
      /** Of the family that is short. */
      readonly counts: PoolCounts;
      /** Of every wanted family. */
      readonly perFamily: readonly PoolCounts[];
    }
  /** A requested or reserved address is not ours, or somebody else's. */
  | { readonly kind: "unavailable"; readonly address: string; readonly why: string };

export interface PodName {
  readonly namespace: string;
  readonly name: string;
}

export interface EniWant {
  /** One or both, in the order in which the leases are wanted. */
  readonly families: readonly (4 | 6)[];
  /** Exactly these, canonical text, at most one of a family. A family without one gets any of the same ENI. */
  readonly requested?: readonly string[];
  /** Whose reservations count. */
  readonly pod?: PodName;
  /** Which ENIs will do; absent means every shared one. */
  readonly only?: EniConstraint;
}

/** The addresses that `key` holds now, in slot order. */
export function leasesOf(db: SqlHandle, key: AttachmentKey): Leased[] {
  return db
    .all(
      "SELECT address, family, eni_id FROM address WHERE network = ? AND container_id = ? AND ifname = ? ORDER BY slot",
      keyParams(key),
    )
    .map(leasedFrom);
}

export function leasedFrom(row: SqlRow): Leased {
  return { address: String(row.address), family: row.family === 6 ? 6 : 4, eniId: textOf(row.eni_id) };
}

/**
 * Gives `key` one address of each wanted family, all of one ENI: both or none. Inside a transaction. The same key gets
 * the same addresses again. A pod with reservations gets exactly those.
 *
 * @param nowMs CLOCK_BOOTTIME.
 */
export function allocateFromEnis(db: SqlHandle, key: AttachmentKey, want: EniWant, nowMs: number): Allocation {
  const held = leasesOf(db, key);
  if (held.length > 0) return { kind: "already-held", leases: held };
  const reserved = want.pod ? reservedFor(db, want.pod, "eni", key) : [];
  const requested = want.requested ?? [];
  const stray = reserved.length > 0 ? requested.find((address) => !reserved.includes(address)) : undefined;
  if (stray !== undefined)
    return { kind: "unavailable", address: stray, why: `its pod has ${reserved.join(" and ")} reserved` };
  const exact = requested.length > 0 ? requested : reserved;
  return exact.length > 0 ? takeExactly(db, key, want, exact, reserved, nowMs) : takeAny(db, key, want, nowMs);
}

const OWN = "state = 'allocated', network = ?, container_id = ?, ifname = ?, slot = ?, since_ms = ?";

/** Of the ENI with the most (or, by the fact eni_pick, fewest) pods, the address that has been free the longest. */
function takeAny(db: SqlHandle, key: AttachmentKey, want: EniWant, nowMs: number): Allocation {
  const [family = 4, also] = want.families;
  const eni = conditionOf(want.only);
  const idle = "a.state = 'idle' AND a.cool_until_ms <= ?";
  const hasIdle = `EXISTS (SELECT 1 FROM address a WHERE a.pool = 'eni' AND a.eni_id = e.id AND a.family = ? AND ${idle})`;
  const hasBoth: readonly SqlValue[] = also === undefined ? [] : [also, nowMs];
  const row = db.get(
    `UPDATE address SET ${OWN} WHERE pool = 'eni' AND address = (
       SELECT a.address FROM address a WHERE a.pool = 'eni' AND a.eni_id = (
         SELECT e.id FROM eni e WHERE e.state = 'ready' AND ${eni.sql} AND ${hasIdle} ${also === undefined ? "" : `AND ${hasIdle}`}
          ORDER BY (SELECT count(*) FROM address u WHERE u.eni_id = e.id AND u.state = 'allocated')
                   * coalesce((SELECT iif(value = 'fewest', 1, -1) FROM fact WHERE name = 'eni_pick'), -1), e.route_slot LIMIT 1)
         AND a.family = ? AND ${idle} ORDER BY a.cool_until_ms, a.address LIMIT 1)
     RETURNING address, family, eni_id`,
    [...keyParams(key), 0, nowMs, ...eni.params, family, nowMs, ...hasBoth, family, nowMs],
  );
  if (row === undefined) return poolEmpty(db, want, nowMs);
  const first = leasedFrom(row);
  if (also === undefined) return { kind: "assigned", leases: [first] };
  const other = idleOn(db, first.eniId, also, nowMs);
  // The ENI was chosen for having both, in this same transaction.
  if (other === undefined) throw new Error(`ENI ${first.eniId} lost its idle IPv${also} address inside a transaction`);
  return { kind: "assigned", leases: [first, take(db, key, other, 1, nowMs)] };
}

function poolEmpty(db: SqlHandle, want: EniWant, nowMs: number): Allocation {
  const perFamily = want.families.map((family) => countsOf(db, "eni", family, nowMs, want.only));
  const counts = perFamily.reduce((least, c) => (c.idle < least.idle ? c : least));
  return { kind: "pool-empty", counts, perFamily };
}

function idleOn(db: SqlHandle, eniId: string | undefined, family: 4 | 6, nowMs: number): string | undefined {
  return textOf(
    db.get(
      `SELECT address FROM address WHERE pool = 'eni' AND eni_id = ? AND family = ? AND state = 'idle' AND cool_until_ms <= ?
        ORDER BY cool_until_ms, address LIMIT 1`,
      [eniId ?? null, family, nowMs],
    )?.address,
  );
}

function take(db: SqlHandle, key: AttachmentKey, address: string, slot: number, nowMs: number): Leased {
  const row = db.get(`UPDATE address SET ${OWN} WHERE pool = 'eni' AND address = ? RETURNING address, family, eni_id`, [
    ...keyParams(key),
    slot,
    nowMs,
    address,
  ]);
  if (row === undefined) throw new Error(`address ${address} vanished inside a transaction`);
  return leasedFrom(row);
}

/** All are looked at before the first is taken: a refusal leaves nothing taken. */
function takeExactly(
  db: SqlHandle,
  key: AttachmentKey,
  want: EniWant,
  exact: readonly string[],
  reserved: readonly string[],
  nowMs: number,
): Allocation {
  const eni = conditionOf(want.only);
  let eniId: string | undefined;
  const missing = new Set(want.families);
  for (const address of exact) {
    const row = db.get(
      `SELECT a.*, e.state AS eni_state, e.kind, (${eni.sql}) AS fits
         FROM address a LEFT JOIN eni e ON e.id = a.eni_id WHERE a.pool = 'eni' AND a.address = ?`,
      [...eni.params, address],
    );
    const why = refusalOf(row, reserved.includes(address), nowMs);
    if (why !== undefined) return { kind: "unavailable", address, why };
    if (eniId !== undefined && row?.eni_id !== eniId)
      return { kind: "unavailable", address, why: `it is of ENI ${row?.eni_id}, ${exact[0]} is of ENI ${eniId}` };
    eniId = textOf(row?.eni_id);
    missing.delete(row?.family === 6 ? 6 : 4);
  }
  const addresses = [...exact];
  for (const family of missing) {
    const other = idleOn(db, eniId, family, nowMs);
    if (other === undefined) return poolEmpty(db, { ...want, only: { ...want.only, eniIds: [eniId ?? ""] } }, nowMs);
    addresses.push(other);
  }
  return { kind: "assigned", leases: addresses.map((address, slot) => take(db, key, address, slot, nowMs)) };
}

function refusalOf(row: SqlRow | undefined, mine: boolean, nowMs: number): string | undefined {
  if (row === undefined) return "it is not an address of this node's ENIs";
  if (row.state === "allocated")
    return `container ${row.container_id} of network ${row.network} has it as ${row.ifname}`;
  if (row.eni_state !== "ready") return `its ENI ${row.eni_id} is ${row.eni_state ?? "gone"}`;
  if (row.fits !== 1) return `its ENI ${row.eni_id} (${row.kind}) is not one that will do here`;
  if (row.state === "reserved" && !mine) return "it is reserved for another pod";
  if (row.state === "releasing") return "it is being given back to the vSwitch";
  if (!mine && Number(row.cool_until_ms) > nowMs)
    return `it cools down for another ${Math.ceil((Number(row.cool_until_ms) - nowMs) / 1000)} s`;
  return undefined;
}
