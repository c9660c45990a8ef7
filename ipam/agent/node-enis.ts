/**
 * ENIs of the node itself, as a MultiENIConfig says: made, attached and tagged, with routes by destination; taken away
 * again when it says so no more. They are none of the pools': pods get nothing of them.
 */

import { findEniLink } from "../../shared/datapath/eni-link.ts";
import { quietLink } from "../../shared/datapath/ipv6.ts";
import { readKernelView } from "../../shared/datapath/kernel-view.ts";
import {
  isNodeEniRoute,
  isNodeEniRule,
  type NodeEni,
  type NodeEnis,
  nodeEniLinks,
  nodeEniRequests,
  nodeEniRoutes,
  nodeEniRules,
} from "../../shared/datapath/node-enis.ts";
import { hasRoute, hasRule, isSameRule } from "../../shared/datapath/verify.ts";
import { accepting } from "../../shared/netlink/request.ts";
import { delRoute, describeRoute } from "../../shared/netlink/rtnl/route.ts";
import { delRule, describeRule } from "../../shared/netlink/rtnl/rule.ts";
import { type NetlinkSocket, openNetlink } from "../../shared/netlink/socket.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { type CloudEni, CloudError } from "../cloud/cloud-api.ts";
import { entriesHere, planNodeEnis } from "../pods/node-enis.ts";
import type { EniEntry, MultiEniConfig } from "../policy/objects.ts";
import type { Refresh } from "../policy/source-dir.ts";
import { getFact, setFacts } from "../store/facts.ts";
import { inTransaction } from "../store/transaction.ts";
import { endsToken } from "./client-token.ts";
import { gatewayOf, networkOf, refuseOtherZone } from "./cloud-sync.ts";
import { type AgentContext, journal } from "./context.ts";
import { readLinks, waitForLink } from "./eni-node.ts";
import { dropToken, tokenOf } from "./kept-tokens.ts";
import { type Kept, keep } from "./loop.ts";
import { type Manifests, waitsForMount } from "./manifests.ts";
import { TAG_NODE } from "./settings.ts";

/** On ENIs of nodes themselves: the entry's name. */
const TAG_ENTRY = "terway:node-eni";
/** Into store and kernel only, where all is there. */
const LOOK_MS = 30_000;
const POLL_MS = 500;
const POLL_TRIES = 60;

export function storedNodeEnis(ctx: Pick<AgentContext, "store">): NodeEnis | undefined {
  const text = getFact(ctx.store.db, "node_enis");
  return text === undefined || text === "" ? undefined : (JSON.parse(text) as NodeEnis);
}

/** What is missing on the node, or too much. @returns One line each. */
export function repairNodeEnis(ctx: Pick<AgentContext, "store">, nl: Pick<NetlinkSocket, "apply" | "dump">): string[] {
  const stored = storedNodeEnis(ctx);
  if (stored === undefined) return [];
  const before = readKernelView(nl);
  const indexOf = (mac: string) => findEniLink(before.links, mac)?.index;
  for (const { mac } of stored.enis) {
    const link = findEniLink(before.links, mac);
    if (link) quietLink(nodeSys, link.name);
  }
  // Routes come with links that are up and have their address.
  const lacking = stored.enis.filter(({ mac, address }) => {
    const link = findEniLink(before.links, mac);
    return link !== undefined && !before.addresses.some((a) => a.linkIndex === link.index && sameText(a.ip, address));
  });
  nl.apply(nodeEniLinks(stored.enis, indexOf));
  const routes = nodeEniRoutes(stored, indexOf, before);
  const rules = nodeEniRules(stored);
  const missingRoutes = routes.filter((route) => !hasRoute(before, route));
  const missingRules = rules.filter((rule) => !hasRule(before, rule));
  const strayRules = before.rules.filter((r) => isNodeEniRule(r) && !rules.some((rule) => isSameRule(r, rule)));
  const wanted = (r: { readonly dst: (typeof routes)[number]["dst"]; readonly table: number }) =>
    routes.some(
      (route) =>
        route.table === r.table &&
        route.dst.prefixLength === r.dst.prefixLength &&
        route.dst.ip.bytes.join() === r.dst.ip.bytes.join(),
    );
  const strayRoutes = before.routes.filter((r) => isNodeEniRoute({ dst: r.dst, table: r.table }) && !wanted(r));
  nl.apply([
    ...nodeEniRequests(missingRoutes, missingRules),
    ...strayRules.map((rule) => accepting(delRule(rule), "ENOENT")),
    ...strayRoutes.map((r) => accepting(delRoute({ dst: r.dst, table: r.table }), "ESRCH")),
  ]);
  return [
    ...lacking.map((e) => `address ${e.address} of the node's ENI ${e.id} is missing`),
    ...missingRoutes.map((r) => `route is missing: ${describeRoute(r)}`),
    ...missingRules.map((r) => `rule is missing: ${describeRule(r)}`),
    ...strayRules.map((r) => `rule of no ENI of the node: ${describeRule(r)}`),
  ];
}

