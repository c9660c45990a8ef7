/** Bringing the store in line with what the cloud says of this instance's ENIs. */

import { familiesOf } from "../../shared/config/ip-stack.ts";
import { lastOf, parseCidr } from "../../shared/net/cidr.ts";
import { addToIp, formatIp } from "../../shared/net/ip.ts";
import { isDenied } from "../cloud/classify.ts";
import { type CloudEni, CloudError, type CloudVSwitch } from "../cloud/cloud-api.ts";
import type { EniNetwork } from "../cloud/metadata.ts";
import { SETTLE_MS } from "../pool/observe.ts";
import { forgetAddresses, syncAddresses } from "../store/addresses.ts";
import { type EniKind, getEni, listEnis, type NewEni, removeEni, setEniState, upsertEni } from "../store/enis.ts";
import { listIntents } from "../store/intents.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, journal, nowMs } from "./context.ts";
import { hasNodeSide, noteEniLink, setUpEni, waitForLink } from "./eni-node.ts";
import { holdRouted, readRoutedAddresses } from "./kernel-leases.ts";
import { TAG_CREATOR, TAG_DEDICATED, TAG_NODE, TAG_POOL } from "./settings.ts";

const DEFAULT_MTU = 1500;
const vswitchCache = new Map<string, { readonly vswitch: CloudVSwitch; readonly atMs: number }>();

/** What does not change of a vSwitch, or hardly: CIDRs and route table (CFG-58). */
export async function vswitchOf(ctx: Pick<AgentContext, "cloud" | "config">, id: string): Promise<CloudVSwitch> {
  const known = vswitchCache.get(id);
  if (known !== undefined && nowMs() - known.atMs < ctx.config.vswitchCacheTtlMs) return known.vswitch;
  const [found] = await lookAtVSwitches(ctx, [id]);
  if (found === undefined)
    throw new CloudError({
      action: "DescribeVSwitches",
      code: "InvalidVSwitchId.NotFound",
      class: "config",
      requestId: "",
      message: `vSwitch ${id} does not exist: correct vswitches in eni_conf`,
      retryAfterMs: undefined,
    });
  return found;
}

/** Asks the cloud, and remembers. */
export async function lookAtVSwitches(
  ctx: Pick<AgentContext, "cloud">,
  ids: readonly string[],
): Promise<readonly CloudVSwitch[]> {
  const found = await ctx.cloud.describeVSwitches(ids);
  for (const vswitch of found) vswitchCache.set(vswitch.id, { vswitch, atMs: nowMs() });
  return found;
}

/** @returns undefined: the right to ask is missing, which is told. @throws {CloudError} on any other refusal. */
async function vswitchIfAllowed(
  ctx: Pick<AgentContext, "cloud" | "config" | "log">,
  id: string,
): Promise<CloudVSwitch | undefined> {
  try {
    return await vswitchOf(ctx, id);
  } catch (error) {
    if (!(error instanceof CloudError && isDenied(error))) throw error;
    ctx.log(
      "warn",
      "the RAM action vpc:DescribeVSwitches is not allowed: vSwitches are taken to be of this node's zone and to have addresses left, and networks of ENIs are read from the metadata service",
    );
    return undefined;
  }
}

/**
 * The network of an ENI, without which the node cannot send by it. Where the cloud may not be asked, it is that of another
 * ENI in the same vSwitch, or what the guest is told of this one once it is attached.
 *
 * @returns undefined: not known before it is attached. @throws {CloudError}
 */
export async function networkOf(
  ctx: Pick<AgentContext, "cloud" | "config" | "store" | "log" | "toldNetwork">,
  { mac, vswitchId }: Pick<CloudEni, "mac" | "vswitchId">,
  attached: boolean,
): Promise<EniNetwork | undefined> {
  const families = familiesOf(ctx.config.ipStack);
  const isWhole = (n: EniNetwork) => families.every((family) => (family === 4 ? n.cidr4 : n.cidr6) !== undefined);
  const asked = await vswitchIfAllowed(ctx, vswitchId);
  if (asked !== undefined) return asked;
  const known = listEnis(ctx.store.db).find((e) => e.vswitchId === vswitchId && isWhole(e));
  if (known !== undefined || !attached) return known;
  const told = await ctx.toldNetwork(mac);
  if (told !== undefined) return told;
  throw new CloudError({
    action: "DescribeVSwitches",
    code: "Forbidden",
    class: "auth",
    requestId: "",
    message: `the network of vSwitch ${vswitchId} is not known, and the metadata service has none of ${mac}: allow vpc:DescribeVSwitches`,
    retryAfterMs: undefined,
  });
}

