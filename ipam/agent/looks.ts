/** Looks at the cloud for all pools of the instance: what one of them asks for, every one learns. */
import { CloudError } from "../cloud/cloud-api.ts";
import type { Observation } from "../pool/decide.ts";
import type { PoolKeeper, Seen } from "../pool/keeper.ts";
import { lookAtVSwitches, syncWithCloud } from "./cloud-sync.ts";
import { type AgentContext, isStoreLost, nowMs } from "./context.ts";

export interface Looks {
  /** The keeper is told of every look from now on. */
  join(keeper: Pick<PoolKeeper, "saw" | "sawNothing">): void;
  /** Nothing is done while such a look is under way. */
  look(what: Observation, reason: string): void;
}

export function createLooks(ctx: AgentContext): Looks {
  const keepers: Pick<PoolKeeper, "saw" | "sawNothing">[] = [];
  const looking = new Set<Observation>();

  async function ask(what: Observation): Promise<Seen> {
    switch (what) {
      case "enis":
        return { unsettled: await syncWithCloud(ctx) };
      case "vswitches":
        return { vswitches: await lookAtVSwitches(ctx, ctx.config.vswitchIds) };
      case "limits":
        ctx.relimit(await ctx.cloud.instanceLimits(ctx.self.instanceType));
        return {};
      default:
        return what satisfies never;
    }
  }

  async function look(what: Observation): Promise<void> {
    const askedMs = nowMs();
    try {
      const seen = await ask(what);
      for (const keeper of keepers) keeper.saw(what, askedMs, seen);
    } catch (error) {
      if (isStoreLost(error)) return ctx.storeLost(error);
      const { message } = error as Error;
      const retryAfterMs = error instanceof CloudError ? error.retryAfterMs : undefined;
      for (const keeper of keepers) keeper.sawNothing(what, nowMs(), retryAfterMs, message);
      ctx.log("warn", `looking at ${what} brought nothing: ${message}`);
    } finally {
      looking.delete(what);
      ctx.wake();
    }
  }

  return {
    join: (keeper) => void keepers.push(keeper),
    look(what, reason) {
      if (looking.has(what)) return;
      looking.add(what);
      ctx.log("info", `looking at ${what}: ${reason}`);
      void look(what);
    },
  };
}