function sameText(ip: { readonly bytes: Uint8Array }, address: string): boolean {
  return ip.bytes.join(".") === address;
}

/** @returns What ends it. */
export function keepNodeEnis(ctx: AgentContext, manifests: Manifests): () => void {
  const configs = new Map<string, MultiEniConfig>();
  /** Of what cannot be read nobody knows what it wants: what there is stays. */
  let decided = false;
  /** The folder has said something since the start. */
  let accepted = false;
  let kept: Kept | undefined;
  const told = new Set<string>();

  function take(refresh: Refresh): void {
    const { events } = refresh;
    let changed = !decided;
    for (const event of events) {
      if (event.type === "set" && event.object.kind === "MultiENIConfig") {
        configs.set(`MultiENIConfig/${event.object.namespace}/${event.object.name}`, event.object);
        changed = true;
      } else if (event.type === "delete") {
        changed = configs.delete(event.key) || changed;
      }
    }
    decided = configs.size > 0 || saysNone(refresh);
    if (!decided) return;
    accepted = true;
    if (kept === undefined) kept = keep(ctx, "ENIs of the node", () => LOOK_MS, work);
    else if (changed) kept.soon();
  }

  /** Whether that there is no MultiENIConfig means that none is wanted. */
  function saysNone(refresh: Refresh): boolean {
    if (refresh.broken || [...refresh.faulty].some((key) => key.startsWith("MultiENIConfig/"))) return false;
    if (accepted) return true;
    const why = waitsForMount(refresh, manifests.dir, (storedNodeEnis(ctx)?.enis ?? []).length > 0);
    if (why !== undefined) ctx.log("error", `the node's ENIs stay as they were before the start ${why}`);
    return why === undefined;
  }

  async function work(): Promise<void> {
    if (decided && (configs.size > 0 || storedNodeEnis(ctx) !== undefined)) await bring(ctx, inForce(), say);
  }

  function inForce(): MultiEniConfig | undefined {
    const [first, ...more] = [...configs.values()];
    if (more.length > 0)
      say(`one MultiENIConfig counts, ${first?.namespace}/${first?.name}: there are ${configs.size}`);
    return first;
  }

  function say(text: string): void {
    if (told.has(text)) return;
    told.add(text);
    ctx.log("warn", `MultiENIConfig: ${text}`);
  }

  manifests.subscribe(take);
  return () => kept?.stop();
}

/** No intent is needed: {@link tokenOf}. */
async function bring(
  ctx: AgentContext,
  config: MultiEniConfig | undefined,
  say: (text: string) => void,
): Promise<void> {
  const { cloud, self } = ctx;
  const entries = entriesHere(config, self.zone);
  const stored = storedNodeEnis(ctx)?.enis ?? [];
  const links = readLinks();
  const isThere = (entry: EniEntry) =>
    stored.some((e) => e.name === entry.name && e.spec === specOf(entry) && findEniLink(links, e.mac));
  // The cloud has nothing to say about routes.
  if (stored.length === entries.length && entries.every(isThere)) {
    putPlan(ctx, config, stored, say);
    return;
  }
  const attached = await cloud.describeInstanceEnis(self.instanceId);
  const made = await cloud.findEnisByTags({ [TAG_NODE]: self.instanceId, [TAG_CREATOR_KEY]: CREATOR });
  const isWanted = (e: CloudEni) =>
    entries.some((entry) => entry.name === e.tags[TAG_ENTRY] && [undefined, e.vswitchId].includes(entry.vswitchId));
  const stray = made.filter((e) => !isWanted(e));
  const kept = stored.filter(
    (e) => entries.some((entry) => entry.name === e.name) && !stray.some((gone) => gone.id === e.id),
  );
  // Nothing is routed to what goes.
  if (stray.length > 0) putPlan(ctx, config, kept, say);
  for (const eni of stray) await takeAway(ctx, eni);
  const enis: NodeEni[] = [];
  for (const entry of entries) {
    const there =
      made.find((e) => e.tags[TAG_ENTRY] === entry.name && isWanted(e)) ??
      attached.find((e) => e.id === entry.name && isFree(e));
    try {
      enis.push(await obtain(ctx, entry, there));
    } catch (error) {
      ctx.metrics.nodeEniFailed();
      journal(ctx, "node-eni", "error", `${entry.name}: ${(error as Error).message}`);
      throw error;
    }
    putPlan(ctx, config, enis.length < entries.length ? [...enis, ...missing(kept, enis)] : enis, say);
  }
  if (entries.length === 0) putPlan(ctx, config, [], say);
}

function specOf({ vswitchId, securityGroup }: EniEntry): string {
  return `${vswitchId ?? ""} ${securityGroup ?? ""}`;
}

const TAG_CREATOR_KEY = "terway:creator";
/** Not the pools': they never touch these. */
const CREATOR = "terway-node-enis";

