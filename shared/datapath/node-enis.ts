/**
 * ENIs that the node itself sends by, besides its primary one: each with a table for what has its address, and one table
 * that says by destination which of them takes what has no address yet. Pure. Pods are not concerned: what they send
 * leaves by the ENI that owns their address, whatever its destination.
 */
import { cidrContains, parseCidr } from "../net/cidr.ts";
import { parseIp } from "../net/ip.ts";
import { accepting, type Request } from "../netlink/request.ts";
import { replaceAddress } from "../netlink/rtnl/address.ts";
import { setLink } from "../netlink/rtnl/link.ts";
import { type Route, replaceRoute } from "../netlink/rtnl/route.ts";
import { newRule, type Rule } from "../netlink/rtnl/rule.ts";
import { IFA_F_NOPREFIXROUTE } from "../netlink/uapi/if-addr.ts";
import { RT_TABLE_MAIN, RTN_THROW } from "../netlink/uapi/rtnetlink.ts";
import {
  DESTINATIONS_PRIORITY,
  DESTINATIONS_TABLE,
  FROM_NODE_ENI_PRIORITY,
  FROM_NODE_PRIORITY,
  NODE_ENI_TABLE_BASE,
  PROTOCOL,
} from "./constants.ts";
import { defaultCidr } from "./pod-link.ts";
import type { KernelView } from "./verify.ts";

/** Kept in the store as JSON. */
export interface NodeEnis {
  /** Of the primary ENI. */
  readonly nodeIp: string;
  readonly enis: readonly NodeEni[];
  /** `via` is the id of one of the ENIs; null: the primary one. */
  readonly routes: readonly { readonly destination: string; readonly via: string | null }[];
  /** CIDRs for main, whatever the routes say. */
  readonly excluded: readonly string[];
}

export interface NodeEni {
  readonly id: string;
  /** As the configuration calls it. */
  readonly name: string;
  readonly mac: string;
  readonly address: string;
  readonly gateway: string;
  /** What it was made by: an entry that says something else needs another one. */
  readonly spec: string;
}

const tableOf = (index: number) => NODE_ENI_TABLE_BASE + index;
const single = (text: string) => ({ ip: parseIp(text), prefixLength: 32 });

export function nodeEniRules({ nodeIp, enis }: NodeEnis): Rule[] {
  if (enis.length === 0) return [];
  return [
    ...enis.map(
      (eni, i): Rule => ({
        family: 4,
        priority: FROM_NODE_ENI_PRIORITY,
        from: single(eni.address),
        table: tableOf(i),
        protocol: PROTOCOL,
      }),
    ),
    { family: 4, priority: FROM_NODE_PRIORITY, from: single(nodeIp), table: RT_TABLE_MAIN, protocol: PROTOCOL },
    { family: 4, priority: DESTINATIONS_PRIORITY, iifName: "lo", table: DESTINATIONS_TABLE, protocol: PROTOCOL },
  ];
}

/**
 * @param linkIndexOf Of an ENI by its MAC address; undefined: its link is not there (yet).
 * @param view Of the node: what main reaches without a gateway is main's.
 */
export function nodeEniRoutes(
  { enis, routes, excluded }: NodeEnis,
  linkIndexOf: (mac: string) => number | undefined,
  view: Pick<KernelView, "routes">,
): Route[] {
  const hopOf = (index: number): Route | undefined => {
    const eni = enis[index];
    const linkIndex = eni && linkIndexOf(eni.mac);
    if (eni === undefined || linkIndex === undefined) return undefined;
    const gateway = parseIp(eni.gateway);
    return { dst: defaultCidr(4), gateway, linkIndex, onlink: true, protocol: PROTOCOL };
  };
  const own = enis.flatMap((_eni, i) => {
    const hop = hopOf(i);
    return hop ? [{ ...hop, table: tableOf(i) }] : [];
  });
  const mains = [
    ...excluded.map(parseCidr),
    ...view.routes
      .filter((r) => r.table === RT_TABLE_MAIN && r.gateway === undefined && r.dst.prefixLength > 0)
      .map((r) => r.dst)
      .filter((dst) => dst.ip.family === 4),
  ];
  const thrown = new Map(mains.map((dst) => [`${dst.ip.bytes.join(".")}/${dst.prefixLength}`, dst]));
  const destinations = routes.flatMap(({ destination, via }): Route[] => {
    const dst = parseCidr(destination);
    // What is main's stays main's, however narrow the route.
    if (mains.some((cidr) => cidr.prefixLength <= dst.prefixLength && cidrContains(cidr, dst.ip))) return [];
    if (via === null)
      return dst.prefixLength === 0 ? [] : [{ dst, type: RTN_THROW, table: DESTINATIONS_TABLE, protocol: PROTOCOL }];
    const index = enis.findIndex((e) => e.id === via);
    const hop = hopOf(index);
    const prefSrc = parseIp(enis[index]?.address ?? "0.0.0.0");
    return hop ? [{ ...hop, dst, prefSrc, table: DESTINATIONS_TABLE }] : [];
  });
  const throws = [...thrown.values()].map(
    (dst): Route => ({ dst, type: RTN_THROW, table: DESTINATIONS_TABLE, protocol: PROTOCOL }),
  );
  return enis.length === 0 ? [] : [...own, ...throws, ...destinations];
}

/** Links and addresses; idempotent. */
export function nodeEniLinks(enis: readonly NodeEni[], linkIndexOf: (mac: string) => number | undefined): Request[] {
  return enis.flatMap(({ mac, address }) => {
    const linkIndex = linkIndexOf(mac);
    if (linkIndex === undefined) return [];
    return [
      setLink({ index: linkIndex, up: true }),
      replaceAddress({ linkIndex, address: single(address), flags: IFA_F_NOPREFIXROUTE }),
    ];
  });
}

export function nodeEniRequests(routes: readonly Route[], rules: readonly Rule[]): Request[] {
  return [...routes.map(replaceRoute), ...rules.map((rule) => accepting(newRule(rule), "EEXIST"))];
}

const OURS: readonly number[] = [FROM_NODE_ENI_PRIORITY, FROM_NODE_PRIORITY, DESTINATIONS_PRIORITY];

export function isNodeEniRule(rule: Rule): boolean {
  return rule.protocol === PROTOCOL && OURS.includes(rule.priority ?? 0);
}

/** Of the tables that are ours alone. */
export function isNodeEniRoute({ table }: Route): boolean {
  return (
    table === DESTINATIONS_TABLE ||
    (table !== undefined && table >= NODE_ENI_TABLE_BASE && table < NODE_ENI_TABLE_BASE + 16)
  );
}
