/** One link of a namespace. */
import { getLink, type Link, parseLink } from "./rtnl/link.ts";
import { NetlinkError, type NetlinkSocket } from "./socket.ts";

/** @returns undefined when there is none. @throws {NetlinkError} When the kernel refuses to say. */
export function findLink(
  nl: Pick<NetlinkSocket, "transact">,
  which: { readonly name: string } | { readonly index: number },
): Link | undefined {
  const [found] = nl.transact([getLink(which)]);
  if (found === undefined) return undefined;
  if (found.ok) return found.replies[0] && parseLink(found.replies[0]);
  if (found.refusal.errno === "ENODEV") return undefined;
  throw new NetlinkError(found.refusal);
}
