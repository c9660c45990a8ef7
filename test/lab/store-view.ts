/** Looks into a node's store from tests and the demo, without opening it for writing. */
import { openNodeSql } from "../../shared/sys/node.ts";

export interface PoolView {
  readonly idle: number;
  readonly cooling: number;
  readonly allocated: number;
  readonly enis: number;
  readonly attachments: number;
  readonly intents: number;
}

export function poolView(storePath: string, nowMs: number): PoolView {
  const db = openNodeSql(storePath);
  try {
    const n = (sql: string, params: readonly number[] = []) => Number(db.get(sql, params)?.n ?? 0);
    return {
      idle: n(
        "SELECT count(*) AS n FROM address a JOIN eni e ON e.id = a.eni_id WHERE a.state = 'idle' AND a.family = 4 AND a.cool_until_ms <= ? AND e.state = 'ready'",
        [nowMs],
      ),
      cooling: n("SELECT count(*) AS n FROM address WHERE state = 'idle' AND family = 4 AND cool_until_ms > ?", [
        nowMs,
      ]),
      allocated: n("SELECT count(*) AS n FROM address WHERE state = 'allocated' AND family = 4"),
      enis: n("SELECT count(*) AS n FROM eni WHERE state = 'ready'"),
      attachments: n("SELECT count(*) AS n FROM attachment"),
      intents: n("SELECT count(*) AS n FROM intent"),
    };
  } finally {
    db.close();
  }
}
