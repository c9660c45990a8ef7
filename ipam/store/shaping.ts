/** What was built to limit an attachment: so that DEL, CHECK and the agent know it when the conflist has changed. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { type AttachmentKey, keyParams } from "./key.ts";
import { textOf } from "./row.ts";

export interface ShapingRow extends AttachmentKey {
  readonly netns: string;
  readonly netnsDev: number;
  readonly netnsIno: number;
  readonly podNamespace: string | undefined;
  readonly podName: string | undefined;
  /** JSON of what runtime and conflist asked for; facts and profiles may change, these do not. */
  readonly explicit: string;
  /** JSON of what was built. */
  readonly plan: string;
  readonly createdMs: number;
}

function fromRow(row: SqlRow): ShapingRow {
  return {
    network: String(row.network),
    containerId: String(row.container_id),
    ifname: String(row.ifname),
    netns: String(row.netns),
    netnsDev: Number(row.netns_dev),
    netnsIno: Number(row.netns_ino),
    podNamespace: textOf(row.pod_namespace),
    podName: textOf(row.pod_name),
    explicit: String(row.explicit),
    plan: String(row.plan),
    createdMs: Number(row.created_ms),
  };
}

export function getShaping(db: SqlHandle, key: AttachmentKey): ShapingRow | undefined {
  const row = db.get("SELECT * FROM shaping WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
  return row && fromRow(row);
}

/** Of every network, or of one. */
export function listShaping(db: SqlHandle, network?: string): ShapingRow[] {
  const rows =
    network === undefined
      ? db.all("SELECT * FROM shaping ORDER BY network, container_id, ifname")
      : db.all("SELECT * FROM shaping WHERE network = ? ORDER BY container_id, ifname", [network]);
  return rows.map(fromRow);
}

/** Writes or overwrites. Inside a transaction, or as one statement by itself. */
export function putShaping(db: SqlHandle, s: ShapingRow): void {
  db.run(
    `INSERT OR REPLACE INTO shaping(network, container_id, ifname, netns, netns_dev, netns_ino, pod_namespace, pod_name,
                                    explicit, plan, created_ms) VALUES(?,?,?,?,?,?,?,?,?,?,?)`,
    [
      ...keyParams(s),
      s.netns,
      s.netnsDev,
      s.netnsIno,
      s.podNamespace ?? null,
      s.podName ?? null,
      s.explicit,
      s.plan,
      s.createdMs,
    ],
  );
}

/** Changes what is built, if the row is still that of the same namespace. @returns Whether it is. */
export function updateShapingPlan(db: SqlHandle, s: ShapingRow, plan: string): boolean {
  return (
    db.run(
      "UPDATE shaping SET plan = ? WHERE network = ? AND container_id = ? AND ifname = ? AND netns_ino = ? AND netns_dev = ?",
      [plan, ...keyParams(s), s.netnsIno, s.netnsDev],
    ) > 0
  );
}

/** @returns Whether there was a row. */
export function dropShaping(db: SqlHandle, key: AttachmentKey): boolean {
  return db.run("DELETE FROM shaping WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key)) > 0;
}
