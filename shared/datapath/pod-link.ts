/**
 * A pod's veth: what is built in the pod and on the node, as pure lists of requests.
 *
 * Neither side ever asks for a neighbour: both MAC addresses are known, so both entries are written. The pod side
 * needs no address that the node owns, the node side no proxy ARP, and strict rp_filter passes in both directions.
 */
import type { Cidr } from "../net/cidr.ts";
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
import { FROM_POD_PRIORITY, PODS_RULE_PRIORITY, PODS_TABLE, PROTOCOL } from "./constants.ts";

export interface PodAddress {
  /** Canonical text, without prefix length. */
  readonly address: string;
  /** As written in the pod. */
  readonly prefixLength: number;
  /** Next hop in the pod. */
  readonly gateway: string;
  /** Routing table of the ENI that owns the address; absent when the node's own routes serve it (VPC mode). */
  readonly table?: number;
}

/** All that is needed to build, check, repair and remove one pod's veth. Kept in the store as JSON. */
export interface PodLink {
  readonly version: 1;
  readonly hostIfname: string;
  readonly hostMac: string;
  readonly podIfname: string;
  readonly podMac: string;
  readonly mtuBytes: number;
  readonly addresses: readonly PodAddress[];
  /** Source of what the node itself sends to the pod, by family. */
  readonly nodeIps: readonly string[];
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
    peer: { name: link.podIfname, mac: parseMac(link.podMac), mtuBytes: link.mtuBytes, netnsFd: podNetnsFd },
  });
}

/** Inside the pod. */
export function podRequests(link: PodLink, podIndex: number): Request[] {
  const requests: Request[] = [setLink({ index: podIndex, up: true })];
  for (const a of link.addresses) {
    const ip = parseIp(a.address);
    requests.push(
      newAddress({
        linkIndex: podIndex,
        address: { ip, prefixLength: a.prefixLength },
        // NODAD: nobody else can have it, and a tentative address cannot be bound to.
        flags: IFA_F_NOPREFIXROUTE | (ip.family === 6 ? IFA_F_NODAD : 0),
        broadcast: true,
      }),
      ...podRoutes(a, podIndex).map(newRoute),
      replaceNeighbour({ linkIndex: podIndex, ip: parseIp(a.gateway), mac: parseMac(link.hostMac) }),
    );
  }
  return requests;
}

/** The gateway is on the link; everything else goes there. */
export function podRoutes(a: PodAddress, podIndex: number): Route[] {
  const gateway = parseIp(a.gateway);
  const route: Route = { dst: defaultCidr(gateway.family), gateway, linkIndex: podIndex, onlink: true };
  return gateway.family === 6
    ? [route]
    : [{ dst: hostCidr(gateway), linkIndex: podIndex, scope: RT_SCOPE_LINK }, route];
}

/** The rule that all pods share. */
export function podsRule(family: 4 | 6): Rule {
  return { family, priority: PODS_RULE_PRIORITY, table: PODS_TABLE, protocol: PROTOCOL };
}

/** On the node: routes to the pod. */
export function hostRoutes(link: PodLink, hostIndex: number): Route[] {
  return link.addresses.map((a) => {
    const ip = parseIp(a.address);
    const prefSrc = link.nodeIps.map(parseIp).find((n) => n.family === ip.family);
    return {
      dst: hostCidr(ip),
      linkIndex: hostIndex,
      table: PODS_TABLE,
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
    ...families.map((family) => accepting(newRule(podsRule(family)), "EEXIST")),
    ...hostRoutes(link, hostIndex).map(newRoute),
    ...hostRules(link).map((rule) => accepting(newRule(rule), "EEXIST")),
    ...link.addresses.map((a) =>
      replaceNeighbour({ linkIndex: hostIndex, ip: parseIp(a.address), mac: parseMac(link.podMac) }),
    ),
  ];
}
