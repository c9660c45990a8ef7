/** Bringing the store in line with what the cloud says of this instance's ENIs. */

import { lastOf, parseCidr } from "../../shared/net/cidr.ts";
import { addToIp, formatIp } from "../../shared/net/ip.ts";
import type { CloudEni, CloudVSwitch } from "../cloud/cloud-api.ts";
import { forgetAddresses, syncAddresses } from "../store/addresses.ts";
import { listEnis, type NewEni, removeEni, setEniState, upsertEni } from "../store/enis.ts";
import { listIntents } from "../store/intents.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, journal, nowMs } from "./context.ts";
import { findEniLink, readLinks, setUpEni, waitForLink } from "./eni-node.ts";
import { TAG_CREATOR, TAG_NODE } from "./settings.ts";

const DEFAULT_MTU = 1500;
const vswitchCache = new Map<string, CloudVSwitch>();

/** CIDRs of a vSwitch do not change: asked once. */
export async function vswitchOf(ctx: Pick<AgentContext, "cloud">, id: string): Promise<CloudVSwitch> {
  const known = vswitchCache.get(id);
  if (known !== undefined) return known;
  const [found] = await ctx.cloud.describeVSwitches([id]);
  if (found === undefined) throw new Error(`vSwitch ${id} does not exist: correct vswitches in eni_conf`);
  vswitchCache.set(id, found);
  return found;
}

/** The gateway of a vSwitch is the last address but two. */
export function gatewayOf(cidr: string | undefined): string | undefined {
  const ip = cidr === undefined ? undefined : addToIp(lastOf(parseCidr(cidr)), -2);
  return ip && formatIp(ip);
}

/** ENIs of our pool on this instance; all others are foreign and never touched. */
export function isOurs(eni: CloudEni, instanceId: string): boolean {
  return eni.type === "Secondary" && eni.tags[TAG_CREATOR] === "terway" && eni.tags[TAG_NODE] === instanceId;
}

/** Puts one ENI into the store, as the cloud describes it. */
export async function adoptEni(ctx: AgentContext, eni: CloudEni, state: "attaching" | "ready"): Promise<void> {
  const vswitch = await vswitchOf(ctx, eni.vswitchId);
  const record: NewEni = {
    id: eni.id,
    mac: eni.mac,
    kind: "shared",
    state,
    vswitchId: eni.vswitchId,
    securityGroups: eni.securityGroups,
    primary4: eni.primary4,
    cidr4: vswitch.cidr4,
    gateway4: gatewayOf(vswitch.cidr4),
    primary6: undefined,
    cidr6: vswitch.cidr6,
    gateway6: gatewayOf(vswitch.cidr6),
    mtu: DEFAULT_MTU,
    createdMs: nowMs(),
  };
  const usable = [...eni.ips4.filter((ip) => ip !== eni.primary4), ...eni.ips6];
  inTransaction(ctx.store.db, () => {
    upsertEni(ctx.store.db, record);
    setEniState(ctx.store.db, eni.id, state);
    if (state === "ready") syncAddresses(ctx.store.db, eni.id, usable, nowMs());
  });
}

/** The link is there: routes and rules first, then its addresses may be handed out. */
export async function putIntoService(ctx: AgentContext, eni: CloudEni): Promise<boolean> {
  await adoptEni(ctx, eni, "attaching");
  const link = await waitForLink(eni.mac);
  const record = listEnis(ctx.store.db).find((e) => e.id === eni.id);
  if (link === undefined || record === undefined) {
    ctx.log(
      "error",
      `ENI ${eni.id} (${eni.mac}) is attached, but the node has no link with that MAC: it is given back`,
    );
    return false;
  }
  setUpEni(ctx, record, link);
  await adoptEni(ctx, eni, "ready");
  return true;
}

/**
 * Compares store and cloud. One describe call. On doubt nothing is released: an address that a container holds stays in
 * the store whatever the cloud says, and is only reported.
 */
