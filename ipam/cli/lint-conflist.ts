/** Checks a conflist as text, so that findings carry line numbers. Pure. */

export interface Finding {
  /** From 1. */
  readonly line: number;
  readonly level: "error" | "warning";
  readonly message: string;
}

const VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const INTERFACE_PLUGINS = [
  "terway-eni",
  "terway-ipvlan",
  "terway-trunk",
  "ptp",
  "bridge",
  "macvlan",
  "ipvlan",
  "host-device",
  "vlan",
];
/** Of our own plugins; keys that CNI itself defines are known everywhere. */
const KEYS: Readonly<Record<string, readonly string[]>> = {
  "terway-eni": ["mode", "mtu", "ipam", "store", "logDir"],
  "terway-ipvlan": ["mtu", "ipam", "store", "logDir"],
  "terway-trunk": ["mtu", "ipam", "store", "logDir"],
  "terway-bandwidth": ["store", "logDir", "ingressRate", "ingressBurst", "egressRate", "egressBurst"],
  "terway-policy": ["store", "logDir", "default"],
};
const CNI_KEYS = ["type", "capabilities", "ipam", "dns", "args", "runtimeConfig", "cniVersion", "name", "prevResult"];
const IPAM_KEYS = [
  "type",
  "store",
  "logDir",
  "pool",
  "ranges",
  "subnet",
  "rangeStart",
  "rangeEnd",
  "gateway",
  "routes",
  "resolvConf",
  "dataDir",
  "waitSeconds",
  "cooldownSeconds",
  "exec",
  "addresses",
];

type Json = Readonly<Record<string, unknown>>;
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** @param isInstalled Whether a plugin of that name is to be found. */
export function lintConflist(text: string, isInstalled: (type: string) => boolean): Finding[] {
  const findings: Finding[] = [];
  const lines = text.split("\n");
  /** The nth line that has the key (or text) in quotes. */
  const lineOf = (word: string, nth = 0): number => {
    const hits = lines.flatMap((line, i) => (line.includes(`"${word}"`) ? [i + 1] : []));
    return hits[Math.min(nth, hits.length - 1)] ?? 1;
  };
  const error = (line: number, message: string) => void findings.push({ line, level: "error", message });
  const warn = (line: number, message: string) => void findings.push({ line, level: "warning", message });

  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch (problem) {
    const at = Number(/position (\d+)/.exec((problem as Error).message)?.[1] ?? 0);
    return [
      {
        line: text.slice(0, at).split("\n").length,
        level: "error",
        message: `not JSON: ${(problem as Error).message}`,
      },
    ];
  }
  if (!isObject(list)) return [{ line: 1, level: "error", message: "not a JSON object" }];
  if (typeof list.cniVersion !== "string" || !VERSIONS.includes(list.cniVersion)) {
    error(lineOf("cniVersion"), `cniVersion is ${JSON.stringify(list.cniVersion)}, want one of ${VERSIONS.join(", ")}`);
  }
  if (typeof list.name !== "string" || !/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(list.name)) {
    error(
      lineOf("name"),
      `name is ${JSON.stringify(list.name)}, want a letter or digit, then letters, digits, '.', '_' or '-'`,
    );
  }
  if (!Array.isArray(list.plugins) || list.plugins.length === 0) {
    error(lineOf("plugins"), "plugins is not a list with at least one plugin; a single plugin goes into a .conf file");
    return findings;
  }
  const seen = new Map<string, number>();
  for (const [i, plugin] of list.plugins.entries()) {
    if (!isObject(plugin) || typeof plugin.type !== "string") {
      error(lineOf("plugins"), `plugin ${i + 1} has no type`);
      continue;
    }
    const nth = seen.get(plugin.type) ?? 0;
    seen.set(plugin.type, nth + 1);
    const at = lineOf(plugin.type, nth);
    if (nth > 0) warn(at, `${plugin.type} is in the chain twice`);
    if (!isInstalled(plugin.type))
      error(at, `plugin ${plugin.type} is not installed: put it into the CNI binary folder`);
    const makesInterface = INTERFACE_PLUGINS.includes(plugin.type);
    if (i === 0 && !makesInterface && plugin.type !== "loopback")
      warn(at, `${plugin.type} comes first, but makes no interface for the others to work on`);
    if (i > 0 && makesInterface) error(at, `${plugin.type} makes the pod's interface and must come first`);
    if (makesInterface && plugin.type.startsWith("terway-") && !isObject(plugin.ipam))
      error(at, `${plugin.type} needs an ipam section: { "type": "terway-ipam" }`);
    if (plugin.type === "portmap" && !(isObject(plugin.capabilities) && plugin.capabilities.portMappings === true)) {
      warn(
        at,
        'portmap without "capabilities": { "portMappings": true } does nothing: host ports are not handed to it',
      );
    }
    const known = KEYS[plugin.type];
    for (const key of Object.keys(plugin))
      if (known !== undefined && !known.includes(key) && !CNI_KEYS.includes(key))
        warn(lineOf(key), `${plugin.type} does not know the key "${key}"`);
    lintIpam(plugin, lineOf, error, warn, isInstalled);
  }
  return findings;
}

function lintIpam(
  plugin: Json,
  lineOf: (word: string) => number,
  error: (line: number, message: string) => void,
  warn: (line: number, message: string) => void,
  isInstalled: (type: string) => boolean,
): void {
  const { ipam } = plugin;
  if (!isObject(ipam)) return;
  if (typeof ipam.type !== "string") {
    error(lineOf("ipam"), "the ipam section has no type");
    return;
  }
  if (!isInstalled(ipam.type))
    error(lineOf(ipam.type), `IPAM plugin ${ipam.type} is not installed: put it into the CNI binary folder`);
  if (ipam.type !== "terway-ipam") return;
  for (const key of Object.keys(ipam))
    if (!IPAM_KEYS.includes(key)) warn(lineOf(key), `terway-ipam does not know the key "${key}"`);
  if (
    plugin.type === "terway-eni" &&
    plugin.mode === "vpc" &&
    ipam.pool !== "pod-cidr" &&
    ipam.ranges === undefined &&
    ipam.subnet === undefined
  ) {
    error(
      lineOf("ipam"),
      'mode vpc needs addresses of the node\'s pod range: "ipam": { "type": "terway-ipam", "pool": "pod-cidr" }',
    );
  }
}
