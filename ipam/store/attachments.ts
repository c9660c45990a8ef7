/** Attachments: which interface of which container exists, what was built for it, and giving its addresses back. */
import { SqlError, type SqlHandle, type SqlRow } from "../../shared/sys/sql.ts";
import { type Leased, leasedFrom } from "./allocate.ts";
import { type AttachmentKey, keyParams } from "./key.ts";
import { numberOf as number, textOf as text } from "./row.ts";

export interface Attachment extends AttachmentKey {
  readonly netns: string;
  /** Identity of the namespace: paths and names come again, these do not while it lives. */
  readonly netnsDev: number | undefined;
  readonly netnsIno: number | undefined;
  readonly podNamespace: string | undefined;
  readonly podName: string | undefined;
  readonly podUid: string | undefined;
  readonly plugin: string;
  readonly mode: string;
  readonly eniId: string | undefined;
  readonly hostIfname: string | undefined;
  /** JSON of the datapath's own type. */
  readonly datapath: string | undefined;
  readonly state: "building" | "ready";
  readonly createdMs: number;
  readonly at: number;
}

function fromRow(row: SqlRow): Attachment {
  return {
    network: String(row.network),
    containerId: String(row.container_id),
    ifname: String(row.ifname),
    netns: String(row.netns),
    netnsDev: number(row.netns_dev),
    netnsIno: number(row.netns_ino),
    podNamespace: text(row.pod_namespace),
    podName: text(row.pod_name),
    podUid: text(row.pod_uid),
    plugin: String(row.plugin),
    mode: String(row.mode),
    eniId: text(row.eni_id),
    hostIfname: text(row.host_ifname),
    datapath: text(row.datapath),
    state: row.state === "ready" ? "ready" : "building",
    createdMs: Number(row.created_ms),
    at: Number(row.at),
  };
}

