/**
 * Security groups: what a rule is, how the API spells it, and what the rules of several groups together let through
 * (as lines of nftables).
 */
import { tryParseCidr } from "../../shared/net/cidr.ts";
import { formatIp, tryParseIp } from "../../shared/net/ip.ts";
import { ApiError } from "./errors.ts";

export type Direction = "ingress" | "egress";
const PROTOCOLS = ["all", "tcp", "udp", "icmp", "icmpv6", "gre"] as const;
export type Protocol = (typeof PROTOCOLS)[number];

export interface Ports {
  readonly from: number;
  readonly to: number;
}

/** Whom a rule is about: the source of an ingress rule, the destination of an egress rule. */
export type RulePeer =
  | { readonly kind: "cidr"; readonly cidr: string }
  | { readonly kind: "group"; readonly id: string };

export interface RuleSpec {
  readonly direction: Direction;
  readonly protocol: Protocol;
  /** Destination ports; undefined is all. */
  readonly ports: Ports | undefined;
  readonly sourcePorts: Ports | undefined;
  readonly peer: RulePeer;
  /** The group's own side of a five-tuple rule; undefined is any address. */
  readonly own: string | undefined;
  readonly policy: "accept" | "drop";
  /** 1 (first) to 100. */
  readonly priority: number;
  readonly description: string;
}

export interface SecurityRule extends RuleSpec {
  readonly id: string;
  readonly createTime: string;
}

export interface SecurityGroup {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly type: "normal" | "enterprise";
  /** Members of a normal group reach each other, whatever the rules say, unless this is Drop. */
  innerAccess: "Accept" | "Drop";
  rules: readonly SecurityRule[];
  /** Addresses that fit in; undefined: no limit. */
  limit: number | undefined;
  readonly tags: Map<string, string>;
  readonly creationTime: string;
}

/** What decides whether two rules are the same one. */
export function sameRule(a: RuleSpec, b: RuleSpec): boolean {
  const key = (r: RuleSpec) =>
    JSON.stringify([r.direction, r.protocol, r.ports, r.sourcePorts, r.peer, r.own, r.policy]);
  return key(a) === key(b);
}

function parsePorts(text: string | undefined, protocol: Protocol): Ports | undefined {
  const portless = protocol !== "tcp" && protocol !== "udp";
  if (text === undefined || text === "-1/-1") {
    if (portless || text === "-1/-1") return undefined;
    throw new ApiError(400, "MissingParameter", `PortRange is mandatory for ${protocol}, such as 80/80.`);
  }
  const match = /^(\d{1,5})\/(\d{1,5})$/.exec(text);
  const [from, to] = [Number(match?.[1]), Number(match?.[2])];
  if (match === null || portless || from < 1 || to > 65_535 || from > to)
    throw new ApiError(400, "InvalidIpPortRange.Malformed", `PortRange ${text} for ${protocol}`);
  return from === 1 && to === 65_535 ? undefined : { from, to };
}

function parseAddress(parameter: string, text: string, family: 4 | 6): string {
  const ip = tryParseIp(text);
  const cidr = ip === undefined ? tryParseCidr(text) : { ip, prefixLength: ip.bytes.length * 8 };
  if (cidr === undefined || cidr.ip.family !== family)
    throw new ApiError(400, `Invalid${parameter}.Malformed`, `${parameter} ${text}`);
  return `${formatIp(cidr.ip)}/${cidr.prefixLength}`;
}

/** One rule of AuthorizeSecurityGroup and its kin. `get` reads a parameter of this rule. @throws {ApiError} */
export function parseRule(direction: Direction, get: (name: string) => string | undefined): RuleSpec {
  const protocol = (get("IpProtocol") ?? "").toLowerCase();
  if (protocol === "") throw new ApiError(400, "MissingParameter", "IpProtocol is mandatory.");
  if (!(PROTOCOLS as readonly string[]).includes(protocol))
    throw new ApiError(400, "InvalidIpProtocol.ValueNotSupported", `IpProtocol ${protocol}`);
  const policy = (get("Policy") ?? "accept").toLowerCase();
  if (policy !== "accept" && policy !== "drop") throw new ApiError(400, "InvalidPolicy.Malformed", `Policy ${policy}`);
  const priority = get("Priority") ?? "1";
  if (!/^\d+$/.test(priority) || Number(priority) < 1 || Number(priority) > 100)
    throw new ApiError(400, "InvalidPriority.Malformed", `Priority ${priority} is not within 1 to 100.`);
  const [far, near] = direction === "ingress" ? (["Source", "Dest"] as const) : (["Dest", "Source"] as const);
  for (const name of [`${far}PrefixListId`, "PortRangeListId"])
    if (get(name) !== undefined)
      throw new ApiError(400, "UnsupportedParameter", `${name} is not emulated: name addresses and ports instead.`);
  const side = (which: "Source" | "Dest") => {
    const [four, six] = [get(`${which}CidrIp`), get(`Ipv6${which}CidrIp`)];
    if (four !== undefined && six !== undefined)
      throw new ApiError(400, "InvalidParameter.Conflict", `${which}CidrIp and Ipv6${which}CidrIp`);
    if (four !== undefined) return parseAddress(`${which}CidrIp`, four, 4);
    return six === undefined ? undefined : parseAddress(`Ipv6${which}CidrIp`, six, 6);
  };
  const cidr = side(far);
  const group = get(`${far}GroupId`);
  if (cidr === undefined && group === undefined)
    throw new ApiError(400, `MissingParameter.${far}`, `${far}CidrIp, Ipv6${far}CidrIp or ${far}GroupId is mandatory.`);
  return {
    direction,
    protocol: protocol as Protocol,
    ports: parsePorts(get("PortRange"), protocol as Protocol),
    sourcePorts: parsePorts(get("SourcePortRange") ?? "-1/-1", protocol as Protocol),
    // A CIDR beside a group takes precedence.
    peer: cidr !== undefined ? { kind: "cidr", cidr } : { kind: "group", id: group ?? "" },
    own: side(near),
    policy,
    priority: Number(priority),
    description: get("Description") ?? "",
  };
}

