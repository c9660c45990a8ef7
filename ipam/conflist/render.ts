/** A conflist from a mode and what a person wants of it: the one source of the files in conflist/. Pure. */

import { VERSIONS } from "../../shared/cni/version.ts";
import { formatCidr, networkOf, tryParseCidr } from "../../shared/net/cidr.ts";
import { compareIp } from "../../shared/net/ip.ts";
import { type ModeName, modeInfo, type Part } from "./modes.ts";

export type JsonObject = Readonly<Record<string, unknown>>;
export interface PluginConf extends JsonObject {
  readonly type: string;
}
export interface Conflist {
  readonly cniVersion: string;
  readonly name: string;
  readonly plugins: readonly PluginConf[];
}

/** What is left out is as the mode has it. */
export interface ConflistWish extends Partial<Readonly<Record<Part, boolean>>> {
  readonly mode: ModeName;
  readonly cniVersion?: string;
  readonly name?: string;
  /** Bytes. */
  readonly mtu?: number;
  /** Uplink modes: CIDRs of Services. The agent knows them from eni_conf; here for a node without an agent. */
  readonly serviceCidrs?: readonly string[];
  /** Uplink modes: more that pods reach through the node's stack. */
  readonly hostStackCidrs?: readonly string[];
  /** Standalone modes: one range of each family. */
  readonly subnets?: readonly string[];
  /** macvlan: the node's interface. */
  readonly master?: string;
}

export type RenderOutcome =
  | { readonly kind: "rendered"; readonly conflist: Conflist }
  /** Each one sentence: what was asked, why it cannot be, what can. */
  | { readonly kind: "refused"; readonly faults: readonly string[] };

const DEFAULT_CNI_VERSION = "1.0.0";
const DEFAULT_SUBNET = "10.77.0.0/24";
/** As the interface plugins have it. */
const MTU = { least: 1280, most: 9500 };

export function renderConflist(wish: ConflistWish): RenderOutcome {
  const faults = faultsOf(wish);
  if (faults.length > 0) return { kind: "refused", faults };
  const {
    mode,
    cniVersion = DEFAULT_CNI_VERSION,
    name = mode.startsWith("standalone") ? mode.replace("-ipam", "") : "terway",
  } = wish;
  const wants = (part: Part): boolean => wish[part] ?? modeInfo(mode).parts[part].state === "on";
  return {
    kind: "rendered",
    conflist: {
      cniVersion,
      name,
      plugins: [
        interfacePlugin(wish),
        // Before anything that lets packets in: the policy holds from the first one.
        ...(wants("networkPolicy") ? [{ type: "terway-policy" }] : []),
        ...(wants("portmap") ? [portmap(mode)] : []),
        ...(wants("bandwidth") ? [{ type: "terway-bandwidth", capabilities: { bandwidth: true } }] : []),
        ...(mode === "eniip-cilium" ? [{ type: "cilium-cni", "chaining-mode": "generic-veth" }] : []),
      ],
    },
  };
}

/** @throws {TypeError} With every fault. For wishes that are known to be good. */
export function mustRender(wish: ConflistWish): Conflist {
  const outcome = renderConflist(wish);
  if (outcome.kind === "refused") throw new TypeError(`Cannot render a conflist: ${outcome.faults.join("; ")}`);
  return outcome.conflist;
}

/** Runtimes have it beside the chain; see conflist/README.md. */
export const LOOPBACK_CONF = { cniVersion: DEFAULT_CNI_VERSION, name: "lo", type: "loopback" } as const;

/** What a runtime passes on only when it is declared: an address asked for, a MAC address asked for. */
const IPS = { ips: true };
const IPS_AND_MAC = { ips: true, mac: true };

function interfacePlugin(wish: ConflistWish): PluginConf {
  const { mode } = wish;
  const mtu = wish.mtu === undefined ? {} : { mtu: wish.mtu };
  const viaNode = {
    ...(wish.serviceCidrs?.length ? { serviceCIDRs: wish.serviceCidrs } : {}),
    ...(wish.hostStackCidrs?.length ? { hostStackCIDRs: wish.hostStackCidrs } : {}),
  };
  const pool = { type: "terway-ipam" };
  const ranges = () => {
    const subnets = wish.subnets?.length ? wish.subnets : [DEFAULT_SUBNET];
    return {
      type: "terway-ipam",
      ranges: subnets.map((subnet) => [{ subnet }]),
      routes: subnets.map((subnet) => ({ dst: subnet.includes(":") ? "::/0" : "0.0.0.0/0" })),
    };
  };
  switch (mode) {
    case "vpc":
      return {
        type: "terway-eni",
        mode: "vpc",
        ...mtu,
        capabilities: IPS_AND_MAC,
        ipam: { ...pool, pool: "pod-cidr" },
      };
    case "eniip-veth":
    case "eniip-cilium":
      return { type: "terway-eni", mode: "shared", ...mtu, capabilities: IPS_AND_MAC, ipam: pool };
    // Behind an uplink the MAC address is the ENI's: nobody can ask for another.
    case "eniip-ipvlan":
      return { type: "terway-ipvlan", ...mtu, ...viaNode, capabilities: IPS, ipam: pool };
    case "eni-exclusive":
      return { type: "terway-eni", mode: "exclusive", ...mtu, ...viaNode, capabilities: IPS, ipam: pool };
    case "trunk":
      return { type: "terway-trunk", ...mtu, ...viaNode, capabilities: IPS, ipam: pool };
    case "standalone-ipam-bridge":
      return {
        type: "bridge",
        bridge: "cni0",
        isGateway: true,
        ipMasq: true,
        ...mtu,
        capabilities: IPS_AND_MAC,
        ipam: ranges(),
      };
    case "standalone-ipam-ptp":
      return { type: "ptp", ipMasq: true, ...mtu, capabilities: IPS, ipam: ranges() };
    case "standalone-ipam-macvlan":
      return {
        type: "macvlan",
        master: wish.master ?? "eth0",
        mode: "bridge",
        ...mtu,
        capabilities: IPS_AND_MAC,
        ipam: ranges(),
      };
    default:
      return mode satisfies never;
  }
}

