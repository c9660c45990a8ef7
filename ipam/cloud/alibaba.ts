/** {@link CloudApi} over the official SDKs. They are loaded at first use: together they cost some 60 MB. */

import { createRequire } from "node:module";
import { classify } from "./classify.ts";
import { type CloudApi, type CloudEni, CloudError, type CloudRoute, type CloudVSwitch } from "./cloud-api.ts";
import type { Credentials } from "./credentials.ts";

export interface AlibabaOptions {
  readonly region: string;
  /** `host[:port]`, or with a scheme; absent: the region's own. */
  readonly ecsEndpoint: string | undefined;
  readonly vpcEndpoint: string | undefined;
  readonly credentials: () => Promise<Credentials>;
  /** Called after every call, e.g. for metrics. */
  readonly observe: (action: string, code: string, ms: number) => void;
}

const TIMEOUT_MS = 20_000;
const PAGE = 500;
const require = createRequire(import.meta.url);

type EcsModule = typeof import("@alicloud/ecs20140526");
type VpcModule = typeof import("@alicloud/vpc20160428");
type EcsClient = InstanceType<EcsModule["default"]>;
type VpcClient = InstanceType<VpcModule["default"]>;

interface SdkError {
  readonly code?: unknown;
  readonly message?: string;
  readonly statusCode?: number;
  readonly retryAfter?: number;
  readonly data?: { readonly RequestId?: string };
}

function toCloudError(action: string, error: unknown): CloudError {
  const e = error as SdkError;
  const code = typeof e.code === "string" ? e.code : "";
  // No status: the connection broke, and whether it was done is not known.
  const answered = typeof e.statusCode === "number";
  const known = classify(code);
  const kind = known !== "unknown" ? known : answered && (e.statusCode ?? 0) < 500 ? "unknown" : "retry";
  const message = (e.message ?? String(error)).split("\n")[0] ?? "";
  return new CloudError(
    {
      action,
      code: code || "ConnectionBroken",
      class: kind,
      requestId: e.data?.RequestId ?? "",
      message,
      retryAfterMs: e.retryAfter,
    },
    error,
  );
}

