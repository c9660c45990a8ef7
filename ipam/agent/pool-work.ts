/** The pool at work: decisions by the keeper, carried out by the executor, told to the pods that wait. */
import type { PoolAction } from "../pool/decide.ts";
import type { Failure } from "../pool/inhibit.ts";
import { createPoolKeeper, type KeptDecision, type PoolView } from "../pool/keeper.ts";
import { listEnis } from "../store/enis.ts";
import { adoptEni, putIntoService, refuseOtherZone } from "./cloud-sync.ts";
import { type AgentContext, journal, nowMs, type PoolSpec } from "./context.ts";
import { createExecutor } from "./executor.ts";
import type { Looks } from "./looks.ts";
import { idleFor, readPool, type Waiting } from "./pool-state.ts";
import type { WakeSocket } from "./wake-socket.ts";

export interface PoolWork {
  /** Decides once. @returns When to decide again although nothing happened. */
  step(): number | undefined;
  /** Goes on with what a former agent left. */
  resume(): void;
  stop(): void;
}

export interface PoolStart {
  /** 0 to 1, different on every node. */
  readonly seed: number;
  /** The store knows this node's ENIs, and their links are here: looking at the cloud can wait. */
  readonly known: boolean;
  /** The instance type's limits were asked for at this start. */
  readonly limitsAsked: boolean;
}

/**
 * @param specOf What is in force now.
 * @param reports Whether the metrics are about this pool.
 */
export function createPoolWork(
  ctx: AgentContext,
  specOf: () => PoolSpec,
  looks: Looks,
  reports: boolean,
  wake: Pick<WakeSocket, "tell">,
  start: PoolStart,
): PoolWork {
  const keeper = createPoolKeeper(nowMs(), start.seed, start.known);
  if (start.limitsAsked) keeper.saw("limits", nowMs());
  looks.join(keeper);
  const executor = createExecutor(ctx, specOf().kind, {
    refuseOtherZone: (vswitchId) => refuseOtherZone(ctx, vswitchId),
    trunkId: () => listEnis(ctx.store.db).find((e) => e.kind === "trunk" && e.state === "ready")?.id,
    adopt: (eni) => adoptEni(ctx, eni, "attaching"),
    putIntoService: (eni) => putIntoService(ctx, eni),
    outcome,
  });

  function outcome(action: PoolAction, failure: Failure | undefined): number | undefined {
    const now = nowMs();
    const { enis } = readPool(ctx, specOf(), now).view;
    if (failure === undefined) {
      keeper.done(action, enis, now);
      return undefined;
    }
    keeper.failed(action, failure, enis, now, Math.random());
    const blocks = keeper.inhibitions();
    const eniId = action.kind === "create" ? undefined : action.eniId;
    const vswitchId = action.kind === "create" ? action.vswitchId : enis.find((e) => e.id === eniId)?.vswitchId;
    const concerned = [action.kind, "all", `eni:${eniId}`, `vswitch:${vswitchId}`].map(
      (key) => blocks[key]?.untilMs ?? 0,
    );
    return Math.max(...concerned);
  }

  /** As many as there are addresses, oldest first; all of them when there will be none. */
  function tellWaiters(waiting: Waiting, view: PoolView, decision: KeptDecision): void {
    const groups = [
      { demands: waiting.any, idle: idleFor(view.enis, {}), stuck: decision.stuck },
      ...waiting.constrained.map((g, i) => ({
        demands: g.demands,
        idle: idleFor(view.enis, g.only),
        stuck: decision.stuckConstrained[i],
      })),
    ];
    for (const { demands, idle, stuck } of groups) {
      for (const [i, d] of demands.entries()) {
        if (i < idle) wake.tell(d.waiter);
        else if (stuck !== undefined) wake.tell(d.waiter, stuck);
      }
      if (stuck !== undefined && demands.length > idle) ctx.log("warn", `pods wait for an address: ${stuck}`);
    }
  }

  function reportPool({ enis }: PoolView): void {
    const total = enis.reduce((n, e) => n + e.total, 0);
    const allocated = enis.reduce((n, e) => n + e.allocated, 0);
    ctx.metrics.observePool({
      total,
      allocated,
      available: total - allocated,
      enis: enis.length,
      attached: enis.filter((e) => e.state === "ready").length,
    });
  }

  return {
    step() {
      const now = nowMs();
      const { view, waiting } = readPool(ctx, specOf(), now);
      const decision = keeper.decide(view, now);
      for (const { what, reason } of decision.observe) looks.look(what, reason);
      for (const action of decision.actions) void executor.run(action);
      tellWaiters(waiting, view, decision);
      tellOperator(ctx, decision);
      if (reports) reportPool(view);
      return decision.againAtMs;
    },
    resume: () => void executor.resume(),
    stop: () => executor.stop(),
  };
}

/** Conditions are said once when they begin and once when they end; the end is no failure. */
export function tellOperator(
  ctx: Pick<AgentContext, "log" | "store">,
  { began, ended }: Pick<KeptDecision, "began" | "ended">,
): void {
  for (const { reason, message, about } of began) {
    ctx.log("warn", `${reason} began: ${message}`, { about });
    journal(ctx, "condition", `${reason} began`, message);
  }
  for (const { reason, message, about } of ended) {
    ctx.log("info", `${reason} ended: ${message}`, { about });
    journal(ctx, "condition", "ok", `${reason} ended: ${message}`);
  }
}
