/** Addresses on links: struct ifaddrmsg (8 bytes) and IFA_ attributes, include/uapi/linux/if_addr.h. */
import { type Cidr, formatCidr, lastOf } from "../../net/cidr.ts";
import type { Ip } from "../../net/ip.ts";
import type { Request } from "../request.ts";
import * as A from "../uapi/if-addr.ts";
import { NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE } from "../uapi/netlink.ts";
import { RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR } from "../uapi/rtnetlink.ts";
import { eachAttribute, MalformedNetlink, readU32 } from "../wire/reader.ts";
import { familyNumber, readIp } from "./family.ts";

const IFADDRMSG_BYTES = 8;

export interface LinkAddress {
  readonly linkIndex: number;
  readonly address: Cidr;
  /** RT_SCOPE_…; absent means universe. */
  readonly scope?: number;
  /** IFA_F_… */
  readonly flags?: number;
  /** IPv4 shorter than /31: also write the broadcast address. */
  readonly broadcast?: boolean;
}

function addressRequest(type: number, flags: number, verb: string, a: LinkAddress): Request {
  return {
    type,
    flags,
    write(w) {
      w.bytes4(familyNumber(a.address.ip), a.address.prefixLength, (a.flags ?? 0) & 0xff, a.scope ?? 0);
      w.u32(a.linkIndex);
      // IFA_ADDRESS is the peer on a point-to-point link; on any other link it repeats IFA_LOCAL.
      w.attrBytes(A.IFA_LOCAL, a.address.ip.bytes);
      w.attrBytes(A.IFA_ADDRESS, a.address.ip.bytes);
      if (a.flags !== undefined) w.attrU32(A.IFA_FLAGS, a.flags);
      if (a.broadcast && a.address.ip.family === 4) w.attrBytes(A.IFA_BROADCAST, lastOf(a.address).bytes);
    },
    describe: () => `ip addr ${verb} ${formatCidr(a.address)} dev if${a.linkIndex}`,
  };
}

/** ip addr add CIDR dev LINK */
export function newAddress(address: LinkAddress): Request {
  return addressRequest(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, "add", address);
}

/** ip addr replace CIDR dev LINK */
export function replaceAddress(address: LinkAddress): Request {
  return addressRequest(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, "replace", address);
}

/** ip addr del CIDR dev LINK */
export function delAddress(address: LinkAddress): Request {
  return addressRequest(RTM_DELADDR, 0, "del", address);
}

/** ip addr show, all links, for a dump. */
export function getAddresses(family: 0 | 4 | 6 = 0): Request {
  return {
    type: RTM_GETADDR,
    flags: 0,
    write(w) {
      w.u32(family === 0 ? 0 : family === 4 ? 2 : 10);
      w.u32(0);
    },
    describe: () => "ip addr show",
  };
}

export interface AddressEntry {
  readonly linkIndex: number;
  readonly ip: Ip;
  readonly prefixLength: number;
  readonly scope: number;
  readonly flags: number;
  readonly broadcast: Ip | undefined;
}

/** @throws {MalformedNetlink} */
export function parseAddress(payload: Uint8Array): AddressEntry {
  if (payload.length < IFADDRMSG_BYTES) throw new MalformedNetlink("ifaddrmsg is cut off", 0);
  let local: Ip | undefined;
  let address: Ip | undefined;
  let broadcast: Ip | undefined;
  let flags = payload[2] ?? 0;
  eachAttribute(payload, IFADDRMSG_BYTES, (type, value) => {
    if (type === A.IFA_LOCAL) local = readIp(value);
    else if (type === A.IFA_ADDRESS) address = readIp(value);
    else if (type === A.IFA_BROADCAST) broadcast = readIp(value);
    else if (type === A.IFA_FLAGS) flags = readU32(value, 0);
  });
  const ip = local ?? address;
  if (ip === undefined) throw new MalformedNetlink("an address message has no address", 0);
  return {
    linkIndex: readU32(payload, 4),
    ip,
    prefixLength: payload[1] ?? 0,
    scope: payload[3] ?? 0,
    flags,
    broadcast,
  };
}
