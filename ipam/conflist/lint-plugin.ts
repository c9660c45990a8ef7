/** Checks one plugin of a chain: its binary, keys, values, capabilities and IPAM section. */
import { VERSIONS } from "../../shared/cni/version.ts";
import { type JsonObject, pointerPart } from "../../shared/config/json-with-comments.ts";
import { type Entry, isObject, modeOf, type NodeFacts, PLUGIN_TYPE, quote, type Say } from "./lint-finding.ts";
import { MODES } from "./modes.ts";
import { nearest } from "./nearest.ts";
import { CAPABILITIES, CNI_KEYS, IPAM_KEYS, IPAM_KEYS_WITHOUT_EFFECT, PLUGINS } from "./plugins.ts";

/** Of the legacy: one binary that did everything. */
export const LEGACY_TYPE = "terway";

export function unknownKeys(conf: JsonObject, at: string, known: readonly string[], whose: string, say: Say): void {
  for (const key of Object.keys(conf)) {
    if (known.includes(key)) continue;
    const meant = nearest(key, known);
    say(
      "warning",
      `${at}/${pointerPart(key)}`,
      `${whose} has no key "${key}": it does nothing`,
      meant === undefined ? `take it out; known are ${known.join(", ")}` : `did you mean "${meant}"?`,
    );
  }
}

export function lintPlugin({ type, conf, at }: Entry, list: JsonObject, node: NodeFacts, say: Say): void {
  const info = PLUGINS[type];
  if (type === LEGACY_TYPE) {
    say(
      "error",
      `${at}/type`,
      'type "terway" is the former plugin, one binary for everything',
      "turn it into our chain with: terway-cli conflist from-config FILE",
      "value",
    );
    return;
  }
  lintBinary(type, `${at}/type`, list.cniVersion, node, say);
  if (info === undefined) {
    const meant = nearest(type, Object.keys(PLUGINS));
    // A plugin of others may have any name; one that is not installed and nearly ours is a slip.
    if (meant !== undefined && node.binaryOf?.(type).kind !== "installed")
      say("warning", `${at}/type`, `no known plugin is called "${type}"`, `did you mean "${meant}"?`, "value");
  }
  if (info?.keys) {
    unknownKeys(conf, at, [...new Set([...Object.keys(info.keys), ...CNI_KEYS])], type, say);
    lintValues(conf, at, info.keys, type, say);
  }
  lintCapabilities(conf, type, at, say);
  if (isObject(conf.ipam)) lintIpam(conf.ipam, `${at}/ipam`, list, node, say);
  if (info?.keys && info.role === "interface") lintOurInterface(type, conf, at, say);
}

function lintValues(
  conf: JsonObject,
  at: string,
  keys: Readonly<Record<string, { readonly accepted: string; read(value: unknown): unknown }>>,
  whose: string,
  say: Say,
): void {
  for (const [key, value] of Object.entries(conf)) {
    const kind = Object.hasOwn(keys, key) ? keys[key] : undefined;
    if (kind !== undefined && kind.read(value) === undefined)
      say(
        "error",
        `${at}/${pointerPart(key)}`,
        `${whose}: ${key} is ${quote(value)}`,
        `want ${kind.accepted}`,
        "value",
      );
  }
}

function lintBinary(type: string, at: string, version: unknown, node: NodeFacts, say: Say): void {
  const binary = node.binaryOf?.(type);
  if (binary === undefined) return;
  if (binary.kind === "missing")
    say(
      "error",
      at,
      `plugin ${type} is not in ${binary.looked}`,
      `put the binary there, or name its folder with --bin-dir`,
      "value",
    );
  else if (binary.kind === "not-executable")
    say("error", at, `${binary.looked} is not executable`, `chmod 755 ${binary.looked}`, "value");
  else if (
    binary.kind === "installed" &&
    typeof version === "string" &&
    binary.versions !== undefined &&
    !binary.versions.includes(version)
  )
    say(
      "error",
      at,
      `the installed ${type} does not speak CNI ${version}, but ${binary.versions.join(", ")}`,
      `install a newer ${type}, or set cniVersion to ${common(binary.versions) ?? "a version that all of the chain speak"}`,
      "value",
    );
}

function common(versions: readonly string[]): string | undefined {
  return VERSIONS.filter((v) => versions.includes(v)).at(-1);
}

