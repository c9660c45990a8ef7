/** What the interface plugins read of the network configuration beyond what every plugin does. */
import type { EniKind } from "../../ipam/store/enis.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import type { Uplink } from "../../shared/datapath/pod-link.ts";
import { formatCidr, networkOf, tryParseCidr } from "../../shared/net/cidr.ts";
import { formatMac, tryParseMac } from "../../shared/net/mac.ts";
import { placesOf } from "../terway-ipam/config.ts";

/** What a mode is made of. */
export interface Mode {
  /** Which ENIs own the pod's addresses; undefined: none, the node's routes serve them. */
  readonly eniKind?: EniKind;
  /** The pod's own way into the VPC; undefined: everything goes by the veth. */
  readonly uplink?: Uplink["kind"];
}

/** What a pod's interface is on ENIs of a kind that pods ask for, whatever the plugin's own mode is. */
export const ASKED_MODES = {
  shared: { mode: "shared", eniKind: "shared" },
  exclusive: { mode: "exclusive", eniKind: "exclusive", uplink: "eni" },
  member: { mode: "trunk", eniKind: "member", uplink: "vlan" },
} as const satisfies Readonly<Record<string, Mode & { readonly mode: string }>>;

/** An interface plugin's part of the network configuration, understood. */
export interface InterfaceConfig extends Mode {
  readonly store: string;
  readonly logDir: string;
  /** As the store and the journal name the mode. */
  readonly mode: string;
  /** CIDRs that a pod with an uplink reaches through the node, besides those that the store has for the node. */
  readonly viaNode: readonly string[];
  /** Absent: the MTU of the ENI, or of the node's. */
  readonly mtuBytes: number | undefined;
  /** Name of the IPAM plugin. */
  readonly ipamType: string;
  /** terway-ipam is not run as a program of its own: the same code runs in this process. */
  readonly ipamInProcess: boolean;
  /** Asked for by runtimeConfig.mac or args.cni.mac. */
  readonly podMac: string | undefined;
}

/** Smallest that IPv6 allows (RFC 8200), and largest that an ENI carries. */
const MTU = { least: 1280, most: 9500 };
const VIA_NODE_KEYS = ["serviceCIDRs", "hostStackCIDRs"];

type Json = Readonly<Record<string, unknown>>;

/**
 * @param modes Those of the plugin, by name; the first is the default.
 * @throws {CniFailure} invalidConfig, naming every fault.
 */
export function parseInterfaceConfig(
  call: CniCall,
  environment: Readonly<Record<string, string>>,
  plugin: string,
  modes: Readonly<Record<string, Mode>>,
): InterfaceConfig {
  const { raw } = call.conf;
  const faults: string[] = [];
  const names = Object.keys(modes);
  const name = String(raw.mode ?? names[0]);
  const mode = modes[name];
  if (mode === undefined)
    faults.push(`mode is ${JSON.stringify(raw.mode)}, want ${names.map((n) => `"${n}"`).join(" or ")}`);
  const mtuBytes = parseMtu(raw.mtu, faults);
  const ipam = (typeof raw.ipam === "object" && raw.ipam !== null ? raw.ipam : {}) as Json;
  if (typeof ipam.type !== "string" || ipam.type === "") faults.push('ipam.type is missing, want "terway-ipam"');
  if (mode?.eniKind !== undefined && ipam.type !== undefined && ipam.type !== "terway-ipam") {
    faults.push(
      `ipam.type is ${JSON.stringify(ipam.type)}: in mode ${name} only "terway-ipam" knows which ENI an address belongs to`,
    );
  }
  const podMac = parseMac(call, faults);
  if (podMac !== undefined && mode?.uplink !== undefined)
    faults.push(`mac ${podMac} cannot be had: in mode ${name} the pod's MAC address is the ENI's`);
  const viaNode = VIA_NODE_KEYS.flatMap((key) => parseCidrs(raw, key, faults));
  if (faults.length > 0)
    throw new CniFailure(
      CODE.invalidConfig,
      `network "${call.conf.name}": ${faults.join("; ")}`,
      `correct the ${plugin} entry of the conflist`,
    );
  return {
    ...placesOf(call, environment),
    ...mode,
    mode: name,
    viaNode,
    mtuBytes,
    ipamType: String(ipam.type),
    ipamInProcess: ipam.type === "terway-ipam" && ipam.exec !== true,
    podMac,
  };
}

function parseMtu(mtu: unknown, faults: string[]): number | undefined {
  if (mtu === undefined || mtu === 0) return undefined;
  if (typeof mtu === "number" && Number.isInteger(mtu) && mtu >= MTU.least && mtu <= MTU.most) return mtu;
  faults.push(`mtu is ${JSON.stringify(mtu)}, want bytes from ${MTU.least} to ${MTU.most}`);
  return undefined;
}

function parseMac(call: CniCall, faults: string[]): string | undefined {
  const text = call.conf.runtimeConfig.mac ?? call.conf.cniArgs.mac;
  if (text === undefined) return undefined;
  const mac = typeof text === "string" ? tryParseMac(text) : undefined;
  if (mac !== undefined && ((mac[0] ?? 0) & 1) === 0) return formatMac(mac);
  faults.push(`mac is ${JSON.stringify(text)}, want a unicast MAC address`);
  return undefined;
}

function parseCidrs(raw: Json, key: string, faults: string[]): string[] {
  const value = raw[key];
  if (value === undefined) return [];
  const parsed = Array.isArray(value)
    ? value.map((v) => (typeof v === "string" ? tryParseCidr(v) : undefined))
    : [undefined];
  // The kernel takes no route whose destination has host bits.
  if (parsed.every((cidr) => cidr !== undefined))
    return parsed.map((cidr) => formatCidr({ ip: networkOf(cidr), prefixLength: cidr.prefixLength }));
  faults.push(`${key} is ${JSON.stringify(value)}, want a list of CIDRs such as ["172.16.0.0/16"]`);
  return [];
}