/** One that somebody named by its id, and that no pool has. */
function isFree(eni: CloudEni): boolean {
  return eni.type === "Secondary" && eni.tags[TAG_CREATOR_KEY] !== "terway";
}

function missing(kept: readonly NodeEni[], enis: readonly NodeEni[]): NodeEni[] {
  return kept.filter((e) => !enis.some((other) => other.name === e.name));
}

async function obtain(ctx: AgentContext, entry: EniEntry, there: CloudEni | undefined): Promise<NodeEni> {
  const { cloud, config } = ctx;
  const vswitchId = there?.vswitchId ?? entry.vswitchId ?? config.vswitchIds[0] ?? "";
  // Seen: another one would be another intent, which that token's answer does not serve.
  if (there !== undefined) dropToken(ctx.store, entry);
  const eni = there ?? (await create(ctx, entry, vswitchId));
  const groups = entry.securityGroup === undefined ? undefined : [entry.securityGroup];
  if (there?.tags[TAG_ENTRY] !== undefined && groups !== undefined && there.securityGroups.join() !== groups.join())
    await cloud.modifyEni(eni.id, { securityGroups: groups });
  if (eni.status === "Available") await attach(ctx, entry, eni);
  await waitForStatus(ctx, eni.id, "InUse");
  dropToken(ctx.store, entry);
  if ((await waitForLink(eni.mac)) === undefined)
    throw new Error(`ENI ${eni.id} of ${entry.name} has no link on the node`);
  const gateway = gatewayOf((await networkOf(ctx, eni, true))?.cidr4) ?? "";
  return { id: eni.id, name: entry.name, mac: eni.mac, address: eni.primary4, gateway, spec: specOf(entry) };
}

async function create(ctx: AgentContext, entry: EniEntry, vswitchId: string): Promise<CloudEni> {
  const { cloud, self, config } = ctx;
  await refuseOtherZone(ctx, vswitchId);
  try {
    return await cloud.createEni({
      vswitchId,
      securityGroups: entry.securityGroup === undefined ? config.securityGroups : [entry.securityGroup],
      count4: 0,
      count6: 0,
      tags: {
        ...config.eniTags,
        ...entry.tags,
        [TAG_CREATOR_KEY]: CREATOR,
        [TAG_NODE]: self.instanceId,
        [TAG_ENTRY]: entry.name,
      },
      name: `terway-node-${self.instanceId}-${entry.name}`,
      clientToken: tokenOf(ctx.store, entry),
    });
  } catch (error) {
    if (endsToken(error)) dropToken(ctx.store, entry);
    throw error;
  }
}

async function attach(ctx: AgentContext, entry: EniEntry, eni: CloudEni): Promise<void> {
  try {
    await ctx.cloud.attachEni(eni.id, ctx.self.instanceId);
  } catch (error) {
    // Deleted meanwhile: the same token would bring it again.
    if (error instanceof CloudError && error.class === "gone") dropToken(ctx.store, entry);
    throw error;
  }
}

async function takeAway(ctx: AgentContext, eni: CloudEni): Promise<void> {
  const { cloud, self } = ctx;
  if (eni.instanceId === self.instanceId) {
    await cloud.detachEni(eni.id, self.instanceId);
    await waitForStatus(ctx, eni.id, "Available");
  }
  await cloud.deleteEni(eni.id);
  journal(ctx, "node-eni", "ok", `${eni.id} (${eni.tags[TAG_ENTRY]}) is not wanted any more`);
}

async function waitForStatus(ctx: AgentContext, id: string, wanted: string): Promise<void> {
  for (let i = 0; i < POLL_TRIES; i++) {
    const eni = await ctx.cloud.describeEni(id);
    if (eni?.status === wanted) return;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new Error(`ENI ${id} did not become ${wanted} within ${(POLL_MS * POLL_TRIES) / 1000} s`);
}

/** Into the store first: whoever repairs goes by that. */
function putPlan(
  ctx: AgentContext,
  config: MultiEniConfig | undefined,
  enis: readonly NodeEni[],
  say: (text: string) => void,
): void {
  const { plan, warnings } = planNodeEnis({
    config,
    nodeIp: ctx.self.ip,
    serviceCidrs: ctx.config.viaNode,
    enis,
  });
  for (const warning of warnings) say(warning);
  const text = JSON.stringify(plan);
  if (getFact(ctx.store.db, "node_enis") !== text) {
    inTransaction(ctx.store.db, () => setFacts(ctx.store.db, { node_enis: text }));
    journal(ctx, "node-eni", "ok", enis.map((e) => `${e.name} ${e.id} ${e.address}`).join(", "));
  }
  const nl = openNetlink(nodeSys);
  try {
    repairNodeEnis(ctx, nl);
  } finally {
    nl.close();
  }
  if (config === undefined && enis.length === 0)
    inTransaction(ctx.store.db, () => setFacts(ctx.store.db, { node_enis: "" }));
}
