/** What a pod's requests mean on this node: of which ENIs each interface is, with which vSwitches and groups. Pure. */
import type { PodInterfaceFacts, Refusal } from "../../shared/config/pod-facts.ts";
import type { Labels, NetworkRef, Pod, PodNetworking } from "../policy/objects.ts";
import { selects } from "../policy/selector.ts";

type Kind = PodInterfaceFacts["kind"];

/** What this node can give. */
export interface NodeMeans {
  readonly mode: "shared" | "vpc" | "exclusive" | "trunk";
  readonly zone: string;
  /** Kinds of ENIs that it keeps, or makes for pods that ask. */
  readonly kinds: readonly Kind[];
  /** Which kind a pod gets that asks for an ENI of its own, and does not say which. */
  readonly own: Exclude<Kind, "shared">;
  /** Of ENIs for everybody; sorted. */
  readonly securityGroups: readonly string[];
}

export interface Surroundings {
  readonly networkings: ReadonlyMap<string, PodNetworking>;
  namespaceLabels(namespace: string): Labels;
  /** undefined: not known yet; null: there is no such vSwitch. */
  zoneOf(vswitchId: string): string | null | undefined;
}

export interface Resolved {
  readonly interfaces?: readonly PodInterfaceFacts[];
  readonly refused?: Refusal;
  /** Something that the operator should know; the pod starts without it. */
  readonly warning?: string;
}

class Refused extends Error {
  readonly again: boolean;
  constructor(why: string, again = false) {
    super(why);
    this.again = again;
  }
}

/** undefined in both: as the conflist says. */
export function resolveRequest(pod: Pod, node: NodeMeans, around: Surroundings): Resolved {
  const { request } = pod;
  if (request?.faults !== undefined) return { refused: { why: request.faults } };
  try {
    if (request?.networks) return { interfaces: ofNetworks(request.networks, node, around) };
    const selected = selecting(pod, around);
    // What the pod itself says comes first.
    if (selected === undefined || request?.ownEni || request?.securityGroups) return ofPod(pod, node);
    return { interfaces: [ofNetworking("eth0", selected, node, around)] };
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return { refused: { why: error.message, ...(error.again ? { again: true } : {}) } };
  }
}

/** Of the node's ordinary pods. */
const ORDINARY = { shared: "shared", vpc: undefined, exclusive: "exclusive", trunk: "member" } as const;

function ofPod({ request }: Pod, node: NodeMeans): Resolved {
  const groups = request?.securityGroups;
  const kind = request?.ownEni ? node.own : ORDINARY[node.mode];
  if (kind === undefined)
    return groups === undefined
      ? {}
      : { warning: "a security group needs an ENI of the pod's own in mode VPC: it is ignored" };
  const special = groups !== undefined && groups.join() !== node.securityGroups.join();
  if (kind === ORDINARY[node.mode] && !special) return {};
  mustKeep(kind, node);
  return { interfaces: [{ ifname: "eth0", kind, ...(special ? { securityGroups: groups } : {}) }] };
}

function selecting(pod: Pod, { networkings, namespaceLabels }: Surroundings): PodNetworking | undefined {
  const found = [...networkings.values()].filter(
    ({ pods, namespaces }) =>
      (pods ?? namespaces) !== undefined &&
      (pods === undefined || selects(pods, pod.labels)) &&
      (namespaces === undefined || selects(namespaces, namespaceLabels(pod.namespace))),
  );
  if (found.length < 2) return found[0];
  throw new Refused(`PodNetworkings ${found.map((n) => n.name).join(", ")} all select the pod: one may`);
}

function ofNetworks(refs: readonly NetworkRef[], node: NodeMeans, around: Surroundings): PodInterfaceFacts[] {
  return refs.map((ref) => {
    const networking = around.networkings.get(ref.network);
    if (networking === undefined)
      throw new Refused(`interface ${ref.ifname}: there is no PodNetworking ${ref.network}`, true);
    return {
      ...ofNetworking(ref.ifname, networking, node, around),
      ...(ref.defaultRoute ? { defaultRoute: true } : {}),
      ...(ref.routes ? { routes: ref.routes } : {}),
    };
  });
}

function ofNetworking(
  ifname: string,
  { name, eniType, vswitches, securityGroups }: PodNetworking,
  node: NodeMeans,
  around: Surroundings,
): PodInterfaceFacts {
  const kind = eniType === "Trunk" ? "member" : eniType === "ENI" ? "exclusive" : node.own;
  mustKeep(kind, node, `PodNetworking ${name}: `);
  const special = securityGroups !== undefined && securityGroups.join() !== node.securityGroups.join();
  const here = vswitches && inZone(name, vswitches, node.zone, around);
  return {
    ifname,
    kind,
    ...(here ? { vswitchIds: here } : {}),
    // ENIs of a plane's own vSwitches are for nobody else: their groups are said, too.
    ...(special || here ? { securityGroups: securityGroups ?? node.securityGroups } : {}),
  };
}

function inZone(
  name: string,
  vswitches: NonNullable<PodNetworking["vswitches"]>,
  zone: string,
  { zoneOf }: Surroundings,
): string[] {
  const zones = vswitches.map((v) => ({ id: v.id, zone: v.zone ?? zoneOf(v.id) }));
  const here = zones.filter((v) => v.zone === zone).map((v) => v.id);
  if (here.length > 0) return here;
  const unknown = zones.filter((v) => v.zone === undefined).map((v) => v.id);
  if (unknown.length > 0)
    throw new Refused(`PodNetworking ${name}: the zone of ${unknown.join(", ")} is not known yet`, true);
  const where = zones.map((v) => `${v.id} ${v.zone === null ? "does not exist" : `is in ${v.zone}`}`);
  throw new Refused(`PodNetworking ${name} has no vSwitch of this node's zone ${zone}: ${where.join(", ")}`);
}

function mustKeep(kind: Kind, { kinds, mode }: NodeMeans, what = ""): void {
  if (kinds.includes(kind)) return;
  const remedy = kind === "member" ? " (enable_eni_trunking of eni_conf, and an instance type with trunk ENIs)" : "";
  throw new Refused(`${what}this node is in mode ${mode} and keeps no ${kind} ENIs${remedy}`);
}
