/** What `node check` found on a node, before anybody judges it. */
import type { KernelReport } from "../../../shared/kernel/features.ts";
import type { BinaryFact } from "../../conflist/lint-finding.ts";

/** A file of the CNI configuration folder, as a runtime would read it. */
export interface ConfFile {
  readonly file: string;
  readonly text: string;
  /** Absent: it does not parse. */
  readonly network?: string;
  readonly types: readonly string[];
  /** The key mode of the first plugin. */
  readonly pluginMode?: string;
}

/** Of the family that leads, those that no pod has. */
export interface AddressCounts {
  /** Can be handed out now. */
  readonly idle: number;
  readonly cooling: number;
  readonly reserved: number;
  readonly releasing: number;
  /** Idle or cooling, of ENIs that are no longer, or not yet, in service. */
  readonly outOfService: number;
}

export type StoreFact =
  | { readonly kind: "missing"; readonly path: string }
  | { readonly kind: "broken"; readonly path: string; readonly problem: string }
  | {
      readonly kind: "there";
      readonly path: string;
      readonly agentRuns: boolean;
      readonly addresses: AddressCounts;
      readonly pods: number;
      readonly enis: number;
      /** Of the agent's instance; undefined: it never said. */
      readonly instanceType: string | undefined;
      /** Of the node's pods; undefined: no agent ever said. */
      readonly ipStack: string | undefined;
      readonly hasIpv6Address: boolean;
    };

export interface NodeCheckFacts {
  readonly release: string;
  /** `problem`: why nothing could be tried. */
  readonly kernel: KernelReport | { readonly problem: string };
  /** By path below /proc/sys; undefined: there is none. */
  readonly sysctls: Readonly<Record<string, string | undefined>>;
  readonly confDir: string;
  /** As a runtime sorts them; undefined: there is no such folder. */
  readonly confFiles: readonly ConfFile[] | undefined;
  readonly binDirs: readonly string[];
  readonly binaryOf: (type: string) => BinaryFact;
  readonly store: StoreFact;
  /** Names of the node's links. */
  readonly links: readonly string[];
  /** Names of its nftables chains, those of iptables-nft among them. */
  readonly chains: readonly string[];
}
