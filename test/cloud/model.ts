/**
 * The emulated cloud's state: VPC, vSwitches, security groups, instances, ENIs and their state machine, route table.
 * Asynchronous changes happen through an injected scheduler, so that tests may run without waiting.
 */

import {
  cidrContains,
  cidrsOverlap,
  formatCidr,
  lastOf,
  networkOf,
  parseCidr,
  tryParseCidr,
} from "../../shared/net/cidr.ts";
import { addToIp, distanceIp, formatIp, parseIp, tryParseIp } from "../../shared/net/ip.ts";
import { ApiError } from "./errors.ts";
import { INSTANCE_TYPES, type InstanceType } from "./instance-types.ts";
import { type Direction, type RuleSpec, type SecurityGroup, type SecurityRule, sameRule } from "./security-groups.ts";

export { ApiError };

export type EniStatus = "Available" | "Attaching" | "InUse" | "Detaching" | "Deleting";

export interface EniRecord {
  readonly id: string;
  readonly mac: string;
  /** A Secondary one is a Member as long as it hangs on a trunk. */
  type: "Primary" | "Secondary" | "Trunk" | "Member";
  status: EniStatus;
  readonly vswitchId: string;
  securityGroups: string[];
  /** "" in a vSwitch that has only IPv6. */
  readonly primaryIp: string;
  readonly ips: Set<string>;
  readonly ips6: Set<string>;
  instanceId: string | undefined;
  /** Of a member: its trunk, and the tag of its frames there; from the request to attach to the end of the detaching. */
  trunk: { readonly eniId: string; readonly vlanId: number } | undefined;
  deleteOnRelease: boolean;
  name: string;
  description: string;
  readonly tags: Map<string, string>;
  readonly creationTime: string;
}

export interface VSwitch {
  readonly id: string;
  readonly zone: string;
  /** "" when it has only IPv6. */
  readonly cidr: string;
  readonly cidr6: string | undefined;
  /** Leaves only this many addresses, whatever the size. */
  limit: number | undefined;
}

export interface Instance {
  readonly id: string;
  readonly name: string;
  type: string;
  readonly zone: string;
  readonly vswitchId: string;
  readonly primaryEniId: string;
}

export interface RouteEntryRecord {
  readonly id: string;
  readonly destination: string;
  readonly nextHopId: string;
  status: "Creating" | "Available" | "Deleting";
}

export interface Delays {
  readonly attachMs: number;
  readonly detachMs: number;
  readonly deleteMs: number;
  readonly routeMs: number;
}

/** What happens on the wire as a consequence; the fabric follows it. */
export interface ModelEvents {
  attached(eni: EniRecord, instance: Instance): void;
  detached(eni: EniRecord, instanceId: string): void;
  addresses(eni: EniRecord): void;
  /** The ENI is in other security groups. */
  groups(eni: EniRecord): void;
  /** A group's rules are others. */
  rules(groupId: string): void;
  route(entry: RouteEntryRecord, present: boolean): void;
}

export interface ModelOptions {
  readonly region: string;
  readonly vpcCidr: string;
  readonly delays: Delays;
  readonly schedule: (ms: number, work: () => void) => void;
  readonly events?: Partial<ModelEvents>;
  /** Why this machine cannot carry member ENIs; undefined when it can. */
  readonly noMembers?: () => string | undefined;
}

export type Model = ReturnType<typeof createModel>;

