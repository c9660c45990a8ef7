/** A pod's own way into the VPC: making it in the pod's namespace, and giving an ENI back. Pure lists of requests. */
import { parseMac } from "../net/mac.ts";
import type { Request } from "../netlink/request.ts";
import { newLink, setLink } from "../netlink/rtnl/link.ts";
import { IPVLAN_MODE_L2 } from "../netlink/uapi/if-link.ts";
import type { PodLink, Uplink } from "./pod-link.ts";

/**
 * What a child of an ENI is called until it has its name: the kernel looks for a new link's name also in the namespace of
 * whoever asks, where there is an eth0 too (rtnl_newlink() before Linux 6.13).
 */
export function newbornName(link: PodLink): string {
  return `new${link.hostIfname.slice(4)}`;
}

/**
 * On the node's socket: the uplink comes to be in the pod, down; an ENI under its name, a child as {@link newbornName}.
 *
 * @param parentIndex Of the link with `parentMac`.
 */
export function uplinkRequests(link: PodLink, uplink: Uplink, parentIndex: number, podNetnsFd: number): Request[] {
  const { mtuBytes } = link;
  const name = uplink.kind === "eni" ? link.podIfname : newbornName(link);
  switch (uplink.kind) {
    case "ipvlan":
      // It has its parent's MAC.
      return [newLink({ kind: "ipvlan", name, mtuBytes, netnsFd: podNetnsFd, parentIndex, mode: IPVLAN_MODE_L2 })];
    case "vlan":
      return [
        newLink({
          kind: "vlan",
          name,
          mtuBytes,
          netnsFd: podNetnsFd,
          parentIndex,
          vlanId: uplink.vlanId ?? 0,
          mac: parseMac(uplink.mac),
        }),
      ];
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
 * On the pod's socket: the ENI goes back to the node, down and without its addresses and routes.
 *
 * @param name May be a pattern like `eth%d`.
 */
export function returnRequests(index: number, nodeNetnsFd: number, name: string): Request[] {
  return [setLink({ index, up: false }), setLink({ index, netnsFd: nodeNetnsFd, name })];
}
