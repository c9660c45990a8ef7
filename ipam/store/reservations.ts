/** Fixed addresses: kept for a pod's name while it does not run. */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { inDurableTransaction } from "./transaction.ts";

export interface Reservation {
  readonly podNamespace: string;
  readonly podName: string;
  readonly address: string;
  readonly expiresMs: number | undefined;
  readonly reason: string;
}

export type Reserved = { readonly kind: "reserved" } | { readonly kind: "taken"; readonly why: string };

/** Reserves an address of the ENI pool for a pod; also one that the pod itself holds at this moment. Durable. */
export function reserve(db: SqlHandle, r: Reservation): Reserved {
  return inDurableTransaction(db, () => {
    const row = db.get(
      `SELECT a.state, t.pod_namespace, t.pod_name, r.pod_namespace AS rns, r.pod_name AS rname FROM address a
         LEFT JOIN attachment t ON t.network = a.network AND t.container_id = a.container_id AND t.ifname = a.ifname
         LEFT JOIN reservation r ON r.pool = a.pool AND r.address = a.address
        WHERE a.pool = 'eni' AND a.address = ?`,
      [r.address],
    );
    if (row === undefined) return { kind: "taken", why: "it is not an address of this node's ENIs" };
    if (row.rname !== null && !(row.rns === r.podNamespace && row.rname === r.podName))
      return { kind: "taken", why: `reserved for ${row.rns}/${row.rname}` };
    if (row.state === "releasing") return { kind: "taken", why: "it is being given back to the vSwitch" };
    if (row.state === "allocated" && !(row.pod_namespace === r.podNamespace && row.pod_name === r.podName)) {
      return { kind: "taken", why: `held by ${row.pod_namespace ?? "?"}/${row.pod_name ?? "?"}` };
    }
    db.run("INSERT OR REPLACE INTO reservation VALUES(?,?,'eni',?,?,?)", [
      r.podNamespace,
      r.podName,
      r.address,
      r.expiresMs ?? null,
      r.reason,
    ]);
    db.run("UPDATE address SET state = 'reserved' WHERE pool = 'eni' AND address = ? AND state = 'idle'", [r.address]);
    return { kind: "reserved" };
  });
}

/** Ends a reservation; the address is idle again unless its pod holds it. Durable. */
export function unreserve(db: SqlHandle, address: string, nowMs: number): void {
  inDurableTransaction(db, () => {
    db.run("DELETE FROM reservation WHERE pool = 'eni' AND address = ?", [address]);
    db.run(
      "UPDATE address SET state = 'idle', since_ms = ? WHERE pool = 'eni' AND address = ? AND state = 'reserved'",
      [nowMs, address],
    );
  });
}

export function listReservations(db: SqlHandle): Reservation[] {
  return db.all("SELECT * FROM reservation ORDER BY pod_namespace, pod_name, address").map((row) => ({
    podNamespace: String(row.pod_namespace),
    podName: String(row.pod_name),
    address: String(row.address),
    expiresMs: row.expires_ms === null ? undefined : Number(row.expires_ms),
    reason: String(row.reason),
  }));
}
