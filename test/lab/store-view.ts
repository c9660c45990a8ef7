/** Looks into a node's store from tests and the demo, without opening it for writing. */
import { familiesOf, type IpStack } from "../../shared/config/ip-stack.ts";
import { openNodeSql } from "../../shared/sys/node.ts";

/** Of the family that the node's pool counts by: IPv4 where pods have IPv4. */
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
    const stack = db.get("SELECT value FROM fact WHERE name = 'ip_stack'")?.value ?? "ipv4";
    const [lead = 4] = familiesOf(stack as IpStack);
    const n = (sql: string, params: readonly number[] = []) => Number(db.get(sql, params)?.n ?? 0);
    return {
      idle: n(
        "SELECT count(*) AS n FROM address a JOIN eni e ON e.id = a.eni_id WHERE a.state = 'idle' AND a.family = ? AND a.cool_until_ms <= ? AND e.state = 'ready'",
        [lead, nowMs],
      ),
      cooling: n("SELECT count(*) AS n FROM address WHERE state = 'idle' AND family = ? AND cool_until_ms > ?", [
        lead,
        nowMs,
      ]),
      allocated: n("SELECT count(*) AS n FROM address WHERE state = 'allocated' AND family = ?", [lead]),
      enis: n("SELECT count(*) AS n FROM eni WHERE state = 'ready'"),
      attachments: n("SELECT count(*) AS n FROM attachment"),
      intents: n("SELECT count(*) AS n FROM intent"),
    };
  } finally {
    db.close();
  }
}
