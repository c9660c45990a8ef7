/** Access keys: fixed ones of the configuration, or those of the instance's RAM role, renewed long before they end. */
import type { MetadataClient } from "./metadata.ts";

export interface Credentials {
  readonly accessKeyId: string;
  readonly accessKeySecret: string;
  readonly securityToken?: string | undefined;
}

export interface CredentialSource {
  /** @throws {Error} when there are none and none can be had. */
  (): Promise<Credentials>;
  /** The cloud refused these: gets others if it can. @returns Whether there are others now. Absent: there never are. */
  readonly replace?: (refused: Credentials) => Promise<boolean>;
}

const RENEW_BEFORE_MS = 10 * 60_000;
const TRY_AGAIN_MS = 30_000;

interface RoleAnswer {
  readonly Code: string;
  readonly AccessKeyId: string;
  readonly AccessKeySecret: string;
  readonly SecurityToken: string;
  readonly Expiration: string;
}

export function fixedCredentials(accessKeyId: string, accessKeySecret: string): CredentialSource {
  return async () => ({ accessKeyId, accessKeySecret });
}

/**
 * Old keys stay in use while new ones cannot be had: they may still be good.
 *
 * @param now Wall clock ms: the end of a key is given in UTC. A clock that is wrong renews too early or too late, and a key
 *   used too late is replaced when the cloud refuses it.
 */
export function roleCredentials(metadata: MetadataClient, now: () => number = Date.now): CredentialSource {
  let current: Credentials | undefined;
  let renewAtMs = 0;
  let renewing: Promise<Credentials> | undefined;

  async function fetchNew(): Promise<Credentials> {
    const role = (await metadata.get("ram/security-credentials/"))?.split("\n")[0];
    if (!role)
      throw new Error(
        "this instance has no RAM role: attach one that has the actions of a node agent, or set access_key and access_secret in eni_conf",
      );
    const text = (await metadata.get(`ram/security-credentials/${role}`)) ?? "{}";
    const answer = parseAnswer(text);
    if (answer?.Code !== "Success" || !answer.AccessKeyId || !answer.AccessKeySecret)
      // NB: never the answer itself, it may hold a secret.
      throw new Error(`RAM role ${role} gives no credentials (code ${answer?.Code ?? "unreadable"})`);
    const lifeMs = Date.parse(answer.Expiration ?? "") - now();
    // Short-lived ones a quarter before their end; unreadable or ended: not at every call, though.
    const renewInMs = lifeMs > 0 ? lifeMs - Math.min(RENEW_BEFORE_MS, lifeMs / 4) : TRY_AGAIN_MS;
    renewAtMs = now() + Math.max(1000, renewInMs);
    current = {
      accessKeyId: answer.AccessKeyId,
      accessKeySecret: answer.AccessKeySecret,
      ...(answer.SecurityToken && { securityToken: answer.SecurityToken }),
    };
    return current;
  }

  /** One renewal at a time, however many calls ask for it. */
  function renew(): Promise<Credentials> {
    renewing ??= fetchNew().finally(() => {
      renewing = undefined;
    });
    return renewing;
  }

  const source = async (): Promise<Credentials> => {
    if (current !== undefined && now() < renewAtMs) return current;
    try {
      return await renew();
    } catch (error) {
      if (current === undefined) throw error;
      renewAtMs = now() + TRY_AGAIN_MS;
      return current;
    }
  };
  const replace = async (refused: Credentials): Promise<boolean> => {
    if (current !== undefined && !same(current, refused)) return true; // somebody was faster
    try {
      return !same(await renew(), refused);
    } catch {
      return false;
    }
  };
  return Object.assign(source, { replace });
}

function same(a: Credentials, b: Credentials): boolean {
  return a.accessKeyId === b.accessKeyId && a.securityToken === b.securityToken;
}

function parseAnswer(text: string): Partial<RoleAnswer> | undefined {
  try {
    return JSON.parse(text) as Partial<RoleAnswer>;
  } catch {
    return undefined;
  }
}
