/** Keys of the former plugin's entry that are neither CNI's nor `eni_conf`'s, and what became of each. Pure data. */

export type Verdict =
  /** It is in the conflist now, in our words. */
  | "translated"
  /** It stays where it was, and is read there. */
  | "kept"
  /** It goes into eni_conf, which the agent reads. */
  | "moved"
  /** Nothing needs to be said any more. */
  | "not needed"
  /** What it asked for will not be. */
  | "unsupported";

export interface LegacyKey {
  readonly verdict: Verdict;
  readonly note: string;
}

const CILIUM = "configure Cilium itself (its ConfigMap or chart)";

export const LEGACY_KEYS: Readonly<Record<string, LegacyKey>> = {
  bandwidth_mode: { verdict: "not needed", note: "terway-bandwidth chooses by what the interface is" },
  cilium_args: { verdict: "unsupported", note: CILIUM },
  cilium_enable_hubble: { verdict: "unsupported", note: CILIUM },
  cilium_hubble_listen_address: { verdict: "unsupported", note: CILIUM },
  cilium_hubble_metrics: { verdict: "unsupported", note: CILIUM },
  cilium_hubble_metrics_server: { verdict: "unsupported", note: CILIUM },
  datapath: { verdict: "not needed", note: "the mode says it" },
  debug: { verdict: "not needed", note: "each plugin writes one JSON line an operation to /var/log/terway" },
  disable_host_peer: {
    verdict: "unsupported",
    note: "a pod with an uplink always has a veth to the node: probes and Services go by it",
  },
  dns: { verdict: "unsupported", note: "name a file in resolvConf of the ipam section; kubelet ignores both" },
  enable_network_priority: { verdict: "not needed", note: "terway-bandwidth follows the pods' annotation" },
  log_level: { verdict: "not needed", note: "each plugin writes one JSON line an operation to /var/log/terway" },
  network_policy_provider: { verdict: "not needed", note: "terway-policy enforces; with Cilium, Cilium does" },
  symmetric_routing: { verdict: "not needed", note: "answers always leave the way the question came" },
  vlan_strip_type: { verdict: "not needed", note: "terway-trunk uses VLAN links, which take the tag off" },
};
