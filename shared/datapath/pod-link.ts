/**
 * A pod's interface: what is built in the pod and on the node, as pure lists of requests.
 *
 * Every pod has a veth. Without an uplink it carries everything; with one (an ENI, or a child of one) only what the
 * node's stack must see: the node itself, and services that the node translates.
 *
 * Neither side ever asks for a neighbour: both MAC addresses are known, so both entries are written. The pod side
 * needs no address that the node owns, the node side no proxy ARP, and strict rp_filter passes in both directions.
 */
import { type Cidr, networkOf, parseCidr } from "../net/cidr.ts";
import { type Ip, parseIp } from "../net/ip.ts";
import { parseMac } from "../net/mac.ts";
import { accepting, type Request } from "../netlink/request.ts";
import { newAddress } from "../netlink/rtnl/address.ts";
import { zeroIp } from "../netlink/rtnl/family.ts";
import { newLink, setLink } from "../netlink/rtnl/link.ts";
import { replaceNeighbour } from "../netlink/rtnl/neighbour.ts";
import { delRoute, newRoute, type Route } from "../netlink/rtnl/route.ts";
import { delRule, newRule, type Rule } from "../netlink/rtnl/rule.ts";
import { IFA_F_NODAD, IFA_F_NOPREFIXROUTE } from "../netlink/uapi/if-addr.ts";
import { RT_SCOPE_LINK } from "../netlink/uapi/rtnetlink.ts";
import {
  FROM_POD_PRIORITY,
  NODE_RULE_PRIORITY,
  NODE_TABLE,
  POD_GATEWAY4,
  POD_GATEWAY6,
  POD_RULE_PRIORITY,
  PODS_RULE_PRIORITY,
  PODS_TABLE,
  PROTOCOL,
} from "./constants.ts";

export interface PodAddress {
  /** Canonical text, without prefix length. */
  readonly address: string;
  /** As written in the pod. */
  readonly prefixLength: number;
  /** Next hop in the pod. */
  readonly gateway: string;
  /** Routing table of the ENI that owns the address; absent when the node's own routes serve it, or an uplink does. */
  readonly table?: number;
}

/** All that is needed to build, check, repair and remove one pod's interface. Kept in the store as JSON. */
export interface PodLink {
  readonly version: 1;
  readonly hostIfname: string;
  readonly hostMac: string;
  /** What carries the addresses: the veth's end, or the uplink. */
  readonly podIfname: string;
  /** Of the veth's end in the pod. */
  readonly podMac: string;
  readonly mtuBytes: number;
  readonly addresses: readonly PodAddress[];
  /** Source of what the node itself sends to the pod, by family. */
  readonly nodeIps: readonly string[];
  /** Present: the pod has a way of its own into the VPC, and the veth is for what the node's stack must see. */
  readonly uplink?: Uplink;
  /** Of the second and later interfaces of a pod: their routes are in a table of their own, by source address. */
  readonly podTable?: number;
  /** CIDRs that the pod reaches by this interface, whatever the source address. */
  readonly routes?: readonly string[];
  /** Interfaces that were made with this one, and go with it: attachments of the same container. */
  readonly others?: readonly string[];
}

export interface Uplink {
  /** eni: the ENI itself. ipvlan: a child of it. vlan: a VLAN of the trunk ENI. */
  readonly kind: "eni" | "ipvlan" | "vlan";
  /** Of the ENI: tells its link, whatever its name. A VLAN has the member ENI's. */
  readonly mac: string;
  /** Of the link on the node that the child is made on; kind eni: its own. */
  readonly parentMac: string;
  /** That link's name when the child was made. */
  readonly parentIfname?: string;
  /** On the node, before it moved; kind eni only. */
  readonly eniIfname?: string;
  readonly vlanId?: number;
  /** The veth's end in the pod. */
  readonly vethIfname: string;
  /** CIDRs that go through the node's stack, besides the node's own addresses. */
  readonly viaNode: readonly string[];
}

/** A child by IPvlan shares its parent's. */
export function uplinkMac(uplink: Uplink): string {
  return uplink.kind === "ipvlan" ? uplink.parentMac : uplink.mac;
}

/** Name of the veth's end in the pod. */
export function vethEndOf(link: PodLink): string {
  return link.uplink?.vethIfname ?? link.podIfname;
}