/**
 * An ENI can be made in any vSwitch, and only one of the node's zone can be attached: the cloud refuses another one itself,
 * but only after the ENI was made. @throws {CloudError}
 */
export async function refuseOtherZone(
  ctx: Pick<AgentContext, "cloud" | "config" | "self" | "log">,
  id: string,
): Promise<void> {
  const zone = (await vswitchIfAllowed(ctx, id))?.zone ?? "";
  if (zone === "" || zone === ctx.self.zone) return;
  throw new CloudError({
    action: "CreateNetworkInterface",
    code: "InvalidVSwitchId.OtherZone",
    class: "config",
    requestId: "",
    message: `vSwitch ${id} is in zone ${zone}, this node in ${ctx.self.zone}: list it in eni_conf under its own zone`,
    retryAfterMs: undefined,
  });
}

/** The gateway of a vSwitch is the last address but two. */
export function gatewayOf(cidr: string | undefined): string | undefined {
  const ip = cidr === undefined ? undefined : addToIp(lastOf(parseCidr(cidr)), -2);
  return ip && formatIp(ip);
}

/** ENIs of our pool on this instance; all others are foreign and never touched. */
export function isOurs(eni: CloudEni, instanceId: string): boolean {
  return eni.type !== "Primary" && eni.tags[TAG_CREATOR] === "terway" && eni.tags[TAG_NODE] === instanceId;
}

/** What the ENI is to us. */
export function kindOf(eni: Pick<CloudEni, "type" | "tags">): EniKind {
  if (eni.type === "Trunk") return "trunk";
  const pool = eni.tags[TAG_POOL];
  return eni.type === "Member" || pool === "member" ? "member" : pool === "exclusive" ? "exclusive" : "shared";
}

/** What pods can have of it: of a shared ENI all but its primary address, of one for a pod alone that, of a trunk nothing. */
function usableOf(eni: CloudEni): string[] {
  const kind = kindOf(eni);
  if (kind === "trunk") return [];
  const four = eni.ips4.filter((ip) => (ip === eni.primary4) === (kind !== "shared"));
  return [...four, ...(kind === "shared" ? eni.ips6 : eni.ips6.slice(0, 1))];
}

/** Puts one ENI into the store, as the cloud describes it. */
export async function adoptEni(ctx: AgentContext, eni: CloudEni, state: "attaching" | "ready"): Promise<void> {
  const network = await networkOf(ctx, eni, eni.status === "InUse");
  const record: NewEni = {
    id: eni.id,
    mac: eni.mac,
    kind: kindOf(eni),
    state,
    vswitchId: eni.vswitchId,
    securityGroups: eni.securityGroups,
    primary4: eni.primary4,
    cidr4: network?.cidr4,
    gateway4: gatewayOf(network?.cidr4),
    primary6: undefined,
    cidr6: network?.cidr6,
    gateway6: gatewayOf(network?.cidr6),
    mtu: DEFAULT_MTU,
    trunkId: eni.trunkEniId,
    vlanId: eni.vlanId,
    createdMs: nowMs(),
    dedicated: eni.tags[TAG_DEDICATED] === "true",
  };
  const { db } = ctx.store;
  const routed = state === "ready" ? readRoutedAddresses() : new Map<string, string>();
  const held = inTransaction(db, () => {
    upsertEni(db, record);
    setEniState(db, eni.id, state);
    if (state !== "ready") return [];
    const { added } = syncAddresses(db, eni.id, usableOf(eni), nowMs());
    return holdRouted(db, eni.id, added, routed, nowMs());
  });
  if (held.length > 0)
    ctx.log(
      "warn",
      `${held.join(" ")} of ENI ${eni.id}: pods have these, and the store did not know; they are kept for them`,
    );
}

/** The link is there: routes and rules first, then its addresses may be handed out. */
export async function putIntoService(ctx: AgentContext, eni: CloudEni): Promise<boolean> {
  await adoptEni(ctx, eni, "attaching");
  if (kindOf(eni) === "member") return takeMember(ctx, eni);
  const link = await waitForLink(eni.mac);
  const record = getEni(ctx.store.db, eni.id);
  if (link === undefined || record === undefined) {
    ctx.log(
      "error",
      `ENI ${eni.id} (${eni.mac}) is attached, but the node has no link with that MAC: it is given back`,
    );
    return false;
  }
  if (hasNodeSide(record)) setUpEni(ctx, record, link);
  else noteEniLink(ctx, record, link);
  await adoptEni(ctx, eni, "ready");
  return true;
}

