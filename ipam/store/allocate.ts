/** Handing out addresses of the ENI pool. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
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
      "SELECT address, family, eni_id, slot FROM address WHERE network = ? AND container_id = ? AND ifname = ?",
      keyParams(key),
    )
    .toSorted((a, b) => Number(a.slot) - Number(b.slot))
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

/*
 * NB: the statements of ADD and DEL have no RETURNING (30 µs more to prepare, and a plugin prepares every statement for
 * one use) and no ORDER BY beside a partial index (SQLite then plans anew whenever parameters are bound).
 */

/** Of the ENI with the most (or, by the fact eni_pick, fewest) pods, the addresses that have been free the longest. */
function takeAny(db: SqlHandle, key: AttachmentKey, want: EniWant, nowMs: number): Allocation {
  const eni = conditionOf(want.only);
  const hasIdle = want.families.map(
    () => `AND EXISTS (SELECT 1 FROM address a WHERE a.pool = 'eni' AND a.eni_id = e.id AND a.family = ?
                         AND a.state = 'idle' AND a.cool_until_ms <= ?)`,
  );
  const allocated = "FROM address u WHERE u.pool = 'eni' AND u.eni_id = e.id AND u.state = 'allocated'";
  // A whole ENI is one pod's: of another stack before, it may hold the other family's address alone.
  const whole = want.only?.kinds !== undefined && !want.only.kinds.includes("shared");
  // id is of the row with the maximum (SQLite: "bare columns in an aggregate query"). Of equals, the first slot.
  const best = db.get(
    `SELECT e.id, max((SELECT count(*) ${allocated}) *
              CASE (SELECT value FROM fact WHERE name = 'eni_pick') WHEN 'fewest' THEN -1000000 ELSE 1000000 END - e.route_slot)
       FROM eni e WHERE e.state = 'ready' AND ${eni.sql} ${hasIdle.join(" ")}
        ${whole ? `AND NOT EXISTS (SELECT 1 ${allocated})` : ""}`,
    [...eni.params, ...want.families.flatMap((family) => [family, nowMs])],
  );
  const eniId = textOf(best?.id);
  if (eniId === undefined) return poolEmpty(db, want, nowMs);
  const leases = want.families.map((family) => {
    const lease = idleOn(db, eniId, family, nowMs);
    // The ENI was chosen for having one, in this same transaction.
    if (lease === undefined) throw new Error(`ENI ${eniId} lost its idle IPv${family} address inside a transaction`);
    return lease;
  });
  return { kind: "assigned", leases: take(db, key, leases, nowMs) };
}

function poolEmpty(db: SqlHandle, want: EniWant, nowMs: number): Allocation {
  const perFamily = want.families.map((family) => countsOf(db, "eni", family, nowMs, want.only));
  const counts = perFamily.reduce((least, c) => (c.idle < least.idle ? c : least));
  return { kind: "pool-empty", counts, perFamily };
}

function idleOn(db: SqlHandle, eniId: string | undefined, family: 4 | 6, nowMs: number): Leased | undefined {
  const row = db.get(
    `SELECT address, family, eni_id FROM address
      WHERE pool = 'eni' AND eni_id = ? AND family = ? AND state = 'idle' AND cool_until_ms <= ?
      ORDER BY cool_until_ms, address LIMIT 1`,
    [eniId ?? null, family, nowMs],
  );
  return row && leasedFrom(row);
}

/** Makes `key` the owner of these, in slot order. */
function take(db: SqlHandle, key: AttachmentKey, leases: readonly Leased[], nowMs: number): readonly Leased[] {
  leases.forEach(({ address }, slot) => {
    db.run(
      `UPDATE address SET state = 'allocated', network = ?, container_id = ?, ifname = ?, slot = ?, since_ms = ?
        WHERE pool = 'eni' AND address = ?`,
      [...keyParams(key), slot, nowMs, address],
    );
  });
  return leases;
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
  const leases: Leased[] = [];
  for (const address of exact) {
    const row = db.get(
      `SELECT a.*, e.state AS eni_state, e.kind, (${eni.sql}) AS fits
         FROM address a LEFT JOIN eni e ON e.id = a.eni_id WHERE a.pool = 'eni' AND a.address = ?`,
      [...eni.params, address],
    );
    if (row === undefined) return { kind: "unavailable", address, why: "it is not an address of this node's ENIs" };
    const first = leases[0];
    const lease = leasedFrom(row);
    let why = refusalOf(row, reserved.includes(address), nowMs);
    if (why === undefined && first && first.eniId !== lease.eniId)
      why = `it is of ENI ${lease.eniId}, ${first.address} is of ENI ${first.eniId}`;
    if (why !== undefined) return { kind: "unavailable", address, why };
    leases.push(lease);
  }
  const eniId = leases[0]?.eniId;
  for (const family of want.families) {
    if (leases.some((l) => l.family === family)) continue;
    const other = idleOn(db, eniId, family, nowMs);
    if (other === undefined) return poolEmpty(db, { ...want, only: { ...want.only, eniIds: [eniId ?? ""] } }, nowMs);
    leases.push(other);
  }
  return { kind: "assigned", leases: take(db, key, leases, nowMs) };
}

function refusalOf(row: SqlRow, mine: boolean, nowMs: number): string | undefined {
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
