/** What the compiler's sets stand for, and their ids: a name for the question, not for the answer of the day. Pure. */
import { createHash } from "node:crypto";
import type { Protocol } from "../../shared/policy/compiled.ts";
import type { BlockPeer, NodePeer, Peer, PodPeer, PortByName } from "./objects.ts";
import { selectorText } from "./selector.ts";

/** Every pod: where a rule has a named port and no peers. */
export interface AnyPeer {
  readonly kind: "any";
}

export interface BlocksPeer {
  readonly kind: "blocks";
  readonly blocks: readonly BlockPeer[];
}

export type SetPeer = PodPeer | NodePeer | BlocksPeer | AnyPeer;

export interface SetSpec {
  readonly id: string;
  readonly peer: SetPeer;
  /** Present: the set holds endpoints, of pods that have a port by this name. */
  readonly port?: PortByName;
}

/** 64 bits: what two of a cluster's few thousand selectors may share by accident once in 10^12 clusters. */
export function shortHash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

/** Longer lists of blocks are named by where they stand, so that an edit changes elements and not the whole set. */
const BLOCKS_NAMED_BY_CONTENT = 32;

function peerText(peer: SetPeer, origin: string): string {
  switch (peer.kind) {
    case "pods": {
      const where =
        peer.namespaces === undefined ? `in ${peer.namespace ?? ""}` : `in [${selectorText(peer.namespaces)}]`;
      return `pods [${selectorText(peer.pods)}] ${where}`;
    }
    case "nodes":
      return `nodes [${selectorText(peer.nodes)}]`;
    case "any":
      return "any";
    case "blocks":
      return peer.blocks.length > BLOCKS_NAMED_BY_CONTENT
        ? `blocks of ${origin}`
        : `blocks ${peer.blocks
            .map((b) => `${b.cidr}-${[...b.except].sort().join("-")}`)
            .sort()
            .join(" ")}`;
  }
}

export function addressSpec(peer: SetPeer, origin: string): SetSpec {
  return { id: `${peer.kind}-${shortHash(peerText(peer, origin))}`, peer };
}

export function endpointSpec(peer: SetPeer, port: PortByName, origin: string): SetSpec {
  const text = `${peerText(peer, origin)} : ${port.name} ${port.protocol ?? "*"}`;
  return { id: `ports-${shortHash(text)}`, peer, port };
}

/** Blocks of a rule are one set; every other peer has its own, shared by all rules that name it. */
export function groupPeers(peers: readonly Peer[] | undefined): SetPeer[] {
  if (peers === undefined) return [{ kind: "any" }];
  const blocks = peers.filter((peer) => peer.kind === "block");
  const others = peers.filter((peer) => peer.kind !== "block");
  return blocks.length === 0 ? others : [...others, { kind: "blocks", blocks }];
}

export function portFits(port: PortByName, name: string, protocol: Protocol): boolean {
  return port.name === name && (port.protocol === undefined || port.protocol === protocol);
}
