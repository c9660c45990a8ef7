/** A pod's own way into the VPC: making it in the pod's namespace, and giving an ENI back. Pure lists of requests. */
import { parseMac } from "../net/mac.ts";
import type { Request } from "../netlink/request.ts";
import { type Link, newLink, setLink } from "../netlink/rtnl/link.ts";
import { IPVLAN_MODE_L2 } from "../netlink/uapi/if-link.ts";
import { macRequests } from "./eni-link.ts";
import type { PodLink, Uplink } from "./pod-link.ts";

/** No namespace counts so far by itself. Above it are 15 bits of the attachment, and 15 of this life of it. */
const CHILD_INDEX_BASE = 2 ** 30;
const LIVES = 2 ** 15;

/**
 * An ifindex for a new child of an ENI (IPvlan, VLAN). Asked for by an index, a link gets its final name at once.
 * Otherwise the kernel looks for the name also in the namespace of whoever asks, where there is an eth0 too
 * (rtnl_newlink() before Linux 6.13), and a change of name afterwards is an RCU grace period with rtnl_lock held: some
 * 20 ms before Linux 6.9 (dev_change_name()).
 *
 * @param random Each child has an index of its own: a DEL does not wait for its request to delete the one before.
 */
export function childIndex(link: Pick<PodLink, "hostIfname">, random: number): number {
  return CHILD_INDEX_BASE + attachmentBits(link) * LIVES + (random % LIVES);
}

/** What an attachment's child is told by in its pod: name, kind and MAC may be another's, too. */
export function isChildIndex(link: Pick<PodLink, "hostIfname">, index: number): boolean {
  return index >= CHILD_INDEX_BASE && Math.floor((index - CHILD_INDEX_BASE) / LIVES) === attachmentBits(link);
}

/** The name is a hash, in hexadecimal digits, behind four letters. */
function attachmentBits({ hostIfname }: Pick<PodLink, "hostIfname">): number {
  return Number.parseInt(hostIfname.slice(-4), 16) % 2 ** 15;
}

/**
 * On the node's socket: the uplink comes to be in the pod under its name, down.
 *
 * @param parentIndex Of the link with `parentMac`.
 * @param newIndex Of a child: a {@link childIndex}.
 */
export function uplinkRequests(
  link: PodLink,
  uplink: Uplink,
  parentIndex: number,
  podNetnsFd: number,
  newIndex: number,
): Request[] {
  const { mtuBytes, podIfname: name } = link;
  const child = { name, index: newIndex, mtuBytes, netnsFd: podNetnsFd, parentIndex };
  switch (uplink.kind) {
    case "ipvlan":
      // It has its parent's MAC.
      return [newLink({ kind: "ipvlan", ...child, mode: IPVLAN_MODE_L2 })];
    case "vlan":
      return [newLink({ kind: "vlan", ...child, vlanId: uplink.vlanId ?? 0, mac: parseMac(uplink.mac) })];
    case "eni":
      return [
        setLink({ index: parentIndex, up: false }),
        setLink({ index: parentIndex, mtuBytes }),
        setLink({ index: parentIndex, netnsFd: podNetnsFd, name }),
      ];
    default:
      return uplink.kind satisfies never;
  }
}

/**
 * On the pod's socket: the ENI goes back to the node, down, with its MAC and without its addresses and routes.
 *
 * @param name May be a pattern like `eth%d`.
 */
export function returnRequests(
  link: Pick<Link, "index" | "mac">,
  mac: string,
  nodeNetnsFd: number,
  name: string,
): Request[] {
  const { index } = link;
  return [setLink({ index, up: false }), ...macRequests(link, mac), setLink({ index, netnsFd: nodeNetnsFd, name })];
}