export function createAlibabaCloud(options: AlibabaOptions): CloudApi {
  let clients:
    | {
        readonly key: string;
        readonly ecs: EcsClient;
        readonly vpc: VpcClient;
        readonly e: EcsModule;
        readonly v: VpcModule;
      }
    | undefined;

  async function connect() {
    const c = await options.credentials();
    const key = `${c.accessKeyId}/${c.securityToken ?? ""}`;
    if (clients?.key === key) return clients;
    const e = require("@alicloud/ecs20140526") as EcsModule;
    const v = require("@alicloud/vpc20160428") as VpcModule;
    const { Config } = require("@alicloud/openapi-client") as typeof import("@alicloud/openapi-client");
    const config = (endpoint: string | undefined) => {
      const [, scheme, host] = /^(?:(https?):\/\/)?(.*)$/.exec(endpoint ?? "") ?? [];
      return new Config({
        accessKeyId: c.accessKeyId,
        accessKeySecret: c.accessKeySecret,
        ...(c.securityToken === undefined ? {} : { securityToken: c.securityToken, type: "sts" }),
        regionId: options.region,
        ...(host ? { endpoint: host, protocol: scheme ?? "https" } : {}),
        userAgent: "Terway",
        connectTimeout: TIMEOUT_MS,
        readTimeout: TIMEOUT_MS,
      }) as never;
    };
    clients = {
      key,
      e,
      v,
      ecs: new e.default(config(options.ecsEndpoint)),
      vpc: new v.default(config(options.vpcEndpoint)),
    };
    return clients;
  }

  async function call<T>(
    action: string,
    work: (c: Awaited<ReturnType<typeof connect>>) => Promise<{ body?: T | undefined }>,
  ): Promise<T> {
    const started = performance.now();
    let code = "ok";
    try {
      const { body } = await work(await connect());
      if (body === undefined) throw Object.assign(new Error("the answer has no body"), { code: "EmptyBody" });
      return body;
    } catch (error) {
      const failure = toCloudError(action, error);
      code = failure.code;
      throw failure;
    } finally {
      options.observe(action, code, performance.now() - started);
    }
  }

  const regionId = options.region;

  /** The fields that Create and Describe answers share. */
  interface EniFields {
    networkInterfaceId?: string | undefined;
    macAddress?: string | undefined;
    status?: string | undefined;
    type?: string | undefined;
    vSwitchId?: string | undefined;
    instanceId?: string | undefined;
    privateIpAddress?: string | undefined;
    privateIpSets?: { privateIpSet?: { privateIpAddress?: string; primary?: boolean }[] } | undefined;
    ipv6Sets?: { ipv6Set?: { ipv6Address?: string }[] } | undefined;
    securityGroupIds?: { securityGroupId?: string[] } | undefined;
    attachment?: { instanceId?: string } | undefined;
    tags?: { tag?: { tagKey?: string; tagValue?: string }[] } | undefined;
  }

  function toEni(e: EniFields): CloudEni {
    const instanceId = e.instanceId || e.attachment?.instanceId;
    return {
      id: e.networkInterfaceId ?? "",
      mac: (e.macAddress ?? "").toLowerCase(),
      status: e.status ?? "",
      type: e.type || "Secondary",
      vswitchId: e.vSwitchId ?? "",
      instanceId: instanceId === "" ? undefined : instanceId,
      primary4: e.privateIpAddress ?? "",
      ips4: (e.privateIpSets?.privateIpSet ?? []).flatMap((s) => s.privateIpAddress ?? []),
      ips6: (e.ipv6Sets?.ipv6Set ?? []).flatMap((s) => s.ipv6Address ?? []),
      securityGroups: e.securityGroupIds?.securityGroupId ?? [],
      tags: Object.fromEntries((e.tags?.tag ?? []).map((t) => [t.tagKey ?? "", t.tagValue ?? ""])),
    };
  }

  async function describe(filter: Readonly<Record<string, unknown>>): Promise<CloudEni[]> {
    const out: CloudEni[] = [];
    let nextToken: string | undefined;
    do {
      const token = nextToken;
      const body = await call("DescribeNetworkInterfaces", ({ ecs, e }) =>
        // Absent, MaxResults means 10.
        ecs.describeNetworkInterfaces(
          new e.DescribeNetworkInterfacesRequest({
            regionId,
            maxResults: PAGE,
            ...filter,
            ...(token ? { nextToken: token } : {}),
          }),
        ),
      );
      out.push(...(body.networkInterfaceSets?.networkInterfaceSet ?? []).map((s) => toEni(s as EniFields)));
      nextToken = body.nextToken || undefined;
    } while (nextToken !== undefined);
    return out;
  }

  const sdkTags = (tags: Readonly<Record<string, string>>) =>
    Object.entries(tags).map(([key, value]) => ({ key, value }));

  return {
    describeInstanceEnis: (instanceId) => describe({ instanceId }),
    describeEni: async (id) => (await describe({ networkInterfaceId: [id] }))[0],
    findEnisByTags: (tags) => describe({ tag: sdkTags(tags) }),
    async createEni(r) {
      const body = await call("CreateNetworkInterface", ({ ecs, e }) =>
        ecs.createNetworkInterface(
          new e.CreateNetworkInterfaceRequest({
            regionId,
            vSwitchId: r.vswitchId,
            securityGroupIds: [...r.securityGroups],
            ...(r.count4 > 0 ? { secondaryPrivateIpAddressCount: r.count4 } : {}),
            ...(r.count6 > 0 ? { ipv6AddressCount: r.count6 } : {}),
            tag: sdkTags(r.tags) as never,
            networkInterfaceName: r.name,
            description: "terway pool",
            // The node's ENIs go with the node.
            deleteOnRelease: true,
            clientToken: r.clientToken,
          }),
        ),
      );
      if (!body.networkInterfaceId) {
        throw new CloudError({
          action: "CreateNetworkInterface",
          code: "EmptyNetworkInterfaceId",
          class: "idempotent-failed",
          requestId: body.requestId ?? "",
          message: "the answer names no ENI",
          retryAfterMs: undefined,
        });
      }
      return toEni(body as EniFields);
    },
    async attachEni(networkInterfaceId, instanceId) {
      await call("AttachNetworkInterface", ({ ecs, e }) =>
        ecs.attachNetworkInterface(new e.AttachNetworkInterfaceRequest({ regionId, networkInterfaceId, instanceId })),
      );
    },
    async detachEni(networkInterfaceId, instanceId) {
      await call("DetachNetworkInterface", ({ ecs, e }) =>
        ecs.detachNetworkInterface(new e.DetachNetworkInterfaceRequest({ regionId, networkInterfaceId, instanceId })),
      );
    },
    async deleteEni(networkInterfaceId) {
      await call("DeleteNetworkInterface", ({ ecs, e }) =>
        ecs.deleteNetworkInterface(new e.DeleteNetworkInterfaceRequest({ regionId, networkInterfaceId })),
      );
    },
    async assign(networkInterfaceId, count, clientToken) {
      const body = await call("AssignPrivateIpAddresses", ({ ecs, e }) =>
        ecs.assignPrivateIpAddresses(
          new e.AssignPrivateIpAddressesRequest({
            regionId,
            networkInterfaceId,
            secondaryPrivateIpAddressCount: count,
            clientToken,
          }),
        ),
      );
      return body.assignedPrivateIpAddressesSet?.privateIpSet?.privateIpAddress ?? [];
    },
    async unassign(networkInterfaceId, addresses) {
      await call("UnassignPrivateIpAddresses", ({ ecs, e }) =>
        ecs.unassignPrivateIpAddresses(
          new e.UnassignPrivateIpAddressesRequest({ regionId, networkInterfaceId, privateIpAddress: [...addresses] }),
        ),
      );
    },
    async assign6(networkInterfaceId, count, clientToken) {
      const body = await call("AssignIpv6Addresses", ({ ecs, e }) =>
        ecs.assignIpv6Addresses(
          new e.AssignIpv6AddressesRequest({ regionId, networkInterfaceId, ipv6AddressCount: count, clientToken }),
        ),
      );
      return body.ipv6Sets?.ipv6Address ?? [];
    },
    async unassign6(networkInterfaceId, addresses) {
      await call("UnassignIpv6Addresses", ({ ecs, e }) =>
        ecs.unassignIpv6Addresses(
          new e.UnassignIpv6AddressesRequest({ regionId, networkInterfaceId, ipv6Address: [...addresses] }),
        ),
      );
    },
    async describeVSwitches(ids) {
      const out: CloudVSwitch[] = [];
      for (const vSwitchId of ids) {
        const body = await call("DescribeVSwitches", ({ vpc, v }) =>
          vpc.describeVSwitches(new v.DescribeVSwitchesRequest({ regionId, vSwitchId })),
        );
        out.push(
          ...(body.vSwitches?.vSwitch ?? []).map((s) => ({
            id: s.vSwitchId ?? "",
            zone: s.zoneId ?? "",
            cidr4: s.cidrBlock ?? "",
            cidr6: s.ipv6CidrBlock || undefined,
            available: s.availableIpAddressCount ?? 0,
            routeTableId: s.routeTable?.routeTableId,
          })),
        );
      }
      return out;
    },
    async instanceLimits(instanceType) {
      const body = await call("DescribeInstanceTypes", ({ ecs, e }) =>
        ecs.describeInstanceTypes(new e.DescribeInstanceTypesRequest({ instanceTypes: [instanceType] })),
      );
      const type = body.instanceTypes?.instanceType?.find((t) => t.instanceTypeId === instanceType);
      if (type === undefined) {
        throw new CloudError({
          action: "DescribeInstanceTypes",
          code: "InvalidInstanceType.NotFound",
          class: "config",
          requestId: body.requestId ?? "",
          message: `type ${instanceType} is not known`,
          retryAfterMs: undefined,
        });
      }
      return {
        enis: type.eniQuantity ?? 0,
        ipv4PerEni: type.eniPrivateIpAddressQuantity ?? 0,
        ipv6PerEni: type.eniIpv6AddressQuantity ?? 0,
      };
    },
    async listRoutes(routeTableId) {
      const out: CloudRoute[] = [];
      let nextToken: string | undefined;
      do {
        const token = nextToken;
        const body = await call("DescribeRouteEntryList", ({ vpc, v }) =>
          vpc.describeRouteEntryList(
            new v.DescribeRouteEntryListRequest({
              regionId,
              routeTableId,
              routeEntryType: "Custom",
              maxResult: 100,
              ...(token ? { nextToken: token } : {}),
            }),
          ),
        );
        out.push(
          ...(body.routeEntrys?.routeEntry ?? []).map((r) => ({
            id: r.routeEntryId ?? "",
            destination: r.destinationCidrBlock ?? "",
            status: r.status ?? "",
            nextHopIds: (r.nextHops?.nextHop ?? []).flatMap((h) => h.nextHopId ?? []),
          })),
        );
        nextToken = body.nextToken || undefined;
      } while (nextToken !== undefined);
      return out;
    },
    async createRoute(routeTableId, destinationCidrBlock, nextHopId, clientToken) {
      await call("CreateRouteEntry", ({ vpc, v }) =>
        vpc.createRouteEntry(
          new v.CreateRouteEntryRequest({
            regionId,
            routeTableId,
            destinationCidrBlock,
            nextHopType: "Instance",
            nextHopId,
            clientToken,
          }),
        ),
      );
    },
  };
}
