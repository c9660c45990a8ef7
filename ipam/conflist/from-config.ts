/**
 * The former configuration (`10-terway.conf` as one plugin or as a list, with `eni_conf`) turned into a conflist of ours.
 * Every key that was found is accounted for: what became of it, and why. Pure.
 */
import { isSupportedVersion } from "../../shared/cni/version.ts";
import { flag, quotedFlag } from "../../shared/config/config-value.ts";
import { parseEniConf } from "../../shared/config/eni-conf.ts";
import { type EniConfig, KEY_SPECS } from "../../shared/config/eni-conf-keys.ts";
import { trunkingEnabled } from "../../shared/config/eni-conf-rules.ts";
import { parseJsonWithComments } from "../../shared/config/json-with-comments.ts";
import { parseAddonOptions, parseTerwayConf } from "../../shared/config/terway-conf.ts";
import {
  type Account,
  accountForAddon,
  accountForConf,
  accountForEniConf,
  DEFAULT_VERSION,
  isEniConfKey,
  isObject,
  PLACEHOLDERS,
  policyAccount,
  SHAPER_KEYS,
} from "./from-config-accounts.ts";
import { type ModeName, modeInfo } from "./modes.ts";
import { type Conflist, type ConflistWish, type JsonObject, type PluginConf, renderConflist } from "./render.ts";

/** Texts as found; each is JSON, with comments or without. */
export interface LegacyDocuments {
  /** `10-terway.conf` or `10-terway.conflist`. */
  readonly terwayConf: string;
  readonly eniConf?: string;
  /** `disable_network_policy` of the ConfigMap eni-config. */
  readonly disableNetworkPolicy?: string;
  /** Options of the add-on at cluster creation, `{"IPVlan":"true","NetworkPolicy":"true"}`. */
  readonly addonOptions?: string;
}

export interface Converted {
  readonly kind: "converted";
  readonly mode: ModeName;
  readonly conflist: Conflist;
  /** Present: keys were moved there; `eni_conf` as it must be now. */
  readonly eniConf?: JsonObject;
  readonly accounts: readonly Account[];
  /** What differs from before in a way that an operator must know. */
  readonly warnings: readonly string[];
}

export type Conversion = Converted | { readonly kind: "refused"; readonly faults: readonly string[] };

/** The former plugin took any case, and one word more. */
const VIRTUAL_TYPES: Readonly<Record<string, "Veth" | "IPVlan" | "datapathv2">> = {
  veth: "Veth",
  ipvlan: "IPVlan",
  datapathv2: "datapathv2",
};
const OUR_TYPES = /^terway-(eni|ipvlan|trunk)$/;