function hostCidr(ip: Ip): Cidr {
  return { ip, prefixLength: ip.bytes.length * 8 };
}

export function defaultCidr(family: 4 | 6): Cidr {
  return { ip: zeroIp(family), prefixLength: 0 };
}

/** The veth itself, each end in its final namespace and down. */
export function vethRequest(link: PodLink, podNetnsFd: number): Request {
  return newLink({
    kind: "veth",
    name: link.hostIfname,
    mac: parseMac(link.hostMac),
    mtuBytes: link.mtuBytes,
    peer: { name: vethEndOf(link), mac: parseMac(link.podMac), mtuBytes: link.mtuBytes, netnsFd: podNetnsFd },
  });
}

/** Inside the pod. With an uplink, that is at `upIndex`. */
export function podRequests(link: PodLink, vethIndex: number, upIndex: number = vethIndex): Request[] {
  const requests: Request[] = [];
  if (link.uplink)
    requests.push(setLink({ index: vethIndex, noLinkLocal: true }), setLink({ index: vethIndex, up: true }));
  requests.push(setLink({ index: upIndex, up: true }));
  for (const a of link.addresses) {
    const ip = parseIp(a.address);
    requests.push(
      newAddress({
        linkIndex: upIndex,
        address: { ip, prefixLength: a.prefixLength },
        // NODAD: nobody else can have it, and a tentative address cannot be bound to. Behind an uplink the vSwitch is on
        // the link, behind a veth it is not.
        flags: (link.uplink ? 0 : IFA_F_NOPREFIXROUTE) | (ip.family === 6 ? IFA_F_NODAD : 0),
        broadcast: true,
      }),
    );
  }
  return [
    ...requests,
    ...podRoutes(link, vethIndex, upIndex).map(newRoute),
    ...podRules(link).map((rule) => accepting(newRule(rule), "EEXIST")),
    ...podNeighbours(link).map((ip) => replaceNeighbour({ linkIndex: vethIndex, ip, mac: parseMac(link.hostMac) })),
  ];
}

/** In the pod: what the veth's other end answers for. */
export function podNeighbours(link: PodLink): Ip[] {
  return link.addresses.map((a) => (link.uplink ? vethGateway(parseIp(a.address).family) : parseIp(a.gateway)));
}

function vethGateway(family: 4 | 6): Ip {
  return family === 4 ? POD_GATEWAY4 : POD_GATEWAY6;
}

/** In the pod: the default route, and with an uplink what goes by the veth all the same. */
export function podRoutes(link: PodLink, vethIndex: number, upIndex: number): Route[] {
  return link.addresses.flatMap((a) => {
    const gateway = parseIp(a.gateway);
    const route: Route = {
      dst: defaultCidr(gateway.family),
      gateway,
      linkIndex: upIndex,
      onlink: true,
      ...(link.podTable === undefined ? {} : { table: link.podTable }),
    };
    const wanted = [...onLink(link, a, upIndex), route, ...extraRoutes(link, a, upIndex)];
    if (link.uplink) return [...nodeRoutes(link, parseIp(a.address), vethIndex), ...wanted];
    // So that `ip route get` of the gateway itself answers.
    return gateway.family === 6 || link.podTable !== undefined
      ? wanted
      : [{ dst: hostCidr(gateway), linkIndex: upIndex, scope: RT_SCOPE_LINK }, ...wanted];
  });
}

/** In a table of the interface's own: its vSwitch. In main the address brings that. */
function onLink(link: PodLink, { address, prefixLength }: PodAddress, upIndex: number): Route[] {
  if (link.uplink === undefined || link.podTable === undefined) return [];
  const ip = parseIp(address);
  const dst = { ip: networkOf({ ip, prefixLength }), prefixLength };
  return [{ dst, linkIndex: upIndex, scope: RT_SCOPE_LINK, prefSrc: ip, table: link.podTable }];
}

function extraRoutes(link: PodLink, { address, gateway }: PodAddress, upIndex: number): Route[] {
  const ip = parseIp(address);
  return (link.routes ?? [])
    .map(parseCidr)
    .filter((dst) => dst.ip.family === ip.family)
    .map((dst) => ({ dst, gateway: parseIp(gateway), linkIndex: upIndex, onlink: true, prefSrc: ip }));
}

