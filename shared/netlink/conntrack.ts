/** Removing connection tracking entries of one address: nfnetlink, include/uapi/linux/netfilter/nfnetlink_conntrack.h. */
import type { Ip } from "../net/ip.ts";
import { formatIp } from "../net/ip.ts";
import type { Request } from "./request.ts";
import { familyNumber } from "./rtnl/family.ts";

const NFNL_SUBSYS_CTNETLINK = 1;
const IPCTNL_MSG_CT_DELETE = 2;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_FILTER = 25;
const CTA_TUPLE_IP = 1;
const CTA_IP_V4_SRC = 1;
const CTA_IP_V6_SRC = 3;
const CTA_FILTER_ORIG_FLAGS = 1;
const CTA_FILTER_REPLY_FLAGS = 2;
/** net/netfilter/nf_conntrack_netlink.c: not in a header for user space. */
const CTA_FILTER_F_CTA_IP_SRC = 1;

/**
 * conntrack -D --orig-src IP, or --reply-src IP: the entries that the address began, and those that it answers.
 * Together they are all in which it is an endpoint, also behind DNAT.
 *
 * Needs Linux 5.8 (CTA_FILTER in deletions). An older kernel takes the tuple for a complete one and answers EINVAL.
 */
export function deleteConntrack(ip: Ip, side: "orig" | "reply"): Request {
  const tuple = side === "orig" ? CTA_TUPLE_ORIG : CTA_TUPLE_REPLY;
  return {
    type: (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_DELETE,
    flags: 0,
    write(w) {
      // struct nfgenmsg. NB: version 1 makes the kernel read the family; with 0 it takes all families.
      w.bytes4(familyNumber(ip), 1, 0, 0);
      const t = w.beginNest(tuple);
      const i = w.beginNest(CTA_TUPLE_IP);
      w.attrBytes(ip.family === 4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, ip.bytes);
      w.endNest(i);
      w.endNest(t);
      const f = w.beginNest(CTA_FILTER);
      // The kernel wants both; they are in host order, unlike the rest of nfnetlink.
      w.attrU32(CTA_FILTER_ORIG_FLAGS, side === "orig" ? CTA_FILTER_F_CTA_IP_SRC : 0);
      w.attrU32(CTA_FILTER_REPLY_FLAGS, side === "reply" ? CTA_FILTER_F_CTA_IP_SRC : 0);
      w.endNest(f);
    },
    describe: () => `conntrack -D --${side}-src ${formatIp(ip)}`,
    // No connection tracking in this kernel or namespace: then there is nothing to remove.
    accept: ["ENOENT", "EINVAL", "EOPNOTSUPP"],
  };
}
