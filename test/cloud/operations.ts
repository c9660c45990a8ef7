/** The operations of ECS 2014-05-26 and VPC 2016-04-28, from flattened parameters to response bodies. */
import { INSTANCE_TYPES } from "./instance-types.ts";
import { ApiError, type EniRecord, type Model } from "./model.ts";
import { type Direction, parseRule, type RuleSpec, ruleBody } from "./security-groups.ts";

/** Parameters as they come: `SecurityGroupIds.1`, `Tag.1.Key`. */
export class Params {
  private readonly values: ReadonlyMap<string, string>;

  constructor(values: ReadonlyMap<string, string>) {
    this.values = values;
  }

  get(name: string): string | undefined {
    const value = this.values.get(name);
    return value === "" ? undefined : value;
  }

  need(name: string): string {
    const value = this.get(name);
    if (value === undefined)
      throw new ApiError(
        400,
        "MissingParameter",
        `The input parameter "${name}" that is mandatory for processing this request is not supplied.`,
      );
    return value;
  }

  number(name: string, fallback: number): number {
    const text = this.get(name);
    if (text === undefined) return fallback;
    if (!/^\d+$/.test(text)) throw new ApiError(400, "InvalidParameter", `${name} ${text}`);
    return Number(text);
  }

  list(name: string): string[] {
    const out: string[] = [];
    for (let i = 1; ; i++) {
      const value = this.get(`${name}.${i}`);
      if (value === undefined) return out;
      out.push(value);
    }
  }

  tags(): Map<string, string> {
    const out = new Map<string, string>();
    for (let i = 1; ; i++) {
      const key = this.get(`Tag.${i}.Key`);
      if (key === undefined) return out;
      out.set(key, this.get(`Tag.${i}.Value`) ?? "");
    }
  }
}

type Operation = (model: Model, p: Params) => object;

/** The DeviceIndex of a member is its VLAN id. */
function attachment(eni: EniRecord) {
  if (eni.instanceId === undefined) return {};
  if (eni.trunk === undefined) return { InstanceId: eni.instanceId };
  return {
    InstanceId: eni.instanceId,
    TrunkNetworkInterfaceId: eni.trunk.eniId,
    DeviceIndex: eni.trunk.vlanId,
  };
}

function eniBody(model: Model, eni: EniRecord) {
  const vswitch = model.vswitchOf(eni.vswitchId);
  return {
    NetworkInterfaceId: eni.id,
    NetworkInterfaceName: eni.name,
    Description: eni.description,
    MacAddress: eni.mac,
    Status: eni.status,
    Type: eni.type,
    NetworkInterfaceTrafficMode: "Standard",
    // A member says only in its attachment where it is.
    InstanceId: eni.trunk === undefined ? (eni.instanceId ?? "") : "",
    VpcId: model.vpcId,
    VSwitchId: eni.vswitchId,
    ZoneId: vswitch.zone,
    PrivateIpAddress: eni.primaryIp,
    PrivateIpSets: {
      PrivateIpSet: [...eni.ips].map((ip) => ({ PrivateIpAddress: ip, Primary: ip === eni.primaryIp })),
    },
    Ipv6Sets: { Ipv6Set: [...eni.ips6].map((ip, i) => ({ Ipv6Address: ip, Primary: i === 0 })) },
    SecurityGroupIds: { SecurityGroupId: eni.securityGroups },
    Attachment: attachment(eni),
    Tags: { Tag: [...eni.tags].map(([TagKey, TagValue]) => ({ TagKey, TagValue })) },
    DeleteOnRelease: eni.deleteOnRelease,
    CreationTime: eni.creationTime,
    SourceDestCheck: false,
  };
}

/** Token paging: `NextToken` is the index to go on from. */
function page<T>(items: readonly T[], p: Params): { readonly part: readonly T[]; readonly next: string } {
  const size = Math.min(500, Math.max(10, p.number("MaxResults", 10)));
  const from = p.number("NextToken", 0);
  const next = from + size;
  return { part: items.slice(from, next), next: next < items.length ? String(next) : "" };
}

