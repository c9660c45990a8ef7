/** ENIs and their addresses, as the agent keeps them. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";

export type EniState = "attaching" | "ready" | "draining" | "detaching" | "deleting" | "lost";
export type EniKind = "primary" | "shared" | "exclusive" | "trunk" | "member";

export interface Eni {
  readonly id: string;
  readonly mac: string;
  readonly kind: EniKind;
  readonly state: EniState;
  readonly vswitchId: string;
  readonly securityGroups: readonly string[];
  readonly primary4: string | undefined;
  readonly cidr4: string | undefined;
  readonly gateway4: string | undefined;
  readonly primary6: string | undefined;
  readonly cidr6: string | undefined;
  readonly gateway6: string | undefined;
  readonly routeSlot: number;
  readonly ifname: string | undefined;
  readonly ifindex: number | undefined;
  readonly mtu: number;
  readonly preparedBoot: string | undefined;
  readonly idleSinceMs: number | undefined;
  readonly createdMs: number;
}

const optional = (value: unknown) => (value === null || value === undefined ? undefined : String(value));
const optionalNumber = (value: unknown) => (value === null || value === undefined ? undefined : Number(value));

function fromRow(row: SqlRow): Eni {
  return {
    id: String(row.id),
    mac: String(row.mac),
    kind: String(row.kind) as EniKind,
    state: String(row.state) as EniState,
    vswitchId: String(row.vswitch_id),
    securityGroups: JSON.parse(String(row.security_groups)) as string[],
    primary4: optional(row.primary4),
    cidr4: optional(row.cidr4),
    gateway4: optional(row.gateway4),
    primary6: optional(row.primary6),
    cidr6: optional(row.cidr6),
    gateway6: optional(row.gateway6),
    routeSlot: Number(row.route_slot),
    ifname: optional(row.ifname),
    ifindex: optionalNumber(row.ifindex),
    mtu: Number(row.mtu),
    preparedBoot: optional(row.prepared_boot),
    idleSinceMs: optionalNumber(row.idle_since_ms),
    createdMs: Number(row.created_ms),
  };
}

export function getEni(db: SqlHandle, id: string): Eni | undefined {
  const row = db.get("SELECT * FROM eni WHERE id = ?", [id]);
  return row && fromRow(row);
}

export function listEnis(db: SqlHandle): Eni[] {
  return db.all("SELECT * FROM eni ORDER BY route_slot").map(fromRow);
}

export type NewEni = Omit<Eni, "routeSlot" | "ifname" | "ifindex" | "preparedBoot" | "idleSinceMs">;

/** Adds the ENI under the lowest free route slot, or updates what the cloud says of it. Inside a transaction. */
export function upsertEni(db: SqlHandle, eni: NewEni): void {
  const known = db.get("SELECT route_slot FROM eni WHERE id = ?", [eni.id]);
  const slot =
    known?.route_slot ??
    db.get(
      "SELECT min(s) AS slot FROM (SELECT 1 AS s UNION SELECT route_slot + 1 FROM eni) WHERE s NOT IN (SELECT route_slot FROM eni)",
    )?.slot ??
    1;
  db.run(
    `INSERT INTO eni(id, mac, kind, state, vswitch_id, security_groups, primary4, cidr4, gateway4, primary6, cidr6, gateway6, route_slot, mtu, created_ms)
     VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
     ON CONFLICT(id) DO UPDATE SET mac = excluded.mac, kind = excluded.kind, state = excluded.state, vswitch_id = excluded.vswitch_id,
       security_groups = excluded.security_groups, primary4 = excluded.primary4, cidr4 = excluded.cidr4, gateway4 = excluded.gateway4,
       primary6 = excluded.primary6, cidr6 = excluded.cidr6, gateway6 = excluded.gateway6, mtu = excluded.mtu`,
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
      Number(slot),
      eni.mtu,
      eni.createdMs,
    ],
  );
}

