/**
 * Addresses that the kernel routes to a pod and the store knows nothing of, because it was lost: they are held under keys
 * of their own until the route is gone. The pods' names are not to be had from the kernel.
 */
import { NODE_TABLE, PODS_TABLE, PROTOCOL } from "../../shared/datapath/constants.ts";
import { formatIp } from "../../shared/net/ip.ts";
import { getLink, parseLink } from "../../shared/netlink/rtnl/link.ts";
import { getRoutes, parseRoute } from "../../shared/netlink/rtnl/route.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { adoptAddress, listAddresses } from "../store/addresses.ts";
import { addressOwners, releaseAttachment } from "../store/attachments.ts";
import type { AttachmentKey } from "../store/key.ts";

/** No CNI network can have this name: the spec allows no bracket. */
const NETWORK = "(kernel)";

/** Pod address → the node's end of its link. */
export type RoutedAddresses = ReadonlyMap<string, string>;

export function readRoutedAddresses(): RoutedAddresses {
  const nl = openNetlink(nodeSys);
  try {
    const names = new Map(nl.dump(getLink()).map((payload) => [parseLink(payload).index, parseLink(payload).name]));
    // All tables: the kernel refuses to list one that is not there yet.
    const routes = ([4, 6] as const).flatMap((family) => nl.dump(getRoutes(family)).map(parseRoute));
    return new Map(
      routes
        .filter(
          (r) =>
            (r.table === PODS_TABLE || r.table === NODE_TABLE) && r.protocol === PROTOCOL && r.linkIndex !== undefined,
        )
        .map((r) => [formatIp(r.dst.ip), names.get(r.linkIndex ?? 0) ?? `if${r.linkIndex}`]),
    );
  } finally {
    nl.close();
  }
}

function keyOf(hostIfname: string): AttachmentKey {
  return { network: NETWORK, containerId: hostIfname, ifname: hostIfname };
}

/**
 * Keeps those of the addresses from being handed out that a pod has. Inside a transaction.
 *
 * @param addresses Just added to the store as free.
 * @returns Those that a pod has.
 */
export function holdRouted(
  db: SqlHandle,
  eniId: string,
  addresses: readonly string[],
  routed: RoutedAddresses,
  nowMs: number,
): string[] {
  return addresses.filter((address) => {
    const hostIfname = routed.get(address);
    const slot = address.includes(":") ? 1 : 0;
    return hostIfname !== undefined && adoptAddress(db, eniId, address, keyOf(hostIfname), slot, nowMs);
  });
}

/** Whether any address is held this way. */
export function holdsAny(db: SqlHandle): boolean {
  return addressOwners(db, NETWORK).length > 0;
}

/** Frees those whose pod is gone: its DEL found no row, but took the link with it. Inside a transaction. @returns Them. */
export function releaseUnrouted(db: SqlHandle, routed: RoutedAddresses, nowMs: number, cooldownMs: number): string[] {
  const held = listAddresses(db).filter((a) => a.network === NETWORK && !routed.has(a.address));
  return [...new Set(held.map((a) => a.containerId ?? ""))].flatMap((hostIfname) =>
    [...routed.values()].includes(hostIfname)
      ? []
      : releaseAttachment(db, keyOf(hostIfname), nowMs, cooldownMs).map((l) => l.address),
  );
}