const describeNetworkInterfaces: Operation = (model, p) => {
  const ids = p.list("NetworkInterfaceId");
  const ips = p.list("PrivateIpAddress");
  const ips6 = p.list("Ipv6Address");
  const tags = p.tags();
  const equal = (name: string, value: string | undefined) => p.get(name) === undefined || p.get(name) === value;
  const found = [...model.enis.values()].filter(
    (e) =>
      (ids.length === 0 || ids.includes(e.id)) &&
      (ips.length === 0 || ips.some((ip) => e.ips.has(ip))) &&
      (ips6.length === 0 || ips6.some((ip) => e.ips6.has(ip))) &&
      equal("InstanceId", model.faults.membersHidden && e.trunk !== undefined ? "" : e.instanceId) &&
      equal("VSwitchId", e.vswitchId) &&
      equal("Type", e.type) &&
      equal("Status", e.status) &&
      equal("NetworkInterfaceName", e.name) &&
      equal("PrimaryIpAddress", e.primaryIp) &&
      (p.get("SecurityGroupId") === undefined || e.securityGroups.includes(p.get("SecurityGroupId") ?? "")) &&
      [...tags].every(([k, v]) => e.tags.get(k) === v),
  );
  const { part, next } = page(found, p);
  return {
    NetworkInterfaceSets: { NetworkInterfaceSet: part.map((e) => eniBody(model, e)) },
    NextToken: next,
    TotalCount: found.length,
  };
};

const createNetworkInterface: Operation = (model, p) => {
  const single = p.get("SecurityGroupId");
  const groups = [...(single ? [single] : []), ...p.list("SecurityGroupIds")];
  if (single !== undefined && p.list("SecurityGroupIds").length > 0)
    throw new ApiError(400, "InvalidParameter.Conflict", "SecurityGroupId and SecurityGroupIds");
  // A member is created as Secondary: attaching it to a trunk makes it one.
  const type = p.get("InstanceType") ?? "Secondary";
  if (type !== "Secondary" && type !== "Trunk")
    throw new ApiError(400, "InvalidParameter", `InstanceType ${type}: Secondary or Trunk`);
  const eni = model.createEni(
    {
      vswitchId: p.need("VSwitchId"),
      securityGroups: groups,
      count: p.number("SecondaryPrivateIpAddressCount", 0),
      count6: p.number("Ipv6AddressCount", 0),
      primaryIp: p.get("PrimaryIpAddress"),
      ips: p.list("PrivateIpAddress"),
      ips6: p.list("Ipv6Address"),
      deleteOnRelease: p.get("DeleteOnRelease") === "true",
      name: p.get("NetworkInterfaceName") ?? "",
      description: p.get("Description") ?? "",
      type,
      tags: p.tags(),
    },
    p.get("ClientToken"),
  );
  const body = eniBody(model, eni);
  if (model.faults.emptyEniId > 0) {
    model.faults.emptyEniId -= 1;
    return { ...body, NetworkInterfaceId: "" };
  }
  return body;
};

const instanceBody = (model: Model, id: string) => {
  const instance = model.instanceOf(id);
  const primary = model.eniOf(instance.primaryEniId);
  return {
    InstanceId: instance.id,
    InstanceName: instance.name,
    InstanceType: instance.type,
    RegionId: model.region,
    ZoneId: instance.zone,
    Status: "Running",
    VpcAttributes: {
      VpcId: model.vpcId,
      VSwitchId: instance.vswitchId,
      PrivateIpAddress: { IpAddress: [primary.primaryIp] },
    },
    NetworkInterfaces: {
      NetworkInterface: model
        .attachedTo(id)
        .map((e) => ({ NetworkInterfaceId: e.id, MacAddress: e.mac, PrimaryIpAddress: e.primaryIp, Type: e.type })),
    },
    SecurityGroupIds: { SecurityGroupId: primary.securityGroups },
  };
};

