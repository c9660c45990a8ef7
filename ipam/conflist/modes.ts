/** The network modes: what each is, when to choose it, what it asks of the kernel. Pure data; README and checks follow it. */
import type { KernelFeature } from "../../shared/kernel/features.ts";

/** Where a pod's packets go. */
export type Path =
  /** All by a veth and the node's stack. */
  | "veth"
  /** By an interface of the pod's own into the VPC; a veth besides for services and the node. */
  | "uplink"
  /** The interface plugin is not ours. */
  | "foreign";

/** Parts of the chain that a person may switch. */
export type Part = "networkPolicy" | "portmap" | "bandwidth";

/** on, off: by default. never: it cannot work there, and `why` says so. */
export type PartRule = { readonly state: "on" | "off" } | { readonly state: "never"; readonly why: string };

export interface ModeInfo {
  readonly title: string;
  /** Whence a pod has its address. */
  readonly addresses: string;
  /** One sentence: for whom. */
  readonly choose: string;
  readonly path: Path;
  readonly needs: readonly KernelFeature[];
  readonly parts: Readonly<Record<Part, PartRule>>;
  /** Programs of others that the chain calls, besides those of its parts. */
  readonly foreignPlugins: readonly string[];
}

const ON = { state: "on" } as const;
const OFF = { state: "off" } as const;
const never = (why: string) => ({ state: "never", why }) as const;
const UNSEEN = "macvlan's packets do not pass the node's stack, where it would work";

export const MODES = {
  vpc: {
    title: "VPC routes",
    addresses: "the node's pod range; one entry a node in the VPC's route table",
    choose: "trying out, development, and small clusters: fewer nodes than the route table has entries (usually 50)",
    path: "veth",
    needs: ["veth", "policyRouting4"],
    parts: { networkPolicy: ON, portmap: ON, bandwidth: ON },
    foreignPlugins: [],
  },
  "eniip-veth": {
    title: "shared ENI, veth",
    addresses: "a secondary address of a shared ENI",
    choose: "production by default (50 to 200 nodes, 20 to 100 pods a node), on every kernel",
    path: "veth",
    needs: ["veth", "policyRouting4"],
    parts: { networkPolicy: ON, portmap: ON, bandwidth: ON },
    foreignPlugins: [],
  },
  "eniip-ipvlan": {
    title: "shared ENI, IPvlan",
    addresses: "a secondary address of a shared ENI",
    choose: "as eniip-veth, where each packet's cost counts and the kernel has IPvlan",
    path: "uplink",
    needs: ["veth", "ipvlan", "policyRouting4"],
    parts: { networkPolicy: ON, portmap: ON, bandwidth: ON },
    foreignPlugins: [],
  },
  "eni-exclusive": {
    title: "an ENI for each pod",
    addresses: "the primary address of an ENI of the pod's own",
    choose: "extreme performance or isolation (finance, HPC) with few pods a node: one less than the instance has ENIs",
    path: "uplink",
    needs: ["veth", "policyRouting4"],
    parts: { networkPolicy: ON, portmap: ON, bandwidth: ON },
    foreignPlugins: [],
  },
  trunk: {
    title: "member ENIs of a trunk",
    addresses: "a member ENI behind a VLAN of the node's trunk ENI",
    choose:
      "more than 200 nodes or very many pods a node, each with security groups of its own; trunk-capable types only",
    path: "uplink",
    needs: ["veth", "vlan", "policyRouting4"],
    parts: { networkPolicy: ON, portmap: ON, bandwidth: ON },
    foreignPlugins: [],
  },
  "eniip-cilium": {
    title: "shared ENI, veth, with Cilium chained",
    addresses: "a secondary address of a shared ENI",
    choose: "L7 policies, eBPF in place of kube-proxy, or Hubble; Cilium runs in the cluster",
    path: "veth",
    needs: ["veth", "policyRouting4", "clsact"],
    parts: {
      networkPolicy: never("Cilium enforces the policies in this chain: two engines would judge every packet"),
      portmap: ON,
      // Cilium's bandwidth manager would shape a second time.
      bandwidth: OFF,
    },
    foreignPlugins: ["cilium-cni"],
  },
  "standalone-ipam-bridge": {
    title: "terway-ipam under the bridge plugin",
    addresses: "local ranges, as host-local has them",
    choose: "outside of Alibaba Cloud, or for a second network: a Linux bridge",
    path: "foreign",
    needs: ["veth", "bridge"],
    parts: { networkPolicy: OFF, portmap: ON, bandwidth: OFF },
    foreignPlugins: ["bridge"],
  },
  "standalone-ipam-ptp": {
    title: "terway-ipam under the ptp plugin",
    addresses: "local ranges, as host-local has them",
    choose: "outside of Alibaba Cloud: a routed veth, without a bridge",
    path: "foreign",
    needs: ["veth"],
    parts: { networkPolicy: OFF, portmap: ON, bandwidth: OFF },
    foreignPlugins: ["ptp"],
  },
  "standalone-ipam-macvlan": {
    title: "terway-ipam under the macvlan plugin",
    addresses: "local ranges, which must be of the network behind the master",
    choose: "pods directly on the network of one of the node's interfaces; not on an ENI, which takes its own MAC only",
    path: "foreign",
    needs: ["macvlan"],
    parts: { networkPolicy: never(UNSEEN), portmap: never(UNSEEN), bandwidth: never(UNSEEN) },
    foreignPlugins: ["macvlan"],
  },
} as const satisfies Readonly<Record<string, ModeInfo>>;

export type ModeName = keyof typeof MODES;
export const MODE_NAMES = Object.keys(MODES) as readonly ModeName[];

/** What the chained plugins ask of the kernel, whatever the mode. */
export const PART_NEEDS: Readonly<Record<Part, readonly KernelFeature[]>> = {
  networkPolicy: ["nftables"],
  portmap: [],
  bandwidth: ["tbf", "ifb", "clsact", "redirect", "bpf"],
};

export function modeInfo(mode: ModeName): ModeInfo {
  return MODES[mode];
}
