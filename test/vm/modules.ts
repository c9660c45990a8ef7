/** Which kernel modules the virtual machine loads, and in what order. */

/** Needed before the guest sees the host's file system. */
export const BOOT_MODULES = ["virtio_pci", "virtio_console", "virtiofs", "overlay"] as const;

/**
 * Loaded before the guest's command starts, so that a case never depends on who asked for a module first. What is not
 * named here is still loaded when the kernel asks for it, as on any node.
 */
export const GUEST_MODULES = [
  // links
  ...["veth", "bridge", "br_netfilter", "dummy", "ifb", "ipvlan", "macvlan", "vrf", "tun", "8021q"],
  // traffic control
  ...["sch_ingress", "sch_prio", "sch_fq", "sch_fq_codel", "sch_tbf", "sch_htb", "sch_netem", "sch_sfq"],
  ...["cls_u32", "cls_flower", "cls_matchall", "cls_fw", "cls_basic"],
  ...["act_mirred", "act_police", "act_gact", "act_skbedit", "act_vlan", "act_pedit"],
  // nftables and connection tracking
  ...["nfnetlink", "nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nft_ct", "nft_chain_nat", "nft_nat"],
  ...["nft_masq", "nft_redir", "nft_limit", "nft_log", "nft_reject", "nft_reject_inet", "nft_fib", "nft_fib_inet"],
  ...["nft_numgen", "nft_hash", "nft_objref", "nft_quota", "nft_compat", "nft_socket", "nft_tproxy", "nft_fwd_netdev"],
  // iptables, for Debian's Go plugins
  ...["ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "iptable_raw"],
  ...["ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle", "ip6table_raw"],
  ...["xt_comment", "xt_conntrack", "xt_addrtype", "xt_mark", "xt_connmark", "xt_MASQUERADE", "xt_multiport"],
  ...["xt_nat", "xt_set", "xt_tcpudp", "xt_statistic", "ip_set", "ip_set_hash_ip", "ip_set_hash_net"],
  // protocols
  ...["ipv6", "sctp"],
] as const;

/** Some modules make links when they are loaded, unless told not to. */
const PARAMETERS: Readonly<Record<string, readonly string[]>> = { ifb: ["numifbs=0"], dummy: ["numdummies=0"] };

export function parametersOf(path: string): readonly string[] {
  return PARAMETERS[moduleName(path)] ?? [];
}

/** modules.dep: what each module (its path below lib/modules/VERSION) needs. */
export type ModuleDeps = ReadonlyMap<string, readonly string[]>;

/** Reads modules.dep of depmod(8): `PATH: PATH PATH …`. */
export function parseModulesDep(text: string): ModuleDeps {
  const deps = new Map<string, readonly string[]>();
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 0) continue;
    deps.set(
      line.slice(0, colon),
      line
        .slice(colon + 1)
        .split(" ")
        .filter((p) => p !== ""),
    );
  }
  return deps;
}

/** `kernel/net/sched/act_mirred.ko` is called act_mirred; "-" and "_" are the same to the kernel. */
export function moduleName(path: string): string {
  return (path.split("/").at(-1) ?? path).replace(/\.ko(\.[a-z0-9]+)?$/, "").replaceAll("-", "_");
}

/**
 * Paths of the named modules and of all they need, each after what it needs.
 *
 * @param builtin modules.builtin: what the kernel has anyway is left out.
 * @throws for a module that this kernel does not have.
 */
export function loadOrder(deps: ModuleDeps, builtin: readonly string[], names: readonly string[]): string[] {
  const paths = new Map([...deps.keys()].map((path) => [moduleName(path), path]));
  const always = new Set(builtin.map(moduleName));
  const order = new Set<string>();
  const add = (path: string, above: readonly string[]): void => {
    if (order.has(path)) return;
    if (above.includes(path))
      throw new Error(`modules need each other: ${[...above, path].map(moduleName).join(" → ")}`);
    for (const needed of deps.get(path) ?? []) add(needed, [...above, path]);
    order.add(path);
  };
  for (const name of names) {
    const path = paths.get(moduleName(name));
    if (path !== undefined) add(path, []);
    else if (!always.has(moduleName(name)))
      throw new Error(
        `the kernel of the virtual machine has no module ${name}: take it off the list or take another kernel`,
      );
  }
  return [...order];
}
