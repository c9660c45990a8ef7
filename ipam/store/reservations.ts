/** Fixed addresses: kept for a pod's name while it does not run. Every change is on the disk when the call returns. */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import type { PodName } from "./allocate.ts";
import type { AttachmentKey } from "./key.ts";
import { numberOf } from "./row.ts";
import { inDurableTransaction, type StoreHandle } from "./transaction.ts";

export interface Reservation {
  readonly podNamespace: string;
  readonly podName: string;
  readonly address: string;
  /** Absent: 'eni'. */
  readonly pool?: string;
  /** CLOCK_BOOTTIME; undefined: until it is ended. A reboot makes it undefined: nobody knows how long it took. */
  readonly expiresMs: number | undefined;
  readonly reason: string;
}

export type Reserved = { readonly kind: "reserved" } | { readonly kind: "taken"; readonly why: string };

/** Reserves an address for a pod; also one that the pod itself holds at this moment. Again for the same pod: updates it. */
export function reserve(db: StoreHandle, r: Reservation): Reserved {
  return inDurableTransaction(db, () => {
    const pool = r.pool ?? "eni";
    const why = refusalOf(db, r, pool);
    if (why !== undefined) return { kind: "taken", why };
    db.run(
      `INSERT INTO reservation(pod_namespace, pod_name, pool, address, expires_ms, reason) VALUES(?,?,?,?,?,?)
       ON CONFLICT(pool, address) DO UPDATE SET expires_ms = excluded.expires_ms, reason = excluded.reason`,
      [r.podNamespace, r.podName, pool, r.address, r.expiresMs ?? null, r.reason],
    );
    if (pool === "eni") {
      db.run("UPDATE address SET state = 'reserved' WHERE pool = 'eni' AND address = ? AND state = 'idle'", [
        r.address,
      ]);
    } else {
      // The row keeps the address out of everybody else's reach: a local range has none for what is free.
      db.run(
        `INSERT INTO address(pool, address, family, state) VALUES(?, ?, ?, 'reserved')
         ON CONFLICT(pool, address) DO UPDATE SET state = 'reserved' WHERE state = 'idle'`,
        [pool, r.address, r.address.includes(":") ? 6 : 4],
      );
    }
    return { kind: "reserved" };
  });
}

function refusalOf(db: SqlHandle, r: Reservation, pool: string): string | undefined {
  const other = db.get("SELECT pod_namespace, pod_name FROM reservation WHERE pool = ? AND address = ?", [
    pool,
    r.address,
  ]);
  if (other && !(other.pod_namespace === r.podNamespace && other.pod_name === r.podName))
    return `reserved for ${other.pod_namespace}/${other.pod_name}`;
  const row = db.get(
    `SELECT a.state, a.container_id, t.pod_namespace, t.pod_name FROM address a
       LEFT JOIN attachment t ON t.network = a.network AND t.container_id = a.container_id AND t.ifname = a.ifname
      WHERE a.pool = ? AND a.address = ?`,
    [pool, r.address],
  );
  if (row === undefined) return pool === "eni" ? "it is not an address of this node's ENIs" : undefined;
  if (row.state === "releasing") return "it is being given back to the vSwitch";
  if (row.state !== "allocated" || (row.pod_namespace === r.podNamespace && row.pod_name === r.podName))
    return undefined;
  return row.pod_name === null
    ? `held by container ${row.container_id}, whose pod is not known`
    : `held by ${row.pod_namespace}/${row.pod_name}`;
}

/** Ends a reservation; the address is idle again (after its cool-down) unless its pod holds it. */
export function unreserve(db: StoreHandle, address: string, nowMs: number, pool = "eni"): void {
  inDurableTransaction(db, () => endReservation(db, pool, address, nowMs));
}

function endReservation(db: SqlHandle, pool: string, address: string, nowMs: number): void {
  db.run("DELETE FROM reservation WHERE pool = ? AND address = ?", [pool, address]);
  db.run("UPDATE address SET state = 'idle', since_ms = ? WHERE pool = ? AND address = ? AND state = 'reserved'", [
    nowMs,
    pool,
    address,
  ]);
}

/** Ends the reservations whose time has passed. @returns Those. */
export function expireReservations(db: StoreHandle, nowMs: number): Reservation[] {
  if (db.get("SELECT 1 AS due FROM reservation WHERE expires_ms <= ? LIMIT 1", [nowMs]) === undefined) return [];
  return inDurableTransaction(db, () => {
    const due = listReservations(db).filter((r) => r.expiresMs !== undefined && r.expiresMs <= nowMs);
    for (const r of due) endReservation(db, r.pool ?? "eni", r.address, nowMs);
    return due;
  });
}

export function listReservations(db: SqlHandle): Reservation[] {
  return db.all("SELECT * FROM reservation ORDER BY pod_namespace, pod_name, pool, address").map((row) => ({
    podNamespace: String(row.pod_namespace),
    podName: String(row.pod_name),
    pool: String(row.pool),
    address: String(row.address),
    expiresMs: numberOf(row.expires_ms),
    reason: String(row.reason),
  }));
}

/**
 * What is reserved for a pod, IPv4 first, without those that another interface of the same container holds already: a
 * second interface of the pod gets an ordinary address.
 */
export function reservedFor(db: SqlHandle, pod: PodName, pool: string, key: AttachmentKey): string[] {
  return db
    .all(
      `SELECT r.address FROM reservation r LEFT JOIN address a ON a.pool = r.pool AND a.address = r.address
        WHERE r.pod_namespace = ? AND r.pod_name = ? AND r.pool = ? AND (a.container_id IS NULL OR a.container_id <> ?)
        ORDER BY a.family, r.address`,
      [pod.namespace, pod.name, pool, key.containerId],
    )
    .map((row) => String(row.address));
}
