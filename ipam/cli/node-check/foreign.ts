/** Other CNIs by what they leave on a node: configuration, links, chains of rules. Pure data. */

export interface ForeignCni {
  readonly name: string;
  /** Plugins in a conflist. */
  readonly types: readonly string[];
  readonly links?: RegExp;
  readonly chains?: RegExp;
}

export const FOREIGN_CNIS: readonly ForeignCni[] = [
  { name: "Antrea", types: ["antrea"], links: /^antrea-(gw|tun)\d$/, chains: /^ANTREA/ },
  // Its pods' links are called as ours: they tell nothing.
  {
    name: "Calico",
    types: ["calico", "calico-ipam"],
    links: /^(vxlan(-v6)?\.calico|wireguard\.cali|wg-v6\.cali)$/,
    chains: /^cali-/,
  },
  {
    name: "Cilium",
    types: ["cilium-cni"],
    links: /^(cilium_(host|net|vxlan|geneve)|lxc_health)$/,
    chains: /^(OLD_)?CILIUM_/,
  },
  { name: "Flannel", types: ["flannel"], links: /^flannel[.-]/, chains: /^FLANNEL/ },
  { name: "kube-router", types: [], links: /^(kube-bridge|kube-dummy-if)$/, chains: /^KUBE-(NWPLCY|POD-FW|ROUTER)/ },
  { name: "OVN-Kubernetes", types: ["ovn-k8s-cni-overlay"], links: /^(ovn-k8s-\w+|ovn0)$/ },
  { name: "Weave", types: ["weave-net"], links: /^(weave|vxlan-6784)$/, chains: /^WEAVE-/ },
  { name: "a bridge network (bridge or kubenet)", types: [], links: /^(cni0|cbr0)$/ },
];
