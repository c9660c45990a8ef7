/** VPC mode: one entry of the VPC's route table sends this node's pod range to this instance. */
import { randomUUID } from "node:crypto";
import { CloudError } from "../cloud/cloud-api.ts";
import { dropIntent, putIntent } from "../store/intents.ts";
import { inTransaction } from "../store/transaction.ts";
import { vswitchOf } from "./cloud-sync.ts";
import { type AgentContext, journal, nowMs, wallMs } from "./context.ts";
import { keep } from "./loop.ts";

const ROUTES_EVERY_MS = 900_000;

/** At start, and now and then. @returns What ends it. */
export function keepVpcRoutes(ctx: AgentContext, podCidrs: readonly string[]): () => void {
  const pauseMs = () => ROUTES_EVERY_MS * (0.85 + 0.3 * Math.random());
  return keep(ctx, "the VPC's route to this node's pods", pauseMs, () => ensureVpcRoutes(ctx, podCidrs)).stop;
}

/** Adds the entries that are missing. An entry that sends the range elsewhere is never taken away, only reported. */
async function ensureVpcRoutes(ctx: AgentContext, podCidrs: readonly string[]): Promise<void> {
  const { routeTableId } = await vswitchOf(ctx, ctx.config.vswitchIds[0] ?? "");
  if (routeTableId === undefined) throw new Error(`vSwitch ${ctx.config.vswitchIds[0]} has no route table`);
  for (let tries = 0; tries < 30; tries++) {
    const routes = await ctx.cloud.listRoutes(routeTableId);
    const missing = podCidrs.filter((cidr) => !routes.some((r) => r.destination === cidr));
    for (const r of routes) {
      if (podCidrs.includes(r.destination) && !r.nextHopIds.includes(ctx.self.instanceId)) {
        ctx.log(
          "error",
          `the VPC routes ${r.destination} to ${r.nextHopIds.join(" ")}, not to this instance ${ctx.self.instanceId}: pods of this node cannot be reached until that entry (${r.id}) is removed`,
        );
      }
    }
    if (missing.length === 0) return;
    if (!(await addRoute(ctx, routeTableId, missing[0] ?? "")))
      await new Promise((resolve) => setTimeout(resolve, 200 + 300 * Math.random()));
  }
  throw new Error(`no route entry for ${podCidrs.join(" ")} could be added to ${routeTableId}`);
}

/** @returns false when another change of the table is under way. */
async function addRoute(ctx: AgentContext, routeTableId: string, cidr: string): Promise<boolean> {
  const id = randomUUID();
  putIntent(
    ctx.store.db,
    {
      id,
      kind: "create-route",
      eniId: undefined,
      clientToken: id,
      payload: JSON.stringify({ routeTableId, cidr }),
      step: "asked",
      sinceMs: nowMs(),
    },
    wallMs(),
  );
  try {
    await ctx.cloud.createRoute(routeTableId, cidr, ctx.self.instanceId, id);
    journal(ctx, "create-route", "ok", `${cidr} to ${ctx.self.instanceId}`);
    return true;
  } catch (error) {
    // Throttling is no conflict: every further call makes it worse for all nodes of the account.
    if (error instanceof CloudError && (error.class === "conflict" || error.class === "retry")) return false;
    throw error;
  } finally {
    inTransaction(ctx.store.db, () => dropIntent(ctx.store.db, id));
  }
}