/** In a pod with an uplink: what goes through the node's stack. What came in by a veth is answered by that veth. */
function nodeRoutes(link: PodLink, ip: Ip, vethIndex: number): Route[] {
  const nodes = link.nodeIps.map(parseIp).map(hostCidr);
  const cidrs = (link.uplink?.viaNode ?? []).map(parseCidr);
  return [...nodes, ...cidrs]
    .filter((cidr) => cidr.ip.family === ip.family)
    .map((dst) => ({
      dst,
      gateway: vethGateway(ip.family),
      linkIndex: vethIndex,
      onlink: true,
      prefSrc: ip,
      ...(link.podTable === undefined ? {} : { table: link.podTable }),
    }));
}

/** In the pod: replies leave by the interface that they came in on. */
export function podRules(link: PodLink): Rule[] {
  const { podTable } = link;
  if (podTable === undefined) return [];
  return link.addresses.map((a) => {
    const ip = parseIp(a.address);
    return { family: ip.family, priority: POD_RULE_PRIORITY, from: hostCidr(ip), table: podTable, protocol: PROTOCOL };
  });
}

/** The rule that all pods share that are reached in the same way. */
export function podsRule(link: PodLink, family: 4 | 6): Rule {
  return link.uplink
    ? { family, priority: NODE_RULE_PRIORITY, iifName: "lo", table: NODE_TABLE, protocol: PROTOCOL }
    : { family, priority: PODS_RULE_PRIORITY, table: PODS_TABLE, protocol: PROTOCOL };
}

/** On the node: routes to the pod. */
export function hostRoutes(link: PodLink, hostIndex: number): Route[] {
  return link.addresses.map((a) => {
    const ip = parseIp(a.address);
    const prefSrc = link.nodeIps.map(parseIp).find((n) => n.family === ip.family);
    return {
      dst: hostCidr(ip),
      linkIndex: hostIndex,
      table: link.uplink ? NODE_TABLE : PODS_TABLE,
      protocol: PROTOCOL,
      ...(prefSrc ? { prefSrc } : {}),
    };
  });
}

/** On the node: what leaves a pod leaves through its own ENI. */
export function hostRules(link: PodLink): Rule[] {
  return link.addresses.flatMap((a) => {
    const ip = parseIp(a.address);
    if (a.table === undefined) return [];
    return [{ family: ip.family, priority: FROM_POD_PRIORITY, from: hostCidr(ip), table: a.table, protocol: PROTOCOL }];
  });
}

/**
 * Removes every rule and host route that names one of these addresses, whoever left them: an address of a pod is ours
 * to route, and a leftover of its last owner would send it out of the wrong ENI. One of each kind per round: whoever
 * applies them repeats the list until all are refused.
 */
export function sweepRequests(addresses: readonly string[]): Request[] {
  return addresses.flatMap((address) => {
    const dst = hostCidr(parseIp(address));
    const family = dst.ip.family;
    return [
      accepting(delRule({ family, from: dst }), "ENOENT"),
      accepting(delRule({ family, to: dst }), "ENOENT"),
      accepting(delRoute({ dst, table: PODS_TABLE }), "ESRCH"),
      accepting(delRoute({ dst, table: NODE_TABLE }), "ESRCH"),
      accepting(delRoute({ dst }), "ESRCH"),
    ];
  });
}

/** On the node, after the sweep. */
export function hostRequests(link: PodLink, hostIndex: number): Request[] {
  const families = [...new Set(link.addresses.map((a) => parseIp(a.address).family))];
  return [
    // Before it comes up: afterwards DAD and router solicitation for a link-local address have begun.
    setLink({ index: hostIndex, noLinkLocal: true }),
    setLink({ index: hostIndex, up: true }),
    ...families.map((family) => accepting(newRule(podsRule(link, family)), "EEXIST")),
    ...hostRoutes(link, hostIndex).map(newRoute),
    ...hostRules(link).map((rule) => accepting(newRule(rule), "EEXIST")),
    ...link.addresses.map((a) =>
      replaceNeighbour({ linkIndex: hostIndex, ip: parseIp(a.address), mac: parseMac(link.podMac) }),
    ),
  ];
}
