/** What the agent needs of the cloud, and no more. Every call may throw {@link CloudError}. */
import type { CloudErrorClass } from "./classify.ts";

export interface CloudEni {
  readonly id: string;
  readonly mac: string;
  readonly status: "Available" | "Attaching" | "InUse" | "Detaching" | "Deleting" | string;
  /** `Primary`, `Secondary`, `Trunk` or `Member`. */
  readonly type: string;
  readonly vswitchId: string;
  readonly instanceId: string | undefined;
  readonly primary4: string;
  /** All IPv4 addresses, the primary one included. */
  readonly ips4: readonly string[];
  readonly ips6: readonly string[];
  /** IPv4 /28 and IPv6 /80. */
  readonly prefixes: readonly string[];
  readonly securityGroups: readonly string[];
  readonly tags: Readonly<Record<string, string>>;
  readonly name: string;
  readonly description: string;
  /** Empty where the answer does not say. */
  readonly zone: string;
  /** UTC, ISO 8601, as answered; empty where the answer does not say. */
  readonly createdAt: string;
  /** It goes with its instance. */
  readonly deleteOnRelease: boolean;
  /** Belongs to another service of the cloud. */
  readonly serviceManaged: boolean;
  /** Of a member ENI: its trunk ENI and its VLAN id (the API calls that a device index). */
  readonly trunkEniId: string | undefined;
  readonly vlanId: number | undefined;
}

export interface CloudVSwitch {
  readonly id: string;
  readonly zone: string;
  readonly cidr4: string;
  readonly cidr6: string | undefined;
  /** A snapshot: under contention the error of an assignment is the truth. */
  readonly available: number;
  readonly routeTableId: string | undefined;
}

export interface InstanceLimits {
  /** Primary ENI included. */
  readonly enis: number;
  /** Member ENIs of a trunk included. */
  readonly enisTotal: number;
  /** Per ENI, its primary address included. */
  readonly ipv4PerEni: number;
  readonly ipv6PerEni: number;
  readonly trunkSupported: boolean;
}

export interface CloudRoute {
  readonly id: string;
  readonly destination: string;
  readonly status: string;
  readonly nextHopIds: readonly string[];
}

export interface CloudSecurityGroup {
  readonly id: string;
  readonly vpcId: string;
  /** `normal` or `enterprise`. */
  readonly type: string;
}

export interface CreateEniRequest {
  /** Absent: an ordinary one, which may become a member of a trunk. */
  readonly type?: "Trunk";
  readonly vswitchId: string;
  readonly securityGroups: readonly string[];
  /** Secondary addresses: the primary one comes besides. */
  readonly count4: number;
  readonly count6: number;
  readonly tags: Readonly<Record<string, string>>;
  readonly name: string;
  /** Written down before the call, so that a repetition after a crash finds what the first one made. */
  readonly clientToken: string;
}

/** What is not given stays. */
export interface EniChange {
  /** Replaces the whole set. */
  readonly securityGroups?: readonly string[];
  readonly name?: string;
  readonly description?: string;
  readonly deleteOnRelease?: boolean;
  readonly sourceDestCheck?: boolean;
}

export interface CloudApi {
  describeInstanceEnis(instanceId: string): Promise<CloudEni[]>;
  /** One call, at most 100 of them. Those that do not exist are not in the answer. */
  describeEnis(ids: readonly string[]): Promise<CloudEni[]>;
  describeEni(id: string): Promise<CloudEni | undefined>;
  findEnisByTags(tags: Readonly<Record<string, string>>): Promise<CloudEni[]>;
  createEni(request: CreateEniRequest): Promise<CloudEni>;
  /** @param trunkEniId Of the instance's trunk ENI: the ENI becomes a member of it, told by a VLAN id. */
  attachEni(eniId: string, instanceId: string, trunkEniId?: string): Promise<void>;
  detachEni(eniId: string, instanceId: string, trunkEniId?: string): Promise<void>;
  deleteEni(eniId: string): Promise<void>;
  modifyEni(eniId: string, change: EniChange): Promise<void>;
  tagEnis(eniIds: readonly string[], tags: Readonly<Record<string, string>>): Promise<void>;
  untagEnis(eniIds: readonly string[], keys: readonly string[]): Promise<void>;
  /** May bring fewer than asked. */
  assign(eniId: string, count: number, clientToken: string): Promise<string[]>;
  unassign(eniId: string, addresses: readonly string[]): Promise<void>;
  assign6(eniId: string, count: number, clientToken: string): Promise<string[]>;
  unassign6(eniId: string, addresses: readonly string[]): Promise<void>;
  describeVSwitches(ids: readonly string[]): Promise<CloudVSwitch[]>;
  instanceLimits(instanceType: string): Promise<InstanceLimits>;
  describeSecurityGroups(ids: readonly string[]): Promise<CloudSecurityGroup[]>;
  listRoutes(routeTableId: string): Promise<CloudRoute[]>;
  createRoute(routeTableId: string, destination: string, instanceId: string, clientToken: string): Promise<void>;
  deleteRoute(routeTableId: string, destination: string, instanceId: string): Promise<void>;
}

/** A refused or broken call. Decide by `class`. */
export class CloudError extends Error {
  readonly action: string;
  readonly code: string;
  readonly class: CloudErrorClass;
  readonly requestId: string;
  readonly retryAfterMs: number | undefined;
  /** The request may have been carried out although no answer came. */
  readonly outcomeUnknown: boolean;

  constructor(
    fields: {
      action: string;
      code: string;
      class: CloudErrorClass;
      requestId: string;
      message: string;
      retryAfterMs: number | undefined;
      outcomeUnknown?: boolean;
    },
    cause?: unknown,
  ) {
    super(
      `${fields.action}: ${fields.code}: ${fields.message}${fields.requestId ? ` (request ${fields.requestId})` : ""}`,
      { cause },
    );
    this.name = "CloudError";
    this.action = fields.action;
    this.code = fields.code;
    this.class = fields.class;
    this.requestId = fields.requestId;
    this.retryAfterMs = fields.retryAfterMs;
    this.outcomeUnknown = fields.outcomeUnknown ?? false;
  }
}
