/**
 * The node's own rules in nftables and policy routing, the same for all pods: a table of its own, nothing per pod.
 *
 * - A connection that came to an address of the node and was sent on to a pod (NodePort, hostPort, a load balancer) is
 *   answered the way it came. The pod's rule would send the answer out of the pod's ENI, with the node's address.
 * - What a pod with an uplink sends through the node leaves with the node's address: the answer would otherwise take the
 *   VPC's way to the pod and pass by the connection tracking that must undo what the node translated.
 */

import { formatIp, parseIp } from "../net/ip.ts";
import type { Expression } from "../netlink/nft/expression.ts";
import type { TableRef } from "../netlink/nft/message.ts";
import { delRules, getRules, type Rule as NftRule, newRule as newNftRule, parseRule } from "../netlink/nft/rule.ts";
import { type NftSocket, openNft } from "../netlink/nft/socket.ts";
import { type Chain, getChains, newChain, newTable, parseChain } from "../netlink/nft/table.ts";
import { accepting, type Request } from "../netlink/request.ts";
import { getAddresses, parseAddress } from "../netlink/rtnl/address.ts";
import { getLink, parseLink } from "../netlink/rtnl/link.ts";
import { describeRule, newRule, type Rule } from "../netlink/rtnl/rule.ts";
import type { NetlinkSocket } from "../netlink/socket.ts";
import { writeSysctl } from "../netlink/sysctl.ts";
import { NFT_REG_1 } from "../netlink/uapi/nf-tables.ts";
import { RT_TABLE_MAIN } from "../netlink/uapi/rtnetlink.ts";
import { encodeUtf8, type Sys } from "../sys/sys.ts";
import {
  HOST_IFNAME_STEM,
  HOST_UPLINK_PREFIX,
  MARK_ANSWER,
  MARK_MASQUERADE,
  MARK_RULE_PRIORITY,
  NODE_TABLE,
  PROTOCOL,
} from "./constants.ts";

export const NODE_RULES_TABLE: TableRef = { family: "inet", table: "terway-node" };
/** For values of 4 bytes, too: the kernel gives NFT_REG32_00, the same register, back as NFT_REG_1 (nft_dump_register()). */
const REG = NFT_REG_1;
const RTN_LOCAL = 2;
const NF_CT_NEW = 8; // NF_CT_STATE_BIT(IP_CT_NEW)
/** Before the translation of destinations at -100 (NF_IP_PRI_NAT_DST). */
const MANGLE = -150;
const NAT_SRC = 100;

/** The kernel's own values are in host order: little-endian on every machine that we run on. */
const host32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
const name = (prefix: string, op: "eq" | "neq"): Expression[] => [
  { kind: "meta", reg: REG, key: "iifname" },
  { kind: "cmp", reg: REG, op, value: encodeUtf8(prefix) },
];
const has = (of: "meta" | "ct", mark: number): Expression[] => [
  { kind: of, reg: REG, key: "mark" },
  { kind: "bitwise", reg: REG, mask: host32(mark), xor: host32(0) },
  { kind: "cmp", reg: REG, op: "eq", value: host32(mark) },
];
const set = (of: "meta" | "ct", mark: number): Expression[] => [
  { kind: of, reg: REG, key: "mark" },
  { kind: "bitwise", reg: REG, mask: host32(~mark), xor: host32(mark) },
  { kind: "set-mark", of, reg: REG },
];

const CHAINS: readonly Chain[] = [
  { ...NODE_RULES_TABLE, name: "prerouting", hook: { name: "prerouting", priority: MANGLE, policy: "accept" } },
  {
    ...NODE_RULES_TABLE,
    name: "postrouting",
    hook: { type: "nat", name: "postrouting", priority: NAT_SRC, policy: "accept" },
  },
];

function ruleOf(chain: string, comment: string, ...expressions: readonly Expression[][]): NftRule {
  return { ...NODE_RULES_TABLE, chain, expressions: expressions.flat(), comment };
}

const RULES: readonly NftRule[] = [
  ruleOf(
    "prerouting",
    "came to the node itself: answers leave as they came",
    name(HOST_IFNAME_STEM, "neq"),
    [
      { kind: "ct", reg: REG, key: "state" },
      { kind: "bitwise", reg: REG, mask: host32(NF_CT_NEW), xor: host32(0) },
      { kind: "cmp", reg: REG, op: "neq", value: host32(0) },
      { kind: "fib-type", reg: REG, of: "daddr" },
      { kind: "cmp", reg: REG, op: "eq", value: host32(RTN_LOCAL) },
    ],
    set("ct", MARK_ANSWER),
  ),
  // Also on the way in: the reverse path filter asks where the answer would go, by the pod's address.
  ruleOf("prerouting", "of such a connection", has("ct", MARK_ANSWER), set("meta", MARK_ANSWER)),
  ruleOf("prerouting", "from a pod with an uplink", name(HOST_UPLINK_PREFIX, "eq"), set("ct", MARK_MASQUERADE)),
  // Answers too: what is translated back must go to the pod by the node, not by the VPC.
  ruleOf("prerouting", "of such a connection", has("ct", MARK_MASQUERADE), set("meta", MARK_MASQUERADE)),
  ruleOf("postrouting", "from a pod with an uplink", has("meta", MARK_MASQUERADE), [{ kind: "masquerade" }]),
];

