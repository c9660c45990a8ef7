/** What the decision needs to know, read from the store. */
import type { PoolEni, PoolOperation, PoolState } from "../pool/decide.ts";
import { listAddresses } from "../store/addresses.ts";
import { listDemand } from "../store/demand.ts";
import { listEnis } from "../store/enis.ts";
import { listIntents } from "../store/intents.ts";
import { type AgentContext, nowMs } from "./context.ts";

export interface PoolMemory {
  surplusSinceMs: number | undefined;
  readonly unassignedAt: Map<string, number>;
}

export function readPoolState(ctx: AgentContext, memory: PoolMemory): PoolState {
  const now = nowMs();
  const { db } = ctx.store;
  const addresses = listAddresses(db).filter((a) => a.family === 4);
  const enis = listEnis(db)
    .filter((e) => e.kind === "shared")
    .map((e): PoolEni => {
      const own = addresses.filter((a) => a.eniId === e.id && a.state !== "releasing");
      const idle = own.filter((a) => a.state === "idle");
      return {
        id: e.id,
        state: e.state,
        vswitchId: e.vswitchId,
        total: own.length,
        allocated: own.filter((a) => a.state === "allocated").length,
        reserved: own.filter((a) => a.state === "reserved").length,
        idle: idle
          .filter((a) => a.coolUntilMs <= now)
          .sort((a, b) => a.sinceMs - b.sinceMs)
          .map((a) => a.address),
        cooling: idle.filter((a) => a.coolUntilMs > now).length,
        unassignedAtMs: memory.unassignedAt.get(e.id),
      };
    });
  const operations = listIntents(db).map((i): PoolOperation => {
    const payload = JSON.parse(i.payload) as { count?: number; addresses?: string[]; action?: { count?: number } };
    const kind =
      i.kind === "create-eni"
        ? "create"
        : i.kind === "assign"
          ? "assign"
          : i.kind === "unassign"
            ? "unassign"
            : "remove";
    return { kind, eniId: i.eniId, count: payload.count ?? payload.action?.count ?? payload.addresses?.length ?? 0 };
  });
  const idle = enis.filter((e) => e.state === "ready").reduce((n, e) => n + e.idle.length, 0);
  if (idle <= ctx.config.pool.minIdle) memory.surplusSinceMs = undefined;
  else memory.surplusSinceMs ??= now;
  return {
    config: ctx.config.pool,
    limits: {
      enis: Math.max(0, ctx.limits.enis - 1),
      perEni: Math.max(
        0,
        Math.min(
          ctx.limits.ipv4PerEni - 1,
          ctx.config.pool.dualStack ? ctx.limits.ipv6PerEni : Number.POSITIVE_INFINITY,
        ),
      ),
    },
    enis,
    waiters: listDemand(db, now).length,
    operations,
    vswitches: ctx.config.vswitchIds.map((id) => ({ id, available: undefined })),
    inhibitions: ctx.inhibitions,
    surplusSinceMs: memory.surplusSinceMs,
  };
}
