/** Numbers that the datapath of a node is built from. The plugins and the agent must agree on them. */
import { parseIp } from "../net/ip.ts";

/** Holds a host route to each pod of the node; looked at before every other table but `local`. */
export const PODS_TABLE = 17000;
/** Table of the ENI in route slot n is ROUTE_TABLE_BASE + n: clear of 253 to 255 and of what others number by ifindex. */
export const ROUTE_TABLE_BASE = 17000;

/** Host routes to pods that have an uplink of their own: only what the node itself sends goes to them by the veth. */
export const NODE_TABLE = 16999;

/** iif lo lookup NODE_TABLE */
export const NODE_RULE_PRIORITY = 511;
/** from all lookup PODS_TABLE */
export const PODS_RULE_PRIORITY = 512;
/** from POD lookup TABLE-OF-ITS-ENI */
export const FROM_POD_PRIORITY = 2048;
/** from ENI-PRIMARY lookup TABLE-OF-THE-ENI: what the node itself sends with that address. */
export const FROM_ENI_PRIORITY = 2049;

/** from NODE-ENI-PRIMARY lookup its table: what the node sends with the address of an ENI of its own (MultiENIConfig). */
export const FROM_NODE_ENI_PRIORITY = 2050;
/** from NODE lookup main: who has bound the node's address stays with it. */
export const FROM_NODE_PRIORITY = 2051;
/** iif lo lookup DESTINATIONS_TABLE */
export const DESTINATIONS_PRIORITY = 2052;
/** By destination, the node's ENI. What it says nothing of, or throws back, is for main. */
export const DESTINATIONS_TABLE = 16998;
/** The table of the nth of the node's own ENIs is this plus n. */
export const NODE_ENI_TABLE_BASE = 16900;

/** Marks our routes and rules (`ip route` and `ip rule` show it as proto): ours to repair and to remove. */
export const PROTOCOL = 84;

/** What pods of shared ENIs see as their gateway; it exists nowhere but in their neighbour table. */
export const POD_GATEWAY4 = parseIp("169.254.1.1");
export const POD_GATEWAY6 = parseIp("fe80::1");

/** In a pod with several interfaces: tables of the second and later ones, and from POD-ADDRESS lookup TABLE. */
export const POD_TABLE_BASE = 100;
export const POD_RULE_PRIORITY = 2048;

/** What the names of all pods' host interfaces begin with; rules match it. */
export const HOST_IFNAME_STEM = "cal";
export const HOST_IFNAME_PREFIX = "cali";
/** Of pods with an uplink. */
export const HOST_UPLINK_PREFIX = "calu";

/** Bits of packet and connection marks, clear of kube-proxy's (0x4000, 0x8000), portmap's (0x2000) and Cilium's (0xf00). */
export const MARK_ANSWER = 0x0010_0000;
export const MARK_MASQUERADE = 0x0020_0000;
/** fwmark MARK_ANSWER lookup main */
export const MARK_RULE_PRIORITY = 1024;
