/** Compares what should be in the kernel with what is. Pure: the dumps are given. */
import { formatIp, parseIp } from "../net/ip.ts";
import { formatMac } from "../net/mac.ts";
import type { AddressEntry } from "../netlink/rtnl/address.ts";
import { isUp, type Link } from "../netlink/rtnl/link.ts";
import type { NeighbourEntry } from "../netlink/rtnl/neighbour.ts";
import { describeRoute, type Route, type RouteEntry } from "../netlink/rtnl/route.ts";
import { describeRule, type Rule } from "../netlink/rtnl/rule.ts";
import { NUD_PERMANENT } from "../netlink/uapi/neighbour.ts";
import { RT_TABLE_MAIN } from "../netlink/uapi/rtnetlink.ts";
import {
  hostRoutes,
  hostRules,
  type PodLink,
  podNeighbours,
  podRoutes,
  podRules,
  podsRule,
  type Uplink,
  uplinkMac,
  vethEndOf,
} from "./pod-link.ts";

/** What a namespace holds. */
export interface KernelView {
  readonly links: readonly Link[];
  readonly addresses: readonly AddressEntry[];
  readonly routes: readonly RouteEntry[];
  readonly rules: readonly Rule[];
  readonly neighbours: readonly NeighbourEntry[];
}

function sameIp(a: { readonly bytes: Uint8Array } | undefined, b: { readonly bytes: Uint8Array } | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return a.bytes.length === b.bytes.length && a.bytes.every((byte, i) => byte === b.bytes[i]);
}

export function hasRoute(view: KernelView, want: Route): boolean {
  return view.routes.some(
    (r) =>
      r.dst.prefixLength === want.dst.prefixLength &&
      sameIp(r.dst.ip, want.dst.ip) &&
      r.table === (want.table ?? RT_TABLE_MAIN) &&
      r.linkIndex === want.linkIndex &&
      sameIp(r.gateway, want.gateway),
  );
}

export function hasRule(view: KernelView, want: Rule): boolean {
  return view.rules.some((r) => isSameRule(r, want));
}

/** By what a packet meets; who wrote it does not count. */
export function isSameRule(r: Rule, want: Rule): boolean {
  return (
    r.family === want.family &&
    r.priority === want.priority &&
    r.table === want.table &&
    r.from?.prefixLength === want.from?.prefixLength &&
    sameIp(r.from?.ip, want.from?.ip) &&
    sameIp(r.to?.ip, want.to?.ip) &&
    r.iifName === want.iifName &&
    r.mark === want.mark
  );
}

function linkProblems(
  where: string,
  name: string,
  mac: string,
  mtuBytes: number,
  links: readonly Link[],
): { readonly problems: string[]; readonly link: Link | undefined } {
  const link = links.find((l) => l.name === name);
  if (link === undefined) return { problems: [`link ${name} is missing ${where}`], link };
  const problems: string[] = [];
  if (formatMac(link.mac) !== mac) problems.push(`link ${name} ${where} has MAC ${formatMac(link.mac)}, want ${mac}`);
  if (!isUp(link)) problems.push(`link ${name} is down ${where}`);
  if (link.mtuBytes !== mtuBytes) problems.push(`link ${name} ${where} has MTU ${link.mtuBytes}, want ${mtuBytes}`);
  return { problems, link };
}

/** A rule that reads the pod's address with a higher priority than ours, or sends it to another table. */
function foreignRules(link: PodLink, view: KernelView): string[] {
  const mine = hostRules(link);
  return link.addresses.flatMap((a) => {
    const ip = parseIp(a.address);
    return view.rules
      .filter(
        (r) =>
          (r.from && r.from.prefixLength === ip.bytes.length * 8 && sameIp(r.from.ip, ip)) ||
          (r.to && r.to.prefixLength === ip.bytes.length * 8 && sameIp(r.to.ip, ip)),
      )
      .filter(
        (r) => !mine.some((m) => m.priority === r.priority && m.table === r.table && sameIp(m.from?.ip, r.from?.ip)),
      )
      .map((r) => `foreign rule: ${describeRule(r)}`);
  });
}

