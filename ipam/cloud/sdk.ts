/** The official SDKs, unmodified. Loaded at the first call, and of their models only those that are used. */
import { createRequire } from "node:module";
import type { CredentialSource } from "./credentials.ts";
import { requireWithLazyModels } from "./lazy-models.ts";

export type EcsModule = typeof import("@alicloud/ecs20140526");
export type VpcModule = typeof import("@alicloud/vpc20160428");

export interface Sdk {
  readonly ecs: InstanceType<EcsModule["default"]>;
  readonly vpc: InstanceType<VpcModule["default"]>;
  readonly ecsModels: EcsModule;
  readonly vpcModels: VpcModule;
}

export interface SdkOptions {
  readonly region: string;
  /** `host[:port]`, or with a scheme (`http://…` in tests); absent: the region's own. */
  readonly ecsEndpoint?: string | undefined;
  readonly vpcEndpoint?: string | undefined;
  /** `vpc` takes the endpoints that are reachable without Internet access. Absent: the public ones. */
  readonly network?: "public" | "vpc" | undefined;
  readonly credentials: CredentialSource;
  readonly connectTimeoutMs: number;
  readonly readTimeoutMs: number;
}

const USER_AGENT = "Kubernetes.Alicloud Terway";
const require = createRequire(import.meta.url);

export function openSdk(options: SdkOptions): Sdk {
  const ecsModels = requireWithLazyModels("@alicloud/ecs20140526") as EcsModule;
  const vpcModels = requireWithLazyModels("@alicloud/vpc20160428") as VpcModule;
  const { Config } = require("@alicloud/openapi-client") as typeof import("@alicloud/openapi-client");
  // The SDK asks for every request: a renewed key needs no new client.
  const credential = {
    getCredential: async () => {
      const { accessKeyId, accessKeySecret, securityToken } = await options.credentials();
      return { accessKeyId, accessKeySecret, securityToken, type: securityToken ? "sts" : "access_key" };
    },
  };
  const configOf = (endpoint: string | undefined) =>
    // The clients are typed against a newer core than this class; its fields are the same.
    new Config({
      credential: credential as never,
      regionId: options.region,
      network: options.network ?? "public",
      ...endpointFields(endpoint),
      userAgent: USER_AGENT,
      connectTimeout: options.connectTimeoutMs,
      readTimeout: options.readTimeoutMs,
      // NB: no retryOptions. Retries are the pool's decision, with the token that the store holds.
    }) as never;
  return {
    ecs: new ecsModels.default(configOf(options.ecsEndpoint)),
    vpc: new vpcModels.default(configOf(options.vpcEndpoint)),
    ecsModels,
    vpcModels,
  };
}

/** @returns Nothing for an absent endpoint: the SDK knows the region's. */
export function endpointFields(endpoint: string | undefined): { endpoint?: string; protocol?: string } {
  const [, scheme, host] = /^(?:(https?):\/\/)?([^/]+)\/*$/i.exec(endpoint?.trim() ?? "") ?? [];
  return host === undefined ? {} : { endpoint: host, protocol: scheme?.toLowerCase() ?? "https" };
}
