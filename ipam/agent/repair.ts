/**
 * Puts back on the node what foreign hands removed: rules, routes, links' state. What should be there is in the store;
 * what is there comes from the kernel. Never touches the inside of a pod.
 */
import { FROM_ENI_PRIORITY, PROTOCOL } from "../../shared/datapath/constants.ts";
import { eniRequests, eniRoutes, eniRules, findEniLink, macRequests } from "../../shared/datapath/eni-link.ts";
import { enableForwarding, quietLink } from "../../shared/datapath/ipv6.ts";
import { readKernelView } from "../../shared/datapath/kernel-view.ts";
import { ensureNodeRules } from "../../shared/datapath/node-rules.ts";
import { hostRequests, type PodLink } from "../../shared/datapath/pod-link.ts";
import { sweepAddresses } from "../../shared/datapath/sweep.ts";
import { hasRoute, hasRule, hostProblems, isSameRule, type KernelView } from "../../shared/datapath/verify.ts";
import { formatMac, parseMac } from "../../shared/net/mac.ts";
import { accepting } from "../../shared/netlink/request.ts";
import { getLink, isUp, type Link, setLink } from "../../shared/netlink/rtnl/link.ts";
import { describeRoute } from "../../shared/netlink/rtnl/route.ts";
import { delRule, describeRule, type Rule } from "../../shared/netlink/rtnl/rule.ts";
import { NetlinkError, type NetlinkSocket, openNetlink } from "../../shared/netlink/socket.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { lessOthers, listAttachments } from "../store/attachments.ts";
import { type Eni, listEnis } from "../store/enis.ts";
import type { AttachmentKey } from "../store/key.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, journal } from "./context.ts";
import { forwardedFamilies, hasNodeSide, nodeIpsOf, recordEniLink } from "./eni-node.ts";
import { repairNodeEnis } from "./node-enis.ts";

/** What differs for one ENI. Pure. */
export function eniProblems(eni: Eni, view: KernelView): string[] {
  const link = findEniLink(view.links, eni.mac);
  if (link === undefined) return [];
  const problems: string[] = [];
  if (!isUp(link)) problems.push(`link ${link.name} of ENI ${eni.id} is down`);
  if (formatMac(link.mac) !== eni.mac)
    problems.push(`link ${link.name} of ENI ${eni.id} has MAC ${formatMac(link.mac)}`);
  for (const route of eniRoutes(eni, link.index))
    if (!hasRoute(view, route)) problems.push(`route is missing: ${describeRoute(route)}`);
  for (const rule of eniRules(eni)) if (!hasRule(view, rule)) problems.push(`rule is missing: ${describeRule(rule)}`);
  return problems;
}

/** Rules of ours for ENIs that are gone: the kernel takes an ENI's routes away with its link, and leaves its rules. Pure. */
export function strayEniRules(enis: readonly Eni[], rules: readonly Rule[]): Rule[] {
  const wanted = enis.filter((e) => hasNodeSide(e) && e.state !== "deleting").flatMap(eniRules);
  return rules.filter(
    (r) => r.priority === FROM_ENI_PRIORITY && r.protocol === PROTOCOL && !wanted.some((w) => isSameRule(r, w)),
  );
}

/** Puts one thing right. Gives what was put back, one line each, before it throws what could not be. */
type Step = () => Iterable<string>;

interface Repaired {
  readonly lines: readonly string[];
  readonly failures: readonly Error[];
}

/** One step that fails keeps no other waiting. */
export function repairNode(ctx: AgentContext): Repaired {
  const lines: string[] = [];
  const failures: Error[] = [];
  const nl = openNetlink(nodeSys);
  try {
    for (const step of steps(ctx, nl)) {
      try {
        for (const line of step()) lines.push(line);
      } catch (error) {
        failures.push(error as Error);
      }
    }
  } finally {
    nl.close();
  }
  return { lines, failures };
}

function* steps(ctx: AgentContext, nl: NetlinkSocket): Generator<Step> {
  yield () => enableForwarding(nodeSys, nl, forwardedFamilies(ctx));
  yield () => ensureNodeRules(nodeSys, nl, nodeIpsOf(ctx));
  yield* eniSteps(ctx, nl);
  yield () => removeStrayRules(ctx, nl);
  yield () => repairNodeEnis(ctx, nl);
  yield* podSteps(ctx, nl);
}

