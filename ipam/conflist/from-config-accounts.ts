/** What became of each key of the former configuration, for people. Pure. */
import { isSupportedVersion } from "../../shared/cni/version.ts";
import { entriesOf } from "../../shared/config/config-value.ts";
import { type EniConfOutcome, keysNotActedOn, parseEniConf } from "../../shared/config/eni-conf.ts";
import { type EniConfig, KEY_SPECS } from "../../shared/config/eni-conf-keys.ts";
import { parseJsonWithComments } from "../../shared/config/json-with-comments.ts";
import { LEGACY_KEYS, type Verdict } from "./legacy-keys.ts";
import { type ModeName, modeInfo } from "./modes.ts";
import type { JsonObject, PluginConf } from "./render.ts";

export interface Account {
  readonly source: "10-terway.conf" | "eni_conf" | "eni-config" | "add-on";
  readonly key: string;
  readonly verdict: Verdict;
  readonly note: string;
}

export const DEFAULT_VERSION = "1.0.0";
const DEFAULT_ENI_CONF = "/etc/eni/eni_conf";
/** Stands in for required keys that only the agent needs; never shown. */
export const PLACEHOLDERS = {
  security_group: "sg-unknown",
  service_cidr: "192.0.2.0/24",
  vswitches: { unknown: ["vsw-unknown"] },
};
export const SHAPER_KEYS = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

export const isObject = (value: unknown): value is JsonObject => entriesOf(value) !== undefined;

/** Whether a key of the plugin's entry is one of `eni_conf` (CON-6). */
export function isEniConfKey(key: string): boolean {
  return KEY_SPECS.some(([, s]) => s.path === key || s.aliases.includes(key) || s.path.startsWith(`${key}.`));
}

export function policyAccount(source: Account["source"], key: string, disabled: boolean, mode: ModeName): Account {
  if (modeInfo(mode).parts.networkPolicy.state === "never")
    return { source, key, verdict: "not needed", note: "Cilium enforces in this chain; switch it off there" };
  return {
    source,
    key,
    verdict: "translated",
    note: disabled ? "terway-policy is left out of the chain" : "terway-policy is in the chain",
  };
}

export function accountForConf(
  outer: JsonObject,
  plugin: JsonObject,
  others: readonly PluginConf[],
  mode: ModeName,
  virtualType: string | undefined,
  warnings: string[],
): Account[] {
  const accounts: Account[] = [];
  const say = (key: string, verdict: Verdict, note: string) => {
    accounts.push({ source: "10-terway.conf", key, verdict, note });
    if (verdict === "unsupported") warnings.push(`10-terway.conf: "${key}" is not supported: ${note}`);
  };
  const single = outer === plugin;
  for (const key of Object.keys(outer)) {
    if (key === "cniVersion") {
      const good = isSupportedVersion(outer.cniVersion);
      say(
        key,
        good ? "kept" : "translated",
        good ? "as it was" : `${JSON.stringify(outer.cniVersion)} is none that we speak: ${DEFAULT_VERSION}`,
      );
    } else if (key === "name") say(key, "kept", "attachments are told apart by it");
    else if (key === "plugins") continue;
    else if (key === "disableCheck")
      say(key, "unsupported", "CHECK is cheap and tells the truth; add it by hand if a runtime's CHECK must stay off");
    else if (!single) say(key, "unsupported", "no key of a plugin list; nothing reads it");
  }
  for (const [key, value] of Object.entries(plugin)) {
    if (single && ["cniVersion", "name", "disableCheck", "plugins"].includes(key)) continue;
    if (key !== "ip_stack" && isEniConfKey(key)) continue; // told with eni_conf
    const known = Object.hasOwn(LEGACY_KEYS, key) ? LEGACY_KEYS[key] : undefined;
    if (key === "type") say(key, "translated", `mode ${mode}: ${modeInfo(mode).title}`);
    else if (key === "eniip_virtual_type")
      say(
        key,
        mode.startsWith("eniip-") ? "translated" : "not needed",
        mode.startsWith("eniip-") ? `${virtualType}: mode ${mode}` : `it means something in network_mode ENIIP only`,
      );
    else if (key === "ip_stack")
      say(
        key,
        "moved",
        value === "ipv4"
          ? "terway-agent's default"
          : `start terway-agent with --ip-stack ${String(value)}, or write it into eni_conf`,
      );
    else if (key === "eni_conf")
      say(
        key,
        "not needed",
        value === DEFAULT_ENI_CONF
          ? "terway-agent reads that file"
          : `start terway-agent with --config ${String(value)}`,
      );
    else if (key === "mtu")
      say(key, "translated", value === 0 ? "the ENI's, which is the default" : `mtu ${JSON.stringify(value)}`);
    else if (key === "host_stack_cidrs") {
      const uplink = modeInfo(mode).path === "uplink";
      say(
        key,
        uplink ? "translated" : "not needed",
        uplink ? "hostStackCIDRs" : "all of a pod's packets pass the node's stack",
      );
    } else if (key === "capabilities") {
      for (const [name, on] of entriesOf(value) ?? [])
        if (name === "bandwidth")
          say(
            `capabilities.${name}`,
            "translated",
            on === true ? "terway-bandwidth is in the chain" : "off before, and off now",
          );
        else say(`capabilities.${name}`, "translated", "the new entry declares what it takes");
    } else if (known) say(key, known.verdict, known.note);
    else say(key, "unsupported", "nothing reads it");
  }
  for (const other of others) {
    const key = `plugins: ${other.type}`;
    if (other.type === "bandwidth") {
      say(key, "translated", "terway-bandwidth shapes, with the same rates: one plugin shapes an interface");
      const rest = Object.keys(other).filter((k) => ![...SHAPER_KEYS, "type", "capabilities"].includes(k));
      for (const k of rest) say(`plugins: bandwidth.${k}`, "unsupported", "terway-bandwidth has no such key");
    } else say(key, "kept", "as it was");
  }
  return accounts;
}

