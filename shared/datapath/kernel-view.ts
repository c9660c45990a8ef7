/** Reads a {@link KernelView} from the kernel. */
import { getAddresses, parseAddress } from "../netlink/rtnl/address.ts";
import { getLink, parseLink } from "../netlink/rtnl/link.ts";
import { getNeighbours, parseNeighbour } from "../netlink/rtnl/neighbour.ts";
import { getRoutes, parseRoute } from "../netlink/rtnl/route.ts";
import { getRules, parseRule } from "../netlink/rtnl/rule.ts";
import type { NetlinkSocket } from "../netlink/socket.ts";
import type { KernelView } from "./verify.ts";

const FAMILIES = [4, 6] as const;

export function readKernelView(nl: Pick<NetlinkSocket, "dump">): KernelView {
  return {
    links: nl.dump(getLink()).map(parseLink),
    addresses: nl.dump(getAddresses()).map(parseAddress),
    routes: FAMILIES.flatMap((family) => nl.dump(getRoutes(family)).map(parseRoute)),
    rules: FAMILIES.flatMap((family) => nl.dump(getRules(family)).map(parseRule)),
    neighbours: FAMILIES.flatMap((family) => nl.dump(getNeighbours(family)).map(parseNeighbour)),
  };
}