export function createModel(options: ModelOptions) {
  const { region, delays, schedule } = options;
  const events = options.events ?? {};
  const vpcId = "vpc-emu1";
  const routeTableId = "vtb-emu1";
  const vswitches = new Map<string, VSwitch>();
  const securityGroups = new Map<string, SecurityGroup>();
  const instances = new Map<string, Instance>();
  const enis = new Map<string, EniRecord>();
  const routes = new Map<string, RouteEntryRecord>();
  const tokens = new Map<string, { readonly fingerprint: string; readonly result: unknown }>();
  /** Faults inside the model; each is taken off when it happens. */
  const faults = {
    attachFallsBack: 0,
    /** ENIs whose next detaching, or deleting, does not come to an end; asked again, it does. */
    stuckDetach: new Set<string>(),
    stuckDelete: new Set<string>(),
    partialAssign: 0,
    emptyEniId: 0,
    /** DescribeNetworkInterfaces by InstanceId leaves member ENIs out. */
    membersHidden: false,
  };
  const quotas: {
    /** ENIs of the account in this region. */
    enis: number | undefined;
  } = { enis: undefined };
  let serial = 0;
  let routeBusy = false;

  const nextId = (prefix: string) => `${prefix}-emu${(++serial).toString(36).padStart(6, "0")}`;
  const mac = () => {
    serial += 1;
    return `00:16:3e:${[16, 8, 0].map((shift) => ((serial >> shift) & 255).toString(16).padStart(2, "0")).join(":")}`;
  };

  function need<T>(map: ReadonlyMap<string, T>, id: string | undefined, status: number, code: string, what: string): T {
    const found = id === undefined ? undefined : map.get(id);
    if (found === undefined) throw new ApiError(status, code, `The specified ${what} "${id ?? ""}" does not exist.`);
    return found;
  }

  const eniOf = (id: string | undefined) => need(enis, id, 404, "InvalidEniId.NotFound", "EniId");
  const vswitchOf = (id: string | undefined) => need(vswitches, id, 404, "InvalidVSwitchId.NotFound", "VSwitchId");
  const instanceOf = (id: string | undefined) => need(instances, id, 404, "InvalidInstanceId.NotFound", "InstanceId");
  const typeOf = (instance: Instance): InstanceType => {
    const found = INSTANCE_TYPES.find((t) => t.id === instance.type);
    if (found === undefined) throw new ApiError(404, "InvalidInstanceType.NotFound", `instance type ${instance.type}`);
    return found;
  };

  const takenIn = (vswitchId: string) =>
    [...enis.values()].filter((e) => e.vswitchId === vswitchId).flatMap((e) => [...e.ips]);

  /** First address and last three are reserved. */
  function available(vswitch: VSwitch): number {
    if (vswitch.cidr === "") return 0;
    const cidr = parseCidr(vswitch.cidr);
    const size = distanceIp(networkOf(cidr), lastOf(cidr)) + 1 - 4;
    return Math.max(0, Math.min(size, vswitch.limit ?? size) - takenIn(vswitch.id).length);
  }

  /** "" in a vSwitch that has only IPv6. */
  function gatewayOf(vswitch: VSwitch): string {
    if (vswitch.cidr === "") return "";
    const ip = addToIp(lastOf(parseCidr(vswitch.cidr)), -2);
    return ip ? formatIp(ip) : "";
  }

  function gateway6Of(vswitch: VSwitch): string | undefined {
    if (vswitch.cidr6 === undefined) return undefined;
    const ip = addToIp(lastOf(parseCidr(vswitch.cidr6)), -2);
    return ip && formatIp(ip);
  }

  /** Addresses come in order, as far as they are free: the freed ones come again only when all others are used. */
  const cursors = new Map<string, number>();

  function takeIps(vswitch: VSwitch, count: number): string[] {
    if (count === 0) return [];
    if (count > available(vswitch)) {
      throw new ApiError(
        403,
        "InvalidVSwitchId.IpNotEnough",
        `The specified VSwitch "${vswitch.id}" has not enough IpAddress.`,
      );
    }
    const cidr = parseCidr(vswitch.cidr);
    const taken = new Set(takenIn(vswitch.id));
    const first = networkOf(cidr);
    const size = distanceIp(first, lastOf(cidr)) + 1;
    const out: string[] = [];
    let at = cursors.get(vswitch.id) ?? 0;
    for (let tried = 0; out.length < count && tried < size; tried++) {
      at = (at + 1) % size;
      if (at < 1 || at > size - 4) continue;
      const ip = addToIp(first, at);
      const text = ip ? formatIp(ip) : "";
      if (!taken.has(text)) out.push(text);
    }
    cursors.set(vswitch.id, at);
    return out;
  }

  function takeIps6(vswitch: VSwitch, count: number): string[] {
    if (vswitch.cidr6 === undefined)
      throw new ApiError(403, "InvalidVSwitch.Ipv6NotTurnOn", "The vSwitch has no IPv6 block.");
    const first = networkOf(parseCidr(vswitch.cidr6));
    const out: string[] = [];
    const taken = new Set([...enis.values()].flatMap((e) => [...e.ips6]));
    let at = cursors.get(`${vswitch.id}/6`) ?? 0x100;
    while (out.length < count) {
      at += 1;
      const ip = addToIp(first, at);
      const text = ip ? formatIp(ip) : "";
      if (!taken.has(text)) out.push(text);
    }
    cursors.set(`${vswitch.id}/6`, at);
    return out;
  }

  /** @returns The addresses in canonical form. */
  function explicitIps(vswitch: VSwitch, ips: readonly string[], family: 4 | 6): string[] {
    if (ips.length === 0) return [];
    const block = family === 4 ? vswitch.cidr : (vswitch.cidr6 ?? "");
    const cidr = tryParseCidr(block);
    const taken = new Set([...enis.values()].flatMap((e) => [...e.ips, ...e.ips6]));
    const out = ips.map((text) => {
      const ip = tryParseIp(text);
      if (ip === undefined || cidr === undefined || !cidrContains(cidr, ip))
        throw new ApiError(403, "InvalidVSwitchId.IpInvalid", `${text} is not in ${vswitch.id} (${block}).`);
      if (taken.has(formatIp(ip)))
        throw new ApiError(403, "InvalidIp.IpAssigned", `The specified IP ${text} is assigned.`);
      return formatIp(ip);
    });
    if (new Set(out).size !== out.length) throw new ApiError(403, "InvalidIp.IpRepeated", "Repeated addresses.");
    return out;
  }

  /** Throws when the group has no room for `more` addresses. */
  function checkGroup(id: string, more: number): void {
    const group = need(securityGroups, id, 404, "InvalidSecurityGroupId.NotFound", "SecurityGroupId");
    const members = [...enis.values()].filter((e) => e.securityGroups.includes(id)).reduce((n, e) => n + e.ips.size, 0);
    if (group.limit !== undefined && members + more > group.limit)
      throw new ApiError(403, "SecurityGroupInstanceLimitExceed", `${id} is full.`);
  }

  /** The first result again for the same token and parameters. */
  function once<T>(action: string, token: string | undefined, fingerprint: string, work: () => T): T {
    if (token === undefined || token === "") return work();
    const key = `${action}/${token}`;
    const known = tokens.get(key);
    if (known !== undefined) {
      if (known.fingerprint !== fingerprint)
        throw new ApiError(400, "IdempotentParameterMismatch", "The token was used with other parameters.");
      return known.result as T;
    }
    const result = work();
    tokens.set(key, { fingerprint, result });
    return result;
  }

  interface CreateEni {
    readonly vswitchId: string | undefined;
    readonly securityGroups: readonly string[];
    readonly count: number;
    readonly count6: number;
    readonly primaryIp: string | undefined;
    readonly ips: readonly string[];
    readonly ips6?: readonly string[];
    readonly deleteOnRelease: boolean;
    readonly name: string;
    readonly description: string;
    readonly type: "Secondary" | "Trunk";
    readonly tags: ReadonlyMap<string, string>;
  }

  function makeEni(request: CreateEni, type: EniRecord["type"]): EniRecord {
    const vswitch = vswitchOf(request.vswitchId);
    if (request.securityGroups.length === 0)
      throw new ApiError(400, "MissingParameter", "SecurityGroupId is mandatory.");
    for (const id of request.securityGroups) checkGroup(id, 1 + request.count);
    if (quotas.enis !== undefined && enis.size >= quotas.enis)
      throw new ApiError(403, "MaxEniCountExceeded", `The account has its ${quotas.enis} ENIs.`);
    const only6 = vswitch.cidr === "";
    const [first] = explicitIps(vswitch, request.primaryIp === undefined ? [] : [request.primaryIp], 4);
    const others = explicitIps(vswitch, request.ips, 4);
    const chosen6 = explicitIps(vswitch, request.ips6 ?? [], 6);
    const taken = takeIps(vswitch, (first === undefined && !only6 ? 1 : 0) + request.count);
    const primaryIp = first ?? taken.shift() ?? "";
    const ips = new Set([primaryIp, ...taken, ...others].filter((ip) => ip !== ""));
    const count6 = only6 && chosen6.length === 0 ? Math.max(1, request.count6) : request.count6;
    const ips6 = new Set([...chosen6, ...(count6 > 0 ? takeIps6(vswitch, count6) : [])]);
    const eni: EniRecord = {
      id: nextId("eni"),
      mac: mac(),
      type,
      status: "Available",
      vswitchId: vswitch.id,
      securityGroups: [...request.securityGroups],
      primaryIp,
      ips,
      ips6,
      instanceId: undefined,
      trunk: undefined,
      deleteOnRelease: request.deleteOnRelease,
      name: request.name,
      description: request.description,
      tags: new Map(request.tags),
      creationTime: new Date().toISOString(),
    };
    enis.set(eni.id, eni);
    return eni;
  }

  /** Members of its trunk included. */
  function attachedTo(instanceId: string): EniRecord[] {
    return [...enis.values()].filter((e) => e.instanceId === instanceId);
  }

  const membersOf = (trunkId: string) => [...enis.values()].filter((e) => e.trunk?.eniId === trunkId);

  const FIRST_VLAN = 101;
  const LAST_VLAN = 4094;

  /** The lowest free one, so that the tag of a member that left is the next one's. */
  function freeVlan(trunkId: string): number {
    const used = new Set(membersOf(trunkId).map((e) => e.trunk?.vlanId));
    for (let id = FIRST_VLAN; id <= LAST_VLAN; id++) if (!used.has(id)) return id;
    throw new ApiError(403, "EniPerInstanceLimitExceeded", `${trunkId} has no VLAN id left.`);
  }

  /** Whether the ENI may become a member of this trunk. */
  function checkMember(eni: EniRecord, instance: Instance, trunk: EniRecord): void {
    if (trunk.type !== "Trunk" || eni.type !== "Secondary")
      throw new ApiError(
        403,
        "InvalidOperation.InvalidEniType",
        `A Secondary ENI is attached to a Trunk: ${eni.id} is ${eni.type}, ${trunk.id} is ${trunk.type}.`,
      );
    if (trunk.status !== "InUse" || trunk.instanceId !== instance.id) throw state(trunk);
    const type = typeOf(instance);
    if (membersOf(trunk.id).length >= type.eniTotalQuantity - type.eniQuantity)
      throw new ApiError(403, "EniPerInstanceLimitExceeded", "The instance has its maximum of member ENIs.");
    const why = options.noMembers?.();
    if (why !== undefined) throw new ApiError(501, "EmulatorUnsupported", why);
  }

  function checkOrdinary(eni: EniRecord, instance: Instance): void {
    const type = typeOf(instance);
    const there = attachedTo(instance.id).filter((e) => e.type !== "Member");
    if (there.length >= type.eniQuantity)
      throw new ApiError(403, "EniPerInstanceLimitExceeded", "The instance has its maximum of ENIs.");
    if (eni.type !== "Trunk") return;
    if (!type.trunk)
      throw new ApiError(403, "InvalidOperation.InvalidEniType", `${type.id} does not support trunk ENIs.`);
    if (there.some((e) => e.type === "Trunk"))
      throw new ApiError(403, "EniPerInstanceLimitExceeded", "The instance has a trunk ENI already.");
  }

  function addGroup(g: Partial<SecurityGroup> & { readonly id: string }): SecurityGroup {
    const group: SecurityGroup = {
      name: "",
      description: "",
      type: "normal",
      innerAccess: g.type === "enterprise" ? "Drop" : "Accept",
      rules: [],
      limit: undefined,
      tags: new Map(),
      creationTime: new Date().toISOString(),
      ...g,
    };
    securityGroups.set(group.id, group);
    return group;
  }

  const groupOf = (id: string | undefined) =>
    need(securityGroups, id, 404, "InvalidSecurityGroupId.NotFound", "SecurityGroupId");

  const MAX_RULES = 200;

  /** Rules that are there already are not added again. */
  function authorize(groupId: string | undefined, specs: readonly RuleSpec[]): void {
    const group = groupOf(groupId);
    for (const { peer } of specs) {
      if (peer.kind !== "group") continue;
      if (group.type === "enterprise")
        throw new ApiError(403, "InvalidOperation.AdvancedSecurityGroup", "Enterprise groups name no other groups.");
      need(securityGroups, peer.id, 404, "InvalidSourceGroupId.NotFound", "security group");
    }
    const added: SecurityRule[] = [];
    for (const spec of specs)
      if (![...group.rules, ...added].some((r) => sameRule(r, spec)))
        added.push({ ...spec, id: nextId("sgr"), createTime: new Date().toISOString() });
    if (group.rules.length + added.length > MAX_RULES)
      throw new ApiError(403, "AuthorizationLimitExceed", `${group.id} would have more than ${MAX_RULES} rules.`);
    group.rules = [...group.rules, ...added];
    events.rules?.(group.id);
  }

  /** Rules that are not there are no error. */
  function revoke(groupId: string | undefined, specs: readonly RuleSpec[]): void {
    const group = groupOf(groupId);
    group.rules = group.rules.filter((r) => !specs.some((s) => sameRule(r, s)));
    events.rules?.(group.id);
  }

  /** Off its instance and its trunk. */
  function release(eni: EniRecord): void {
    eni.status = "Available";
    eni.instanceId = undefined;
    eni.trunk = undefined;
    if (eni.type === "Member") eni.type = "Secondary";
  }

  const busy = (eni: EniRecord) =>
    eni.status === "Attaching" || eni.status === "Detaching" || eni.status === "Deleting";
  const state = (eni: EniRecord) =>
    new ApiError(
      400,
      "InvalidOperation.InvalidEniState",
      `The operation is not supported while ${eni.id} is ${eni.status}.`,
    );

  const model = {
    region,
    vpcId,
    routeTableId,
    vswitches,
    securityGroups,
    instances,
    enis,
    routes,
    faults,
    quotas,
    eniOf,
    groupOf,
    membersOf,
    vswitchOf,
    instanceOf,
    typeOf,
    available,
    gatewayOf,
    gateway6Of,
    attachedTo,

    addVSwitch(v: {
      readonly id: string;
      readonly zone: string;
      /** "" for IPv6 only. */
      readonly cidr: string;
      readonly cidr6?: string;
      readonly limit?: number;
    }): VSwitch {
      const vswitch: VSwitch = { cidr6: undefined, limit: undefined, ...v };
      const blocks = (x: VSwitch) => [x.cidr, x.cidr6 ?? ""].filter((c) => c !== "").map(parseCidr);
      if (blocks(vswitch).length === 0) throw new Error(`vSwitch ${v.id} has no addresses: give it cidr or cidr6`);
      for (const other of vswitches.values())
        if (other.id !== v.id && blocks(other).some((a) => blocks(vswitch).some((b) => cidrsOverlap(a, b))))
          throw new ApiError(400, "InvalidCidrBlock.Overlapped", `${v.id} overlaps ${other.id}`);
      vswitches.set(v.id, vswitch);
      return vswitch;
    },

    /**
     * A group that lets in these CIDRs, by rules of the lowest priority. With an empty list it is what a new group is:
     * its members reach each other and everything outside, and nothing else reaches them.
     */
    addSecurityGroup(id: string, ingress: readonly string[] = ["0.0.0.0/0", "::/0"], limit?: number): SecurityGroup {
      const group = addGroup({ id, limit });
      const rule = { direction: "ingress", protocol: "all", policy: "accept", priority: 100, description: "" } as const;
      const any = { ports: undefined, sourcePorts: undefined, own: undefined } as const;
      authorize(
        id,
        ingress.map((cidr) => ({ ...rule, ...any, peer: { kind: "cidr", cidr } })),
      );
      return group;
    },

    createSecurityGroup(
      g: {
        readonly name: string;
        readonly description: string;
        readonly type: string;
        readonly tags: Map<string, string>;
      },
      token: string | undefined,
    ): SecurityGroup {
      return once("CreateSecurityGroup", token, JSON.stringify([g.name, g.description, g.type]), () => {
        if (g.type !== "normal" && g.type !== "enterprise")
          throw new ApiError(400, "InvalidSecurityGroupType.ValueNotSupported", `SecurityGroupType ${g.type}`);
        return addGroup({ ...g, type: g.type, id: nextId("sg") });
      });
    },

    deleteSecurityGroup(id: string | undefined): void {
      const group = groupOf(id);
      const used =
        [...enis.values()].some((e) => e.securityGroups.includes(group.id)) ||
        [...securityGroups.values()].some(
          (g) => g !== group && g.rules.some((r) => r.peer.kind === "group" && r.peer.id === group.id),
        );
      if (used) throw new ApiError(403, "DependencyViolation", `${group.id} has members or is named by other groups.`);
      securityGroups.delete(group.id);
    },

    authorize,
    revoke,

    /** @throws {ApiError} and changes nothing when one of them is not there. */
    revokeById(groupId: string | undefined, direction: Direction, ids: readonly string[]): void {
      const group = groupOf(groupId);
      const wanted = new Set(ids);
      for (const id of wanted)
        if (!group.rules.some((r) => r.id === id && r.direction === direction))
          throw new ApiError(400, "InvalidParam.SecurityGroupRuleId", `${group.id} has no ${direction} rule ${id}.`);
      group.rules = group.rules.filter((r) => !wanted.has(r.id));
      events.rules?.(group.id);
    },

    setInnerAccess(groupId: string | undefined, policy: string): void {
      const group = groupOf(groupId);
      if (group.type === "enterprise")
        throw new ApiError(403, "InvalidOperation.AdvancedSecurityGroup", "Members of enterprise groups are isolated.");
      if (policy !== "Accept" && policy !== "Drop")
        throw new ApiError(400, "InvalidInnerAccessPolicy.Malformed", `InnerAccessPolicy ${policy}`);
      group.innerAccess = policy;
      events.rules?.(group.id);
    },

    /** Replaces the ENI's set of groups. */
    setGroups(eniId: string | undefined, groups: readonly string[]): void {
      const eni = eniOf(eniId);
      for (const id of groups) checkGroup(id, eni.securityGroups.includes(id) ? 0 : eni.ips.size);
      eni.securityGroups = [...groups];
      events.groups?.(eni);
    },

    addInstance(i: {
      readonly name: string;
      readonly type: string;
      readonly vswitchId: string;
      readonly securityGroup: string;
    }): Instance {
      const vswitch = vswitchOf(i.vswitchId);
      if (vswitch.cidr === "") throw new Error(`instance ${i.name}: the vSwitch of a primary ENI has IPv4`);
      const type = INSTANCE_TYPES.find((t) => t.id === i.type);
      const primary = makeEni(
        {
          vswitchId: vswitch.id,
          securityGroups: [i.securityGroup],
          count: 0,
          count6: vswitch.cidr6 && (type?.ipv6PerEni ?? 1) > 0 ? 1 : 0,
          primaryIp: undefined,
          ips: [],
          deleteOnRelease: true,
          name: "",
          description: "",
          type: "Secondary",
          tags: new Map(),
        },
        "Primary",
      );
      const instance: Instance = {
        id: nextId("i"),
        name: i.name,
        type: i.type,
        zone: vswitch.zone,
        vswitchId: vswitch.id,
        primaryEniId: primary.id,
      };
      instances.set(instance.id, instance);
      primary.instanceId = instance.id;
      primary.status = "InUse";
      events.attached?.(primary, instance);
      return instance;
    },

    terminateInstance(id: string): void {
      instanceOf(id);
      const members = (eni: EniRecord) => Number(eni.trunk === undefined);
      for (const eni of attachedTo(id).sort((a, b) => members(a) - members(b))) {
        events.detached?.(eni, id);
        release(eni);
        if (eni.deleteOnRelease) enis.delete(eni.id);
      }
      instances.delete(id);
    },

    createEni(request: CreateEni, token: string | undefined): EniRecord {
      return once(
        "CreateNetworkInterface",
        token,
        JSON.stringify([
          ...[request.vswitchId, request.securityGroups, request.count, request.count6, request.type],
          ...[request.primaryIp, request.ips, request.ips6],
        ]),
        () => makeEni(request, request.type),
      );
    },

    /** @param trunkId The trunk to become a member of; absent: attach to the instance itself. */
    attach(eniId: string | undefined, instanceId: string | undefined, trunkId?: string): void {
      const eni = eniOf(eniId);
      const instance = instanceOf(instanceId);
      if (eni.status === "InUse" && eni.instanceId === instance.id) throw state(eni);
      if (eni.status !== "Available") throw state(eni);
      if (vswitchOf(eni.vswitchId).zone !== instance.zone)
        throw new ApiError(403, "InvalidOperation.AvailabilityZoneMismatch", "The ENI is in another zone.");
      const trunk = trunkId === undefined ? undefined : eniOf(trunkId);
      if (trunk === undefined) checkOrdinary(eni, instance);
      else checkMember(eni, instance, trunk);
      const type = typeOf(instance);
      if (eni.ips.size > type.ipv4PerEni)
        throw new ApiError(403, "InvalidOperation.Ipv4CountExceeded", `${type.id} takes ${type.ipv4PerEni} per ENI.`);
      if (eni.ips6.size > type.ipv6PerEni)
        throw new ApiError(403, "InvalidOperation.Ipv6CountExceeded", `${type.id} takes ${type.ipv6PerEni} per ENI.`);
      eni.status = "Attaching";
      eni.instanceId = instance.id;
      if (trunk !== undefined) {
        eni.type = "Member";
        eni.trunk = { eniId: trunk.id, vlanId: freeVlan(trunk.id) };
      }
      schedule(delays.attachMs, () => {
        if (eni.status !== "Attaching") return;
        if (faults.attachFallsBack > 0) {
          faults.attachFallsBack -= 1;
          release(eni);
          return;
        }
        eni.status = "InUse";
        events.attached?.(eni, instance);
      });
    },

    detach(eniId: string | undefined, instanceId: string | undefined, trunkId?: string): void {
      const eni = eniOf(eniId);
      if (eni.type === "Primary")
        throw new ApiError(400, "InvalidOperation.DetachPrimaryEniNotAllowed", "Primary ENIs cannot be detached.");
      if ((eni.status !== "InUse" && eni.status !== "Detaching") || eni.instanceId !== instanceId) throw state(eni);
      if (trunkId !== undefined && eni.trunk?.eniId !== trunkId)
        throw new ApiError(403, "InvalidOperation.InvalidEniType", `${eni.id} is not a member of ${trunkId}.`);
      const members = membersOf(eni.id);
      if (members.length > 0)
        throw new ApiError(
          400,
          "InvalidOperation.InvalidEniState",
          `${eni.id} still has ${members.length} member ENIs, such as ${members[0]?.id}: detach them first.`,
        );
      eni.status = "Detaching";
      schedule(delays.detachMs, () => {
        if (eni.status !== "Detaching" || faults.stuckDetach.delete(eni.id)) return;
        events.detached?.(eni, eni.instanceId ?? "");
        release(eni);
      });
    },

    deleteEni(eniId: string | undefined): void {
      const eni = eniOf(eniId);
      if (eni.status !== "Available" && eni.status !== "Deleting") throw state(eni);
      eni.status = "Deleting";
      schedule(delays.deleteMs, () => {
        if (!faults.stuckDelete.delete(eni.id)) enis.delete(eni.id);
      });
    },

    assign(eniId: string | undefined, count: number, ips: readonly string[], token: string | undefined): string[] {
      const eni = eniOf(eniId);
      return once("AssignPrivateIpAddresses", token, JSON.stringify([eniId, count, ips]), () => {
        if (busy(eni)) throw state(eni);
        const limit = eni.instanceId ? typeOf(instanceOf(eni.instanceId)).ipv4PerEni : 50;
        const wanted = count + ips.length;
        if (eni.ips.size + wanted > limit)
          throw new ApiError(
            403,
            "InvalidOperation.Ipv4CountExceeded",
            `${eni.id} would have more than ${limit} addresses.`,
          );
        const vswitch = vswitchOf(eni.vswitchId);
        const partial = faults.partialAssign > 0 && count > 1;
        if (partial) faults.partialAssign -= 1;
        const added = ips.length > 0 ? explicitIps(vswitch, ips, 4) : takeIps(vswitch, partial ? count - 1 : count);
        for (const ip of added) eni.ips.add(ip);
        events.addresses?.(eni);
        return added;
      });
    },

    unassign(eniId: string | undefined, ips: readonly string[]): void {
      const eni = eniOf(eniId);
      if (busy(eni)) throw state(eni);
      for (const ip of ips) {
        if (!eni.ips.has(ip) || ip === eni.primaryIp)
          throw new ApiError(403, "InvalidIp.IpUnassigned", `The specified IP ${ip} is not assigned to ${eni.id}.`);
      }
      for (const ip of ips) eni.ips.delete(ip);
      events.addresses?.(eni);
    },

    assign6(eniId: string | undefined, count: number, ips: readonly string[], token: string | undefined): string[] {
      const eni = eniOf(eniId);
      return once("AssignIpv6Addresses", token, JSON.stringify([eniId, count, ips]), () => {
        if (busy(eni)) throw state(eni);
        const limit = eni.instanceId ? typeOf(instanceOf(eni.instanceId)).ipv6PerEni : 10;
        if (eni.ips6.size + count + ips.length > limit)
          throw new ApiError(
            403,
            "InvalidOperation.Ipv6CountExceeded",
            `${eni.id} would have more than ${limit} IPv6 addresses.`,
          );
        const vswitch = vswitchOf(eni.vswitchId);
        const added = ips.length > 0 ? explicitIps(vswitch, ips, 6) : takeIps6(vswitch, count);
        for (const ip of added) eni.ips6.add(ip);
        events.addresses?.(eni);
        return added;
      });
    },

    unassign6(eniId: string | undefined, ips: readonly string[]): void {
      const eni = eniOf(eniId);
      if (busy(eni)) throw state(eni);
      for (const ip of ips)
        if (!eni.ips6.has(ip)) throw new ApiError(403, "InvalidIp.IpUnassigned", `${ip} is not assigned to ${eni.id}.`);
      for (const ip of ips) eni.ips6.delete(ip);
      events.addresses?.(eni);
    },

    createRoute(
      tableId: string | undefined,
      destination: string | undefined,
      nextHopId: string | undefined,
      token: string | undefined,
    ): RouteEntryRecord {
      if (tableId !== routeTableId) throw new ApiError(404, "InvalidRouteTableId.NotFound", `route table ${tableId}`);
      return once("CreateRouteEntry", token, JSON.stringify([destination, nextHopId]), () => {
        const cidr = tryParseCidr(destination ?? "");
        if (cidr === undefined) throw new ApiError(400, "InvalidParameter", `DestinationCidrBlock ${destination}`);
        if (routeBusy) throw new ApiError(409, "TaskConflict", "Another route entry is being changed.");
        instanceOf(nextHopId);
        const same = [...routes.values()].find((r) => r.destination === formatCidr(cidr));
        if (same) throw new ApiError(400, "RouterEntryConflict.Duplicated", `A route to ${destination} exists.`);
        if (
          [...vswitches.values()].some(
            (v) =>
              v.cidr !== "" &&
              cidrsOverlap(parseCidr(v.cidr), cidr) &&
              cidrContains(parseCidr(v.cidr), networkOf(cidr)),
          )
        ) {
          throw new ApiError(400, "InvalidCIDRBlock.Duplicate", `${destination} lies in a vSwitch.`);
        }
        const entry: RouteEntryRecord = {
          id: nextId("rte"),
          destination: formatCidr(cidr),
          nextHopId: nextHopId ?? "",
          status: "Creating",
        };
        routes.set(entry.id, entry);
        routeBusy = true;
        schedule(delays.routeMs, () => {
          entry.status = "Available";
          routeBusy = false;
          events.route?.(entry, true);
        });
        return entry;
      });
    },

    deleteRoute(id: string | undefined): void {
      const entry = need(routes, id, 404, "InvalidRouteEntryId.NotFound", "RouteEntryId");
      if (entry.status !== "Available")
        throw new ApiError(400, "IncorrectRouteEntryStatus", `the entry is ${entry.status}`);
      if (routeBusy) throw new ApiError(409, "TaskConflict", "Another route entry is being changed.");
      entry.status = "Deleting";
      routeBusy = true;
      schedule(delays.routeMs, () => {
        routeBusy = false;
        routes.delete(entry.id);
        events.route?.(entry, false);
      });
    },

    /** What must hold at any time; empty when it does. */
    violations(): string[] {
      const owners = new Map<string, string>();
      const out: string[] = [];
      for (const eni of enis.values()) {
        for (const ip of [...eni.ips, ...eni.ips6]) {
          const other = owners.get(ip);
          if (other !== undefined) out.push(`${ip} is on ${other} and on ${eni.id}`);
          owners.set(ip, eni.id);
        }
        if (eni.instanceId !== undefined && !instances.has(eni.instanceId))
          out.push(`${eni.id} is attached to ${eni.instanceId}, which is gone`);
        if (eni.trunk !== undefined) {
          const { eniId, vlanId } = eni.trunk;
          if (enis.get(eniId)?.instanceId !== eni.instanceId) out.push(`${eni.id} is not where its trunk ${eniId} is`);
          const key = `VLAN ${vlanId} of ${eniId}`;
          if (owners.has(key)) out.push(`${key} is ${owners.get(key)}'s and ${eni.id}'s`);
          owners.set(key, eni.id);
        }
      }
      return out;
    },
  };
  return model;
}

/** The ENI that owns an address. */
export function ownerOf(model: Model, address: string): EniRecord | undefined {
  const text = formatIp(parseIp(address));
  return [...model.enis.values()].find((e) => e.ips.has(text) || e.ips6.has(text));
}