/** A member has no link of its own on the node: its VLAN id and its trunk are all. */
async function takeMember(ctx: AgentContext, eni: CloudEni): Promise<boolean> {
  if (eni.vlanId === undefined || eni.vlanId < 1 || eni.vlanId > 4094) {
    ctx.log("error", `member ENI ${eni.id} has VLAN id ${eni.vlanId ?? "none"}, want 1 to 4094: it is given back`);
    return false;
  }
  await adoptEni(ctx, eni, "ready");
  return true;
}

/**
 * Compares store and cloud. One describe call. On doubt nothing is released: an address that a container holds stays in
 * the store whatever the cloud says, and is only reported. An ENI that changed while the cloud was asked is left alone:
 * the answer may be of before, and what it lists be somebody else's by now.
 *
 * @returns ENIs of which this look says nothing: they changed a moment ago, or are on their way.
 */
export async function syncWithCloud(ctx: AgentContext): Promise<ReadonlySet<string>> {
  const { store } = ctx;
  const askedMs = nowMs();
  const before = listIntents(store.db);
  const mine = (await ctx.cloud.findEnisByTags({ [TAG_CREATOR]: "terway", [TAG_NODE]: ctx.self.instanceId })).filter(
    (e) => isOurs(e, ctx.self.instanceId),
  );
  /** Looked at anew before every step: others go on while this one waits. */
  const isSettled = (eniId: string) =>
    ![...before, ...listIntents(store.db)].some((i) => i.eniId === eniId) &&
    (ctx.lately.changed.get(eniId) ?? Number.NEGATIVE_INFINITY) < askedMs - SETTLE_MS;
  /** A create whose answer is not here yet may have made any of those that are not known. */
  const creating = () => [...before, ...listIntents(store.db)].some((i) => i.kind === "create-eni");

  const unsettled = new Set<string>();

  const attached = mine.filter((e) => e.instanceId === ctx.self.instanceId);
  for (const eni of attached) {
    if (eni.status !== "InUse" || !isSettled(eni.id)) {
      unsettled.add(eni.id);
      continue;
    }
    const known = getEni(store.db, eni.id);
    if (known === undefined && creating()) continue;
    if (known === undefined || known.state === "attaching" || known.state === "lost") {
      ctx.log("info", `ENI ${eni.id} is taken into service: the cloud says that it is attached`);
      await putIntoService(ctx, eni);
    } else {
      reportDifferences(ctx, eni);
    }
  }
  const listed = new Set(attached.map((e) => e.id));
  for (const eni of listEnis(store.db)) {
    if (listed.has(eni.id) || eni.kind === "primary") continue;
    // The list is eventually consistent: only the answer about the one named object counts.
    const now = isSettled(eni.id) ? await ctx.cloud.describeEni(eni.id) : undefined;
    if (!isSettled(eni.id)) {
      unsettled.add(eni.id);
      continue;
    }
    if (now?.instanceId === ctx.self.instanceId) continue;
    const left = inTransaction(store.db, () => removeEni(store.db, eni.id));
    const what = `ENI ${eni.id} is not on this instance any more (${now === undefined ? "it does not exist" : now.status})`;
    ctx.log("warn", left === "lost" ? `${what}: its pods have no network` : what);
    journal(ctx, "sync", left === "lost" ? "ENI lost with pods on it" : "ok", what);
  }
  await removeOrphans(
    ctx,
    creating()
      ? []
      : mine.filter(
          (e) => e.type !== "Trunk" && e.status === "Available" && isSettled(e.id) && !getEni(store.db, e.id),
        ),
  );
  return unsettled;
}

function reportDifferences(ctx: AgentContext, eni: CloudEni): void {
  const routed = readRoutedAddresses();
  const { added, missing } = inTransaction(ctx.store.db, () => {
    const found = syncAddresses(ctx.store.db, eni.id, usableOf(eni), nowMs());
    holdRouted(ctx.store.db, eni.id, found.added, routed, nowMs());
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

/** ENIs that we made for this node, that are attached nowhere and nobody waits for: left by an agent that died. */
async function removeOrphans(ctx: AgentContext, orphans: readonly CloudEni[]): Promise<void> {
  const since = ctx.lately.orphaned;
  for (const id of since.keys()) if (!orphans.some((e) => e.id === id)) since.delete(id);
  for (const { id } of orphans) {
    const seenMs = since.get(id) ?? nowMs();
    since.set(id, seenMs);
    if (nowMs() - seenMs < ctx.config.orphanTtlMs) continue;
    ctx.log("warn", `ENI ${id} of this node is attached nowhere and nobody waits for it: it is deleted`);
    await ctx.cloud.deleteEni(id);
    since.delete(id);
    journal(ctx, "delete-eni", "ok", `${id} (orphan)`);
  }
}
