/** One manifest (or a List of them) to objects, with every fault in it. Pure. */
import { formatIp, tryParseIp } from "../../../shared/net/ip.ts";
import type { ClusterObject, IsolationDomain, Labels, NamedPort, PolicyKind } from "../objects.ts";
import { type Fault, Field, isMap, type Path, readAll } from "./check.ts";
import { readClusterPolicy } from "./cluster-policy.ts";
import { readMultiEniConfig } from "./multi-eni.ts";
import { readLabels, readNamespaceName, readObjectName } from "./names.ts";
import { readNetwork, readNetworkPolicy } from "./network-policy.ts";
import { readPodAsks, readPodNetworking } from "./pod-request.ts";
import { readProtocol } from "./ports.ts";

export interface ReadManifest {
  /** Of a manifest with faults: none, or what can be read of it. Do not use it then. */
  readonly object: ClusterObject | undefined;
  /** Of a kind that is nothing to us. */
  readonly ignored?: string;
  readonly faults: readonly Fault[];
  /** In what a Pod asks for; the object stands without it. */
  readonly asks: readonly Fault[];
  /** Where in its document the manifest is: ["items", 3] in a List. */
  readonly base: Path;
}

const NETWORKING = "networking.k8s.io/v1";
const POLICY_V1ALPHA1 = "policy.networking.k8s.io/v1alpha1";
const POLICY_V1ALPHA2 = "policy.networking.k8s.io/v1alpha2";
const API_VERSIONS: Readonly<Record<string, string>> = {
  Pod: "v1",
  Namespace: "v1",
  Node: "v1",
  ConfigMap: "v1",
  NetworkPolicy: NETWORKING,
  AdminNetworkPolicy: POLICY_V1ALPHA1,
  BaselineAdminNetworkPolicy: POLICY_V1ALPHA1,
  ClusterNetworkPolicy: POLICY_V1ALPHA2,
  PodNetworking: "network.alibabacloud.com/v1beta1",
  MultiENIConfig: "terway.aliyun.com/v1beta1",
};
export const ISOLATION_CONFIG_MAP = "terway-network-isolation";
const ISOLATION_KEY = "isolation_config";

/** Canonical; a fault when it is none. */
function readIp(field: Field): string | undefined {
  const text = field.text();
  if (text === undefined || text === "") return undefined;
  const ip = tryParseIp(text);
  return ip === undefined ? field.fault(`"${text}" is no IP address`) : formatIp(ip);
}

function readPodPorts(spec: Field): NamedPort[] {
  // Sidecars are init containers that keep running; the API lists their ports too.
  return [...spec.at("containers").list(), ...spec.at("initContainers").list()].flatMap((container) =>
    container
      .at("ports")
      .list()
      .flatMap((port): NamedPort[] => {
        const name = port.at("name").text();
        const number = port.at("containerPort").required(port.at("containerPort").integer(1, 65_535));
        const protocol = readProtocol(port.at("protocol"));
        return name === undefined || name === "" || number === undefined ? [] : [{ name, protocol, port: number }];
      }),
  );
}

function readPod(root: Field, namespace: string, name: string, labels: Labels, asks: Fault[]): ClusterObject {
  const spec = root.at("spec");
  const status = root.at("status");
  const listed = readAll(status.at("podIPs").list(), (entry) => readIp(entry.at("ip")));
  const single = readIp(status.at("podIP"));
  const phase = status.at("phase").text();
  const node = spec.at("nodeName").text();
  return {
    kind: "Pod",
    namespace,
    name,
    labels,
    ips: [...new Set([...(single === undefined ? [] : [single]), ...listed])],
    ports: readPodPorts(spec),
    hostNetwork: spec.at("hostNetwork").boolean() ?? false,
    finished: phase === "Succeeded" || phase === "Failed",
    ...(node === undefined || node === "" ? {} : { node }),
    ...readPodAsks(root, asks),
  };
}

/** The `network_domains` form. @param field What `isolation_config` holds, parsed. */
export function readIsolationDomains(field: Field): ClusterObject {
  field.map(["network_domains"]);
  const domains = field
    .at("network_domains")
    .list()
    .flatMap((entry): IsolationDomain[] => {
      entry.map(["name", "cidr", "eni_selector", "allowed_destinations"]);
      const name = entry.at("name").required(entry.at("name").text());
      const cidr = readNetwork(entry.at("cidr"));
      const selector = entry.at("eni_selector");
      selector.map(["tags"]);
      const tags = Object.fromEntries(
        Object.keys(selector.at("tags").map() ?? {}).map((key) => [key, selector.at("tags").at(key).text() ?? ""]),
      );
      const allowedDestinations = readAll(entry.at("allowed_destinations").list(), readNetwork);
      return name === undefined || cidr === undefined ? [] : [{ name, cidr, tags, allowedDestinations }];
    });
  return { kind: "IsolationDomains", domains };
}

