/** Links: struct ifinfomsg (16 bytes) and IFLA_ attributes, include/uapi/linux/if_link.h. */
import { formatMac } from "../../net/mac.ts";
import { AF_INET6 } from "../../sys/linux.ts";
import type { Request } from "../request.ts";
import * as L from "../uapi/if-link.ts";
import { NLM_F_CREATE, NLM_F_EXCL } from "../uapi/netlink.ts";
import { RTM_DELLINK, RTM_DELLINKPROP, RTM_GETLINK, RTM_NEWLINK, RTM_NEWLINKPROP } from "../uapi/rtnetlink.ts";
import { eachAttribute, MalformedNetlink, readString, readU16, readU32 } from "../wire/reader.ts";
import type { Writer } from "../wire/writer.ts";

export const IFINFOMSG_BYTES = 16;

interface LinkAttributes {
  readonly name?: string;
  /** Of a new link; the kernel chooses one otherwise. */
  readonly index?: number;
  /** 6 bytes. */
  readonly mac?: Uint8Array;
  readonly mtuBytes?: number;
  readonly txQueueLength?: number;
  /** Links may be deleted by group. */
  readonly group?: number;
  /** Create it in this namespace and not in the socket's. */
  readonly netnsFd?: number;
}

export interface VethSpec extends LinkAttributes {
  readonly kind: "veth";
  readonly peer: LinkAttributes;
}

export interface VlanSpec extends LinkAttributes {
  readonly kind: "vlan";
  readonly parentIndex: number;
  readonly vlanId: number;
}

export interface IpvlanSpec extends LinkAttributes {
  readonly kind: "ipvlan";
  readonly parentIndex: number;
  /** IPVLAN_MODE_… */
  readonly mode: number;
}

/** In the kernel's default mode, VEPA, unless set otherwise later. */
export interface MacvlanSpec extends LinkAttributes {
  readonly kind: "macvlan";
  readonly parentIndex: number;
}

export interface PlainSpec extends LinkAttributes {
  readonly kind: "ifb" | "dummy" | "bridge";
}

export type LinkSpec = VethSpec | VlanSpec | IpvlanSpec | MacvlanSpec | PlainSpec;

function header(w: Writer, index: number, flags: number, change: number): void {
  w.u32(0); // family AF_UNSPEC, type
  w.u32(index);
  w.u32(flags);
  w.u32(change);
}

function attributes(w: Writer, a: LinkAttributes): void {
  if (a.name !== undefined) w.attrString(L.IFLA_IFNAME, a.name);
  if (a.mac !== undefined) w.attrBytes(L.IFLA_ADDRESS, a.mac);
  if (a.mtuBytes !== undefined) w.attrU32(L.IFLA_MTU, a.mtuBytes);
  if (a.txQueueLength !== undefined) w.attrU32(L.IFLA_TXQLEN, a.txQueueLength);
  if (a.group !== undefined) w.attrU32(L.IFLA_GROUP, a.group);
  if (a.netnsFd !== undefined) w.attrU32(L.IFLA_NET_NS_FD, a.netnsFd);
}

function writeKind(w: Writer, spec: LinkSpec): void {
  const info = w.beginNest(L.IFLA_LINKINFO);
  w.attrString(L.IFLA_INFO_KIND, spec.kind);
  if (spec.kind === "veth") {
    const data = w.beginNest(L.IFLA_INFO_DATA);
    const peer = w.beginNest(L.VETH_INFO_PEER);
    header(w, spec.peer.index ?? 0, 0, 0);
    attributes(w, spec.peer);
    w.endNest(peer);
    w.endNest(data);
  } else if (spec.kind === "vlan") {
    const data = w.beginNest(L.IFLA_INFO_DATA);
    w.attrU16(L.IFLA_VLAN_ID, spec.vlanId);
    w.endNest(data);
  } else if (spec.kind === "ipvlan") {
    const data = w.beginNest(L.IFLA_INFO_DATA);
    w.attrU16(L.IFLA_IPVLAN_MODE, spec.mode);
    w.endNest(data);
  }
  w.endNest(info);
}

/**
 * ip link add NAME type KIND …; a veth gets both ends at once, each in its final namespace.
 *
 * NB: leave both ends of a veth down and bring them up afterwards: veth_open() fails with ENOTCONN while the peer
 * does not exist yet, and the first end is opened before the peer is made.
 */
