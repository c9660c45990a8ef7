/** The trunk ENI of the instance: found, or made once. Members hang on it. */
import type { CloudEni } from "../cloud/cloud-api.ts";
import { listEnis } from "../store/enis.ts";
import { kindOf, putIntoService } from "./cloud-sync.ts";
import { type AgentContext, isStoreLost, journal } from "./context.ts";
import { TAG_CREATOR, TAG_NODE, TAG_POOL } from "./settings.ts";

const POLL_MS = 500;
const POLL_TRIES = 60;
const RETRY_MS = 5000;

/** Tries until there is one. @returns What ends it. */
export function keepTrunk(ctx: AgentContext): () => void {
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  const run = async () => {
    try {
      await ensureTrunk(ctx);
      ctx.wake();
    } catch (error) {
      if (stopped) return;
      if (isStoreLost(error)) return ctx.storeLost(error);
      ctx.log("error", `this node has no trunk ENI yet: ${(error as Error).message}`);
      timer = setTimeout(run, RETRY_MS * (1 + Math.random()));
    }
  };
  void run();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

/**
 * No intent is needed: the token is the same in every life of the agent, so a create that is repeated brings the same ENI,
 * and its tags find it afterwards.
 */
async function ensureTrunk(ctx: AgentContext): Promise<void> {
  if (listEnis(ctx.store.db).some((e) => e.kind === "trunk" && e.state === "ready")) return;
  const { cloud, self, config } = ctx;
  const tags = { [TAG_CREATOR]: "terway", [TAG_NODE]: self.instanceId };
  // Also one that somebody else attached: an instance has one trunk at most (CON-23).
  const there = (await cloud.describeInstanceEnis(self.instanceId)).find((e) => kindOf(e) === "trunk");
  const mine = there ?? (await cloud.findEnisByTags(tags)).find((e) => kindOf(e) === "trunk");
  const eni =
    mine ??
    (await cloud.createEni({
      type: "Trunk",
      vswitchId: config.vswitchIds[0] ?? "",
      securityGroups: config.securityGroups,
      count4: 0,
      count6: 0,
      tags: { ...config.eniTags, ...tags, [TAG_POOL]: "trunk" },
      name: `terway-trunk-${self.instanceId}`,
      clientToken: `terway-trunk-${self.instanceId}`,
    }));
  if (eni.status === "Available") await cloud.attachEni(eni.id, self.instanceId);
  const attached = await waitUntilInUse(ctx, eni.id);
  if (!(await putIntoService(ctx, attached))) throw new Error(`trunk ENI ${eni.id} has no link on the node`);
  journal(ctx, "trunk", "ok", eni.id);
}

async function waitUntilInUse(ctx: AgentContext, id: string): Promise<CloudEni> {
  for (let i = 0; i < POLL_TRIES; i++) {
    const eni = await ctx.cloud.describeEni(id);
    if (eni?.status === "InUse") return eni;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new Error(`ENI ${id} was not attached within ${(POLL_MS * POLL_TRIES) / 1000} s`);
}
