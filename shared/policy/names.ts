/** Names and numbers of the policy table. Plugins, agent and CLI must agree on them. */
import { hash128, toHex } from "../net/hash.ts";
import type { TableRef } from "../netlink/nft/message.ts";

/** The one table that is ours. */
export const POLICY_TABLE: TableRef = { family: "inet", table: "terway-policy" };

/**
 * Before the filter chains of others (0) and after every DNAT (prerouting, -100): an order that two tables of the same
 * priority would not have.
 */
export const POLICY_PRIORITY = -10;

/**
 * Bit of the connection mark that says "cut", clear of those in shared/datapath/constants.ts. Deleting the entry would not do: the next packet of the answering side would
 * begin it anew, in the other direction.
 */
export const CUT_MARK = 0x0040_0000;

/** Drops are told to the listeners of this nflog group. */
export const NFLOG_GROUP = 84;

export const CHAIN = {
  forward: "forward",
  input: "input",
  output: "output",
  /** By source address: may the pod send this? */
  fromPod: "from-pod",
  /** By destination address: may the pod get this? */
  toPod: "to-pod",
} as const;

export type Direction = "ingress" | "egress";

/** Where every denied packet ends: told if wanted, counted, dropped. */
export function dropChain(direction: Direction): string {
  return `drop-${direction}`;
}

/** A profile's rules; `second` holds the tiers that an admin rule's `pass` leads to. */
export function profileChain(direction: Direction, id: string, second = false): string {
  return `${direction === "ingress" ? "in" : "out"}-${safeName(id)}${second ? ".2" : ""}`;
}

/** Verdict map: address of a pod of this node to its profile. */
export function podMap(direction: Direction, family: 4 | 6): string {
  return `${direction === "ingress" ? "to" : "from"}${family}`;
}

/**
 * Verdict map: the node's end of a pod's link to its egress profile. What a pod sends from an address that is not its own,
 * a link-local one or one that it made up, is the pod's all the same.
 */
export const LINK_MAP = "from-link";

const LINK_SIGN = "%";

/** That link in the words of addresses, as a zone is written (RFC 4007). No address has the sign. */
export function linkText(ifname: string): string {
  return `${LINK_SIGN}${ifname}`;
}

export function isLinkText(text: string): boolean {
  return text.startsWith(LINK_SIGN);
}

/** Pairs of each pod's address with itself: a pod is never kept from itself, also by way of a service. */
export function selfSet(family: 4 | 6): string {
  return `self${family}`;
}

/** Addresses that the pods' own namespace (bypass datapaths) lets in whatever the profile says: the node's. */
export const NODES_SET = "nodes";
/** Destinations that the node judges by the real backend, and the pod's own namespace therefore lets out. */
export const SERVICES_SET = "services";

const MAX_NAME_CHARACTERS = 100;

/** As it is where nft could read it back as an identifier; else its characters beyond are written as `_XX`. */
export function safeName(id: string): string {
  if (id.length > MAX_NAME_CHARACTERS) return `${safeName(id.slice(0, 32))}-${toHex(hash128(id))}`;
  let name = "";
  for (let i = 0; i < id.length; i++) {
    const c = id.charAt(i);
    name += /[a-zA-Z0-9.-]/.test(c) ? c : `_${id.charCodeAt(i).toString(16)}`;
  }
  return name;
}
