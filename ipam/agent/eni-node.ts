/** ENIs on the node: waiting for the link of a new one, and setting it up. */
import { setTimeout as sleep } from "node:timers/promises";
import { eniRequests, findEniLink, macRequests } from "../../shared/datapath/eni-link.ts";
import { enableForwarding, quietLink } from "../../shared/datapath/ipv6.ts";
import { ensureNodeRules } from "../../shared/datapath/node-rules.ts";
import { getLink, type Link, parseLink } from "../../shared/netlink/rtnl/link.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { type Eni, listEnis, setEniLink } from "../store/enis.ts";
import { getFacts, setFacts } from "../store/facts.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AgentContext } from "./context.ts";

const LINK_WAIT_MS = 20_000;
const LOOK_EVERY_MS = 50;

export function readLinks(): Link[] {
  const nl = openNetlink(nodeSys);
  try {
    return nl.dump(getLink()).map(parseLink);
  } finally {
    nl.close();
  }
}

/** The guest sees a new ENI some time after the cloud says InUse. @returns undefined when it does not come. */
export async function waitForLink(mac: string): Promise<Link | undefined> {
  const deadline = performance.now() + LINK_WAIT_MS;
  for (;;) {
    const link = findEniLink(readLinks(), mac);
    if (link !== undefined || performance.now() > deadline) return link;
    await sleep(LOOK_EVERY_MS);
  }
}

/** Whether the node itself sends and receives by the ENI: not by one that a pod has for itself, and a member is no link. */
export function hasNodeSide(eni: Pick<Eni, "kind">): boolean {
  return eni.kind === "shared" || eni.kind === "trunk";
}

/** An ENI that waits for its pod: only its link's name is noted, to give it back under. */
export function noteEniLink(ctx: Pick<AgentContext, "store">, eni: Eni, link: Link): void {
  quietLink(nodeSys, link.name);
  recordEniLink(ctx, eni, link, link.mtuBytes);
}

/** The ENI's link is as it is to be in this boot of the node. */
export function recordEniLink({ store }: Pick<AgentContext, "store">, eni: Eni, link: Link, mtu: number): void {
  const { name: ifname, index: ifindex } = link;
  inTransaction(store.db, () => setEniLink(store.db, eni.id, { ifname, ifindex, mtu, preparedBoot: store.bootId }));
}

/** Brings the ENI's link, address, routes and rule up; idempotent. */
export function setUpEni(ctx: AgentContext, eni: Eni, link: Link): void {
  const mtu = link.mtuBytes; // the hypervisor's: no API tells it
  quietLink(nodeSys, link.name);
  const nl = openNetlink(nodeSys);
  try {
    nl.apply([...macRequests(link, eni.mac), ...eniRequests({ ...eni, mtu }, link.index)]);
  } finally {
    nl.close();
  }
  recordEniLink(ctx, eni, link, mtu);
}

/** The node's own addresses. */
export function nodeIpsOf(ctx: Pick<AgentContext, "store" | "self">): string[] {
  const { node_ip6: six } = getFacts(ctx.store.db);
  return [ctx.self.ip, ...(six ? [six] : [])];
}

/**
 * Sets up the ENIs in service that are not yet so in this boot of the node: no cloud call is needed for that.
 *
 * @returns Whether every one of them has its link.
 */
export function setUpKnownEnis(ctx: AgentContext): boolean {
  const links = readLinks();
  const inService = listEnis(ctx.store.db).filter((e) => hasNodeSide(e) && e.state === "ready");
  for (const eni of inService) {
    const link = findEniLink(links, eni.mac);
    if (link !== undefined && eni.preparedBoot !== ctx.store.bootId) setUpEni(ctx, eni, link);
  }
  return inService.every((e) => findEniLink(links, e.mac) !== undefined);
}

/** IPv4 always: pods of before the stack was changed may have it. */
export function forwardedFamilies({ config }: Pick<AgentContext, "config">): readonly (4 | 6)[] {
  return config.ipStack === "ipv4" ? [4] : [4, 6];
}

/** What forwarding between pods and ENIs needs of the node, and nothing more. */
export function setUpNode(ctx: Pick<AgentContext, "config" | "store" | "self">): void {
  const nl = openNetlink(nodeSys);
  try {
    enableForwarding(nodeSys, nl, forwardedFamilies(ctx));
    ensureNodeRules(nodeSys, nl, nodeIpsOf(ctx));
  } finally {
    nl.close();
  }
  const primary = findEniLink(readLinks(), ctx.self.primaryMac);
  inTransaction(ctx.store.db, () =>
    setFacts(ctx.store.db, {
      prepared_boot: ctx.store.bootId,
      ...(primary ? { node_mtu: String(primary.mtuBytes) } : {}),
    }),
  );
}
