/** {@link CloudApi} over the official SDKs. */
import { setTimeout as pause } from "node:timers/promises";
import { type EniFields, toEni, toRoute, toVSwitch } from "./answers.ts";
import { type CloudApi, type CloudEni, CloudError, type CloudRoute, type CloudVSwitch } from "./cloud-api.ts";
import type { CredentialSource, Credentials } from "./credentials.ts";
import type { RateLimiter } from "./rate-limit.ts";
import { openSdk, type Sdk, type SdkOptions } from "./sdk.ts";
import { toCloudError } from "./sdk-error.ts";

export interface AlibabaOptions extends Pick<SdkOptions, "region" | "ecsEndpoint" | "vpcEndpoint" | "network"> {
  readonly credentials: CredentialSource;
  /** Called after every call, e.g. for metrics. `code` is `ok` or the error's. */
  readonly observe: (action: string, code: string, ms: number) => void;
  /** Our own brake. Absent: none. */
  readonly limiter?: RateLimiter | undefined;
  /** A call has to wait for the brake. */
  readonly onLimited?: ((action: string, waitMs: number) => void) | undefined;
  /** Absent: 20 s for each call, from the first byte sent to the last one read. */
  readonly timeoutMs?: number | undefined;
}

const TIMEOUT_MS = 20_000;
const ENI_PAGE = 500;
const ROUTE_PAGE = 100;
const IDS_PER_DESCRIBE = 100;
/** Refusals that another key may mend; a missing right is not one of them. */
const STALE_KEY = /^(InvalidSecurityToken|InvalidAccessKeyId|SignatureDoesNotMatch)/;

type Body<T> = Promise<{ body?: T | undefined }>;

