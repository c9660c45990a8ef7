/**
 * Isolation domains: a pod whose address and ENI tags are those of a domain reaches other domains only where the
 * domain's `allowed_destinations` say so. Inside its domain, and to addresses of no domain, it is free. Judged at the
 * source, where the tags are known. Pure.
 */
import { cidrContains, parseCidr } from "../../shared/net/cidr.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { subtractBlocks } from "./blocks.ts";
import type { BlockPeer, IsolationDomain, Labels } from "./objects.ts";
import type { BuiltRule } from "./profile.ts";
import { addressSpec } from "./set-spec.ts";

/** @param tags Of the ENI that the pod's addresses belong to; undefined: not known, and the CIDR alone decides. */
function domainOf(domains: readonly IsolationDomain[], address: string, tags: Labels | undefined) {
  return domains.find(
    (domain) =>
      cidrContains(parseCidr(domain.cidr), parseIp(address)) &&
      (tags === undefined || Object.entries(domain.tags).every(([key, value]) => tags[key] === value)),
  );
}

export function isolationRules(
  domains: readonly IsolationDomain[],
  addresses: readonly string[],
  tags: Labels | undefined,
): BuiltRule[] {
  return addresses.flatMap((address): BuiltRule[] => {
    const own = domainOf(domains, address, tags);
    if (own === undefined) return [];
    const family = address.includes(":");
    const others = domains.filter((domain) => domain !== own && domain.cidr.includes(":") === family);
    const closed = subtractBlocks(
      others.map((domain) => domain.cidr),
      [own.cidr, ...own.allowedDestinations],
    );
    if (closed.length === 0) return [];
    const origin = `isolation domain ${own.name}`;
    const blocks = closed.map((cidr): BlockPeer => ({ kind: "block", cidr, except: [] }));
    const spec = addressSpec({ kind: "blocks", blocks }, origin);
    const about = `to other domains: ${closed.length > 4 ? `${closed.length} blocks` : closed.join(", ")}`;
    return [{ rule: { verdict: "drop", peers: [spec.id], origin, about }, needs: [spec] }];
  });
}