/** @param hasIpvlan Whether the node's kernel has IPvlan; undefined: not known. */
export function convertConfig(legacy: LegacyDocuments, hasIpvlan: boolean | undefined): Conversion {
  const found = readTerwayConf(legacy.terwayConf);
  if ("faults" in found) return { kind: "refused", faults: found.faults };
  const { outer, plugin, others, virtualType } = found;

  const faults: string[] = [];
  const conf = parseTerwayConf({
    ...outer,
    // What is another CNI version than ours is replaced, not refused.
    cniVersion: isSupportedVersion(outer.cniVersion) ? outer.cniVersion : DEFAULT_VERSION,
    plugins: [{ ...plugin, eniip_virtual_type: virtualType === "datapathv2" ? undefined : virtualType }],
    type: undefined,
  });
  faults.push(...conf.faults.map((f) => `10-terway.conf: ${f.message}`));
  // Every former file has it, mostly with the default: that alone is no reason to write another eni_conf.
  const { ip_stack: _stack, ...entry } = plugin;
  const eni = parseEniConf(legacy.eniConf ?? {}, { inline: entry, discovered: PLACEHOLDERS });
  faults.push(...eni.faults.map((f) => f.message));
  const addon = legacy.addonOptions === undefined ? undefined : parseAddonOptions(legacy.addonOptions);
  faults.push(...(addon?.faults.map((f) => f.message) ?? []));
  const disabledByMap = readDisabled(legacy.disableNetworkPolicy, faults);
  if (conf.conf === undefined || eni.config === undefined || faults.length > 0) return { kind: "refused", faults };

  const warnings = [
    ...eni.warnings.filter((w) => !(w.key in PLACEHOLDERS && !eni.given.includes(w.key))).map((w) => w.message),
    ...(addon?.warnings.map((w) => w.message) ?? []),
  ];
  if (legacy.eniConf === undefined)
    warnings.push("no eni_conf was given: network_mode is taken to be ENIIP, the default");
  const wanted = virtualType ?? addon?.options.eniipVirtualType ?? conf.conf.eniipVirtualType;
  const cilium = others.some((p) => p.type === "cilium-cni");
  const mode = chooseMode(eni.config, wanted, cilium, hasIpvlan, warnings);
  const disabled =
    disabledByMap ??
    (eni.given.includes("disable_network_policy")
      ? eni.config.disableNetworkPolicy
      : addon?.options.disableNetworkPolicy) ??
    false;

  const wish = wishOf(mode, plugin, others, { name: conf.conf.name, cniVersion: conf.conf.cniVersion, disabled });
  const rendered = renderConflist(wish);
  if (rendered.kind === "refused") return { kind: "refused", faults: rendered.faults };
  const conflist = { ...rendered.conflist, plugins: weave(rendered.conflist.plugins, others) };
  const inline = Object.fromEntries(Object.entries(entry).filter(([key]) => isEniConfKey(key)));
  return {
    kind: "converted",
    mode,
    conflist,
    ...(Object.keys(inline).length > 0 ? { eniConf: withInline(legacy.eniConf, inline) } : {}),
    accounts: [
      ...accountForConf(outer, plugin, others, mode, virtualType, warnings),
      ...accountForEniConf(eni, legacy.eniConf, inline, mode, eni.config, warnings),
      ...(legacy.disableNetworkPolicy === undefined
        ? []
        : [policyAccount("eni-config", "disable_network_policy", disabled, mode)]),
      ...accountForAddon(legacy.addonOptions, virtualType, mode, disabled),
    ],
    warnings: [...new Set(warnings)],
  };
}

interface Found {
  readonly outer: JsonObject;
  /** The former plugin's entry. */
  readonly plugin: JsonObject;
  /** What was chained to it. */
  readonly others: readonly PluginConf[];
  readonly virtualType: "Veth" | "IPVlan" | "datapathv2" | undefined;
}

function readTerwayConf(text: string): Found | { readonly faults: readonly string[] } {
  const read = parseJsonWithComments(text);
  if (read.kind === "syntax")
    return { faults: [`10-terway.conf, line ${read.line}, column ${read.column}: ${read.message}`] };
  const outer = read.value;
  if (!isObject(outer)) return { faults: ["10-terway.conf is no JSON object"] };
  const list: readonly unknown[] = Array.isArray(outer.plugins) ? outer.plugins : [outer];
  const bad = list.findIndex((p) => !isObject(p) || typeof p.type !== "string");
  if (bad >= 0) return { faults: [`10-terway.conf: plugin ${bad + 1} has no type`] };
  const plugins = list as readonly PluginConf[];
  const ours = plugins.find((p) => OUR_TYPES.test(p.type));
  if (ours !== undefined)
    return {
      faults: [
        `10-terway.conf has ${ours.type} already, there is nothing to convert: check it with terway-cli conflist lint`,
      ],
    };
  const former = plugins.filter((p) => p.type === "terway");
  const plugin = former[0];
  if (plugin === undefined || former.length > 1)
    return { faults: [`10-terway.conf has ${former.length} plugins of type "terway", want one`] };
  const given = plugin.eniip_virtual_type;
  const virtualType = typeof given === "string" ? VIRTUAL_TYPES[given.toLowerCase()] : undefined;
  if (given !== undefined && virtualType === undefined)
    return {
      faults: [
        `10-terway.conf: "eniip_virtual_type" is ${JSON.stringify(given)}: want "IPVlan", "Veth" or "datapathv2"`,
      ],
    };
  return { outer, plugin, others: plugins.filter((p) => p !== plugin), virtualType };
}

function readDisabled(text: string | undefined, faults: string[]): boolean | undefined {
  if (text === undefined) return undefined;
  const value = quotedFlag.read(text) ?? flag.read(text);
  if (value === undefined)
    faults.push(`eni-config: "disable_network_policy" is ${JSON.stringify(text)}: want ${quotedFlag.accepted}`);
  return value;
}

