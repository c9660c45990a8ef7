/** The addresses of ENIs, as the agent keeps them: every address that the cloud assigned has a row. */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { type AttachmentKey, keyParams } from "./key.ts";
import { numberOf, textOf } from "./row.ts";

export interface EniAddress {
  readonly address: string;
  readonly family: 4 | 6;
  readonly eniId: string;
  /** An idle address whose `coolUntilMs` lies ahead cools down and is not handed out yet. */
  readonly state: "idle" | "allocated" | "reserved" | "releasing";
  readonly network: string | undefined;
  readonly containerId: string | undefined;
  readonly ifname: string | undefined;
  readonly coolUntilMs: number;
  /** Of the last change of state. */
  readonly sinceMs: number;
}

export function listAddresses(db: SqlHandle, eniId?: string): EniAddress[] {
  const rows =
    eniId === undefined
      ? db.all("SELECT * FROM address WHERE pool = 'eni' ORDER BY eni_id, family, address")
      : db.all("SELECT * FROM address WHERE pool = 'eni' AND eni_id = ? ORDER BY family, address", [eniId]);
  return rows.map((row) => ({
    address: String(row.address),
    family: row.family === 6 ? 6 : 4,
    eniId: String(row.eni_id),
    state: String(row.state) as EniAddress["state"],
    network: textOf(row.network),
    containerId: textOf(row.container_id),
    ifname: textOf(row.ifname),
    coolUntilMs: numberOf(row.cool_until_ms) ?? 0,
    sinceMs: numberOf(row.since_ms) ?? 0,
  }));
}

function familyOf(address: string): 4 | 6 {
  return address.includes(":") ? 6 : 4;
}

/**
 * Adds an address that the cloud assigned. One that is known keeps its state (also `releasing`: an answer that was under
 * way while we asked for its release must not bring it back) but may turn out to be another ENI's. Inside a transaction.
 *
 * @returns Whether anything changed.
 */
export function addAddress(db: SqlHandle, eniId: string, address: string, nowMs: number): boolean {
  return (
    db.run(
      `INSERT INTO address(pool, address, family, eni_id, since_ms, state) VALUES('eni', ?1, ?2, ?3, ?4,
         CASE WHEN EXISTS (SELECT 1 FROM reservation r WHERE r.pool = 'eni' AND r.address = ?1) THEN 'reserved' ELSE 'idle' END)
       ON CONFLICT(pool, address) DO UPDATE SET eni_id = excluded.eni_id WHERE eni_id IS NOT excluded.eni_id`,
      [address, familyOf(address), eniId, nowMs],
    ) > 0
  );
}

export interface AddressSync {
  readonly added: readonly string[];
  /** In the store but not in the cloud's list. Nothing was done about them: the caller knows how good the list is. */
  readonly missing: readonly EniAddress[];
}

/** Adds what the cloud lists for an ENI and the store does not know, and names the converse. Inside a transaction. */
export function syncAddresses(db: SqlHandle, eniId: string, listed: readonly string[], nowMs: number): AddressSync {
  const known = listAddresses(db, eniId);
  const names = new Set(known.map((a) => a.address));
  const added = listed.filter((address) => !names.has(address) && addAddress(db, eniId, address, nowMs));
  const inCloud = new Set(listed);
  return { added, missing: known.filter((a) => !inCloud.has(a.address)) };
}

/**
 * Marks idle addresses as on their way back to the vSwitch. In one transaction with the look at their state, so that an
 * ADD either got the address before or cannot get it any more. One that still cools down stays: in the vSwitch it would
 * be somebody else's at once.
 *
 * @returns Those that are ours to give back now.
 */
export function markReleasing(db: SqlHandle, addresses: readonly string[], nowMs: number): string[] {
  return addresses.filter(
    (address) =>
      db.run(
        `UPDATE address SET state = 'releasing', since_ms = ?1
          WHERE pool = 'eni' AND address = ?2 AND state = 'idle' AND cool_until_ms <= ?1`,
        [nowMs, address],
      ) > 0,
  );
}

/** The release did not happen: they may be handed out again. Inside a transaction. */
export function unmarkReleasing(db: SqlHandle, addresses: readonly string[]): void {
  for (const address of addresses) {
    db.run(
      `UPDATE address SET state =
         CASE WHEN EXISTS (SELECT 1 FROM reservation r WHERE r.pool = 'eni' AND r.address = address.address) THEN 'reserved' ELSE 'idle' END
        WHERE pool = 'eni' AND address = ? AND state = 'releasing'`,
      [address],
    );
  }
}

/** Forgets addresses that the cloud took back; never one that a container holds. Inside a transaction. */
export function forgetAddresses(db: SqlHandle, addresses: readonly string[]): void {
  for (const address of addresses)
    db.run("DELETE FROM address WHERE pool = 'eni' AND address = ? AND state <> 'allocated'", [address]);
}

/**
 * Writes down that a container which is known to live has this address (rebuilding a lost store), whether the address
 * is known as free or not at all. Inside a transaction.
 *
 * @param slot 0 for the first family, 1 for the second.
 * @returns false when the address, or the slot of this attachment, is taken otherwise: nothing is changed then.
 */
export function adoptAddress(
  db: SqlHandle,
  eniId: string | undefined,
  address: string,
  key: AttachmentKey,
  slot: number,
  nowMs: number,
  pool = "eni",
): boolean {
  const held = db.all(
    "SELECT pool, address FROM address WHERE network = ? AND container_id = ? AND ifname = ? AND slot = ?",
    [...keyParams(key), slot],
  );
  if (held.length > 0) return held.every((row) => row.pool === pool && row.address === address);
  return (
    db.run(
      `INSERT INTO address(pool, address, family, eni_id, state, network, container_id, ifname, slot, since_ms)
       VALUES(?,?,?,?,'allocated',?,?,?,?,?)
       ON CONFLICT(pool, address) DO UPDATE SET state = 'allocated', eni_id = excluded.eni_id, network = excluded.network,
         container_id = excluded.container_id, ifname = excluded.ifname, slot = excluded.slot, since_ms = excluded.since_ms
         WHERE state <> 'allocated'`,
      [pool, address, familyOf(address), eniId ?? null, ...keyParams(key), slot, nowMs],
    ) > 0
  );
}
