/** Removes leftovers of addresses from the node's routing. */
import type { NetlinkSocket } from "../netlink/socket.ts";
import { sweepRequests } from "./pod-link.ts";

/** More leftovers of one kind than this is somebody adding them while we remove them. */
const MAX_ROUNDS = 64;

/** Rounds of {@link sweepRequests} until nothing is left. @returns How many things were removed. */
export function sweepAddresses(nl: Pick<NetlinkSocket, "apply">, addresses: readonly string[]): number {
  let removed = 0;
  let requests = sweepRequests(addresses);
  for (let round = 0; round < MAX_ROUNDS && requests.length > 0; round++) {
    const outcomes = nl.apply(requests);
    requests = requests.filter((_, i) => outcomes[i]?.refusal === undefined);
    removed += requests.length;
  }
  return removed;
}
