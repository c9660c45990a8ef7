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
import { INSTANCE_TYPES, type InstanceType } from "./instance-types.ts";

/** An error as the API answers it. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export type EniStatus = "Available" | "Attaching" | "InUse" | "Detaching" | "Deleting";

export interface EniRecord {
  readonly id: string;
  readonly mac: string;
  readonly type: "Primary" | "Secondary" | "Trunk";
  status: EniStatus;
  readonly vswitchId: string;
  securityGroups: string[];
  readonly primaryIp: string;
  readonly ips: Set<string>;
  readonly ips6: Set<string>;
  instanceId: string | undefined;
  deleteOnRelease: boolean;
  name: string;
  description: string;
  readonly tags: Map<string, string>;
  readonly creationTime: string;
}

export interface VSwitch {
  readonly id: string;
  readonly zone: string;
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

export interface SecurityGroup {
  readonly id: string;
  /** Sources that may reach its members besides the group itself; CIDRs. */
  readonly ingress: readonly string[];
  limit: number | undefined;
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
  route(entry: RouteEntryRecord, present: boolean): void;
}

export interface ModelOptions {
  readonly region: string;
  readonly vpcCidr: string;
  readonly delays: Delays;
  readonly schedule: (ms: number, work: () => void) => void;
  readonly events?: Partial<ModelEvents>;
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
  const faults = { attachFallsBack: 0, stuckDetach: new Set<string>(), partialAssign: 0, emptyEniId: 0 };
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
    const cidr = parseCidr(vswitch.cidr);
    const size = distanceIp(networkOf(cidr), lastOf(cidr)) + 1 - 4;
    return Math.max(0, Math.min(size, vswitch.limit ?? size) - takenIn(vswitch.id).length);
  }

  function gatewayOf(vswitch: VSwitch): string {
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
    let at = cursors.get(`${vswitch.id}/6`) ?? 0x100;
    while (out.length < count) {
      at += 1;
      const ip = addToIp(first, at);
      if (ip) out.push(formatIp(ip));
    }
    cursors.set(`${vswitch.id}/6`, at);
    return out;
  }

  function explicitIps(vswitch: VSwitch, ips: readonly string[]): string[] {
    const cidr = parseCidr(vswitch.cidr);
    const taken = new Set(takenIn(vswitch.id));
    for (const text of ips) {
      const ip = tryParseIp(text);
      if (ip === undefined || !cidrContains(cidr, ip))
        throw new ApiError(403, "InvalidVSwitchId.IpInvalid", `${text} is not in ${vswitch.cidr}.`);
      if (taken.has(text)) throw new ApiError(403, "InvalidIp.IpAssigned", `The specified IP ${text} is assigned.`);
    }
    if (new Set(ips).size !== ips.length) throw new ApiError(403, "InvalidIp.IpRepeated", "Repeated addresses.");
    return [...ips];
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
    for (const id of request.securityGroups) {
      const group = need(securityGroups, id, 404, "InvalidSecurityGroupId.NotFound", "SecurityGroupId");
      const members = [...enis.values()]
        .filter((e) => e.securityGroups.includes(id))
        .reduce((n, e) => n + e.ips.size, 0);
      if (group.limit !== undefined && members + 1 + request.count > group.limit)
        throw new ApiError(403, "SecurityGroupInstanceLimitExceed", `${id} is full.`);
    }
    const wanted = (request.primaryIp === undefined ? 1 : 0) + request.count;
    const taken = takeIps(vswitch, wanted);
    const primaryIp = request.primaryIp ?? taken.shift() ?? "";
    if (request.primaryIp !== undefined) explicitIps(vswitch, [request.primaryIp]);
    const ips = new Set([primaryIp, ...taken, ...explicitIps(vswitch, request.ips)]);
    const ips6 = new Set(request.count6 > 0 ? takeIps6(vswitch, request.count6) : []);
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
      deleteOnRelease: request.deleteOnRelease,
      name: request.name,
      description: request.description,
      tags: new Map(request.tags),
      creationTime: new Date().toISOString(),
    };
    enis.set(eni.id, eni);
    return eni;
  }

  function attachedTo(instanceId: string): EniRecord[] {
    return [...enis.values()].filter((e) => e.instanceId === instanceId);
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
    eniOf,
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
      readonly cidr: string;
      readonly cidr6?: string;
      readonly limit?: number;
    }): VSwitch {
      const vswitch: VSwitch = { cidr6: undefined, limit: undefined, ...v };
      vswitches.set(v.id, vswitch);
      return vswitch;
    },

    addSecurityGroup(id: string, ingress: readonly string[] = ["0.0.0.0/0", "::/0"], limit?: number): void {
      securityGroups.set(id, { id, ingress, limit });
    },

    addInstance(i: {
      readonly name: string;
      readonly type: string;
      readonly vswitchId: string;
      readonly securityGroup: string;
    }): Instance {
      const vswitch = vswitchOf(i.vswitchId);
      const primary = makeEni(
        {
          vswitchId: vswitch.id,
          securityGroups: [i.securityGroup],
          count: 0,
          count6: vswitch.cidr6 ? 1 : 0,
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
      for (const eni of attachedTo(id)) {
        events.detached?.(eni, id);
        eni.instanceId = undefined;
        eni.status = "Available";
        if (eni.deleteOnRelease) enis.delete(eni.id);
      }
      instances.delete(id);
    },

    createEni(request: CreateEni, token: string | undefined): EniRecord {
      return once(
        "CreateNetworkInterface",
        token,
        JSON.stringify([request.vswitchId, request.securityGroups, request.count, request.count6, request.type]),
        () => makeEni(request, request.type),
      );
    },

    attach(eniId: string | undefined, instanceId: string | undefined): void {
      const eni = eniOf(eniId);
      const instance = instanceOf(instanceId);
      if (eni.status === "InUse" && eni.instanceId === instance.id) throw state(eni);
      if (eni.status !== "Available") throw state(eni);
      if (vswitchOf(eni.vswitchId).zone !== instance.zone)
        throw new ApiError(403, "InvalidOperation.AvailabilityZoneMismatch", "The ENI is in another zone.");
      if (attachedTo(instance.id).length >= typeOf(instance).eniQuantity)
        throw new ApiError(403, "EniPerInstanceLimitExceeded", "The instance has its maximum of ENIs.");
      eni.status = "Attaching";
      eni.instanceId = instance.id;
      schedule(delays.attachMs, () => {
        if (eni.status !== "Attaching") return;
        if (faults.attachFallsBack > 0) {
          faults.attachFallsBack -= 1;
          eni.status = "Available";
          eni.instanceId = undefined;
          return;
        }
        eni.status = "InUse";
        events.attached?.(eni, instance);
      });
    },

    detach(eniId: string | undefined, instanceId: string | undefined): void {
      const eni = eniOf(eniId);
      if (eni.type === "Primary")
        throw new ApiError(400, "InvalidOperation.DetachPrimaryEniNotAllowed", "Primary ENIs cannot be detached.");
      if ((eni.status !== "InUse" && eni.status !== "Detaching") || eni.instanceId !== instanceId) throw state(eni);
      eni.status = "Detaching";
      schedule(delays.detachMs, () => {
        if (eni.status !== "Detaching" || faults.stuckDetach.delete(eni.id)) return;
        events.detached?.(eni, eni.instanceId ?? "");
        eni.status = "Available";
        eni.instanceId = undefined;
      });
    },

    deleteEni(eniId: string | undefined): void {
      const eni = eniOf(eniId);
      if (eni.status !== "Available") throw state(eni);
      eni.status = "Deleting";
      schedule(delays.deleteMs, () => void enis.delete(eni.id));
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
        const added = ips.length > 0 ? explicitIps(vswitch, ips) : takeIps(vswitch, partial ? count - 1 : count);
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
        const added = ips.length > 0 ? [...ips] : takeIps6(vswitchOf(eni.vswitchId), count);
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
            (v) => cidrsOverlap(parseCidr(v.cidr), cidr) && cidrContains(parseCidr(v.cidr), networkOf(cidr)),
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