/** A rule as DescribeSecurityGroupAttribute answers it. */
export function ruleBody(rule: SecurityRule): Record<string, string> {
  const [far, near] = rule.direction === "ingress" ? ["Source", "Dest"] : ["Dest", "Source"];
  const field = (side: string | undefined, cidr: string) => `${cidr.includes(":") ? "Ipv6" : ""}${side}CidrIp`;
  const range = (ports: Ports | undefined) => {
    if (ports !== undefined) return `${ports.from}/${ports.to}`;
    return rule.protocol === "tcp" || rule.protocol === "udp" ? "1/65535" : "-1/-1";
  };
  return {
    SecurityGroupRuleId: rule.id,
    Direction: rule.direction,
    IpProtocol: rule.protocol.toUpperCase(),
    PortRange: range(rule.ports),
    ...(rule.sourcePorts ? { SourcePortRange: range(rule.sourcePorts) } : {}),
    ...(rule.peer.kind === "group"
      ? { [`${far}GroupId`]: rule.peer.id }
      : { [field(far, rule.peer.cidr)]: rule.peer.cidr }),
    ...(rule.own ? { [field(near, rule.own)]: rule.own } : {}),
    Policy: rule.policy === "accept" ? "Accept" : "Drop",
    Priority: String(rule.priority),
    NicType: "intranet",
    Description: rule.description,
    CreateTime: rule.createTime,
  };
}

/** Names of the nftables sets that hold the addresses of a group's members. */
export const memberSets = (id: string) => ({ 4: `m4-${id}`, 6: `m6-${id}` }) as const;

const addressMatch = (side: "saddr" | "daddr", cidr: string) =>
  /\/0$/.test(cidr)
    ? `meta nfproto ${cidr.includes(":") ? "ipv6" : "ipv4"}`
    : `${cidr.includes(":") ? "ip6" : "ip"} ${side} ${cidr}`;

const L4: Readonly<Record<Protocol, string>> = {
  all: "",
  tcp: "meta l4proto tcp",
  udp: "meta l4proto udp",
  icmp: "meta l4proto icmp",
  icmpv6: "meta l4proto ipv6-icmp",
  gre: "meta l4proto gre",
};

/** The peer's side in the packet. */
const farSide = (direction: Direction) => (direction === "ingress" ? "saddr" : "daddr");

function membersMatch(direction: Direction, id: string): string[] {
  const sets = memberSets(id);
  return [`ip ${farSide(direction)} @${sets[4]}`, `ip6 ${farSide(direction)} @${sets[6]}`];
}

/**
 * The body of an nftables chain for an ENI in these groups: packets that may pass return, the others are dropped.
 *
 * Of all groups' rules together the lowest priority number comes first, and Drop before Accept. Before them come the
 * other members of the same normal group; after them what a group does by default: a normal group lets everything out,
 * and nothing else in.
 */
export function compileGroups(groups: readonly SecurityGroup[], direction: Direction): string[] {
  const inner = groups
    .filter((g) => g.type === "normal" && g.innerAccess === "Accept")
    .flatMap((g) => membersMatch(direction, g.id).map((match) => `${match} return`));
  const rules = groups
    .flatMap((g) => g.rules)
    .filter((r) => r.direction === direction)
    .sort((a, b) => a.priority - b.priority || Number(a.policy === "accept") - Number(b.policy === "accept"))
    .flatMap((r) => {
      const peers =
        r.peer.kind === "cidr" ? [addressMatch(farSide(direction), r.peer.cidr)] : membersMatch(direction, r.peer.id);
      const own = r.own === undefined ? "" : addressMatch(direction === "ingress" ? "daddr" : "saddr", r.own);
      const ports = r.ports === undefined ? "" : `th dport ${r.ports.from}-${r.ports.to}`;
      const sourcePorts = r.sourcePorts === undefined ? "" : `th sport ${r.sourcePorts.from}-${r.sourcePorts.to}`;
      const verdict = r.policy === "accept" ? "return" : "counter name denied drop";
      return peers.map((peer) =>
        [peer, own, L4[r.protocol], ports, sourcePorts, verdict].filter((x) => x !== "").join(" "),
      );
    });
  const lets = direction === "egress" && groups.some((g) => g.type === "normal");
  return [...inner, ...rules, lets ? "return" : "counter name denied drop"];
}
