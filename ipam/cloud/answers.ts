/** From the SDK's answers to our own types. */
import type { CloudEni, CloudRoute, CloudVSwitch } from "./cloud-api.ts";

/** The fields that Create and Describe answers share, as the SDK spells them. Any may be absent. */
export interface EniFields {
  networkInterfaceId?: string | undefined;
  networkInterfaceName?: string | undefined;
  description?: string | undefined;
  macAddress?: string | undefined;
  status?: string | undefined;
  type?: string | undefined;
  vSwitchId?: string | undefined;
  zoneId?: string | undefined;
  instanceId?: string | undefined;
  privateIpAddress?: string | undefined;
  privateIpSets?: { privateIpSet?: { privateIpAddress?: string; primary?: boolean }[] } | undefined;
  ipv6Sets?: { ipv6Set?: { ipv6Address?: string }[] } | undefined;
  ipv4PrefixSets?: { ipv4PrefixSet?: { ipv4Prefix?: string }[] } | undefined;
  ipv6PrefixSets?: { ipv6PrefixSet?: { ipv6Prefix?: string }[] } | undefined;
  securityGroupIds?: { securityGroupId?: string[] } | undefined;
  attachment?: { instanceId?: string; trunkNetworkInterfaceId?: string; deviceIndex?: number } | undefined;
  tags?: { tag?: { tagKey?: string; tagValue?: string }[] } | undefined;
  creationTime?: string | undefined;
  deleteOnRelease?: boolean | undefined;
  serviceManaged?: boolean | undefined;
}

export function toEni(e: EniFields): CloudEni {
  const member = e.type === "Member" && e.attachment !== undefined;
  return {
    id: e.networkInterfaceId ?? "",
    mac: (e.macAddress ?? "").toLowerCase(),
    status: e.status ?? "",
    type: e.type || "Secondary",
    vswitchId: e.vSwitchId ?? "",
    // Member ENIs carry it in their attachment alone.
    instanceId: e.instanceId || e.attachment?.instanceId || undefined,
    primary4: e.privateIpAddress ?? "",
    ips4: (e.privateIpSets?.privateIpSet ?? []).flatMap((s) => s.privateIpAddress ?? []),
    ips6: (e.ipv6Sets?.ipv6Set ?? []).flatMap((s) => s.ipv6Address ?? []),
    prefixes: [
      ...(e.ipv4PrefixSets?.ipv4PrefixSet ?? []).flatMap((s) => s.ipv4Prefix ?? []),
      ...(e.ipv6PrefixSets?.ipv6PrefixSet ?? []).flatMap((s) => s.ipv6Prefix ?? []),
    ],
    securityGroups: e.securityGroupIds?.securityGroupId ?? [],
    tags: Object.fromEntries((e.tags?.tag ?? []).map((t) => [t.tagKey ?? "", t.tagValue ?? ""])),
    name: e.networkInterfaceName ?? "",
    description: e.description ?? "",
    zone: e.zoneId ?? "",
    createdAt: e.creationTime ?? "",
    deleteOnRelease: e.deleteOnRelease ?? false,
    serviceManaged: e.serviceManaged ?? false,
    trunkEniId: e.attachment?.trunkNetworkInterfaceId || undefined,
    vlanId: member ? e.attachment?.deviceIndex : undefined,
  };
}

export interface VSwitchFields {
  vSwitchId?: string;
  zoneId?: string;
  cidrBlock?: string;
  ipv6CidrBlock?: string;
  availableIpAddressCount?: number;
  routeTable?: { routeTableId?: string };
}

export function toVSwitch(v: VSwitchFields): CloudVSwitch {
  return {
    id: v.vSwitchId ?? "",
    zone: v.zoneId ?? "",
    cidr4: v.cidrBlock ?? "",
    cidr6: v.ipv6CidrBlock || undefined,
    available: v.availableIpAddressCount ?? 0,
    routeTableId: v.routeTable?.routeTableId,
  };
}

export interface RouteFields {
  routeEntryId?: string;
  destinationCidrBlock?: string;
  status?: string;
  nextHops?: { nextHop?: { nextHopId?: string }[] };
}

export function toRoute(r: RouteFields): CloudRoute {
  return {
    id: r.routeEntryId ?? "",
    destination: r.destinationCidrBlock ?? "",
    status: r.status ?? "",
    nextHopIds: (r.nextHops?.nextHop ?? []).flatMap((h) => h.nextHopId ?? []),
  };
}
