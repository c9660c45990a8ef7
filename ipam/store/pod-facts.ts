/** What plugins need to know of the node's pods, mirrored from the API server by the agent. */
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { textOf } from "./row.ts";

export interface PodFacts {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string | undefined;
  /** JSON whose type the agent and the plugins agree on; the store does not look inside. */
  readonly facts: string;
  /** Wall clock of the last change. */
  readonly at: number;
}

export function getPodFacts(db: SqlHandle, namespace: string, name: string): PodFacts | undefined {
  const row = db.get("SELECT uid, facts, at FROM pod_fact WHERE namespace = ? AND name = ?", [namespace, name]);
  return row && { namespace, name, uid: textOf(row.uid), facts: String(row.facts), at: Number(row.at) };
}

export function listPodFacts(db: SqlHandle): PodFacts[] {
  return db.all("SELECT * FROM pod_fact ORDER BY namespace, name").map((row) => ({
    namespace: String(row.namespace),
    name: String(row.name),
    uid: textOf(row.uid),
    facts: String(row.facts),
    at: Number(row.at),
  }));
}

/** Writes only what differs. @returns Whether it did. */
export function putPodFacts(db: SqlHandle, p: PodFacts): boolean {
  return (
    db.run(
      `INSERT INTO pod_fact(namespace, name, uid, facts, at) VALUES(?,?,?,?,?)
       ON CONFLICT(namespace, name) DO UPDATE SET uid = excluded.uid, facts = excluded.facts, at = excluded.at
         WHERE uid IS NOT excluded.uid OR facts <> excluded.facts`,
      [p.namespace, p.name, p.uid ?? null, p.facts, p.at],
    ) > 0
  );
}

/** With `uid`: only if the facts are still those of that pod, and not of its successor by the same name. */
export function dropPodFacts(db: SqlHandle, namespace: string, name: string, uid?: string): void {
  if (uid === undefined) db.run("DELETE FROM pod_fact WHERE namespace = ? AND name = ?", [namespace, name]);
  else db.run("DELETE FROM pod_fact WHERE namespace = ? AND name = ? AND uid IS ?", [namespace, name, uid]);
}
