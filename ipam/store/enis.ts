/** The node's ENIs, as the agent keeps them. Their addresses are in `addresses.ts`. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { numberOf, textOf } from "./row.ts";

export type EniState = "attaching" | "ready" | "draining" | "detaching" | "deleting" | "lost";
export type EniKind = "primary" | "shared" | "exclusive" | "trunk" | "member";

export interface Eni {
  readonly id: string;
  readonly mac: string;
  readonly kind: EniKind;
  readonly state: EniState;
  readonly vswitchId: string;
  /** Sorted. */
  readonly securityGroups: readonly string[];
  readonly primary4: string | undefined;
  readonly cidr4: string | undefined;
  readonly gateway4: string | undefined;
  readonly primary6: string | undefined;
  readonly cidr6: string | undefined;
  readonly gateway6: string | undefined;
  /** Of a member ENI. */
  readonly trunkId: string | undefined;
  readonly vlanId: number | undefined;
  /** The policy routing table of the ENI is ROUTE_TABLE_BASE plus this. Never that of another ENI in the store. */
  readonly routeSlot: number;
  readonly ifname: string | undefined;
  readonly ifindex: number | undefined;
  readonly mtu: number;
  /** Boot id in which its links, routes and rules were set up; of another boot means: not set up. */
  readonly preparedBoot: string | undefined;
  readonly idleSinceMs: number | undefined;
  readonly createdMs: number;
  /** Made for pods that ask for its vSwitch or security groups: others get nothing of it. */
  readonly dedicated: boolean;
}

function fromRow(row: SqlRow): Eni {
  return {
    id: String(row.id),
    mac: String(row.mac),
    kind: String(row.kind) as EniKind,
    state: String(row.state) as EniState,
    vswitchId: String(row.vswitch_id),
    securityGroups: JSON.parse(String(row.security_groups)) as string[],
    primary4: textOf(row.primary4),
    cidr4: textOf(row.cidr4),
    gateway4: textOf(row.gateway4),
    primary6: textOf(row.primary6),
    cidr6: textOf(row.cidr6),
    gateway6: textOf(row.gateway6),
    trunkId: textOf(row.trunk_id),
    vlanId: numberOf(row.vlan_id),
    routeSlot: Number(row.route_slot),
    ifname: textOf(row.ifname),
    ifindex: numberOf(row.ifindex),
    mtu: Number(row.mtu),
    preparedBoot: textOf(row.prepared_boot),
    idleSinceMs: numberOf(row.idle_since_ms),
    createdMs: Number(row.created_ms),
    dedicated: row.dedicated === 1,
  };
}

export function getEni(db: SqlHandle, id: string): Eni | undefined {
  const row = db.get("SELECT * FROM eni WHERE id = ?", [id]);
  return row && fromRow(row);
}

export function listEnis(db: SqlHandle): Eni[] {
  return db.all("SELECT * FROM eni ORDER BY route_slot").map(fromRow);
}

/** What the cloud says of an ENI, and when we first saw it. */
export type NewEni = Omit<
  Eni,
  "routeSlot" | "ifname" | "ifindex" | "preparedBoot" | "idleSinceMs" | "trunkId" | "vlanId" | "dedicated"
> & { readonly trunkId?: string | undefined; readonly vlanId?: number | undefined; readonly dedicated?: boolean };

/**
 * Adds the ENI under the lowest free route slot, or updates what the cloud says of it. State and MTU of one that is
 * known stay: the cloud does not know them; see {@link setEniState} and {@link setEniLink}. Inside a transaction.
 */
