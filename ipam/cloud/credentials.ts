/** Access keys: fixed ones of the configuration, or those of the instance's RAM role, renewed before they end. */
import type { MetadataClient } from "./metadata.ts";

export interface Credentials {
  readonly accessKeyId: string;
  readonly accessKeySecret: string;
  readonly securityToken?: string | undefined;
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

export function fixedCredentials(accessKeyId: string, accessKeySecret: string): () => Promise<Credentials> {
  return async () => ({ accessKeyId, accessKeySecret });
}

/** Old keys stay in use while new ones cannot be had: they may still be good. */
export function roleCredentials(metadata: MetadataClient, now: () => number = Date.now): () => Promise<Credentials> {
  let current: Credentials | undefined;
  let renewAt = 0;
  return async () => {
    if (current !== undefined && now() < renewAt) return current;
    try {
      const role = (await metadata.get("ram/security-credentials/"))?.split("\n")[0];
      if (!role)
        throw new Error(
          "this instance has no RAM role: attach one with the actions of deploy/ram-policy.json, or set access_key and access_secret",
        );
      const answer = JSON.parse(
        (await metadata.get(`ram/security-credentials/${role}`)) ?? "{}",
      ) as Partial<RoleAnswer>;
      if (answer.Code !== "Success" || !answer.AccessKeyId || !answer.AccessKeySecret)
        throw new Error(`RAM role ${role} gives no credentials (code ${answer.Code})`);
      current = {
        accessKeyId: answer.AccessKeyId,
        accessKeySecret: answer.AccessKeySecret,
        securityToken: answer.SecurityToken,
      };
      renewAt = Date.parse(answer.Expiration ?? "") - RENEW_BEFORE_MS;
      // Short-lived or unreadable: not at every call, though.
      if (!(renewAt > now() + TRY_AGAIN_MS)) renewAt = now() + TRY_AGAIN_MS;
    } catch (error) {
      if (current === undefined) throw error;
      renewAt = now() + TRY_AGAIN_MS;
    }
    return current;
  };
}
