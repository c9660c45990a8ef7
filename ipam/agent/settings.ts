/** What the agent works by: flags and environment of its process, and the configuration in force. */
import type { IpStack } from "../../shared/config/ip-stack.ts";

export interface AgentOptions {
  readonly storePath: string;
  readonly configPath: string;
  readonly metadataUrl: string;
  readonly ecsEndpoint: string | undefined;
  readonly vpcEndpoint: string | undefined;
  readonly nodeName: string | undefined;
  /** Pod ranges of this node (VPC mode). */
  readonly podCidrs: readonly string[];
  /** `HOST:PORT` for /metrics and /healthz; absent: none. */
  readonly metricsAddress: string | undefined;
  /** Absent: as `eni_conf` says. */
  readonly ipStack: IpStack | undefined;
  /** How old the picture of the ENIs may become, ms. Absent: as `eni_conf` says. */
  readonly reconcileMs: number | undefined;
  /** Tests: 0 makes a restarted agent wait for nothing. Absent: from the instance's id. */
  readonly seed: number | undefined;
  /** Folder of manifests with the cluster's policies; absent: the store's compiled policy is kept in force. */
  readonly policyDir: string | undefined;
  /** File with the QoS configuration: profiles and tc rules, read again when it changes. */
  readonly qosConfigPath: string | undefined;
  /** A changed policy also ends connections that it no longer allows. */
  readonly cutEstablished: boolean;
  readonly logDrops: boolean;
  /** Tests: die by SIGKILL when this point is reached for the nth time, `POINT:N`. */
  readonly dieAt: string | undefined;
}

/** ENIs that carry these belong to a pool of ours; the second says of which node. */
export const TAG_CREATOR = "terway:creator";
export const TAG_NODE = "terway:instance";
/** Which pool, where it is not that of shared ENIs; `trunk` on the trunk ENI. */
export const TAG_POOL = "terway:pool";
/** On ENIs made for pods that ask for their vSwitch or security groups. */
export const TAG_DEDICATED = "terway:dedicated";
