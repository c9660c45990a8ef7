/** How full the pools are: for messages, STATUS, metrics and the CLI. */
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { conditionOf, type EniConstraint } from "./eni-constraint.ts";
import type { EniState } from "./enis.ts";
import { numberOf, textOf } from "./row.ts";

export interface PoolCounts {
  readonly family: 4 | 6;
  /** Can be handed out now. */
  readonly idle: number;
  /** Free, but not handed out yet. */
  readonly cooling: number;
  readonly allocated: number;
  /** Kept for a pod that does not run now. */
  readonly reserved: number;
  /** On their way back to the vSwitch. */
  readonly releasing: number;
  /** Until the first cooling address is free; undefined when none cools. */
  readonly nextFreeInMs: number | undefined;
}

const STATES = `
  count(*) FILTER (WHERE a.state = 'idle' AND a.cool_until_ms <= ?1) AS idle,
  count(*) FILTER (WHERE a.state = 'idle' AND a.cool_until_ms > ?1) AS cooling,
  count(*) FILTER (WHERE a.state = 'allocated') AS allocated,
  count(*) FILTER (WHERE a.state = 'reserved') AS reserved,
  count(*) FILTER (WHERE a.state = 'releasing') AS releasing,
  min(a.cool_until_ms) FILTER (WHERE a.state = 'idle' AND a.cool_until_ms > ?1) AS next`;

function fromRow(row: SqlRow | undefined, family: 4 | 6, nowMs: number): PoolCounts {
  const next = numberOf(row?.next);
  return {
    family,
    idle: Number(row?.idle ?? 0),
    cooling: Number(row?.cooling ?? 0),
    allocated: Number(row?.allocated ?? 0),
    reserved: Number(row?.reserved ?? 0),
    releasing: Number(row?.releasing ?? 0),
    nextFreeInMs: next === undefined ? undefined : next - nowMs,
  };
}

/** Of the ENI pool, those addresses that `only` allows and whose ENI is in service; of a local pool, the rows there are. */
export function countsOf(db: SqlHandle, pool: string, family: 4 | 6, nowMs: number, only?: EniConstraint): PoolCounts {
  if (pool !== "eni") {
    const row = db.get(`SELECT ${STATES} FROM address a WHERE a.pool = ?2 AND a.family = ?3`, [nowMs, pool, family]);
    return fromRow(row, family, nowMs);
  }
  const eni = conditionOf(only);
  const row = db.get(
    `SELECT ${STATES} FROM address a JOIN eni e ON e.id = a.eni_id
      WHERE a.pool = 'eni' AND a.family = ?2 AND e.state = 'ready' AND ${eni.sql}`,
    [nowMs, family, ...eni.params],
  );
  return fromRow(row, family, nowMs);
}

/** The counts of every address that an ordinary pod could get. */
export function poolCounts(db: SqlHandle, pool: string, family: 4 | 6, nowMs: number): PoolCounts {
  return countsOf(db, pool, family, nowMs);
}

export interface PoolStatistics extends PoolCounts {
  readonly pool: string;
  readonly eniId: string | undefined;
  readonly eniState: EniState | undefined;
}

/** One row for each pool, ENI and family. */
export function poolStatistics(db: SqlHandle, nowMs: number): PoolStatistics[] {
  const rows = db.all(
    `SELECT a.pool, a.eni_id, a.family, e.state AS eni_state, ${STATES} FROM address a LEFT JOIN eni e ON e.id = a.eni_id
      GROUP BY a.pool, a.eni_id, a.family ORDER BY a.pool, e.route_slot, a.eni_id, a.family`,
    [nowMs],
  );
  return rows.map((row) => ({
    pool: String(row.pool),
    eniId: textOf(row.eni_id),
    eniState: textOf(row.eni_state) as EniState | undefined,
    ...fromRow(row, row.family === 6 ? 6 : 4, nowMs),
  }));
}

export interface StoreStatistics {
  readonly pools: readonly PoolStatistics[];
  readonly attachments: number;
  /** Attachments whose datapath was never finished: ADD runs, or was killed. */
  readonly building: number;
  readonly reservations: number;
  /** Pods that wait for an address now. */
  readonly waiting: number;
  readonly intents: number;
  /** Age of the oldest cloud call that is not known to have ended; undefined when there is none. */
  readonly oldestIntentMs: number | undefined;
  /** Of the newest journal row. */
  readonly journalId: number;
}

export function storeStatistics(db: SqlHandle, nowMs: number): StoreStatistics {
  const row = db.get(
    `SELECT (SELECT count(*) FROM attachment) AS attachments, (SELECT count(*) FROM attachment WHERE state = 'building') AS building,
            (SELECT count(*) FROM reservation) AS reservations, (SELECT count(*) FROM demand WHERE deadline_ms > ?1) AS waiting,
            (SELECT count(*) FROM intent) AS intents, (SELECT ?1 - min(since_ms) FROM intent) AS oldest,
            (SELECT max(id) FROM journal) AS journal`,
    [nowMs],
  );
  return {
    pools: poolStatistics(db, nowMs),
    attachments: Number(row?.attachments ?? 0),
    building: Number(row?.building ?? 0),
    reservations: Number(row?.reservations ?? 0),
    waiting: Number(row?.waiting ?? 0),
    intents: Number(row?.intents ?? 0),
    oldestIntentMs: numberOf(row?.oldest),
    journalId: Number(row?.journal ?? 0),
  };
}
