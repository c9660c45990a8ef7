/** What is true of this node, written by the agent and read by the plugins. */
import type { IpStack } from "../../shared/config/ip-stack.ts";
import type { SqlHandle } from "../../shared/sys/sql.ts";

export interface NodeFacts {
  readonly instance_id: string;
  readonly instance_type: string;
  /** JSON of what the cloud said of `instance_type`: ENIs, addresses per ENI. */
  readonly instance_limits: string;
  readonly region: string;
  readonly zone: string;
  readonly node_name: string;
  /** Primary address of the primary ENI. */
  readonly node_ip: string;
  readonly node_ip6: string;
  /** JSON list of CIDRs: the pod ranges of this node in VPC mode. */
  readonly pod_cidrs: string;
  /** JSON list of CIDRs: Services, and what else pods with an uplink reach through the node. */
  readonly via_node: string;
  /** Unix datagram name on which the agent listens. */
  readonly agent_socket: string;
  readonly cooldown_ms: string;
  /** 'most' or 'fewest': from which ENI an idle address is handed out, by its number of allocated ones. */
  readonly eni_pick: string;
  readonly boot_id: string;
  /** Boot id in which forwarding and the rules that all pods share were set up. */
  readonly prepared_boot: string;
  readonly max_pool: string;
  readonly min_pool: string;
  /** Of the primary ENI, bytes. */
  readonly node_mtu: string;
  readonly ip_stack: IpStack;
  /** Of the compiled policy; absent: none was ever compiled. */
  readonly policy_revision: string;
  /** "1": NetworkPolicy is switched off, whatever is compiled; empty or absent: it is not. */
  readonly policy_off: string;
  /** JSON of the QoS configuration (K8S-73), as the cluster has it. */
  readonly qos_config: string;
  /** JSON list of the networks that have terway-bandwidth in their chain: only their pods are the agent's to limit. */
  readonly shaped_networks: string;
  /** JSON of the ENIs that the node itself sends by, and of what goes by which (`NodeEnis`). */
  readonly node_enis: string;
  /** Pods that ask for interfaces of another kind than the conflist's, as `formatAskingPods` writes them. */
  readonly asking_pods: string;
  /** ClientToken of the trunk ENI that is being made; empty or absent: none is. */
  readonly trunk_token: string;
  /** JSON of ClientTokens by entry: of the node's own ENIs that are being made. */
  readonly node_eni_tokens: string;
}

export type FactName = keyof NodeFacts;

export function getFact(db: SqlHandle, name: FactName): string | undefined {
  const value = db.get("SELECT value FROM fact WHERE name = ?", [name])?.value;
  return value === undefined ? undefined : String(value);
}

export function getFacts(db: SqlHandle): Partial<NodeFacts> {
  return Object.fromEntries(
    db.all("SELECT name, value FROM fact").map((row) => [row.name, row.value]),
  ) as Partial<NodeFacts>;
}

/** Writes only what differs, so that a periodic refresh costs no write. Inside or outside a transaction. */
export function setFacts(db: SqlHandle, facts: Partial<NodeFacts>): void {
  const known = getFacts(db);
  for (const [name, value] of Object.entries(facts)) {
    if (known[name as FactName] === value) continue;
    db.run("INSERT INTO fact(name, value) VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value", [
      name,
      value,
    ]);
  }
}
