/**
 * Security groups in the VPC router, by connection tracking: replies pass, everything else is judged by the rules of
 * this moment, first the sender's egress rules, then the receiver's ingress rules. ENIs with the same groups share their
 * chains; the members of each group are in sets.
 */
import { compileGroups, memberSets, type SecurityGroup } from "./security-groups.ts";

/** To stand inside of `table inet fabric`. */
export const FIREWALL_TABLE = `
  counter denied { }
  map egress { type ifname : verdict; }
  map ingress { type ifname : verdict; }
  chain firewall {
    type filter hook forward priority 0; policy accept;
    ct direction reply ct state established accept
    ct state related accept
    iifname vmap @egress
    oifname vmap @ingress
  }`;

export interface Firewall {
  /** The port's groups and addresses are these from now on; none takes it away. @returns lines for nft */
  port(name: string, groups: readonly string[], addresses: ReadonlySet<string>): string[];
  /** The rules of a group changed. */
  group(id: string): string[];
}

interface PortState {
  readonly groups: readonly string[];
  readonly addresses: ReadonlySet<string>;
}

export function createFirewall(groupOf: (id: string) => SecurityGroup | undefined): Firewall {
  const known = new Set<string>();
  /** Groups (sorted, joined) to the number in the names of their chains. */
  const chains = new Map<string, number>();
  const ports = new Map<string, PortState>();
  const none: PortState = { groups: [], addresses: new Set() };

  /** Rules may name a group before it has members. */
  function declare(id: string): string[] {
    if (known.has(id)) return [];
    known.add(id);
    const sets = memberSets(id);
    return [`add set inet fabric ${sets[4]} { type ipv4_addr; }`, `add set inet fabric ${sets[6]} { type ipv6_addr; }`];
  }

  function fill(key: string): string[] {
    const number = chains.get(key);
    const groups = key.split(" ").flatMap((id) => groupOf(id) ?? []);
    const named = groups.flatMap((g) => [
      g.id,
      ...g.rules.flatMap((r) => (r.peer.kind === "group" ? [r.peer.id] : [])),
    ]);
    return [
      ...named.flatMap(declare),
      ...(["egress", "ingress"] as const).flatMap((direction) => [
        `add chain inet fabric ${direction}-${number}`,
        `flush chain inet fabric ${direction}-${number}`,
        ...compileGroups(groups, direction).map((rule) => `add rule inet fabric ${direction}-${number} ${rule}`),
      ]),
    ];
  }

  const pairs = (state: PortState) =>
    new Set(
      state.groups.flatMap((id) =>
        [...state.addresses].map((ip) => `${memberSets(id)[ip.includes(":") ? 6 : 4]} { ${ip} }`),
      ),
    );

  return {
    port(name, groups, addresses) {
      const before = ports.get(name) ?? none;
      const after: PortState = { groups: [...groups].sort(), addresses: new Set(addresses) };
      const lines: string[] = after.groups.flatMap(declare);
      const [oldPairs, newPairs] = [pairs(before), pairs(after)];
      for (const pair of oldPairs) if (!newPairs.has(pair)) lines.push(`delete element inet fabric ${pair}`);
      for (const pair of newPairs) if (!oldPairs.has(pair)) lines.push(`add element inet fabric ${pair}`);
      const [oldKey, newKey] = [before.groups.join(" "), after.groups.join(" ")];
      if (oldKey !== newKey) {
        if (newKey !== "" && !chains.has(newKey)) {
          chains.set(newKey, chains.size);
          lines.push(...fill(newKey));
        }
        for (const direction of ["egress", "ingress"]) {
          if (oldKey !== "") lines.push(`delete element inet fabric ${direction} { "${name}" }`);
          if (newKey !== "")
            lines.push(`add element inet fabric ${direction} { "${name}" : jump ${direction}-${chains.get(newKey)} }`);
        }
      }
      if (after.groups.length === 0) ports.delete(name);
      else ports.set(name, after);
      return lines;
    },
    group: (id) => [...chains.keys()].filter((key) => key.split(" ").includes(id)).flatMap(fill),
  };
}
