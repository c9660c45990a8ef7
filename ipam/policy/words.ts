/** Rules in words. Pure. */
import type { Peer, PortMatch } from "./objects.ts";
import { describeSelector } from "./selector.ts";

/** Longer lists are counted only. */
const SOME = 4;

function describePeer(peer: Peer): string {
  switch (peer.kind) {
    case "block":
      return peer.except.length === 0 ? peer.cidr : `${peer.cidr} except ${peer.except.join(", ")}`;
    case "nodes":
      return `nodes ${describeSelector(peer.nodes)}`;
    default: {
      const pods = peer.pods.requirements.length === 0 ? "pods" : `pods ${describeSelector(peer.pods)}`;
      if (peer.namespaces === undefined) return `${pods} in namespace ${peer.namespace}`;
      const everywhere = peer.namespaces.requirements.length === 0;
      return `${pods} in ${everywhere ? "every namespace" : `namespaces ${describeSelector(peer.namespaces)}`}`;
    }
  }
}

export function describePort(port: PortMatch): string {
  if ("name" in port) return `${port.protocol === undefined ? "" : `${port.protocol} `}"${port.name}"`;
  if (port.first === 0 && port.last === 65_535) return `${port.protocol}`;
  return `${port.protocol} ${port.first === port.last ? port.first : `${port.first}-${port.last}`}`;
}

/** "from pods app=web in namespace shop, on tcp 80" */
export function describeMatch(
  direction: "ingress" | "egress",
  peers: readonly Peer[] | undefined,
  ports: readonly PortMatch[] | undefined,
): string {
  const side = direction === "ingress" ? "from" : "to";
  const blocks = peers?.filter((peer) => peer.kind === "block") ?? [];
  const told =
    blocks.length > SOME
      ? [...(peers ?? []).filter((peer) => peer.kind !== "block").map(describePeer), "a list of blocks"]
      : peers?.map(describePeer);
  const who = told === undefined ? "everybody" : told.join(" or ");
  const what = ports === undefined ? "" : `, on ${ports.map(describePort).join(", ")}`;
  return `${side} ${who}${what}`;
}