function jsonList(text: string | undefined): string[] {
  return text === undefined ? [] : (JSON.parse(text) as string[]);
}

/** `Permissions.N.…`, or the older form with one rule's parameters at the top. */
function rulesOf(p: Params, direction: Direction): RuleSpec[] {
  const out: RuleSpec[] = [];
  for (let i = 1; p.get(`Permissions.${i}.IpProtocol`) !== undefined; i++)
    out.push(parseRule(direction, (name) => p.get(`Permissions.${i}.${name}`)));
  return out.length > 0 ? out : [parseRule(direction, (name) => p.get(name))];
}

function authorize(direction: Direction): Operation {
  return (model, p) => {
    model.authorize(p.need("SecurityGroupId"), rulesOf(p, direction));
    return {};
  };
}

function revoke(direction: Direction): Operation {
  return (model, p) => {
    const id = p.need("SecurityGroupId");
    const rules = p.list("SecurityGroupRuleId");
    if (rules.length > 0) model.revokeById(id, direction, rules);
    else model.revoke(id, rulesOf(p, direction));
    return {};
  };
}

export const ECS_OPERATIONS: Readonly<Record<string, Operation>> = {
  DescribeNetworkInterfaces: describeNetworkInterfaces,
  CreateNetworkInterface: createNetworkInterface,
  DescribeNetworkInterfaceAttribute(model, p) {
    const eni = model.eniOf(p.need("NetworkInterfaceId"));
    const members = model.membersOf(eni.id).map((e) => e.id);
    return {
      ...eniBody(model, eni),
      Attachment: {
        ...attachment(eni),
        ...(members.length > 0 ? { MemberNetworkInterfaceIds: { MemberNetworkInterfaceId: members } } : {}),
      },
    };
  },
  AttachNetworkInterface(model, p) {
    model.attach(p.need("NetworkInterfaceId"), p.need("InstanceId"), p.get("TrunkNetworkInstanceId"));
    return {};
  },
  DetachNetworkInterface(model, p) {
    model.detach(p.need("NetworkInterfaceId"), p.need("InstanceId"), p.get("TrunkNetworkInstanceId"));
    return {};
  },
  DeleteNetworkInterface(model, p) {
    model.deleteEni(p.need("NetworkInterfaceId"));
    return {};
  },
  ModifyNetworkInterfaceAttribute(model, p) {
    const eni = model.eniOf(p.need("NetworkInterfaceId"));
    const groups = p.list("SecurityGroupId");
    if (groups.length > 0) model.setGroups(eni.id, groups);
    eni.name = p.get("NetworkInterfaceName") ?? eni.name;
    eni.description = p.get("Description") ?? eni.description;
    const release = p.get("DeleteOnRelease");
    if (release !== undefined) eni.deleteOnRelease = release === "true";
    return {};
  },
  AssignPrivateIpAddresses(model, p) {
    const id = p.need("NetworkInterfaceId");
    const added = model.assign(
      id,
      p.number("SecondaryPrivateIpAddressCount", 0),
      p.list("PrivateIpAddress"),
      p.get("ClientToken"),
    );
    return { AssignedPrivateIpAddressesSet: { NetworkInterfaceId: id, PrivateIpSet: { PrivateIpAddress: added } } };
  },
  UnassignPrivateIpAddresses(model, p) {
    model.unassign(p.need("NetworkInterfaceId"), p.list("PrivateIpAddress"));
    return {};
  },
  AssignIpv6Addresses(model, p) {
    const id = p.need("NetworkInterfaceId");
    const added = model.assign6(id, p.number("Ipv6AddressCount", 0), p.list("Ipv6Address"), p.get("ClientToken"));
    return { NetworkInterfaceId: id, Ipv6Sets: { Ipv6Address: added } };
  },
  UnassignIpv6Addresses(model, p) {
    model.unassign6(p.need("NetworkInterfaceId"), p.list("Ipv6Address"));
    return {};
  },
  DescribeInstances(model, p) {
    const ids = jsonList(p.get("InstanceIds"));
    const found = [...model.instances.keys()].filter((id) => ids.length === 0 || ids.includes(id));
    return {
      Instances: { Instance: found.map((id) => instanceBody(model, id)) },
      TotalCount: found.length,
      NextToken: "",
    };
  },
  DescribeInstanceAttribute: (model, p) => instanceBody(model, p.need("InstanceId")),
  DescribeInstanceTypes(_model, p) {
    const ids = p.list("InstanceTypes");
    const found = INSTANCE_TYPES.filter((t) => ids.length === 0 || ids.includes(t.id));
    return {
      InstanceTypes: {
        InstanceType: found.map((t) => ({
          InstanceTypeId: t.id,
          EniQuantity: t.eniQuantity,
          EniTotalQuantity: t.eniTotalQuantity,
          EniPrivateIpAddressQuantity: t.ipv4PerEni,
          EniIpv6AddressQuantity: t.ipv6PerEni,
          EniTrunkSupported: t.trunk,
        })),
      },
      NextToken: "",
    };
  },
  DescribeSecurityGroups(model, p) {
    const ids = [
      ...jsonList(p.get("SecurityGroupIds")),
      ...(p.get("SecurityGroupId") ? [p.need("SecurityGroupId")] : []),
    ];
    const equal = (name: string, value: string) => p.get(name) === undefined || p.get(name) === value;
    const tags = p.tags();
    const found = [...model.securityGroups.values()].filter(
      (g) =>
        (ids.length === 0 || ids.includes(g.id)) &&
        equal("VpcId", model.vpcId) &&
        equal("SecurityGroupName", g.name) &&
        equal("SecurityGroupType", g.type) &&
        [...tags].every(([k, v]) => g.tags.get(k) === v),
    );
    const { part, next } = page(found, p);
    return {
      RegionId: model.region,
      SecurityGroups: {
        SecurityGroup: part.map((g) => ({
          SecurityGroupId: g.id,
          SecurityGroupName: g.name,
          Description: g.description,
          SecurityGroupType: g.type,
          VpcId: model.vpcId,
          RuleCount: g.rules.length,
          GroupToGroupRuleCount: g.rules.filter((r) => r.peer.kind === "group").length,
          EcsCount: new Set(
            [...model.enis.values()].flatMap((e) =>
              e.securityGroups.includes(g.id) && e.instanceId ? [e.instanceId] : [],
            ),
          ).size,
          CreationTime: g.creationTime,
          Tags: { Tag: [...g.tags].map(([TagKey, TagValue]) => ({ TagKey, TagValue })) },
        })),
      },
      TotalCount: found.length,
      NextToken: next,
    };
  },
  DescribeSecurityGroupAttribute(model, p) {
    const group = model.groupOf(p.need("SecurityGroupId"));
    const direction = p.get("Direction") ?? "all";
    return {
      RegionId: model.region,
      VpcId: model.vpcId,
      SecurityGroupId: group.id,
      SecurityGroupName: group.name,
      Description: group.description,
      InnerAccessPolicy: group.innerAccess,
      Permissions: {
        Permission: group.rules.filter((r) => direction === "all" || r.direction === direction).map(ruleBody),
      },
      NextToken: "",
    };
  },
  CreateSecurityGroup(model, p) {
    const vpc = p.get("VpcId");
    if (vpc !== undefined && vpc !== model.vpcId) throw new ApiError(404, "InvalidVpcId.NotFound", `VpcId ${vpc}`);
    const group = model.createSecurityGroup(
      {
        name: p.get("SecurityGroupName") ?? "",
        description: p.get("Description") ?? "",
        type: p.get("SecurityGroupType") ?? "normal",
        tags: p.tags(),
      },
      p.get("ClientToken"),
    );
    return { SecurityGroupId: group.id };
  },
  DeleteSecurityGroup(model, p) {
    model.deleteSecurityGroup(p.need("SecurityGroupId"));
    return {};
  },
  ModifySecurityGroupPolicy(model, p) {
    model.setInnerAccess(p.need("SecurityGroupId"), p.need("InnerAccessPolicy"));
    return {};
  },
  AuthorizeSecurityGroup: authorize("ingress"),
  AuthorizeSecurityGroupEgress: authorize("egress"),
  RevokeSecurityGroup: revoke("ingress"),
  RevokeSecurityGroupEgress: revoke("egress"),
  TagResources(model, p) {
    for (const id of p.list("ResourceId")) for (const [k, v] of p.tags()) model.eniOf(id).tags.set(k, v);
    return {};
  },
  UntagResources(model, p) {
    for (const id of p.list("ResourceId")) for (const key of p.list("TagKey")) model.eniOf(id).tags.delete(key);
    return {};
  },
  ListTagResources: (model, p) => ({
    TagResources: {
      TagResource: p.list("ResourceId").flatMap((id) =>
        [...model.eniOf(id).tags].map(([TagKey, TagValue]) => ({
          ResourceId: id,
          ResourceType: "eni",
          TagKey,
          TagValue,
        })),
      ),
    },
    NextToken: "",
  }),
};

