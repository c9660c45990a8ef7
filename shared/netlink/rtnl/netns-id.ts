/** By which number this namespace knows another one: RTM_GETNSID, include/uapi/linux/net_namespace.h. */
import type { Request } from "../request.ts";
import { eachAttribute, readS32 } from "../wire/reader.ts";

const RTM_GETNSID = 90;
const NETNSA_NSID = 1;
const NETNSA_FD = 3;
/** struct rtgenmsg, padded */
const RTGENMSG_BYTES = 4;

/** ip netns list-id, of the namespace behind a descriptor. IFLA_LINK_NETNSID of links speaks of the same numbers. */
export function getNetnsId(netnsFd: number): Request {
  return {
    type: RTM_GETNSID,
    flags: 0,
    write(w) {
      w.u32(0);
      w.attrU32(NETNSA_FD, netnsFd);
    },
    describe: () => "ip netns list-id",
  };
}

/** @returns -1: this namespace has no number for it, so no link of the one has its peer in the other. */
export function parseNetnsId(payload: Uint8Array): number {
  let id = -1;
  eachAttribute(payload, RTGENMSG_BYTES, (type, value) => {
    if (type === NETNSA_NSID) id = readS32(value, 0);
  });
  return id;
}