function readConfigMap(root: Field, name: string): ClusterObject | undefined {
  if (name !== ISOLATION_CONFIG_MAP) return undefined;
  const entry = root.at("data").at(ISOLATION_KEY);
  const text = entry.required(entry.text());
  if (text === undefined) return undefined;
  try {
    const faults: Fault[] = [];
    const object = readIsolationDomains(new Field(JSON.parse(text), [], faults));
    for (const fault of faults) entry.fault(`${fault.path}: ${fault.message}`);
    return object;
  } catch (error) {
    return entry.fault(`is no JSON: ${(error as Error).message}`);
  }
}

function readKind(
  root: Field,
  kind: string,
  namespace: string,
  name: string,
  asks: Fault[],
): ClusterObject | undefined {
  const labels = () => readLabels(root.at("metadata").at("labels"));
  switch (kind) {
    case "Pod":
      return readPod(root, namespace, name, labels(), asks);
    case "PodNetworking":
      return readPodNetworking(root, name);
    case "MultiENIConfig":
      return readMultiEniConfig(root.at("spec"), namespace, name);
    case "Namespace":
      return { kind: "Namespace", name, labels: labels() };
    case "Node": {
      const ips = root
        .at("status")
        .at("addresses")
        .list()
        .flatMap((entry) => (/IP$/.test(entry.at("type").text() ?? "") ? (readIp(entry.at("address")) ?? []) : []));
      return { kind: "Node", name, labels: labels(), ips: [...new Set(ips)] };
    }
    case "ConfigMap":
      return readConfigMap(root, name);
    case "NetworkPolicy":
      return readNetworkPolicy(root.at("spec"), namespace, name);
    default:
      return readClusterPolicy(root.at("spec"), kind as Exclude<PolicyKind, "NetworkPolicy">, name);
  }
}

const OF_THE_CLUSTER = [
  "Namespace",
  "Node",
  "AdminNetworkPolicy",
  "BaselineAdminNetworkPolicy",
  "ClusterNetworkPolicy",
  "PodNetworking",
];

function readOne(value: unknown, base: Path): ReadManifest {
  const faults: Fault[] = [];
  const asks: Fault[] = [];
  const root = new Field(value, [], faults);
  if (!isMap(value)) {
    root.fault("a manifest must be a map with apiVersion, kind, metadata and spec");
    return { object: undefined, faults, asks, base };
  }
  const kind = root.at("kind").required(root.at("kind").text());
  if (kind === undefined) return { object: undefined, faults, asks, base };
  const want = API_VERSIONS[kind];
  const apiVersion = root.at("apiVersion").text() ?? "";
  if (want === undefined) return { object: undefined, faults, asks, base, ignored: kind };
  if (apiVersion !== want) {
    // Another group's kind by the same name is none of ours; another version of ours would be read wrongly.
    if (apiVersion.split("/")[0] !== want.split("/")[0] && apiVersion !== "")
      return { object: undefined, faults, asks, base, ignored: `${apiVersion} ${kind}` };
    root.at("apiVersion").fault(`must be ${want} for ${kind}, is "${apiVersion}"`);
  }
  const name = readObjectName(root.at("metadata").at("name"));
  const namespace = OF_THE_CLUSTER.includes(kind)
    ? ""
    : (readNamespaceName(root.at("metadata").at("namespace")) ?? "default");
  if (name === undefined) return { object: undefined, faults, asks, base };
  if (kind === "BaselineAdminNetworkPolicy" && name !== "default")
    root.at("metadata").at("name").fault('must be "default": there is one BaselineAdminNetworkPolicy');
  if (kind === "ConfigMap" && name !== ISOLATION_CONFIG_MAP)
    return { object: undefined, faults, asks, base, ignored: `ConfigMap ${name}` };
  return { object: readKind(root, kind, namespace, name, asks), faults, asks, base };
}

/** Manifests of one document: itself, or the items of a List. */
export function readManifests(value: unknown): ReadManifest[] {
  if (isMap(value) && typeof value.kind === "string" && value.kind.endsWith("List") && Array.isArray(value.items)) {
    // Items of a typed List need not repeat what they are.
    const item = value.kind.slice(0, -"List".length);
    return value.items.map((entry, i) =>
      readOne(isMap(entry) && item !== "" ? { apiVersion: value.apiVersion, kind: item, ...entry } : entry, [
        "items",
        i,
      ]),
    );
  }
  return [readOne(value, [])];
}
