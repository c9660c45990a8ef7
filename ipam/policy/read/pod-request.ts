/** What a Pod asks for beyond addresses, and the network planes that it may name. Pure. */
import {
  ENI_RESOURCE,
  OWN_ENI,
  POD_ANNOTATIONS,
  POD_NETWORKS_REQUEST,
  SECURITY_GROUP,
  SECURITY_GROUPS,
} from "../../../shared/config/pod-facts.ts";
import { resolveLimits } from "../../../shared/config/pod-limits.ts";
import { formatCidr, networkOf, tryParseCidr } from "../../../shared/net/cidr.ts";
import type { NetworkRef, Pod, PodNetworking, PodRequest } from "../objects.ts";
import { type Fault, Field, readAll } from "./check.ts";
import { readSelector } from "./names.ts";
import { readNetwork } from "./network-policy.ts";

/** As the platform allows on one ENI. */
const MOST_GROUPS = 10;
const MOST_INTERFACES = 8;
const ID = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;
/** IFNAMSIZ is 16 with the terminating zero. */
const IFNAME = /^[A-Za-z][A-Za-z0-9_.-]{0,14}$/;
/** The pod's end of the veth beside an interface is called so. */
const OURS = /^(lo|veth1|host-.*)$/;

function readId(field: Field): string | undefined {
  const text = field.required(field.text());
  if (text === undefined || ID.test(text)) return text;
  return field.fault(`${JSON.stringify(text)} is no identifier of the cloud`);
}

function readBoolean(field: Field): boolean | undefined {
  if (field.absent) return undefined;
  if (field.value === "true" || field.value === "false") return field.value === "true";
  return field.fault(`must be "true" or "false", is ${JSON.stringify(field.value)}`);
}

/** Comma-separated, sorted, each once. */
function readGroups(field: Field, most: number): string[] | undefined {
  const text = field.text();
  if (text === undefined) return undefined;
  const ids = [...new Set(text.split(",").map((id) => id.trim()))].sort();
  const wrong = ids.find((id) => !ID.test(id));
  if (wrong !== undefined) return field.fault(`${JSON.stringify(wrong)} is no identifier of a security group`);
  if (ids.length > most)
    return field.fault(`must name at most ${most} security group${most > 1 ? "s" : ""}, has ${ids.length}`);
  return ids;
}

/** How many ENIs the containers want in all. */
function readEniResource(spec: Field): boolean {
  let count = 0;
  for (const container of [...spec.at("containers").list(), ...spec.at("initContainers").list()]) {
    const limits = container.at("resources").at("limits");
    const field = limits.at(ENI_RESOURCE);
    if (field.absent) continue;
    const value = typeof field.value === "string" && /^\d+$/.test(field.value) ? Number(field.value) : field.value;
    if (value === 0 || value === 1) count += value;
    else field.fault(`must be 0 or 1, is ${JSON.stringify(field.value)}: for several use ${POD_NETWORKS_REQUEST}`);
  }
  return count > 0;
}

function readRef(entry: Field, names: Set<string>): NetworkRef | undefined {
  entry.map(["interfaceName", "network", "defaultRoute", "routes"]);
  const ifname = entry.at("interfaceName").required(entry.at("interfaceName").text());
  const network = entry.at("network").required(entry.at("network").text());
  const defaultRoute = entry.at("defaultRoute").boolean();
  const routes = entry
    .at("routes")
    .list()
    .flatMap((route) => {
      route.map(["dst"]);
      const cidr = tryParseCidr(readNetwork(route.at("dst")) ?? "");
      // The kernel takes no route whose destination has host bits.
      return cidr === undefined ? [] : [formatCidr({ ip: networkOf(cidr), prefixLength: cidr.prefixLength })];
    });
  if (ifname === undefined || network === undefined) return undefined;
  if (!IFNAME.test(ifname) || OURS.test(ifname))
    return entry.at("interfaceName").fault(`${JSON.stringify(ifname)} cannot be an interface of the pod`);
  if (names.has(ifname)) return entry.at("interfaceName").fault(`${ifname} is named twice`);
  names.add(ifname);
  return { ifname, network, ...(defaultRoute ? { defaultRoute } : {}), ...(routes.length > 0 ? { routes } : {}) };
}

function readRefs(field: Field): readonly NetworkRef[] | undefined {
  const text = field.text();
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return field.fault(`is no JSON: ${(error as Error).message}`);
  }
  const faults: Fault[] = [];
  const list = new Field(value, [], faults);
  const names = new Set<string>();
  const refs = readAll(list.list(MOST_INTERFACES), (entry) => readRef(entry, names));
  if (Array.isArray(value) && value.length === 0) list.fault("must have an entry");
  const defaults = refs.filter((ref) => ref.defaultRoute);
  if (defaults.length > 1)
    list.fault(`one interface has the default route, not ${defaults.map((ref) => ref.ifname).join(" and ")}`);
  for (const fault of faults) field.fault(fault.path === "" ? fault.message : `${fault.path}: ${fault.message}`);
  return refs;
}

