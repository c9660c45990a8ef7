/** What the datapaths ask of a kernel, by name, and what a person does about one that lacks it. Pure data. */

export interface FeatureInfo {
  /** What it is, for people. */
  readonly what: string;
  /** Build options of the kernel, all of which it takes. */
  readonly config: readonly string[];
  /** Modules to load where the kernel has them as such; none: it is never one. */
  readonly modules: readonly string[];
  /** First release that has it in the form that is used. */
  readonly since: string;
}

export const KERNEL_FEATURES = {
  veth: { what: "veth pairs", config: ["CONFIG_VETH"], modules: ["veth"], since: "2.6.24" },
  ipvlan: { what: "IPvlan links (L2)", config: ["CONFIG_IPVLAN"], modules: ["ipvlan"], since: "4.2" },
  vlan: { what: "VLAN links (802.1Q)", config: ["CONFIG_VLAN_8021Q"], modules: ["8021q"], since: "2.6.14" },
  macvlan: { what: "macvlan links", config: ["CONFIG_MACVLAN"], modules: ["macvlan"], since: "2.6.23" },
  bridge: { what: "bridges", config: ["CONFIG_BRIDGE"], modules: ["bridge"], since: "2.6.14" },
  ifb: { what: "ifb links", config: ["CONFIG_IFB"], modules: ["ifb"], since: "2.6.16" },
  tbf: { what: "the tbf queue", config: ["CONFIG_NET_SCH_TBF"], modules: ["sch_tbf"], since: "2.6.14" },
  clsact: { what: "the clsact hook", config: ["CONFIG_NET_SCH_INGRESS"], modules: ["sch_ingress"], since: "4.5" },
  redirect: {
    what: "redirection to an ifb",
    config: ["CONFIG_NET_CLS_U32", "CONFIG_NET_ACT_MIRRED"],
    modules: ["cls_u32", "act_mirred"],
    since: "2.6.20",
  },
  bpf: {
    what: "eBPF classifiers",
    config: ["CONFIG_BPF_SYSCALL", "CONFIG_NET_CLS_BPF"],
    modules: ["cls_bpf"],
    since: "5.10",
  },
  htb: { what: "the htb queue", config: ["CONFIG_NET_SCH_HTB"], modules: ["sch_htb"], since: "2.6.14" },
  prio: { what: "the prio queue", config: ["CONFIG_NET_SCH_PRIO"], modules: ["sch_prio"], since: "2.6.14" },
  fq: { what: "the fq queue", config: ["CONFIG_NET_SCH_FQ"], modules: ["sch_fq"], since: "3.12" },
  policyRouting4: {
    what: "IPv4 policy routing",
    config: ["CONFIG_IP_MULTIPLE_TABLES"],
    modules: [],
    since: "2.6.14",
  },
  policyRouting6: {
    what: "IPv6 with policy routing",
    config: ["CONFIG_IPV6", "CONFIG_IPV6_MULTIPLE_TABLES"],
    modules: ["ipv6"],
    since: "2.6.26",
  },
  nftables: {
    what: "nftables as NetworkPolicy needs it",
    config: ["CONFIG_NF_TABLES", "CONFIG_NF_TABLES_INET", "CONFIG_NFT_CT", "CONFIG_NFT_LIMIT", "CONFIG_NFT_LOG"],
    modules: ["nf_tables", "nft_ct", "nft_limit", "nft_log"],
    since: "5.6",
  },
  conntrack: {
    what: "removing connection tracking entries by address",
    config: ["CONFIG_NF_CONNTRACK", "CONFIG_NF_CT_NETLINK"],
    modules: ["nf_conntrack_netlink"],
    since: "5.8",
  },
} as const satisfies Readonly<Record<string, FeatureInfo>>;

export type KernelFeature = keyof typeof KERNEL_FEATURES;

export const FEATURE_NAMES = Object.keys(KERNEL_FEATURES) as readonly KernelFeature[];

/** What trying a feature showed. */
export type Verdict =
  | { readonly there: true }
  /** `refusal`: the request and the kernel's answer to it. */
  | { readonly there: false; readonly refusal: string };

export type KernelReport = Readonly<Record<KernelFeature, Verdict>>;

/** The names of `wanted` that the kernel lacks. */
export function lacking(report: KernelReport, wanted: readonly KernelFeature[]): KernelFeature[] {
  return wanted.filter((name) => !report[name].there);
}

/** How an operator gets the feature: one sentence. */
export function remedyFor(feature: KernelFeature): string {
  const { config, modules, since }: FeatureInfo = KERNEL_FEATURES[feature];
  const load = modules.length > 0 ? `load it with "modprobe -a ${modules.join(" ")}", or ` : "";
  return `${load}boot a kernel with ${config.join(", ")} (Linux ${since} or later)`;
}