export function getAttachment(db: SqlHandle, key: AttachmentKey): Attachment | undefined {
  const row = db.get("SELECT * FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
  return row && fromRow(row);
}

export function listAttachments(db: SqlHandle, network?: string): Attachment[] {
  const rows =
    network === undefined
      ? db.all("SELECT * FROM attachment ORDER BY at, container_id")
      : db.all("SELECT * FROM attachment WHERE network = ?", [network]);
  return rows.map(fromRow);
}

const SQLITE_CONSTRAINT = 19;

/**
 * Writes or overwrites the attachment's row. Inside a transaction.
 *
 * @throws {SqlError} SQLITE_CONSTRAINT when another attachment has this host interface name.
 */
export function putAttachment(db: SqlHandle, a: Attachment): void {
  try {
    insertAttachment(db, a);
  } catch (error) {
    // Rare (ADD again after one that was cut short), so it is not what the statement is prepared for. The same row has the
    // same host interface too: which of the two constraints SQLite names first is not ours to know.
    if (!(error instanceof SqlError) || error.primary !== SQLITE_CONSTRAINT) throw error;
    deleteAttachment(db, a);
    insertAttachment(db, a);
  }
}

function insertAttachment(db: SqlHandle, a: Attachment): void {
  db.run(
    `INSERT INTO attachment(network, container_id, ifname, netns, netns_dev, netns_ino, pod_namespace, pod_name, pod_uid,
                            plugin, mode, eni_id, host_ifname, datapath, state, created_ms, at)
     VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
    [
      ...keyParams(a),
      a.netns,
      a.netnsDev ?? null,
      a.netnsIno ?? null,
      a.podNamespace ?? null,
      a.podName ?? null,
      a.podUid ?? null,
      a.plugin,
      a.mode,
      a.eniId ?? null,
      a.hostIfname ?? null,
      a.datapath ?? null,
      a.state,
      a.createdMs,
      a.at,
    ],
  );
}

function deleteAttachment(db: SqlHandle, key: AttachmentKey): void {
  db.run("DELETE FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
}

/** @returns false: there is no such attachment, or no longer. */
export function markReady(db: SqlHandle, key: AttachmentKey): boolean {
  return (
    db.run(
      "UPDATE attachment SET state = 'ready' WHERE network = ? AND container_id = ? AND ifname = ?",
      keyParams(key),
    ) > 0
  );
}

/**
 * The addresses less those that are another attachment's: in a pool, or, of an IPAM plugin that keeps its own books, by what
 * was to be built for it. In a transaction nobody is given them while they are swept.
 */
export function lessOthers(db: SqlHandle, key: AttachmentKey, addresses: readonly string[]): string[] {
  return addresses.filter(
    (address) =>
      db.get(
        `SELECT 1 FROM (SELECT network, container_id, ifname FROM address WHERE address = ?4 AND container_id IS NOT NULL
                        UNION ALL SELECT network, container_id, ifname FROM attachment WHERE instr(datapath, ?5) > 0)
          WHERE NOT (network = ?1 AND container_id = ?2 AND ifname = ?3)`,
        // As JSON of a datapath has it, whatever it has beside.
        [...keyParams(key), address, `"address":${JSON.stringify(address)}`],
      ) === undefined,
  );
}

/** Attachments that were made in the namespace with this identity. */
export function attachmentsInNetns(db: SqlHandle, dev: number, ino: number): Attachment[] {
  return db.all("SELECT * FROM attachment WHERE netns_ino = ? AND netns_dev = ?", [ino, dev]).map(fromRow);
}

/** Who else has this name for its host interface. */
export function hostIfnameTaken(db: SqlHandle, name: string, key: AttachmentKey): boolean {
  const row = db.get("SELECT network, container_id, ifname FROM attachment WHERE host_ifname = ?", [name]);
  return (
    row !== undefined &&
    !(row.network === key.network && row.container_id === key.containerId && row.ifname === key.ifname)
  );
}

/**
 * Gives back what `key` holds and forgets the attachment. Inside a transaction; the unknown is success. An address that
 * is reserved goes back to its reservation, every other one cools down.
 *
 * @returns The addresses that came free, IPv4 first.
 */
export function releaseAttachment(db: SqlHandle, key: AttachmentKey, nowMs: number, cooldownMs: number): Leased[] {
  const rows = db.all(
    `SELECT pool, address, family, eni_id,
            EXISTS (SELECT 1 FROM reservation r WHERE r.pool = address.pool AND r.address = address.address) AS reserved
       FROM address WHERE network = ? AND container_id = ? AND ifname = ?`,
    keyParams(key),
  );
  for (const row of rows) {
    db.run(
      `UPDATE address SET network = NULL, container_id = NULL, ifname = NULL, slot = NULL, state = ?, since_ms = ?, cool_until_ms = ?
        WHERE pool = ? AND address = ?`,
      [row.reserved === 1 ? "reserved" : "idle", nowMs, nowMs + cooldownMs, row.pool ?? null, row.address ?? null],
    );
  }
  const local = rows.find((row) => row.pool !== "eni");
  if (local) {
    // A local range has rows only for what is taken or cools down.
    db.run(
      "DELETE FROM address WHERE pool = ? AND eni_id IS NULL AND family IN (4, 6) AND state = 'idle' AND cool_until_ms <= ?",
      [local.pool ?? null, nowMs],
    );
  }
  deleteAttachment(db, key);
  db.run("DELETE FROM demand WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
  return rows.map(leasedFrom).sort((a, b) => a.family - b.family);
}

/** Keys that hold addresses without an attachment row: IPAM alone, under another CNI. */
export function addressOwners(db: SqlHandle, network: string): (AttachmentKey & { readonly sinceMs: number })[] {
  return db
    .all(
      `SELECT network, container_id, ifname, max(since_ms) AS since FROM address
        WHERE network = ? GROUP BY network, container_id, ifname`,
      [network],
    )
    .map((row) => ({
      network: String(row.network),
      containerId: String(row.container_id),
      ifname: String(row.ifname),
      sinceMs: Number(row.since),
    }));
}