function* eniSteps(ctx: AgentContext, nl: NetlinkSocket): Generator<Step> {
  const view = readKernelView(nl);
  const inService = listEnis(ctx.store.db).filter((eni) => eni.state === "ready" || eni.state === "draining");
  for (const eni of inService) {
    const link = findEniLink(view.links, eni.mac);
    if (link === undefined) continue;
    yield () => {
      // Also those that a pod gave back: in a namespace that it comes to, a link begins with that namespace's defaults.
      const quieted = quietLink(nodeSys, link.name);
      if (!hasNodeSide(eni)) return [];
      const problems = eniProblems(eni, view);
      if (problems.length > 0) {
        nl.apply([...macRequests(link, eni.mac), ...eniRequests(eni, link.index)]);
        recordEniLink(ctx, eni, link, eni.mtu);
      }
      return [...quieted, ...problems];
    };
  }
}

function removeStrayRules(ctx: AgentContext, nl: NetlinkSocket): string[] {
  const { rules } = readKernelView(nl); // before the store: what is set up later is not seen
  const stray = strayEniRules(listEnis(ctx.store.db), rules);
  nl.apply(stray.map((rule) => accepting(delRule(rule), "ENOENT")));
  return stray.map((rule) => `rule of an ENI that is gone: ${describeRule(rule)}`);
}

function* podSteps(ctx: AgentContext, nl: NetlinkSocket): Generator<Step> {
  // Read after the store: a pod that is deleted in between is then missing in both.
  const attachments = listAttachments(ctx.store.db).filter((a) => a.state === "ready" && a.datapath !== undefined);
  if (attachments.length === 0) return;
  const view = readKernelView(nl);
  for (const a of attachments)
    yield function* () {
      const link = JSON.parse(a.datapath ?? "") as PodLink;
      const host = view.links.find((l) => l.name === link.hostIfname);
      // A veth whose pod is gone is for the sweep; it cannot be put back from here.
      if (host === undefined) return;
      const problems = hostProblems(link, view);
      if (problems.length === 0) return;
      const refusals = putBack(ctx, nl, a, link, host);
      if (refusals === undefined) return;
      const pod = `pod ${a.podNamespace ?? ""}/${a.podName ?? a.containerId}`;
      const left = refusals.length === 0 ? [] : hostProblems(link, readKernelView(nl));
      for (const problem of problems) if (!left.includes(problem)) yield `${pod}: ${problem}`;
      if (refusals.length > 0) throw new Error(`${pod}: ${refusals.map((r) => r.message).join("; ")}`);
    };
}

/**
 * A DEL may run at this moment: it deletes the link, then rules and routes, then the store's row. So the link is looked
 * at before and after; if it went in between, what was just put back goes again.
 *
 * @returns What the kernel refused; undefined when there was nothing to repair after all.
 */
function putBack(
  ctx: AgentContext,
  nl: NetlinkSocket,
  key: AttachmentKey,
  link: PodLink,
  host: Link,
): NetlinkError[] | undefined {
  const { index } = host;
  const addresses = link.addresses.map((a) => a.address);
  const isThere = () => nl.transact([getLink({ index })])[0]?.ok === true;
  if (!isThere()) return undefined;
  sweepAddresses(nl, addresses);
  const outcomes = nl.transact([
    // First: a change of the MAC address takes the link's neighbours away. A veth need not go down for it.
    ...(formatMac(host.mac) === link.hostMac ? [] : [setLink({ index, mac: parseMac(link.hostMac) })]),
    ...(host.mtuBytes === link.mtuBytes ? [] : [setLink({ index, mtuBytes: link.mtuBytes })]),
    ...hostRequests(link, index),
  ]);
  if (isThere()) return outcomes.flatMap((o) => (o.ok ? [] : [new NetlinkError(o.refusal)]));
  // With the store locked nobody is given these addresses while they are swept.
  inTransaction(ctx.store.db, () => sweepAddresses(nl, lessOthers(ctx.store.db, key, addresses)));
  return undefined;
}

/** {@link repairNode} with its report to log, journal and metrics. @throws {Error} What could not be put right. */
export function repairAndReport(ctx: AgentContext, cause: string): void {
  const { lines, failures } = repairNode(ctx);
  if (lines.length > 0) {
    ctx.log("warn", `put back (${cause}): ${some(lines)}`);
    ctx.metrics.repaired(lines.length);
    journal(ctx, "repair", "ok", lines.join("; ").slice(0, 2000));
  }
  if (failures.length > 0) throw new Error(`cannot put right (${cause}): ${some(failures.map((f) => f.message))}`);
}

function some(lines: readonly string[]): string {
  return `${lines.slice(0, 5).join("; ")}${lines.length > 5 ? ` and ${lines.length - 5} more` : ""}`;
}