export function createAlibabaCloud(options: AlibabaOptions): CloudApi {
  const timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
  const regionId = options.region;
  let sdk: Sdk | undefined;

  /** One request. Its outcome is counted whatever it is. */
  async function attempt<T>(action: string, keys: Credentials, work: (sdk: Sdk) => Body<T>): Promise<T> {
    const started = performance.now();
    let code = "ok";
    try {
      sdk ??= openSdk({ ...options, connectTimeoutMs: timeoutMs, readTimeoutMs: timeoutMs });
      const { body } = await within(timeoutMs, work(sdk));
      if (body === undefined) throw Object.assign(new Error("the answer has no body"), { code: "EmptyBody" });
      return body;
    } catch (error) {
      const failure = toCloudError(action, error, keys);
      code = failure.code;
      throw failure;
    } finally {
      options.observe(action, code, performance.now() - started);
    }
  }

  async function call<T>(action: string, work: (sdk: Sdk) => Body<T>): Promise<T> {
    const waitMs = options.limiter?.take(action, performance.now()) ?? 0;
    if (waitMs > 0) {
      options.onLimited?.(action, waitMs);
      await pause(waitMs);
    }
    const keys = await credentialsFor(action);
    try {
      return await attempt(action, keys, work);
    } catch (error) {
      const stale = error instanceof CloudError && STALE_KEY.test(error.code);
      if (!stale || !(await options.credentials.replace?.(keys))) throw error;
      return await attempt(action, await credentialsFor(action), work);
    }
  }

  async function credentialsFor(action: string): Promise<Credentials> {
    try {
      return await options.credentials();
    } catch (error) {
      const message = (error as Error).message;
      const fields = {
        action,
        code: "NoCredentials",
        class: "auth",
        requestId: "",
        message,
        retryAfterMs: undefined,
      } as const;
      throw new CloudError(fields, error);
    }
  }

  async function describe(filter: Readonly<Record<string, unknown>>): Promise<CloudEni[]> {
    const out: CloudEni[] = [];
    let nextToken: string | undefined;
    do {
      const token = nextToken;
      const body = await call("DescribeNetworkInterfaces", ({ ecs, ecsModels }) =>
        // Absent, MaxResults means 10.
        ecs.describeNetworkInterfaces(
          new ecsModels.DescribeNetworkInterfacesRequest({
            regionId,
            maxResults: ENI_PAGE,
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

  const tagList = (tags: Readonly<Record<string, string>>) =>
    Object.entries(tags).map(([key, value]) => ({ key, value }));

  return {
    describeInstanceEnis: (instanceId) => describe({ instanceId }),
    async describeEnis(ids) {
      if (ids.length > IDS_PER_DESCRIBE)
        throw new RangeError(`describeEnis takes at most ${IDS_PER_DESCRIBE} ids, got ${ids.length}`);
      return ids.length === 0 ? [] : describe({ networkInterfaceId: [...ids] });
    },
    describeEni: async (id) => (await describe({ networkInterfaceId: [id] }))[0],
    findEnisByTags: (tags) => describe({ tag: tagList(tags) }),

    async createEni(r) {
      const body = await call("CreateNetworkInterface", ({ ecs, ecsModels }) =>
        ecs.createNetworkInterface(
          new ecsModels.CreateNetworkInterfaceRequest({
            regionId,
            vSwitchId: r.vswitchId,
            securityGroupIds: [...r.securityGroups],
            ...(r.type ? { instanceType: r.type } : {}),
            ...(r.count4 > 0 ? { secondaryPrivateIpAddressCount: r.count4 } : {}),
            ...(r.count6 > 0 ? { ipv6AddressCount: r.count6 } : {}),
            tag: tagList(r.tags),
            networkInterfaceName: r.name,
            description: "terway pool",
            // The node's ENIs go with the node.
            deleteOnRelease: true,
            clientToken: r.clientToken,
          }),
        ),
      );
      if (!body.networkInterfaceId) {
        // The same token would bring the same answer (alicloud-api section 5).
        throw new CloudError({
          action: "CreateNetworkInterface",
          code: "EmptyNetworkInterfaceId",
          class: "idempotent-failed",
          requestId: body.requestId ?? "",
          message: "the answer names no ENI",
          retryAfterMs: undefined,
        });
      }
      // The answer does not repeat it.
      return { ...toEni(body as EniFields), deleteOnRelease: true };
    },
    async attachEni(networkInterfaceId, instanceId, trunkNetworkInstanceId) {
      const request = { regionId, networkInterfaceId, instanceId, trunkNetworkInstanceId };
      await call("AttachNetworkInterface", ({ ecs, ecsModels }) =>
        ecs.attachNetworkInterface(new ecsModels.AttachNetworkInterfaceRequest(request)),
      );
    },
    async detachEni(networkInterfaceId, instanceId, trunkNetworkInstanceId) {
      const request = { regionId, networkInterfaceId, instanceId, trunkNetworkInstanceId };
      await call("DetachNetworkInterface", ({ ecs, ecsModels }) =>
        ecs.detachNetworkInterface(new ecsModels.DetachNetworkInterfaceRequest(request)),
      );
    },
    async deleteEni(networkInterfaceId) {
      await call("DeleteNetworkInterface", ({ ecs, ecsModels }) =>
        ecs.deleteNetworkInterface(new ecsModels.DeleteNetworkInterfaceRequest({ regionId, networkInterfaceId })),
      );
    },
    async modifyEni(networkInterfaceId, change) {
      await call("ModifyNetworkInterfaceAttribute", ({ ecs, ecsModels }) =>
        ecs.modifyNetworkInterfaceAttribute(
          new ecsModels.ModifyNetworkInterfaceAttributeRequest({
            regionId,
            networkInterfaceId,
            ...(change.securityGroups && { securityGroupId: [...change.securityGroups] }),
            networkInterfaceName: change.name,
            description: change.description,
            deleteOnRelease: change.deleteOnRelease,
            sourceDestCheck: change.sourceDestCheck,
          }),
        ),
      );
    },
    async tagEnis(ids, tags) {
      await call("TagResources", ({ ecs, ecsModels }) =>
        ecs.tagResources(
          new ecsModels.TagResourcesRequest({
            regionId,
            resourceType: "eni",
            resourceId: [...ids],
            tag: tagList(tags),
          }),
        ),
      );
    },
    async untagEnis(ids, keys) {
      await call("UntagResources", ({ ecs, ecsModels }) =>
        ecs.untagResources(
          new ecsModels.UntagResourcesRequest({
            regionId,
            resourceType: "eni",
            resourceId: [...ids],
            tagKey: [...keys],
          }),
        ),
      );
    },

    async assign(networkInterfaceId, count, clientToken) {
      const body = await call("AssignPrivateIpAddresses", ({ ecs, ecsModels }) =>
        ecs.assignPrivateIpAddresses(
          new ecsModels.AssignPrivateIpAddressesRequest({
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
      await call("UnassignPrivateIpAddresses", ({ ecs, ecsModels }) =>
        ecs.unassignPrivateIpAddresses(
          new ecsModels.UnassignPrivateIpAddressesRequest({
            regionId,
            networkInterfaceId,
            privateIpAddress: [...addresses],
          }),
        ),
      );
    },
    async assign6(networkInterfaceId, count, clientToken) {
      const body = await call("AssignIpv6Addresses", ({ ecs, ecsModels }) =>
        ecs.assignIpv6Addresses(
          new ecsModels.AssignIpv6AddressesRequest({
            regionId,
            networkInterfaceId,
            ipv6AddressCount: count,
            clientToken,
          }),
        ),
      );
      return body.ipv6Sets?.ipv6Address ?? [];
    },
    async unassign6(networkInterfaceId, addresses) {
      await call("UnassignIpv6Addresses", ({ ecs, ecsModels }) =>
        ecs.unassignIpv6Addresses(
          new ecsModels.UnassignIpv6AddressesRequest({ regionId, networkInterfaceId, ipv6Address: [...addresses] }),
        ),
      );
    },

    async describeVSwitches(ids) {
      const out: CloudVSwitch[] = [];
      // The filter takes one id.
      for (const vSwitchId of ids) {
        const body = await call("DescribeVSwitches", ({ vpc, vpcModels }) =>
          vpc.describeVSwitches(new vpcModels.DescribeVSwitchesRequest({ regionId, vSwitchId })),
        );
        out.push(...(body.vSwitches?.vSwitch ?? []).map(toVSwitch));
      }
      return out;
    },
    async instanceLimits(instanceType) {
      const body = await call("DescribeInstanceTypes", ({ ecs, ecsModels }) =>
        ecs.describeInstanceTypes(new ecsModels.DescribeInstanceTypesRequest({ instanceTypes: [instanceType] })),
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
      // Absent, or -1, on old types.
      const count = (value: number | undefined) => Math.max(0, value ?? 0);
      return {
        enis: count(type.eniQuantity),
        enisTotal: Math.max(count(type.eniQuantity), count(type.eniTotalQuantity)),
        ipv4PerEni: count(type.eniPrivateIpAddressQuantity),
        ipv6PerEni: count(type.eniIpv6AddressQuantity),
        trunkSupported: type.eniTrunkSupported ?? false,
      };
    },
    async describeSecurityGroups(ids) {
      const body = await call("DescribeSecurityGroups", ({ ecs, ecsModels }) =>
        ecs.describeSecurityGroups(
          new ecsModels.DescribeSecurityGroupsRequest({ regionId, securityGroupIds: JSON.stringify(ids) }),
        ),
      );
      return (body.securityGroups?.securityGroup ?? [])
        .map((g) => ({ id: g.securityGroupId ?? "", vpcId: g.vpcId ?? "", type: g.securityGroupType ?? "" }))
        .filter((g) => ids.includes(g.id));
    },

    async listRoutes(routeTableId) {
      const out: CloudRoute[] = [];
      let nextToken: string | undefined;
      do {
        const token = nextToken;
        const body = await call("DescribeRouteEntryList", ({ vpc, vpcModels }) =>
          vpc.describeRouteEntryList(
            new vpcModels.DescribeRouteEntryListRequest({
              regionId,
              routeTableId,
              routeEntryType: "Custom",
              maxResult: ROUTE_PAGE,
              ...(token ? { nextToken: token } : {}),
            }),
          ),
        );
        out.push(...(body.routeEntrys?.routeEntry ?? []).map(toRoute));
        nextToken = body.nextToken || undefined;
      } while (nextToken !== undefined);
      return out;
    },
    async createRoute(routeTableId, destinationCidrBlock, nextHopId, clientToken) {
      await call("CreateRouteEntry", ({ vpc, vpcModels }) =>
        vpc.createRouteEntry(
          new vpcModels.CreateRouteEntryRequest({
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
    async deleteRoute(routeTableId, destinationCidrBlock, nextHopId) {
      await call("DeleteRouteEntry", ({ vpc, vpcModels }) =>
        vpc.deleteRouteEntry(
          new vpcModels.DeleteRouteEntryRequest({ regionId, routeTableId, destinationCidrBlock, nextHopId }),
        ),
      );
    },
  };
}

/** The SDK's own timers run for connecting and for reading apart, and a body that trickles in has none. */
async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  const timer = new AbortController();
  const late = pause(ms, undefined, { signal: timer.signal, ref: false }).then(() => {
    throw Object.assign(new Error(`no answer within ${ms} ms`), { code: "Timeout" });
  });
  late.catch(() => undefined);
  work.catch(() => undefined); // when it fails after it was given up
  try {
    return await Promise.race([work, late]);
  } finally {
    timer.abort();
  }
}