/**
 * NB: behind an uplink a pod answers by its own way, past the node that translated the port. With the node's address as
 * source the answer comes back (portmap 1.5.0 or later); what it costs is the client's address.
 */
function portmap(mode: ModeName): PluginConf {
  const declared = { type: "portmap", capabilities: { portMappings: true } };
  return modeInfo(mode).path === "uplink" ? { ...declared, masqAll: true } : declared;
}

function faultsOf(wish: ConflistWish): string[] {
  const faults: string[] = [];
  const { mode, mtu } = wish;
  const { parts, path } = modeInfo(mode);
  for (const [part, rule] of Object.entries(parts) as [Part, (typeof parts)[Part]][])
    if (wish[part] === true && rule.state === "never") faults.push(`no ${part} in mode ${mode}: ${rule.why}`);
  if (mtu !== undefined && !(Number.isInteger(mtu) && mtu >= MTU.least && mtu <= MTU.most))
    faults.push(`mtu ${mtu}: want bytes from ${MTU.least} to ${MTU.most}, and not above the ENI's`);
  const { cniVersion, name } = wish;
  if (cniVersion !== undefined && !(VERSIONS as readonly string[]).includes(cniVersion))
    faults.push(`CNI version ${cniVersion}: want one of ${VERSIONS.join(", ")}`);
  if (name !== undefined && !/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(name))
    faults.push(`name "${name}": want a letter or digit, then letters, digits, ".", "_" or "-"`);
  const cidrs = (label: string, texts: readonly string[] = []) => {
    for (const text of texts) {
      const cidr = tryParseCidr(text);
      if (cidr === undefined) faults.push(`${label} ${text}: want a CIDR such as 172.16.0.0/16`);
      else if (compareIp(networkOf(cidr), cidr.ip) !== 0)
        faults.push(`${label} ${text} has host bits set: want ${formatCidr({ ...cidr, ip: networkOf(cidr) })}`);
    }
  };
  cidrs("service CIDR", wish.serviceCidrs);
  cidrs("host-stack CIDR", wish.hostStackCidrs);
  cidrs("subnet", wish.subnets);
  if (path !== "uplink")
    for (const [label, texts] of [
      ["service CIDRs", wish.serviceCidrs],
      ["host-stack CIDRs", wish.hostStackCidrs],
    ] as const)
      if (texts?.length)
        faults.push(`${label} mean nothing in mode ${mode}: all of a pod's packets pass the node's stack`);
  if (path !== "foreign" && wish.subnets?.length)
    faults.push(`a subnet means nothing in mode ${mode}: addresses come from the node's pool`);
  const six = wish.subnets?.filter((s) => s.includes(":")).length ?? 0;
  if (six > 1 || (wish.subnets?.length ?? 0) - six > 1)
    faults.push("more than one subnet of a family: a pod gets one address of each");
  if (wish.master !== undefined && mode !== "standalone-ipam-macvlan")
    faults.push(`a master means nothing in mode ${mode}: only macvlan has one`);
  return faults;
}

const LINE = 100;

/** As text: small objects on one line, plugins spread out. What the files in conflist/ hold. */
export function formatConflist(value: Conflist | PluginConf | typeof LOOPBACK_CONF): string {
  return `${format(value, "", 0)}\n`;
}

function format(value: unknown, indent: string, depth: number): string {
  const flat = flatten(value);
  // The whole, its list of plugins, and each plugin are spread out always.
  if (typeof value !== "object" || value === null || (depth > 2 && indent.length + flat.length <= LINE)) return flat;
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.length === 0) return "[]";
    return `[\n${value.map((item) => inner + format(item, inner, depth + 1)).join(",\n")}\n${indent}]`;
  }
  const members = Object.entries(value).map(
    ([name, member]) => `${inner}${JSON.stringify(name)}: ${format(member, inner, depth + 1)}`,
  );
  return members.length === 0 ? "{}" : `{\n${members.join(",\n")}\n${indent}}`;
}

function flatten(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(flatten).join(", ")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}: ${flatten(member)}`);
  return members.length === 0 ? "{}" : `{ ${members.join(", ")} }`;
}