/** One batch: afterwards the table is as it should be, whatever it was. */
export function nodeRulesBatch(): Request[] {
  return [
    newTable(NODE_RULES_TABLE),
    ...CHAINS.map(newChain),
    ...CHAINS.map((chain) => delRules({ ...NODE_RULES_TABLE, chain: chain.name })),
    ...RULES.map(newNftRule),
  ];
}

/** By the marks: before the pods' own rules, after the routes to pods of this node. */
export function markRules(family: 4 | 6): Rule[] {
  const rule = (mark: number, table: number): Rule => ({
    family,
    priority: MARK_RULE_PRIORITY,
    mark,
    mask: mark,
    table,
    protocol: PROTOCOL,
  });
  return [rule(MARK_ANSWER, RT_TABLE_MAIN), rule(MARK_MASQUERADE, NODE_TABLE)];
}

/**
 * Writes what is missing.
 *
 * @param nodeIps The node's own addresses, one of each family in use.
 * @returns What was missing, one line each.
 */
export function ensureNodeRules(
  sys: Sys,
  route: Pick<NetlinkSocket, "apply" | "dump">,
  nodeIps: readonly string[],
): string[] {
  const rules = [...new Set(nodeIps.map((ip) => parseIp(ip).family))].flatMap(markRules);
  const nft = openNft(sys);
  try {
    const problems = nodeRulesProblems(nft);
    if (problems.length > 0) nft.commit(nodeRulesBatch());
    const added = route.apply(rules.map((rule) => accepting(newRule(rule), "EEXIST")));
    const missing = rules.filter((_, i) => added[i]?.refusal === undefined);
    return [
      ...problems,
      ...missing.map((rule) => `rule is missing: ${describeRule(rule)}`),
      ...validateByMark(sys, route, nodeIps),
    ];
  } finally {
    nft.close();
  }
}

/** Lets a strict reverse path filter follow {@link markRules}, on the links that have the node's addresses. */
function validateByMark(sys: Sys, route: Pick<NetlinkSocket, "dump">, nodeIps: readonly string[]): string[] {
  const mine = route
    .dump(getAddresses())
    .map(parseAddress)
    .filter((a) => a.ip.family === 4 && nodeIps.includes(formatIp(a.ip)));
  const links = route.dump(getLink()).map(parseLink);
  return mine.flatMap(({ linkIndex }) => {
    const link = links.find((l) => l.index === linkIndex);
    const sysctl = `net/ipv4/conf/${link?.name}/src_valid_mark`;
    return link && writeSysctl(sys, sysctl, "1") !== "1" ? [`${sysctl} was 0`] : [];
  });
}

/** What of the table is missing or changed, one line each. */
export function nodeRulesProblems(nft: Pick<NftSocket, "dump">): string[] {
  const chains = nft.dump(getChains(NODE_RULES_TABLE.family)).map(parseChain);
  const here = chains.filter((c) => c.table === NODE_RULES_TABLE.table).map((c) => textOf(c));
  const gone = CHAINS.filter((c) => !here.includes(textOf(c)));
  if (gone.length > 0) return gone.map((c) => `nftables chain ${NODE_RULES_TABLE.table} ${c.name} is missing`);
  const found = nft
    .dump(getRules(NODE_RULES_TABLE))
    .map(parseRule)
    .map(({ handle: _handle, ...rule }) => textOf(rule));
  const missing = RULES.filter((rule) => !found.includes(textOf(rule)));
  if (missing.length > 0) return missing.map((rule) => `nftables rule is missing: ${rule.comment}`);
  return found.length > RULES.length ? [`nftables table ${NODE_RULES_TABLE.table} has foreign rules`] : [];
}

/** The same text for the same content, whatever the order of its keys. */
function textOf(value: unknown): string {
  return JSON.stringify(value, (_key, v: unknown) =>
    v instanceof Uint8Array
      ? [...v]
      : typeof v === "object" && v !== null && !Array.isArray(v)
        ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
        : v,
  );
}
