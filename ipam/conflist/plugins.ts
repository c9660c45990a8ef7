/** What lint knows of plugins: their place in a chain, their keys, what they want declared. Pure data. */
import { flag, oneOf, text, type ValueKind, whole } from "../../shared/config/config-value.ts";
import { tryParseCidr } from "../../shared/net/cidr.ts";
import type { ModeName } from "./modes.ts";

export interface PluginInfo {
  /** interface: makes the pod's interface, so it comes first. chained: works on what is there. */
  readonly role: "interface" | "chained";
  /** Its own keys, beside those that CNI defines; undefined: a plugin of others, whose keys are theirs to check. */
  readonly keys?: Readonly<Record<string, ValueKind<unknown>>>;
  /** Without this capability declared a runtime tells it nothing. */
  readonly wantsCapability?: string;
  /** What a person loses without it. */
  readonly without?: string;
  /** Sole owner of something: two of one claim in a chain undo each other. */
  readonly claims?: "shaping" | "policy";
}

const cidrList: ValueKind<readonly string[]> = {
  accepted: 'a list of CIDRs such as ["172.16.0.0/16"]',
  read: (value) =>
    Array.isArray(value) && value.every((v) => typeof v === "string" && tryParseCidr(v) !== undefined)
      ? (value as string[])
      : undefined,
};
const MTU = whole(1280, 9500);
/** 0 is how the reference plugins say "not set". */
const mtu: ValueKind<number> = {
  accepted: `${MTU.accepted}, in bytes`,
  read: (value) => (value === 0 ? 0 : MTU.read(value)),
};
const any: ValueKind<unknown> = { accepted: "anything", read: (value) => value ?? true };
const object: ValueKind<object> = {
  accepted: "an object",
  read: (value) => (typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined),
};
const list: ValueKind<readonly unknown[]> = {
  accepted: "a list",
  read: (value) => (Array.isArray(value) ? value : undefined),
};
const number = (least: number, most: number): ValueKind<number> => ({
  accepted: `a number from ${least} to ${most}`,
  read: (value) => (typeof value === "number" && value >= least && value <= most ? value : undefined),
});

const places = { store: text, logDir: text };
const uplinkKeys = { mtu, serviceCIDRs: cidrList, hostStackCIDRs: cidrList, ipam: object, ...places };

export const TERWAY_ENI_MODES = {
  shared: "eniip-veth",
  vpc: "vpc",
  exclusive: "eni-exclusive",
} as const satisfies Record<string, ModeName>;

const SHAPES = {
  wantsCapability: "bandwidth",
  without: "annotations with a pod's bandwidth are not handed to it",
  claims: "shaping",
} as const;

export const PLUGINS: Readonly<Record<string, PluginInfo>> = {
  "terway-eni": {
    role: "interface",
    keys: { mode: oneOf({ shared: "shared", vpc: "vpc", exclusive: "exclusive" }), ...uplinkKeys },
  },
  "terway-ipvlan": { role: "interface", keys: { mode: oneOf({ ipvlan: "ipvlan" }), ...uplinkKeys } },
  "terway-trunk": { role: "interface", keys: { mode: oneOf({ trunk: "trunk" }), ...uplinkKeys } },
  "terway-policy": {
    role: "chained",
    keys: {
      default: oneOf({ allow: "allow", deny: "deny", wait: "wait" }),
      waitSeconds: number(0, 120),
      cutEstablished: flag,
      logDrops: flag,
      ...places,
    },
    claims: "policy",
  },
  "terway-bandwidth": {
    role: "chained",
    keys: { ingressRate: any, ingressBurst: any, egressRate: any, egressBurst: any, qos: object, ...places },
    ...SHAPES,
  },
  bridge: { role: "interface" },
  "host-device": { role: "interface" },
  ipvlan: { role: "interface" },
  macvlan: { role: "interface" },
  ptp: { role: "interface" },
  tap: { role: "interface" },
  vlan: { role: "interface" },
  bandwidth: { role: "chained", ...SHAPES },
  "cilium-cni": { role: "chained", claims: "policy" },
  firewall: { role: "chained" },
  portmap: { role: "chained", wantsCapability: "portMappings", without: "host ports are not handed to it" },
  sbr: { role: "chained" },
  tuning: { role: "chained" },
  vrf: { role: "chained" },
};

/** Of the network configuration as CNI defines it: any plugin may have them. */
export const CNI_KEYS = [
  "type",
  "capabilities",
  "ipam",
  "dns",
  "args",
  "runtimeConfig",
  "cniVersion",
  "name",
  "prevResult",
  "ipMasq",
] as const;

export const LIST_KEYS = ["cniVersion", "cniVersions", "name", "disableCheck", "disableGC", "plugins"] as const;

/** Of the conventions document, and those that runtimes add. */
export const CAPABILITIES = [
  "aliases",
  "bandwidth",
  "cgroupPath",
  "deviceID",
  "dns",
  "infinibandGUID",
  "io.kubernetes.cri.pod-annotations",
  "ipRanges",
  "ips",
  "mac",
  "portMappings",
] as const;

export const IPAM_KEYS: Readonly<Record<string, ValueKind<unknown>>> = {
  type: text,
  ...places,
  pool: oneOf({ eni: "eni", "pod-cidr": "pod-cidr" }),
  eniKind: oneOf({ shared: "shared", exclusive: "exclusive", member: "member" }),
  ranges: list,
  subnet: text,
  rangeStart: text,
  rangeEnd: text,
  gateway: text,
  routes: list,
  resolvConf: text,
  dataDir: text,
  waitSeconds: number(0, 3600),
  cooldownSeconds: number(0, 3600),
  exec: flag,
  addresses: list,
};

/** host-local's, which terway-ipam takes and has no use for. */
export const IPAM_KEYS_WITHOUT_EFFECT: readonly string[] = ["dataDir"];