/** What is wrong on the node's side, one line each; empty when all is there. */
export function hostProblems(link: PodLink, view: KernelView): string[] {
  const { problems, link: found } = linkProblems(
    "on the node",
    link.hostIfname,
    link.hostMac,
    link.mtuBytes,
    view.links,
  );
  if (found === undefined) return problems;
  const families = [...new Set(link.addresses.map((a) => parseIp(a.address).family))];
  for (const rule of [...families.map((family) => podsRule(link, family)), ...hostRules(link)])
    if (!hasRule(view, rule)) problems.push(`rule is missing: ${describeRule(rule)}`);
  for (const route of hostRoutes(link, found.index))
    if (!hasRoute(view, route)) problems.push(`route is missing: ${describeRoute(route)}`);
  problems.push(
    ...neighbourProblems(
      "on the node",
      found,
      link.addresses.map((a) => a.address),
      link.podMac,
      view,
    ),
  );
  problems.push(...foreignRules(link, view));
  return problems;
}

/** What is wrong inside the pod. A changed MAC is somebody's right (the tuning plugin does it), but not an ENI's. */
export function podProblems(link: PodLink, view: KernelView): string[] {
  const up = view.links.find((l) => l.name === link.podIfname);
  const veth = view.links.find((l) => l.name === vethEndOf(link));
  if (up === undefined || veth === undefined)
    return [`link ${up === undefined ? link.podIfname : vethEndOf(link)} is missing in the pod`];
  const problems: string[] = [];
  for (const found of new Set([up, veth])) if (!isUp(found)) problems.push(`link ${found.name} is down in the pod`);
  if (link.uplink) problems.push(...uplinkProblems(link, link.uplink, up));
  for (const a of link.addresses) {
    const ip = parseIp(a.address);
    if (!view.addresses.some((x) => x.linkIndex === up.index && sameIp(x.ip, ip)))
      problems.push(`address ${a.address} is missing on ${link.podIfname}`);
  }
  for (const route of podRoutes(link, veth.index, up.index))
    if (!hasRoute(view, route)) problems.push(`route is missing in the pod: ${describeRoute(route)}`);
  for (const rule of podRules(link))
    if (!hasRule(view, rule)) problems.push(`rule is missing in the pod: ${describeRule(rule)}`);
  problems.push(...neighbourProblems("in the pod", veth, podNeighbours(link).map(formatIp), link.hostMac, view));
  return problems;
}

function uplinkProblems(link: PodLink, uplink: Uplink, found: Link): string[] {
  const problems: string[] = [];
  const mac = uplinkMac(uplink);
  if (formatMac(found.mac) !== mac)
    problems.push(`link ${found.name} in the pod has MAC ${formatMac(found.mac)}, want the ENI's ${mac}`);
  if (uplink.kind !== "eni" && found.kind !== uplink.kind)
    problems.push(`link ${found.name} in the pod is of kind ${found.kind}, want ${uplink.kind}`);
  if (uplink.vlanId !== undefined && found.vlanId !== uplink.vlanId)
    problems.push(`link ${found.name} in the pod has VLAN ${found.vlanId}, want ${uplink.vlanId}`);
  if (found.mtuBytes !== link.mtuBytes)
    problems.push(`link ${found.name} in the pod has MTU ${found.mtuBytes}, want ${link.mtuBytes}`);
  return problems;
}

function neighbourProblems(where: string, on: Link, ips: readonly string[], mac: string, view: KernelView): string[] {
  return ips.flatMap((text) => {
    const ip = parseIp(text);
    const entry = view.neighbours.find((n) => n.linkIndex === on.index && sameIp(n.ip, ip));
    if (entry === undefined) return [`neighbour ${formatIp(ip)} is missing ${where}`];
    if (entry.mac === undefined || formatMac(entry.mac) !== mac || (entry.state & NUD_PERMANENT) === 0) {
      return [
        `neighbour ${formatIp(ip)} ${where} has MAC ${entry.mac ? formatMac(entry.mac) : "none"}, want ${mac} permanent`,
      ];
    }
    return [];
  });
}