function chooseMode(
  config: EniConfig,
  wanted: "Veth" | "IPVlan" | "datapathv2",
  cilium: boolean,
  hasIpvlan: boolean | undefined,
  warnings: string[],
): ModeName {
  const { networkMode } = config;
  if (networkMode !== "ENIIP") {
    if (cilium)
      warnings.push(
        `cilium-cni is left in the chain of mode ${networkMode}: it chains to veths only, see conflist lint`,
      );
    return ({ VPC: "vpc", ENI: "eni-exclusive", Trunk: "trunk" } as const)[networkMode];
  }
  if (trunkingEnabled(config))
    warnings.push(
      "trunking is on in mode ENIIP: pods of this conflist get addresses of shared ENIs; for member ENIs write one of mode trunk",
    );
  if (wanted === "datapathv2" || cilium) {
    if (wanted === "IPVlan") warnings.push("IPvlan with cilium-cni: Cilium chains to veths, so pods get veths");
    if (!cilium)
      warnings.push(
        "datapathv2 is veth with Cilium's eBPF: cilium-cni was put into the chain, and Cilium must run in the cluster",
      );
    return "eniip-cilium";
  }
  if (wanted === "Veth") return "eniip-veth";
  if (hasIpvlan === false) {
    // CON-20
    warnings.push("the configuration asks for IPvlan, and this kernel has none: pods get veths (mode eniip-veth)");
    return "eniip-veth";
  }
  if (hasIpvlan === undefined)
    warnings.push("whether the kernel has IPvlan was not looked at: run terway-cli node check on the node");
  return "eniip-ipvlan";
}

function wishOf(
  mode: ModeName,
  plugin: JsonObject,
  others: readonly PluginConf[],
  from: { readonly name: string; readonly cniVersion: string; readonly disabled: boolean },
): ConflistWish {
  const { parts, path } = modeInfo(mode);
  const hostStack = plugin.host_stack_cidrs;
  // The former plugin shaped by itself where its entry declared the capability.
  const shapes =
    (isObject(plugin.capabilities) && plugin.capabilities.bandwidth === true) ||
    others.some((p) => p.type === "bandwidth");
  return {
    mode,
    name: from.name,
    cniVersion: from.cniVersion,
    networkPolicy: !from.disabled && parts.networkPolicy.state !== "never",
    ...(shapes ? { bandwidth: true } : {}),
    ...(typeof plugin.mtu === "number" && plugin.mtu !== 0 ? { mtu: plugin.mtu } : {}),
    ...(path === "uplink" && Array.isArray(hostStack) ? { hostStackCidrs: hostStack.map(String) } : {}),
  };
}

/** Puts the settings of the plugins that were chained to the former one into ours, and the others between. */
function weave(rendered: readonly PluginConf[], others: readonly PluginConf[]): PluginConf[] {
  const of = (type: string) => others.find((p) => p.type === type);
  const settled = rendered.map((p): PluginConf => {
    const rates = Object.entries(of("bandwidth") ?? {}).filter(([key]) => SHAPER_KEYS.includes(key));
    if (p.type === "terway-bandwidth") return { ...p, ...Object.fromEntries(rates) };
    // Their own settings win over the template's.
    return { ...p, ...of(p.type) };
  });
  const here = settled.map((p) => p.type);
  const more = others.filter((p) => !here.includes(p.type) && p.type !== "bandwidth");
  const last = settled.filter((p) => p.type === "terway-bandwidth" || p.type === "cilium-cni");
  return [...settled.filter((p) => !last.includes(p)), ...more, ...last];
}

/** `eni_conf` with the inline keys, which win (CON-6), under their canonical names. */
function withInline(eniConf: string | undefined, inline: JsonObject): JsonObject {
  const read = eniConf === undefined ? undefined : parseJsonWithComments(eniConf);
  const document = read?.kind === "value" && isObject(read.value) ? read.value : {};
  const out: Record<string, unknown> = { ...document };
  for (const [key, value] of Object.entries(inline)) {
    const spec = KEY_SPECS.find(([, s]) => s.path === key || s.aliases.includes(key))?.[1];
    for (const alias of spec?.aliases ?? []) delete out[alias];
    const before = out[key];
    out[spec?.path ?? key] =
      spec === undefined && isObject(before) && isObject(value) ? { ...before, ...value } : value;
  }
  return out;
}
