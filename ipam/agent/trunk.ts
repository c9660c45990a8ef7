/** The trunk ENI of the instance: found, or made. Members hang on it. */
import { type CloudEni, CloudError } from "../cloud/cloud-api.ts";
import { listEnis } from "../store/enis.ts";
import { endsToken } from "./client-token.ts";
import { kindOf, putIntoService } from "./cloud-sync.ts";
import { type AgentContext, journal } from "./context.ts";
import { dropToken, tokenOf } from "./kept-tokens.ts";
import { keep } from "./loop.ts";
import { TAG_CREATOR, TAG_NODE, TAG_POOL } from "./settings.ts";

const POLL_MS = 500;
const POLL_TRIES = 60;
/** Looks into the store only. */
const LOOK_MS = 30_000;

/** Tries until there is one, and again when it is gone. @returns What ends it. */
export function keepTrunk(ctx: AgentContext): () => void {
  const pauseMs = () => LOOK_MS * (1 + Math.random());
  return keep(ctx, "this node has no trunk ENI", pauseMs, async () => {
    if (await ensureTrunk(ctx)) ctx.wake();
  }).stop;
}

/** @returns Whether it was put into service now; false when it was there. */
async function ensureTrunk(ctx: AgentContext): Promise<boolean> {
  if (listEnis(ctx.store.db).some((e) => e.kind === "trunk" && e.state === "ready")) return false;
  const { cloud, self } = ctx;
  const tags = { [TAG_CREATOR]: "terway", [TAG_NODE]: self.instanceId };
  // Also one that somebody else attached: an instance has one trunk at most (CON-23).
  const there = (await cloud.describeInstanceEnis(self.instanceId)).find((e) => kindOf(e) === "trunk");
  const mine =
    there ??
    // One that somebody attached to another instance is not ours any more, whatever its tags say.
    (await cloud.findEnisByTags(tags)).find(
      (e) => kindOf(e) === "trunk" && [undefined, self.instanceId].includes(e.instanceId),
    );
  const eni = mine ?? (await createTrunk(ctx, tags));
  try {
    if (eni.status === "Available") await cloud.attachEni(eni.id, self.instanceId);
    const attached = await waitUntilInUse(ctx, eni.id);
    if (!(await putIntoService(ctx, attached))) throw new Error(`trunk ENI ${eni.id} has no link on the node`);
  } catch (error) {
    if (error instanceof CloudError && error.class === "gone") dropToken(ctx.store, "trunk");
    throw error;
  }
  dropToken(ctx.store, "trunk");
  journal(ctx, "trunk", "ok", eni.id);
  return true;
}

/** In the first vSwitch that has an address left. */
async function createTrunk(ctx: AgentContext, tags: Readonly<Record<string, string>>): Promise<CloudEni> {
  const { cloud, config, self } = ctx;
  let full: unknown;
  for (const vswitchId of config.vswitchIds) {
    try {
      return await cloud.createEni({
        type: "Trunk",
        vswitchId,
        securityGroups: config.securityGroups,
        count4: 0,
        count6: 0,
        tags: { ...config.eniTags, ...tags, [TAG_POOL]: "trunk" },
        name: `terway-trunk-${self.instanceId}`,
        clientToken: tokenOf(ctx.store, "trunk"),
      });
    } catch (error) {
      if (!endsToken(error)) throw error;
      dropToken(ctx.store, "trunk"); // nothing was made
      if (!(error instanceof CloudError && error.class === "vswitch-full")) throw error;
      full = error;
    }
  }
  throw full ?? new Error("eni_conf names no vSwitch for it");
}

async function waitUntilInUse(ctx: AgentContext, id: string): Promise<CloudEni> {
  let eni: CloudEni | undefined;
  for (let i = 0; i < POLL_TRIES; i++) {
    eni = await ctx.cloud.describeEni(id);
    if (eni?.status === "InUse" && eni.instanceId === ctx.self.instanceId) return eni;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  if (eni === undefined) dropToken(ctx.store, "trunk"); // it is gone: the same token would bring it again
  throw new Error(`ENI ${id} was not attached within ${(POLL_MS * POLL_TRIES) / 1000} s`);
}
