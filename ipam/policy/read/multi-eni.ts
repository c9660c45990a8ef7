/** MultiENIConfig: ENIs of nodes themselves, and policy routes among them (K8S-50 to K8S-60). Pure. */
import { formatCidr, networkOf, tryParseCidr } from "../../../shared/net/cidr.ts";
import type { EniEntry, MultiEniConfig } from "../objects.ts";
import { type Field, readAll } from "./check.ts";
import { readNetwork } from "./network-policy.ts";

const MOST_ENIS = 8;
const LARGEST_PRIORITY = 2 ** 31 - 1;

function optional<K extends string>(key: K, field: Field): { readonly [key in K]?: string } {
  const text = field.text();
  return (text === undefined || text === "" ? {} : { [key]: text }) as { readonly [key in K]?: string };
}

function readEntry(entry: Field, names: Set<string>): EniEntry | undefined {
  entry.map(["eniID", "subnetID", "securityGroupID", "primary", "zone", "tags"]);
  const name = entry.at("eniID").required(entry.at("eniID").text());
  if (name === undefined) return undefined;
  if (names.has(name)) return entry.at("eniID").fault(`${name} is named twice`);
  names.add(name);
  const tags = Object.keys(entry.at("tags").map() ?? {}).map((key) => [key, entry.at("tags").at(key).text() ?? ""]);
  return {
    name,
    primary: entry.at("primary").boolean() ?? false,
    ...optional("zone", entry.at("zone")),
    ...optional("vswitchId", entry.at("subnetID")),
    ...optional("securityGroup", entry.at("securityGroupID")),
    tags: Object.fromEntries(tags) as Readonly<Record<string, string>>,
  };
}

function readRoute(entry: Field, known: (field: Field) => string | undefined) {
  entry.map(["destination", "eni", "priority"]);
  const cidr = tryParseCidr(readNetwork(entry.at("destination")) ?? "");
  const eni = entry.at("eni").required(known(entry.at("eni")));
  const priority = entry.at("priority").integer(0, LARGEST_PRIORITY) ?? LARGEST_PRIORITY;
  if (cidr === undefined || eni === undefined) return undefined;
  if (cidr.ip.family === 6) return entry.at("destination").fault("policy routes are IPv4 only");
  return { destination: formatCidr({ ip: networkOf(cidr), prefixLength: cidr.prefixLength }), eni, priority };
}

export function readMultiEniConfig(spec: Field, namespace: string, name: string): MultiEniConfig {
  spec.map(["eniConfigs", "routingPolicy"]);
  const names = new Set<string>();
  const enis = readAll(spec.at("eniConfigs").list(MOST_ENIS), (entry) => readEntry(entry, names));
  const primaries = enis.filter((e) => e.primary).length;
  if (primaries !== 1) spec.at("eniConfigs").fault(`exactly one entry must have primary: true, ${primaries} have`);
  const policy = spec.at("routingPolicy");
  policy.map(["defaultENI", "policyRoutes"]);
  const known = (field: Field): string | undefined => {
    const text = field.text();
    if (text === undefined || names.has(text)) return text;
    return field.fault(`"${text}" is the eniID of no entry: there are ${[...names].join(", ")}`);
  };
  const defaultEni = known(policy.at("defaultENI"));
  const routes = readAll(policy.at("policyRoutes").list(), (entry) => readRoute(entry, known));
  return {
    kind: "MultiENIConfig",
    namespace,
    name,
    enis,
    ...(defaultEni === undefined ? {} : { defaultEni }),
    routes,
  };
}
