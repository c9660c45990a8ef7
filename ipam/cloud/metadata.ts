/** The instance metadata service: who this node is. A hint, never a reason to release or to hand out. */

export interface MetadataClient {
  /** One value below `meta-data/`; undefined when there is none (404). */
  get(path: string): Promise<string | undefined>;
}

export interface Self {
  readonly instanceId: string;
  readonly instanceType: string;
  readonly region: string;
  readonly zone: string;
  readonly primaryMac: string;
  readonly ip: string;
}

export const DEFAULT_METADATA_URL = "http://100.100.100.200";
const TOKEN_SECONDS = 3600;
const TRIES = 5;
const FIRST_PAUSE_MS = 200;

/** @param url Without path. */
export function createMetadataClient(url: string): MetadataClient {
  let token: { readonly value: string; readonly until: number } | undefined;

  async function fetchToken(): Promise<string | undefined> {
    if (token !== undefined && token.until > performance.now()) return token.value;
    const answer = await fetch(`${url}/latest/api/token`, {
      method: "PUT",
      headers: { "X-aliyun-ecs-metadata-token-ttl-seconds": String(TOKEN_SECONDS) },
      signal: AbortSignal.timeout(2000),
    });
    if (!answer.ok) return undefined; // a service without tokens
    token = { value: await answer.text(), until: performance.now() + (TOKEN_SECONDS * 1000) / 2 };
    return token.value;
  }

  async function once(path: string): Promise<Response> {
    const value = await fetchToken();
    return fetch(`${url}/latest/meta-data/${path}`, {
      headers: value === undefined ? {} : { "X-aliyun-ecs-metadata-token": value },
      signal: AbortSignal.timeout(2000),
    });
  }

  return {
    async get(path) {
      let problem: unknown;
      for (let attempt = 0; attempt < TRIES; attempt++) {
        if (attempt > 0) await new Promise((resolve) => setTimeout(resolve, FIRST_PAUSE_MS * 2 ** (attempt - 1)));
        try {
          const answer = await once(path);
          if (answer.status === 404) return undefined;
          if (answer.ok) return (await answer.text()).trim();
          problem = new Error(`status ${answer.status}`);
          if (answer.status === 401) token = undefined;
          else if (answer.status < 500 && answer.status !== 429) break;
        } catch (error) {
          problem = error;
        }
      }
      throw new Error(
        `the metadata service ${url} did not give ${path}: ${(problem as Error).message}; is this an ECS instance, and is 100.100.100.200 reachable?`,
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
  };
}