export async function syncWithCloud(ctx: AgentContext): Promise<void> {
  const listed = (await ctx.cloud.describeInstanceEnis(ctx.self.instanceId)).filter((e) =>
    isOurs(e, ctx.self.instanceId),
  );
  const busy = new Set(listIntents(ctx.store.db).flatMap((i) => i.eniId ?? []));
  const links = readLinks();
  for (const eni of listed) {
    if (busy.has(eni.id) || eni.status !== "InUse") continue;
    const known = listEnis(ctx.store.db).find((e) => e.id === eni.id);
    if (known === undefined || known.state === "attaching" || known.state === "lost") {
      ctx.log("info", `ENI ${eni.id} is taken into service: the cloud says that it is attached`);
      await putIntoService(ctx, eni);
      continue;
    }
    reportDifferences(ctx, eni);
    const link = findEniLink(links, eni.mac);
    if (known.state === "ready" && link !== undefined && known.preparedBoot !== ctx.store.bootId)
      setUpEni(ctx, known, link);
  }
  const attached = new Set(listed.map((e) => e.id));
  for (const eni of listEnis(ctx.store.db)) {
    if (attached.has(eni.id) || busy.has(eni.id) || eni.kind !== "shared") continue;
    // The list is eventually consistent: only the answer about the one named object counts.
    const now = await ctx.cloud.describeEni(eni.id);
    if (now?.instanceId === ctx.self.instanceId) continue;
    const left = inTransaction(ctx.store.db, () => removeEni(ctx.store.db, eni.id));
    const what = `ENI ${eni.id} is not on this instance any more (${now === undefined ? "it does not exist" : now.status})`;
    ctx.log("warn", left === "lost" ? `${what}: its pods have no network` : what);
    journal(ctx, "sync", left === "lost" ? "ENI lost with pods on it" : "ok", what);
  }
}

function reportDifferences(ctx: AgentContext, eni: CloudEni): void {
  const usable = [...eni.ips4.filter((ip) => ip !== eni.primary4), ...eni.ips6];
  const { added, missing } = inTransaction(ctx.store.db, () => {
    const found = syncAddresses(ctx.store.db, eni.id, usable, nowMs());
    const free = found.missing.filter((a) => a.state !== "allocated");
    forgetAddresses(
      ctx.store.db,
      free.map((a) => a.address),
    );
    return found;
  });
  if (added.length > 0) ctx.log("info", `ENI ${eni.id} has addresses that were not known: ${added.join(" ")}`);
  for (const a of missing) {
    const held = a.state === "allocated";
    ctx.log(
      held ? "error" : "warn",
      `address ${a.address} is not on ENI ${eni.id} any more${held ? `: container ${a.containerId} has lost its network` : ""}`,
    );
    journal(ctx, "sync", held ? "address taken away while in use" : "ok", `${a.address} ${eni.id}`);
  }
}

/** ENIs that we made for this node and that are attached nowhere: left by an agent that died. */
export async function removeOrphans(ctx: AgentContext): Promise<void> {
  const mine = await ctx.cloud.findEnisByTags({ [TAG_CREATOR]: "terway", [TAG_NODE]: ctx.self.instanceId });
  const intents = listIntents(ctx.store.db);
  const known = new Set([...listEnis(ctx.store.db).map((e) => e.id), ...intents.flatMap((i) => i.eniId ?? [])]);
  // A create whose answer never came may have made one of these: that intent will find it by its token.
  if (intents.some((i) => i.kind === "create-eni")) return;
  for (const eni of mine) {
    if (eni.status !== "Available" || known.has(eni.id)) continue;
    ctx.log("warn", `ENI ${eni.id} of this node is attached nowhere and nobody waits for it: it is deleted`);
    await ctx.cloud.deleteEni(eni.id);
    journal(ctx, "delete-eni", "ok", `${eni.id} (orphan)`);
  }
}