export function newLink(spec: LinkSpec): Request {
  return {
    type: RTM_NEWLINK,
    flags: NLM_F_CREATE | NLM_F_EXCL,
    write(w) {
      header(w, spec.index ?? 0, 0, 0);
      attributes(w, spec);
      if ("parentIndex" in spec) w.attrU32(L.IFLA_LINK, spec.parentIndex);
      writeKind(w, spec);
    },
    describe: () =>
      `ip link add ${spec.name ?? ""} type ${spec.kind}${spec.kind === "veth" ? ` peer name ${spec.peer.name ?? ""}` : ""}`,
  };
}

export interface LinkChange {
  readonly index: number;
  readonly up?: boolean;
  readonly name?: string;
  readonly mtuBytes?: number;
  readonly mac?: Uint8Array;
  /** Moves it there; with `name`, under that name. */
  readonly netnsFd?: number;
  /** No IPv6 link-local address, so no DAD, MLD or router solicitation. The kernel refuses it at creation. */
  readonly noLinkLocal?: boolean;
}

/** ip link set dev INDEX … */
export function setLink(change: LinkChange): Request {
  const { up, index, noLinkLocal, ...rest } = change;
  return {
    type: RTM_NEWLINK,
    flags: 0,
    write(w) {
      header(w, index, up ? L.IFF_UP : 0, up === undefined ? 0 : L.IFF_UP);
      attributes(w, rest);
      if (noLinkLocal) {
        const spec = w.beginNest(L.IFLA_AF_SPEC);
        const inet6 = w.beginNest(AF_INET6);
        w.attrU8(L.IFLA_INET6_ADDR_GEN_MODE, L.IN6_ADDR_GEN_MODE_NONE);
        w.endNest(inet6);
        w.endNest(spec);
      }
    },
    describe: () =>
      `ip link set dev if${index}${up === undefined ? "" : up ? " up" : " down"}${rest.mtuBytes === undefined ? "" : ` mtu ${rest.mtuBytes}`}${rest.mac === undefined ? "" : ` address ${formatMac(rest.mac)}`}`,
  };
}

export interface AltName {
  /** Of the link. */
  readonly name: string;
  /** A name that it has, too. */
  readonly altName: string;
}

function altName(type: number, verb: string, { name, altName }: AltName, flags: number): Request {
  return {
    type,
    flags,
    write(w) {
      header(w, 0, 0, 0);
      w.attrString(L.IFLA_IFNAME, name);
      const list = w.beginNest(L.IFLA_PROP_LIST);
      w.attrString(L.IFLA_ALT_IFNAME, altName);
      w.endNest(list);
    },
    describe: () => `ip link property ${verb} dev ${name} altname ${altName}`,
  };
}

/** ip link property add dev … altname …; EEXIST: some link has that name. Since Linux 5.5. */
export function newAltName(which: AltName): Request {
  return altName(RTM_NEWLINKPROP, "add", which, NLM_F_CREATE | NLM_F_EXCL);
}

/** ip link property del dev … altname … */
export function delAltName(which: AltName): Request {
  return altName(RTM_DELLINKPROP, "del", which, 0);
}

/** ip link del dev … */
export function delLink(
  which: { readonly index: number } | { readonly name: string } | { readonly group: number },
): Request {
  return {
    type: RTM_DELLINK,
    flags: 0,
    write(w) {
      header(w, "index" in which ? which.index : 0, 0, 0);
      if ("name" in which) w.attrString(L.IFLA_IFNAME, which.name);
      if ("group" in which) w.attrU32(L.IFLA_GROUP, which.group);
    },
    describe: () =>
      "group" in which
        ? `ip link del group ${which.group}`
        : `ip link del dev ${"name" in which ? which.name : `if${which.index}`}`,
  };
}

/** ip link show; without `which`, as a dump of all. Statistics are left out. */
export function getLink(which?: { readonly index: number } | { readonly name: string }): Request {
  return {
    type: RTM_GETLINK,
    flags: 0,
    write(w) {
      header(w, which && "index" in which ? which.index : 0, 0, 0);
      if (which && "name" in which) w.attrString(L.IFLA_IFNAME, which.name);
      w.attrU32(L.IFLA_EXT_MASK, L.RTEXT_FILTER_SKIP_STATS);
    },
    describe: () => `ip link show ${which === undefined ? "" : "name" in which ? which.name : `if${which.index}`}`,
  };
}