export function setEniState(db: SqlHandle, id: string, state: EniState): void {
  db.run("UPDATE eni SET state = ? WHERE id = ? AND state <> ?", [state, id, state]);
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

/** Forgets an ENI that is gone from the cloud. Its idle addresses go with it; one with pods on it stays, as lost. */
export function removeEni(db: SqlHandle, id: string): "removed" | "lost" {
  db.run("DELETE FROM address WHERE eni_id = ? AND state <> 'allocated'", [id]);
  if (db.get("SELECT 1 FROM address WHERE eni_id = ?", [id]) !== undefined) {
    setEniState(db, id, "lost");
    return "lost";
  }
  db.run("DELETE FROM eni WHERE id = ?", [id]);
  return "removed";
}

export interface EniAddress {
  readonly address: string;
  readonly family: 4 | 6;
  readonly eniId: string;
  readonly state: "idle" | "allocated" | "reserved" | "releasing";
  readonly containerId: string | undefined;
  readonly coolUntilMs: number;
  readonly sinceMs: number;
}

export function listAddresses(db: SqlHandle): EniAddress[] {
  return db.all("SELECT * FROM address WHERE pool = 'eni' ORDER BY eni_id, family, address").map((row) => ({
    address: String(row.address),
    family: row.family === 6 ? 6 : 4,
    eniId: String(row.eni_id),
    state: String(row.state) as EniAddress["state"],
    containerId: optional(row.container_id),
    coolUntilMs: Number(row.cool_until_ms),
    sinceMs: Number(row.since_ms),
  }));
}

/** Adds an address that the cloud assigned. One that is known keeps its state. Inside a transaction. */
export function addAddress(db: SqlHandle, eniId: string, address: string, nowMs: number): boolean {
  return (
    db.run(
      `INSERT INTO address(pool, address, family, eni_id, state, since_ms) VALUES('eni', ?, ?, ?, 'idle', ?)
       ON CONFLICT(pool, address) DO UPDATE SET eni_id = excluded.eni_id, state = CASE WHEN state = 'releasing' THEN 'idle' ELSE state END
         WHERE eni_id <> excluded.eni_id OR state = 'releasing'`,
      [address, address.includes(":") ? 6 : 4, eniId, nowMs],
    ) > 0
  );
}

/**
 * Marks idle addresses as on their way back to the vSwitch. In one transaction with the look at their state, so that an
 * ADD either got the address before or cannot get it any more.
 *
 * @returns Those that were idle and are ours to give back now.
 */
export function markReleasing(db: SqlHandle, addresses: readonly string[], nowMs: number): string[] {
  return addresses.filter(
    (address) =>
      db.run(
        "UPDATE address SET state = 'releasing', since_ms = ? WHERE pool = 'eni' AND address = ? AND state = 'idle'",
        [nowMs, address],
      ) > 0,
  );
}

/** The release did not happen: they may be handed out again. */
export function unmarkReleasing(db: SqlHandle, addresses: readonly string[]): void {
  for (const address of addresses)
    db.run("UPDATE address SET state = 'idle' WHERE pool = 'eni' AND address = ? AND state = 'releasing'", [address]);
}

/** Forgets addresses that the cloud took back; never one that a container holds. */
export function forgetAddresses(db: SqlHandle, addresses: readonly string[]): void {
  for (const address of addresses)
    db.run("DELETE FROM address WHERE pool = 'eni' AND address = ? AND state <> 'allocated'", [address]);
}

/** Claims an address for a container that is known to live (rebuilding a lost store). Inside a transaction. */
export function adoptAddress(
  db: SqlHandle,
  eniId: string,
  address: string,
  key: { network: string; containerId: string; ifname: string },
  slot: number,
  nowMs: number,
): void {
  db.run(
    `INSERT INTO address(pool, address, family, eni_id, state, network, container_id, ifname, slot, since_ms) VALUES('eni',?,?,?,'allocated',?,?,?,?,?)
     ON CONFLICT(pool, address) DO NOTHING`,
    [address, address.includes(":") ? 6 : 4, eniId, key.network, key.containerId, key.ifname, slot, nowMs],
  );
}