/** @param faults Gets those of what the pod asks for: the object itself stands. */
export function readPodAsks(root: Field, faults: Fault[]): Pick<Pod, "uid" | "annotations" | "request"> {
  const metadata = root.at("metadata");
  const uid = metadata.at("uid").text();
  const own: Fault[] = [];
  const annotations = new Field(root.value, [], own).at("metadata").at("annotations");
  const at = (key: string) => annotations.at(key);
  const [ownEni, one, several, networks] = [
    readBoolean(at(OWN_ENI)),
    readGroups(at(SECURITY_GROUP), 1),
    readGroups(at(SECURITY_GROUPS), MOST_GROUPS),
    readRefs(at(POD_NETWORKS_REQUEST)),
  ];
  const byResource = readEniResource(new Field(root.value, [], own).at("spec"));
  if (one !== undefined && several !== undefined && one.join() !== several.join())
    at(SECURITY_GROUPS).fault(`says something else than ${SECURITY_GROUP}: keep one of them`);
  if (networks !== undefined && (one ?? several) !== undefined)
    at(POD_NETWORKS_REQUEST).fault("security groups are those of the PodNetworking: leave out the other annotation");
  faults.push(...own);
  const securityGroups = several ?? one;
  const request: PodRequest =
    own.length > 0
      ? { faults: own.map((fault) => `${fault.path}: ${fault.message}`).join("; ") }
      : {
          ...(ownEni || byResource ? { ownEni: true as const } : {}),
          ...(securityGroups ? { securityGroups } : {}),
          ...(networks ? { networks } : {}),
        };
  const mirrored = readMirrored(annotations, faults);
  return {
    ...(uid === undefined || uid === "" ? {} : { uid }),
    ...(Object.keys(mirrored).length > 0 ? { annotations: mirrored } : {}),
    ...(Object.keys(request).length > 0 ? { request } : {}),
  };
}

/** Faulty ones too: whoever acts on one says so again, to whom it concerns. */
function readMirrored(annotations: Field, faults: Fault[]): Record<string, string> {
  const mirrored: Record<string, string> = {};
  for (const key of POD_ANNOTATIONS) {
    const field = annotations.at(key);
    if (typeof field.value !== "string") continue;
    mirrored[key] = field.value;
    const found: Fault[] = [];
    for (const why of resolveLimits({
      runtime: {},
      conf: {},
      labels: {},
      annotations: { [key]: field.value },
      qos: undefined,
    }).faults)
      new Field(field.value, field.path, found).fault(why);
    faults.push(...found);
  }
  return mirrored;
}

const ENI_TYPES = ["Default", "ENI", "Trunk"] as const;

export function readPodNetworking(root: Field, name: string): PodNetworking {
  const spec = root.at("spec");
  spec.map([
    "allocationType",
    "selector",
    "securityGroupIDs",
    "vSwitchOptions",
    "vSwitchSelectOptions",
    "eniOptions",
    "resourceGroupID",
  ]);
  const allocation = spec.at("allocationType").at("type").oneOf(["Elastic", "Fixed"]);
  if (allocation === "Fixed") spec.at("allocationType").at("type").fault("Fixed is not supported here: use Elastic");
  const groups = readAll(spec.at("securityGroupIDs").list(MOST_GROUPS), readId);
  const zones = new Map(
    root
      .at("status")
      .at("vSwitches")
      .list()
      .map((entry) => [entry.at("id").text() ?? "", entry.at("zone").text()]),
  );
  const vswitches = readAll(spec.at("vSwitchOptions").list(), readId).map((id) => {
    const zone = zones.get(id);
    return { id, ...(zone ? { zone } : {}) };
  });
  const selector = spec.at("selector");
  selector.map(["podSelector", "namespaceSelector"]);
  const [pods, namespaces] = [readSelector(selector.at("podSelector")), readSelector(selector.at("namespaceSelector"))];
  return {
    kind: "PodNetworking",
    name,
    eniType: spec.at("eniOptions").at("eniType").oneOf(ENI_TYPES) ?? "Default",
    ...(vswitches.length > 0 ? { vswitches } : {}),
    ...(groups.length > 0 ? { securityGroups: [...new Set(groups)].sort() } : {}),
    ...(pods ? { pods } : {}),
    ...(namespaces ? { namespaces } : {}),
  };
}
