/**
 * The instance metadata service (alicloud-api section 9): who this node is. It lags behind the cloud by seconds, so it is
 * a hint, never a reason to release or to hand out.
 */
import { setTimeout as pause } from "node:timers/promises";
import { parseAddressList, parseMacList } from "./metadata-parse.ts";

export interface MetadataClient {
  /** One value below `meta-data/`; undefined when there is none (404). @throws {Error} when the service does not answer. */
  get(path: string): Promise<string | undefined>;
}

export interface Self {
  readonly instanceId: string;
  readonly instanceType: string;
  readonly region: string;
  readonly zone: string;
  readonly primaryMac: string;
  readonly ip: string;
  /** Undefined where the service does not say. */
  readonly vpcId?: string | undefined;
  /** Of the primary ENI. */
  readonly vswitchId?: string | undefined;
  readonly vpcCidr?: string | undefined;
}

/** An ENI as the guest is told of it. */
export interface MetadataEni {
  readonly mac: string;
  readonly eniId: string;
  readonly primary4: string | undefined;
  /** The primary one included. */
  readonly addresses4: readonly string[];
  readonly addresses6: readonly string[];
  readonly vswitchId: string | undefined;
  readonly vswitchCidr4: string | undefined;
  readonly vswitchCidr6: string | undefined;
  readonly gateway4: string | undefined;
  readonly gateway6: string | undefined;
}

/** Of an ENI's vSwitch. */
export interface EniNetwork {
  readonly cidr4: string | undefined;
  readonly cidr6: string | undefined;
}

export interface MetadataOptions {
  readonly fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** Monotonic ms. */
  readonly now?: () => number;
  readonly sleep?: (ms: number) => Promise<unknown>;
}

export const DEFAULT_METADATA_URL = "http://100.100.100.200";
const TOKEN_SECONDS = 3600;
/** A service that gives no tokens is asked again after this long. */
const WITHOUT_TOKEN_MS = 300_000;
const TIMEOUT_MS = 2000;
const TRIES = 5;
const FIRST_PAUSE_MS = 200;
/** By how much it may lag behind an attachment. */
const LAG_MS = 20_000;
const LOOK_AGAIN_MS = 500;

/** @param url Without path. */
export function createMetadataClient(url: string, options: MetadataOptions = {}): MetadataClient {
  const { now = () => performance.now(), sleep = pause } = options;
  const request = options.fetch ?? ((to: string, init: RequestInit) => fetch(to, init));
  /** `value` is undefined for a service without tokens. */
  let token: { readonly value: string | undefined; readonly untilMs: number } | undefined;

  async function tokenValue(): Promise<string | undefined> {
    if (token !== undefined && token.untilMs > now()) return token.value;
    const answer = await request(`${url}/latest/api/token`, {
      method: "PUT",
      headers: { "X-aliyun-ecs-metadata-token-ttl-seconds": String(TOKEN_SECONDS) },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const text = await answer.text();
    if (answer.status >= 500 || answer.status === 429) throw new Error(`status ${answer.status} for a token`);
    // Half its life: one that is used is never about to end.
    token = answer.ok
      ? { value: text, untilMs: now() + (TOKEN_SECONDS * 1000) / 2 }
      : { value: undefined, untilMs: now() + WITHOUT_TOKEN_MS };
    return token.value;
  }

  async function read(path: string): Promise<{ readonly status: number; readonly text: string }> {
    const value = await tokenValue();
    const answer = await request(`${url}/latest/meta-data/${path}`, {
      headers: value === undefined ? {} : { "X-aliyun-ecs-metadata-token": value },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    return { status: answer.status, text: (await answer.text()).trim() };
  }

  return {
    async get(path) {
      let problem: Error | undefined;
      let tokensLeft = 1;
      for (let attempt = 0; attempt < TRIES; attempt++) {
        if (attempt > 0) await sleep(FIRST_PAUSE_MS * 2 ** (attempt - 1));
        try {
          const { status, text } = await read(path);
          if (status === 404) return undefined;
          if (status >= 200 && status < 300) return text;
          problem = new Error(`status ${status}`);
          if (status === 401 || status === 403) {
            // The token ended, or the service takes only reads with one by now: one more, with a fresh token.
            token = undefined;
            if (tokensLeft-- <= 0) break;
          } else if (status < 500 && status !== 429) {
            break;
          }
        } catch (error) {
          problem = error as Error;
        }
      }
      throw new Error(
        `the metadata service ${url} did not give ${path}: ${problem?.message}; is this an ECS instance, and is its metadata service on and reachable?`,
        { cause: problem },
      );
    },
  };
}

/** @throws {Error} naming the first value that is missing. */
export async function discoverSelf(metadata: MetadataClient): Promise<Self> {
  const need = async (path: string) => {
    const value = await metadata.get(path);
    if (value === undefined || value === "")
      throw new Error(`the metadata service has no ${path}: this agent runs on ECS instances in a VPC`);
    return value;
  };
  return {
    instanceId: await need("instance-id"),
    instanceType: await need("instance/instance-type"),
    region: await need("region-id"),
    zone: await need("zone-id"),
    primaryMac: (await need("mac")).toLowerCase(),
    ip: await need("private-ipv4"),
    vpcId: await metadata.get("vpc-id"),
    vswitchId: await metadata.get("vswitch-id"),
    vpcCidr: await metadata.get("vpc-cidr-block"),
  };
}

/** The ENIs that the guest is told of. One that is about to go may still be listed with nothing behind it: left out. */
export async function discoverEnis(metadata: MetadataClient): Promise<readonly MetadataEni[]> {
  const enis: MetadataEni[] = [];
  for (const mac of parseMacList((await metadata.get("network/interfaces/macs/")) ?? "")) {
    const of = (name: string) => metadata.get(`network/interfaces/macs/${mac}/${name}`);
    const list = async (name: string) => parseAddressList((await of(name)) ?? "") ?? [];
    const eniId = await of("network-interface-id");
    if (eniId === undefined || eniId === "") continue;
    enis.push({
      mac,
      eniId,
      primary4: await of("primary-ip-address"),
      addresses4: await list("private-ipv4s"),
      addresses6: await list("ipv6s"),
      vswitchId: await of("vswitch-id"),
      vswitchCidr4: await of("vswitch-cidr-block"),
      vswitchCidr6: await of("vswitch-ipv6-cidr-block"),
      gateway4: await of("gateway"),
      gateway6: await of("ipv6-gateway"),
    });
  }
  return enis;
}

/**
 * The network of an ENI that was just attached, waited for.
 *
 * @returns undefined when one of the families is not told in time.
 */
export async function awaitNetwork(
  metadata: MetadataClient,
  mac: string,
  families: readonly (4 | 6)[],
  { now = () => performance.now(), sleep = pause }: Pick<MetadataOptions, "now" | "sleep"> = {},
): Promise<EniNetwork | undefined> {
  const of = async (name: string) => (await metadata.get(`network/interfaces/macs/${mac}/${name}`)) || undefined;
  for (const untilMs = now() + LAG_MS; ; await sleep(LOOK_AGAIN_MS)) {
    const cidr4 = await of("vswitch-cidr-block");
    const cidr6 = await of("vswitch-ipv6-cidr-block");
    if (families.every((family) => (family === 4 ? cidr4 : cidr6) !== undefined)) return { cidr4, cidr6 };
    if (now() >= untilMs) return undefined;
  }
}