function lintCapabilities(conf: JsonObject, type: string, at: string, say: Say): void {
  const { capabilities } = conf;
  const info = PLUGINS[type];
  if (capabilities !== undefined && !isObject(capabilities)) {
    say(
      "error",
      `${at}/capabilities`,
      `capabilities is ${quote(capabilities)}`,
      'write { "portMappings": true }',
      "value",
    );
    return;
  }
  const declared = capabilities ?? {};
  for (const [name, value] of Object.entries(declared)) {
    const where = `${at}/capabilities/${pointerPart(name)}`;
    if (typeof value !== "boolean")
      say("error", where, `capability ${name} is ${quote(value)}`, "write true or false", "value");
    if ((CAPABILITIES as readonly string[]).includes(name)) continue;
    const meant = nearest(name, CAPABILITIES);
    if (meant !== undefined)
      say("warning", where, `no runtime knows the capability "${name}"`, `did you mean "${meant}"?`);
  }
  const wanted = info?.wantsCapability;
  const fixed = Object.keys(conf).some((key) => /^(in|e)gressRate$/.test(key));
  if (wanted !== undefined && declared[wanted] !== true && !fixed)
    say(
      "warning",
      at,
      `${type} without the capability ${wanted}: ${info?.without}`,
      `add "capabilities": { "${wanted}": true }`,
    );
  const mode = modeOf(type, conf);
  if (declared.mac === true && mode !== undefined && MODES[mode].path === "uplink")
    say(
      "warning",
      `${at}/capabilities/mac`,
      `a pod that asks for a MAC address will fail: in mode ${mode} it is the ENI's`,
      "take the capability mac out",
    );
}

function lintIpam(ipam: JsonObject, at: string, list: JsonObject, node: NodeFacts, say: Say): void {
  if (typeof ipam.type !== "string" || !PLUGIN_TYPE.test(ipam.type)) {
    // macvlan and others take an empty section for "no addresses".
    if (ipam.type !== undefined || Object.keys(ipam).length > 0)
      say("error", `${at}/type`, `ipam.type is ${quote(ipam.type)}`, 'write { "type": "terway-ipam" }', "value");
    return;
  }
  lintBinary(ipam.type, `${at}/type`, list.cniVersion, node, say);
  if (ipam.type !== "terway-ipam") return;
  unknownKeys(ipam, at, Object.keys(IPAM_KEYS), "terway-ipam", say);
  lintValues(ipam, at, IPAM_KEYS, "terway-ipam", say);
  for (const key of IPAM_KEYS_WITHOUT_EFFECT)
    if (key in ipam)
      say(
        "warning",
        `${at}/${key}`,
        `terway-ipam takes ${key} for host-local's sake and does nothing with it`,
        'take it out; the store is named by "store"',
      );
  if (ipam.pool !== undefined && (ipam.ranges !== undefined || ipam.subnet !== undefined))
    say("error", `${at}/pool`, "both pool and ranges", "choose one: the node's pool, or ranges of your own");
}

function lintOurInterface(type: string, conf: JsonObject, at: string, say: Say): void {
  const mode = modeOf(type, conf);
  const { ipam } = conf;
  if (ipam === undefined || (isObject(ipam) && Object.keys(ipam).length === 0)) {
    say(
      "error",
      ipam === undefined ? at : `${at}/ipam`,
      `${type} has no ipam section to speak of`,
      'add "ipam": { "type": "terway-ipam" }',
    );
    return;
  }
  if (!isObject(ipam) || mode === undefined) return;
  if (mode !== "vpc" && typeof ipam.type === "string" && ipam.type !== "terway-ipam")
    say(
      "error",
      `${at}/ipam/type`,
      `ipam.type is ${quote(ipam.type)}: in mode ${mode} only terway-ipam knows which ENI an address is of`,
      'write "terway-ipam"',
      "value",
    );
  const ranged = ipam.pool === "pod-cidr" || ipam.ranges !== undefined || ipam.subnet !== undefined;
  if (mode === "vpc" && ipam.type === "terway-ipam" && !ranged)
    say(
      "error",
      `${at}/ipam`,
      "mode vpc takes addresses from the node's pod range, and ipam names the ENIs' pool",
      'add "pool": "pod-cidr" to ipam',
    );
  if (mode !== "vpc" && ipam.type === "terway-ipam" && ranged)
    say(
      "error",
      `${at}/ipam`,
      `mode ${mode} takes addresses from ENIs, and ipam names other ones`,
      "take pool, ranges and subnet out of ipam",
    );
  if (MODES[mode].path === "uplink") return;
  for (const key of ["serviceCIDRs", "hostStackCIDRs"])
    if (key in conf)
      say(
        "warning",
        `${at}/${key}`,
        `${key} means nothing in mode ${mode}: all of a pod's packets pass the node's stack`,
        "take it out",
      );
}