export const VPC_OPERATIONS: Readonly<Record<string, Operation>> = {
  DescribeVSwitches(model, p) {
    const wanted = p.get("VSwitchId")?.split(",");
    const found = [...model.vswitches.values()].filter(
      (v) =>
        (wanted === undefined || wanted.includes(v.id)) &&
        (p.get("ZoneId") === undefined || p.get("ZoneId") === v.zone),
    );
    return {
      VSwitches: {
        VSwitch: found.map((v) => ({
          VSwitchId: v.id,
          VpcId: model.vpcId,
          ZoneId: v.zone,
          CidrBlock: v.cidr,
          Ipv6CidrBlock: v.cidr6 ?? "",
          EnabledIpv6: v.cidr6 !== undefined,
          AvailableIpAddressCount: model.available(v),
          Status: "Available",
          RouteTable: { RouteTableId: model.routeTableId, RouteTableType: "System" },
        })),
      },
      TotalCount: found.length,
      PageNumber: 1,
      PageSize: 50,
    };
  },
  DescribeVpcAttribute: (model) => ({ VpcId: model.vpcId, VSwitchIds: { VSwitchId: [...model.vswitches.keys()] } }),
  DescribeRouteTableList: (model) => ({
    RouterTableList: {
      RouterTableListType: [
        {
          RouteTableId: model.routeTableId,
          VpcId: model.vpcId,
          RouteTableType: "System",
          VSwitchIds: { VSwitchId: [...model.vswitches.keys()] },
        },
      ],
    },
    TotalCount: 1,
  }),
  DescribeRouteEntryList(model, p) {
    p.need("RouteTableId");
    const found = [...model.routes.values()].filter(
      (r) => p.get("DestinationCidrBlock") === undefined || p.get("DestinationCidrBlock") === r.destination,
    );
    return {
      RouteEntrys: {
        RouteEntry: found.map((r) => ({
          RouteEntryId: r.id,
          RouteTableId: model.routeTableId,
          DestinationCidrBlock: r.destination,
          Status: r.status === "Creating" ? "Pending" : r.status,
          Type: "Custom",
          NextHops: { NextHop: [{ NextHopType: "Instance", NextHopId: r.nextHopId, Enabled: 1 }] },
        })),
      },
      NextToken: "",
    };
  },
  CreateRouteEntry: (model, p) => ({
    RouteEntryId: model.createRoute(
      p.need("RouteTableId"),
      p.need("DestinationCidrBlock"),
      p.need("NextHopId"),
      p.get("ClientToken"),
    ).id,
  }),
  DeleteRouteEntry(model, p) {
    const id =
      p.get("RouteEntryId") ??
      [...model.routes.values()].find(
        (r) => r.destination === p.get("DestinationCidrBlock") && r.nextHopId === p.get("NextHopId"),
      )?.id;
    model.deleteRoute(id);
    return {};
  },
};
