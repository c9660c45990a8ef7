/** Checks a conflist as text: each finding with its line and column, and what to do about it. Pure. */
import { isSupportedVersion, VERSIONS } from "../../shared/cni/version.ts";
import { type JsonObject, locateJson, type Places } from "../../shared/config/json-with-comments.ts";
import { lintKernel, lintOrder } from "./lint-chain.ts";
import { type Entry, type Finding, isObject, type NodeFacts, PLUGIN_TYPE, quote, type Say } from "./lint-finding.ts";
import { LEGACY_TYPE, lintPlugin, unknownKeys } from "./lint-plugin.ts";
import { LIST_KEYS } from "./plugins.ts";

const NETWORK_NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;

export function lintConflist(text: string, node: NodeFacts = {}): Finding[] {
  const { outcome, places } = locateJson(text);
  if (outcome.kind === "syntax") {
    const { line, column, message } = outcome;
    return [{ line, column, level: "error", at: "", message: `not JSON: ${message}`, remedy: "correct it there" }];
  }
  const findings: Finding[] = [];
  const say: Say = (level, at, message, remedy, on = "name") =>
    void findings.push({ ...placeOf(places, at, on), level, at, message, remedy });
  if (places.comment)
    findings.push({
      ...places.comment,
      level: "error",
      at: "",
      message: "a comment is not JSON: runtimes refuse the file",
      remedy: "take the comments out (eni_conf may have them, a conflist not)",
    });
  if (isObject(outcome.value)) lintList(outcome.value, node, say);
  else say("error", "", "not a JSON object", 'write { "cniVersion": …, "name": …, "plugins": [ … ] }');
  return findings.sort((a, b) => a.line - b.line || a.column - b.column);
}

/** Of a part that is not there, the nearest thing around it. */
function placeOf(places: Places, at: string, on: "name" | "value"): { readonly line: number; readonly column: number } {
  for (let pointer = at; ; pointer = pointer.slice(0, pointer.lastIndexOf("/"))) {
    const place = places[on](pointer) ?? places.name(pointer);
    if (place !== undefined) return place;
    if (pointer === "") return { line: 1, column: 1 };
  }
}

function lintList(list: JsonObject, node: NodeFacts, say: Say): void {
  if (!isSupportedVersion(list.cniVersion))
    say(
      "error",
      "/cniVersion",
      `cniVersion is ${quote(list.cniVersion)}`,
      `use one of ${VERSIONS.join(", ")}`,
      "value",
    );
  if (typeof list.name !== "string" || !NETWORK_NAME.test(list.name))
    say(
      "error",
      "/name",
      `name is ${quote(list.name)}`,
      "start with a letter or digit, go on with letters, digits, '.', '_' or '-'",
      "value",
    );
  for (const { file, name } of node.siblings ?? [])
    if (name === list.name)
      say(
        "warning",
        "/name",
        `${file} has a network of the name ${quote(name)} too`,
        "give one of them another name: attachments are told apart by it",
        "value",
      );
  if (list.plugins === undefined && list.type !== undefined) {
    const legacy = list.type === LEGACY_TYPE;
    say(
      "error",
      "/type",
      `one plugin by itself (type ${quote(list.type)}), not a list`,
      legacy
        ? "turn it into a list with: terway-cli conflist from-config FILE"
        : 'put it into "plugins": [ … ], beside cniVersion and name',
    );
    return;
  }
  unknownKeys(list, "", LIST_KEYS, "a conflist", say);
  const { plugins } = list;
  if (!Array.isArray(plugins) || plugins.length === 0) {
    say("error", "/plugins", "plugins is not a list with at least one plugin", "begin with: terway-cli conflist new");
    return;
  }
  const chain: Entry[] = [];
  for (const [i, conf] of plugins.entries()) {
    const at = `/plugins/${i}`;
    if (!isObject(conf)) {
      say("error", at, `plugin ${i + 1} is ${quote(conf)}`, 'write an object with a "type"');
      continue;
    }
    if (typeof conf.type !== "string" || !PLUGIN_TYPE.test(conf.type)) {
      say("error", `${at}/type`, `type of plugin ${i + 1} is ${quote(conf.type)}`, "name a plugin's file", "value");
      continue;
    }
    chain.push({ type: conf.type, conf, at, index: i });
  }
  for (const entry of chain) lintPlugin(entry, list, node, say);
  lintOrder(chain, say);
  if (node.kernel) lintKernel(chain, node.kernel, say);
}