export function accountForEniConf(
  eni: EniConfOutcome,
  document: string | undefined,
  inline: JsonObject,
  mode: ModeName,
  config: EniConfig,
  warnings: string[],
): Account[] {
  const idle = keysNotActedOn(eni);
  const inlinePaths = parseEniConf({}, { inline, discovered: PLACEHOLDERS }).given;
  const accounts = eni.given.map((path): Account => {
    const source = inlinePaths.includes(path) ? "10-terway.conf" : "eni_conf";
    if (path === "network_mode")
      return { source, key: path, verdict: "translated", note: `${config.networkMode}: mode ${mode}` };
    if (path === "disable_network_policy") return policyAccount(source, path, config.disableNetworkPolicy, mode);
    const acts = idle.includes(path)
      ? "terway-agent reads and checks it, and does not act on it yet"
      : "terway-agent acts on it";
    if (idle.includes(path)) warnings.push(`eni_conf: "${path}": ${acts}`);
    return source === "eni_conf"
      ? { source, key: path, verdict: "kept", note: `${acts}` }
      : { source, key: path, verdict: "moved", note: `into eni_conf: ${acts}` };
  });
  if (document === undefined) return accounts;
  const strays = eni.warnings.filter((w) => / means nothing here/.test(w.message));
  return [
    ...accounts,
    ...strays.map(
      (w): Account => ({ source: "eni_conf", key: w.key, verdict: "unsupported", note: "nothing reads it" }),
    ),
  ];
}

export function accountForAddon(
  text: string | undefined,
  virtualType: string | undefined,
  mode: ModeName,
  disabled: boolean,
): Account[] {
  const read = text === undefined ? undefined : parseJsonWithComments(text);
  const keys = read?.kind === "value" ? (entriesOf(read.value) ?? []).map(([key]) => key) : [];
  return keys.map((key): Account => {
    if (key === "NetworkPolicy") return policyAccount("add-on", key, disabled, mode);
    if (key !== "IPVlan") return { source: "add-on", key, verdict: "unsupported", note: "nothing reads it" };
    return virtualType === undefined
      ? { source: "add-on", key, verdict: "translated", note: `mode ${mode}` }
      : { source: "add-on", key, verdict: "not needed", note: "eniip_virtual_type of 10-terway.conf says it" };
  });
}