export interface Link {
  readonly index: number;
  readonly name: string;
  /** IFF_… */
  readonly flags: number;
  readonly mtuBytes: number;
  /** Empty for links without one. */
  readonly mac: Uint8Array;
  /** The hardware's own, whatever it was set to since. Since Linux 5.6. */
  readonly permanentMac: Uint8Array | undefined;
  readonly kind: string;
  readonly parentIndex: number | undefined;
  readonly masterIndex: number | undefined;
  /** Namespace id of the peer or parent, when it is another one. */
  readonly linkNetnsId: number | undefined;
  readonly vlanId: number | undefined;
}

export function isUp(link: Pick<Link, "flags">): boolean {
  return (link.flags & L.IFF_UP) !== 0;
}

/** The ifindex of an RTM_NEWLINK or RTM_DELLINK message, without reading its attributes. */
export function linkIndexOf(payload: Uint8Array): number {
  return readU32(payload, 4);
}

/** Whether an RTM_NEWLINK message is of a link that carries packets, without reading its attributes. */
export function isRunning(payload: Uint8Array): boolean {
  return (readU32(payload, 8) & L.IFF_RUNNING) !== 0;
}

/** What {@link parseLink} reads. A link has some fifty. */
const LINK_ATTRIBUTES: ReadonlySet<number> = new Set([
  L.IFLA_IFNAME,
  L.IFLA_MTU,
  L.IFLA_ADDRESS,
  L.IFLA_PERM_ADDRESS,
  L.IFLA_LINK,
  L.IFLA_MASTER,
  L.IFLA_LINK_NETNSID,
  L.IFLA_LINKINFO,
]);

/** @throws {MalformedNetlink} */
export function parseLink(payload: Uint8Array): Link {
  if (payload.length < IFINFOMSG_BYTES) throw new MalformedNetlink("ifinfomsg is cut off", 0);
  let name = "";
  let mtuBytes = 0;
  let mac = new Uint8Array(0) as Uint8Array;
  let permanentMac: Uint8Array | undefined;
  let kind = "";
  let parentIndex: number | undefined;
  let masterIndex: number | undefined;
  let linkNetnsId: number | undefined;
  let vlanId: number | undefined;
  const read = (type: number, value: Uint8Array) => {
    if (type === L.IFLA_IFNAME) name = readString(value);
    else if (type === L.IFLA_MTU) mtuBytes = readU32(value, 0);
    else if (type === L.IFLA_ADDRESS) mac = value;
    else if (type === L.IFLA_PERM_ADDRESS) permanentMac = value;
    else if (type === L.IFLA_LINK) parentIndex = readU32(value, 0);
    else if (type === L.IFLA_MASTER) masterIndex = readU32(value, 0);
    else if (type === L.IFLA_LINK_NETNSID) linkNetnsId = readU32(value, 0);
    else if (type === L.IFLA_LINKINFO) {
      eachAttribute(value, 0, (infoType, info) => {
        if (infoType === L.IFLA_INFO_KIND) kind = readString(info);
        else if (infoType === L.IFLA_INFO_DATA && kind === "vlan") {
          eachAttribute(info, 0, (t, v) => {
            if (t === L.IFLA_VLAN_ID) vlanId = readU16(v, 0);
          });
        }
      });
    }
  };
  eachAttribute(payload, IFINFOMSG_BYTES, read, LINK_ATTRIBUTES);
  return {
    index: linkIndexOf(payload),
    name,
    flags: readU32(payload, 8),
    mtuBytes,
    mac,
    permanentMac,
    kind,
    parentIndex,
    masterIndex,
    linkNetnsId,
    vlanId,
  };
}

/** One line, as `ip link` has it. */
export function describeLink(link: Link): string {
  return `${link.index}: ${link.name} ${isUp(link) ? "up" : "down"} mtu ${link.mtuBytes} ${formatMac(link.mac)}${link.kind ? ` ${link.kind}` : ""}`;
}