export function upsertEni(db: SqlHandle, eni: NewEni): void {
  db.run(
    `INSERT INTO eni(id, mac, kind, state, vswitch_id, security_groups, primary4, cidr4, gateway4, primary6, cidr6, gateway6,
                     trunk_id, vlan_id, route_slot, mtu, created_ms, dedicated)
     VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,
            (SELECT min(s) FROM (SELECT 1 AS s UNION SELECT route_slot + 1 FROM eni) WHERE s NOT IN (SELECT route_slot FROM eni)),
            ?,?,?)
     ON CONFLICT(id) DO UPDATE SET mac = excluded.mac, kind = excluded.kind, vswitch_id = excluded.vswitch_id,
       security_groups = excluded.security_groups, primary4 = excluded.primary4, cidr4 = excluded.cidr4, gateway4 = excluded.gateway4,
       primary6 = excluded.primary6, cidr6 = excluded.cidr6, gateway6 = excluded.gateway6,
       trunk_id = excluded.trunk_id, vlan_id = excluded.vlan_id,
       dedicated = excluded.dedicated`,
    [
      eni.id,
      eni.mac,
      eni.kind,
      eni.state,
      eni.vswitchId,
      JSON.stringify([...eni.securityGroups].sort()),
      eni.primary4 ?? null,
      eni.cidr4 ?? null,
      eni.gateway4 ?? null,
      eni.primary6 ?? null,
      eni.cidr6 ?? null,
      eni.gateway6 ?? null,
      eni.trunkId ?? null,
      eni.vlanId ?? null,
      eni.mtu,
      eni.createdMs,
      eni.dedicated ? 1 : 0,
    ],
  );
}

export function setEniState(db: SqlHandle, id: string, state: EniState): void {
  db.run("UPDATE eni SET state = ? WHERE id = ? AND state <> ?", [state, id, state]);
}

/** Since when no container has an address of the ENI; undefined: one has. */
export function setEniIdleSince(db: SqlHandle, id: string, idleSinceMs: number | undefined): void {
  db.run("UPDATE eni SET idle_since_ms = ? WHERE id = ?", [idleSinceMs ?? null, id]);
}

export interface EniLink {
  readonly ifname: string;
  readonly ifindex: number;
  readonly mtu: number;
  readonly preparedBoot: string;
}

/** The ENI's link is set up on the node. */
export function setEniLink(db: SqlHandle, id: string, link: EniLink): void {
  db.run("UPDATE eni SET ifname = ?, ifindex = ?, mtu = ?, prepared_boot = ? WHERE id = ?", [
    link.ifname,
    link.ifindex,
    link.mtu,
    link.preparedBoot,
    id,
  ]);
}

export type Detach =
  | { readonly kind: "detaching" | "unknown" }
  /** Containers have addresses of it, or some are reserved or cool down: in the vSwitch they would be somebody else's at once. */
  | { readonly kind: "in-use"; readonly addresses: readonly string[] };

/**
 * Takes the ENI and all its addresses out of service, if nobody holds one at this moment and none cools down. An ADD either got its address
 * before, or cannot get one of this ENI any more. Inside a transaction.
 */
export function beginDetach(db: SqlHandle, id: string, nowMs: number): Detach {
  const held = db.all(
    `SELECT address FROM address WHERE eni_id = ?
        AND (state IN ('allocated', 'reserved') OR (state = 'idle' AND cool_until_ms > ?)) ORDER BY address`,
    [id, nowMs],
  );
  if (held.length > 0) return { kind: "in-use", addresses: held.map((row) => String(row.address)) };
  if (db.run("UPDATE eni SET state = 'detaching' WHERE id = ?", [id]) === 0) return { kind: "unknown" };
  db.run("UPDATE address SET state = 'releasing', since_ms = ? WHERE eni_id = ? AND state = 'idle'", [nowMs, id]);
  return { kind: "detaching" };
}

/**
 * Forgets an ENI that is gone from the cloud. Its addresses go with it, except those that containers hold: then the ENI
 * stays too, as lost. Reservations stay in any case, and bind again should the address come back. Inside a transaction.
 */
export function removeEni(db: SqlHandle, id: string): "removed" | "lost" {
  db.run("DELETE FROM address WHERE eni_id = ? AND state <> 'allocated'", [id]);
  if (db.get("SELECT 1 AS held FROM address WHERE eni_id = ?", [id]) !== undefined) {
    setEniState(db, id, "lost");
    return "lost";
  }
  db.run("DELETE FROM eni WHERE id = ?", [id]);
  return "removed";
}
