/** `10-terway.conf` (CFG-70 to 74), in single or list form, and the add-on's options (CFG-8). */
import { entriesOf, flag, oneOf, quotedFlag, text, type ValueKind } from "./config-value.ts";
import type { ConfigFault, ConfigWarning } from "./eni-conf.ts";
import { IP_STACK } from "./eni-conf-keys.ts";
import type { IpStack } from "./ip-stack.ts";
import { parseJsonWithComments } from "./json-with-comments.ts";

export type EniipVirtualType = "IPVlan" | "Veth";

export interface TerwayConf {
  readonly cniVersion: string;
  readonly name: string;
  readonly type: string;
  readonly eniipVirtualType: EniipVirtualType;
  readonly ipStack: IpStack;
  /** The plugin's whole object, for the `eni_conf` keys that it may carry inline (CON-6). */
  readonly plugin: Readonly<Record<string, unknown>>;
}

const VERSION: ValueKind<string> = {
  accepted: 'a CNI version such as "0.4.0" or "1.0.0"',
  read: (value) => (typeof value === "string" && /^\d+\.\d+\.\d+$/.test(value) ? value : undefined),
};
const VIRTUAL_TYPE = oneOf<EniipVirtualType>({ IPVlan: "IPVlan", Veth: "Veth" });

export interface TerwayConfOutcome {
  /** Absent when there is any fault. */
  readonly conf: TerwayConf | undefined;
  readonly faults: readonly ConfigFault[];
}

/** Reads the file of either form; of a list, the plugin whose type begins with `terway` and that makes the interface. */
export function parseTerwayConf(document: string | object): TerwayConfOutcome {
  const faults: ConfigFault[] = [];
  let value: unknown = document;
  if (typeof document === "string") {
    const read = parseJsonWithComments(document);
    if (read.kind === "syntax") {
      const message = `Cannot read 10-terway.conf: line ${read.line}, column ${read.column}: ${read.message}`;
      return {
        conf: undefined,
        faults: [{ key: "10-terway.conf", value: undefined, accepted: "one JSON object", message }],
      };
    }
    value = read.value;
  }
  const outer = Object.fromEntries(entriesOf(value) ?? []);
  const plugins = Array.isArray(outer.plugins) ? outer.plugins : undefined;
  const plugin = plugins === undefined ? outer : plugins.find(isTerway);
  const inner = Object.fromEntries(entriesOf(plugin) ?? []);
  const take = <T>(from: Readonly<Record<string, unknown>>, key: string, kind: ValueKind<T>, fallback: T): T => {
    if (from[key] === undefined) return fallback;
    const read = kind.read(from[key]);
    if (read === undefined) {
      const got = JSON.stringify(from[key]);
      faults.push({ key, value: got, accepted: kind.accepted, message: `"${key}" is ${got}: want ${kind.accepted}` });
    }
    return read ?? fallback;
  };
  if (plugin === undefined)
    faults.push({
      key: "plugins",
      value: undefined,
      accepted: 'a list with a plugin of type "terway"',
      message: 'The plugin list has no plugin of type "terway", "terway-eni", "terway-ipvlan" or "terway-trunk"',
    });
  const conf: TerwayConf = {
    cniVersion: take(outer, "cniVersion", VERSION, "0.4.0"),
    name: take(outer, "name", text, "terway"),
    type: take(inner, "type", text, "terway"),
    eniipVirtualType: take(inner, "eniip_virtual_type", VIRTUAL_TYPE, "IPVlan"),
    ipStack: take(inner, "ip_stack", IP_STACK, "ipv4"),
    plugin: inner,
  };
  return { conf: faults.length === 0 ? conf : undefined, faults };
}

function isTerway(plugin: unknown): boolean {
  const type = Object.fromEntries(entriesOf(plugin) ?? []).type;
  return type === "terway" || type === "terway-eni" || type === "terway-ipvlan" || type === "terway-trunk";
}

export interface AddonOptions {
  readonly eniipVirtualType?: EniipVirtualType;
  readonly disableNetworkPolicy?: boolean;
}

/** The add-on's option string at cluster creation, e.g. `{"IPVlan":"true","NetworkPolicy":"true"}` (CFG-8, CON-21). */
export function parseAddonOptions(document: string): {
  readonly options: AddonOptions;
  readonly warnings: readonly ConfigWarning[];
  readonly faults: readonly ConfigFault[];
} {
  const faults: ConfigFault[] = [];
  const warnings: ConfigWarning[] = [];
  const read = parseJsonWithComments(document);
  const entries = read.kind === "value" ? entriesOf(read.value) : undefined;
  if (entries === undefined) {
    const where =
      read.kind === "syntax" ? `line ${read.line}, column ${read.column}: ${read.message}` : "it is no object";
    faults.push({
      key: "config",
      value: undefined,
      accepted: '{"IPVlan":"true","NetworkPolicy":"true"}',
      message: `Cannot read the add-on's options: ${where}`,
    });
  }
  const options: { eniipVirtualType?: EniipVirtualType; disableNetworkPolicy?: boolean } = {};
  for (const [key, value] of entries ?? []) {
    if (key !== "IPVlan" && key !== "NetworkPolicy") {
      warnings.push({ key, message: `The add-on option "${key}" means nothing here; it is ignored` });
      continue;
    }
    const on = quotedFlag.read(value) ?? flag.read(value);
    if (on === undefined) {
      const got = JSON.stringify(value);
      faults.push({
        key,
        value: got,
        accepted: quotedFlag.accepted,
        message: `"${key}" is ${got}: want ${quotedFlag.accepted}`,
      });
    } else if (key === "IPVlan") {
      options.eniipVirtualType = on ? "IPVlan" : "Veth";
    } else {
      options.disableNetworkPolicy = !on;
    }
  }
  return { options, warnings, faults };
}
