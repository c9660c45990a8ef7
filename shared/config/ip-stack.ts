/** Which families pods have. On an IPv6-only node the cloud keeps an IPv4 address on each ENI all the same. */
export type IpStack = "ipv4" | "dual" | "ipv6";

export const IP_STACKS = ["ipv4", "dual", "ipv6"] as const satisfies readonly IpStack[];

/** In the order in which a pod has its addresses; the first is what the pool counts. */
export function familiesOf(stack: IpStack): readonly (4 | 6)[] {
  return stack === "dual" ? [4, 6] : stack === "ipv6" ? [6] : [4];
}
