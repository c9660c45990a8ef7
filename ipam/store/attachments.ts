/** Attachments: which interface of which container exists, what was built for it, and giving its addresses back. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { type Leased, leasesOf } from "./allocate.ts";
import { type AttachmentKey, keyParams } from "./key.ts";

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

function text(value: unknown): string | undefined {
  return value === null || value === undefined ? undefined : String(value);
}

function number(value: unknown): number | undefined {
  return value === null || value === undefined ? undefined : Number(value);
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

/** Writes or overwrites the attachment's row. Inside a transaction. */
export function putAttachment(db: SqlHandle, a: Attachment): void {
  db.run("INSERT OR REPLACE INTO attachment VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", [
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
  ]);
}

export function markReady(db: SqlHandle, key: AttachmentKey): void {
  db.run("UPDATE attachment SET state = 'ready' WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
}

/** Attachments of other containers that were made in the namespace with this identity. */
export function othersInNetns(db: SqlHandle, key: AttachmentKey, dev: number, ino: number): Attachment[] {
  return db
    .all("SELECT * FROM attachment WHERE netns_ino = ? AND netns_dev = ? AND container_id <> ?", [
      ino,
      dev,
      key.containerId,
    ])
    .map(fromRow);
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
 * Gives back what `key` holds and forgets the attachment. Inside a transaction; the unknown is success.
 *
 * @returns The addresses that came free.
 */
export function releaseAttachment(db: SqlHandle, key: AttachmentKey, nowMs: number, cooldownMs: number): Leased[] {
  const freed = leasesOf(db, key);
  if (freed.length > 0) {
    db.run(
      `UPDATE address SET network = NULL, container_id = NULL, ifname = NULL, slot = NULL, since_ms = ?1, cool_until_ms = ?2,
         state = CASE WHEN EXISTS (SELECT 1 FROM reservation r WHERE r.pool = address.pool AND r.address = address.address)
                 THEN 'reserved' ELSE 'idle' END
       WHERE network = ?3 AND container_id = ?4 AND ifname = ?5`,
      [nowMs, nowMs + cooldownMs, ...keyParams(key)],
    );
    // A local range has rows only for what is taken or cools down.
    db.run("DELETE FROM address WHERE pool <> 'eni' AND state = 'idle' AND cool_until_ms <= ?", [nowMs]);
  }
  db.run("DELETE FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
  db.run("DELETE FROM demand WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
  return freed;
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
