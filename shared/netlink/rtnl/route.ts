/** Routes: struct rtmsg (12 bytes) and RTA_ attributes, include/uapi/linux/rtnetlink.h. */
import { type Cidr, formatCidr } from "../../net/cidr.ts";
import { formatIp, type Ip } from "../../net/ip.ts";
import type { Request } from "../request.ts";
import { NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE } from "../uapi/netlink.ts";
import * as R from "../uapi/rtnetlink.ts";
import { eachAttribute, MalformedNetlink, readU32 } from "../wire/reader.ts";
import { type Family, familyNumber, readIp, zeroIp } from "./family.ts";

const RTMSG_BYTES = 12;

export interface Route {
  /** A default route has prefix length 0. */
  readonly dst: Cidr;
  readonly gateway?: Ip;
  readonly linkIndex?: number;
  /** Absent means main. */
  readonly table?: number;
  /** RT_SCOPE_…; absent means link for a route without gateway, universe otherwise. */
  readonly scope?: number;
  /** Source address of what the node itself sends along it. */
  readonly prefSrc?: Ip;
  readonly metric?: number;
  /** The gateway is on the link whatever the addresses there say. */
  readonly onlink?: boolean;
  /** RTN_…; absent means unicast. */
  readonly type?: number;
  /** RTPROT_… or a number of one's own; absent means static. */
  readonly protocol?: number;
}

function scopeOf(route: Route): number {
  if (route.scope !== undefined) return route.scope;
  if (route.dst.ip.family === 6) return R.RT_SCOPE_UNIVERSE; // IPv6 has no other
  return route.gateway === undefined && route.linkIndex !== undefined ? R.RT_SCOPE_LINK : R.RT_SCOPE_UNIVERSE;
}

function routeRequest(type: number, flags: number, verb: string, route: Route, deleting: boolean): Request {
  const { dst, gateway, linkIndex, prefSrc, metric, onlink } = route;
  const table = route.table ?? R.RT_TABLE_MAIN;
  return {
    type,
    flags,
    write(w) {
      w.bytes4(familyNumber(dst.ip), dst.prefixLength, 0, 0);
      w.bytes4(
        table < 256 ? table : R.RT_TABLE_UNSPEC,
        // Zero in a deletion means any.
        deleting && route.protocol === undefined ? 0 : (route.protocol ?? R.RTPROT_STATIC),
        deleting && route.scope === undefined ? R.RT_SCOPE_NOWHERE : scopeOf(route),
        deleting && route.type === undefined ? 0 : (route.type ?? R.RTN_UNICAST),
      );
      w.u32(onlink ? R.RTNH_F_ONLINK : 0);
      if (dst.prefixLength > 0) w.attrBytes(R.RTA_DST, dst.ip.bytes);
      if (gateway) w.attrBytes(R.RTA_GATEWAY, gateway.bytes);
      if (linkIndex !== undefined) w.attrU32(R.RTA_OIF, linkIndex);
      if (prefSrc) w.attrBytes(R.RTA_PREFSRC, prefSrc.bytes);
      if (metric !== undefined) w.attrU32(R.RTA_PRIORITY, metric);
      if (table >= 256) w.attrU32(R.RTA_TABLE, table);
    },
    describe: () => `ip route ${verb} ${describeRoute(route)}`,
  };
}

/** ip route add … */
export function newRoute(route: Route): Request {
  return routeRequest(R.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, "add", route, false);
}

/** ip route replace …: takes the place of a route with the same destination, table and metric. */
export function replaceRoute(route: Route): Request {
  return routeRequest(R.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, "replace", route, false);
}

/** ip route del …: the first route that matches all that is given. */
export function delRoute(route: Route): Request {
  return routeRequest(R.RTM_DELROUTE, 0, "del", route, true);
}

/** ip route show table TABLE, for a dump; the kernel filters (NETLINK_GET_STRICT_CHK). */
export function getRoutes(family: Family, table?: number): Request {
  return {
    type: R.RTM_GETROUTE,
    flags: 0,
    write(w) {
      w.bytes4(family === 4 ? 2 : 10, 0, 0, 0);
      w.bytes4(table !== undefined && table < 256 ? table : R.RT_TABLE_UNSPEC, 0, 0, 0);
      w.u32(0);
      if (table !== undefined) w.attrU32(R.RTA_TABLE, table);
    },
    describe: () => `ip -${family} route show table ${table ?? "all"}`,
  };
}

/** ip route get ADDRESS: where a packet to it would go. */
export function getRouteTo(ip: Ip): Request {
  return {
    type: R.RTM_GETROUTE,
    flags: 0,
    write(w) {
      w.bytes4(familyNumber(ip), ip.bytes.length * 8, 0, 0);
      w.u32(0);
      w.u32(0);
      w.attrBytes(R.RTA_DST, ip.bytes);
    },
    describe: () => `ip route get ${formatIp(ip)}`,
  };
}

export interface RouteEntry {
  readonly dst: Cidr;
  readonly gateway: Ip | undefined;
  readonly linkIndex: number | undefined;
  readonly table: number;
  readonly scope: number;
  readonly type: number;
  readonly protocol: number;
  readonly prefSrc: Ip | undefined;
  readonly metric: number;
  readonly onlink: boolean;
  /** A copy that the kernel made of another route (RTM_F_CLONED). */
  readonly cloned: boolean;
}

/** @throws {MalformedNetlink} */
export function parseRoute(payload: Uint8Array): RouteEntry {
  if (payload.length < RTMSG_BYTES) throw new MalformedNetlink("rtmsg is cut off", 0);
  const family: Family = payload[0] === 2 ? 4 : 6;
  const prefixLength = payload[1] ?? 0;
  const flags = readU32(payload, 8);
  let dst = zeroIp(family);
  let gateway: Ip | undefined;
  let prefSrc: Ip | undefined;
  let linkIndex: number | undefined;
  let table = payload[4] ?? 0;
  let metric = 0;
  eachAttribute(payload, RTMSG_BYTES, (type, value) => {
    if (type === R.RTA_DST) dst = readIp(value);
    else if (type === R.RTA_GATEWAY) gateway = readIp(value);
    else if (type === R.RTA_OIF) linkIndex = readU32(value, 0);
    else if (type === R.RTA_PREFSRC) prefSrc = readIp(value);
    else if (type === R.RTA_PRIORITY) metric = readU32(value, 0);
    else if (type === R.RTA_TABLE) table = readU32(value, 0);
  });
  return {
    dst: { ip: dst, prefixLength },
    gateway,
    linkIndex,
    table,
    scope: payload[6] ?? 0,
    type: payload[7] ?? 0,
    protocol: payload[5] ?? 0,
    prefSrc,
    metric,
    onlink: (flags & R.RTNH_F_ONLINK) !== 0,
    cloned: (flags & R.RTM_F_CLONED) !== 0,
  };
}

/** As `ip route` has it, with `if7` for a link whose name is not known here. */
export function describeRoute(route: Partial<Route> & Pick<Route, "dst">): string {
  const parts = [
    route.dst.prefixLength === 0 ? (route.dst.ip.family === 6 ? "::/0" : "default") : formatCidr(route.dst),
  ];
  if (route.gateway) parts.push(`via ${formatIp(route.gateway)}`);
  if (route.linkIndex !== undefined) parts.push(`dev if${route.linkIndex}`);
  if (route.table !== undefined && route.table !== R.RT_TABLE_MAIN) parts.push(`table ${route.table}`);
  if (route.prefSrc) parts.push(`src ${formatIp(route.prefSrc)}`);
  return parts.join(" ");
}
