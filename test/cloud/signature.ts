/** Checks both signature generations of the RPC protocol against known access keys. */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { ApiError } from "./model.ts";

export interface Credential {
  readonly accessKeyId: string;
  readonly accessKeySecret: string;
  readonly securityToken?: string | undefined;
  /** Unix ms; absent lasts for ever. */
  readonly expiresAt?: number | undefined;
}

export interface SignedRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly query: URLSearchParams;
  readonly body: Buffer;
}

function encode(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

const header = (headers: IncomingHttpHeaders, name: string): string => {
  const value = headers[name];
  return Array.isArray(value) ? value.join(",") : (value ?? "");
};

function same(a: string, b: string): boolean {
  const [x, y] = [Buffer.from(a), Buffer.from(b)];
  return x.length === y.length && timingSafeEqual(x, y);
}

function check(credential: Credential | undefined, id: string, token: string, now: number): Credential {
  if (credential === undefined)
    throw new ApiError(404, "InvalidAccessKeyId.NotFound", `The Access Key ID "${id}" does not exist.`);
  if (credential.expiresAt !== undefined && credential.expiresAt <= now)
    throw new ApiError(400, "InvalidSecurityToken.Expired", "The SecurityToken has expired.");
  if (credential.securityToken !== undefined && credential.securityToken !== token)
    throw new ApiError(400, "InvalidSecurityToken.Malformed", "SecurityToken");
  return credential;
}

const MAX_SKEW_MS = 15 * 60_000;

function checkTime(text: string, now: number): void {
  const at = Date.parse(text);
  if (!(Math.abs(at - now) <= MAX_SKEW_MS))
    throw new ApiError(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.");
}

/** @returns The caller's access key id. @throws {ApiError} SignatureDoesNotMatch and the like. */
export function authenticate(
  request: SignedRequest,
  find: (id: string) => Credential | undefined,
  now: number,
): string {
  const authorization = header(request.headers, "authorization");
  return authorization.startsWith("ACS3-HMAC-SHA256") ? v3(request, authorization, find, now) : v1(request, find, now);
}

function v3(
  request: SignedRequest,
  authorization: string,
  find: (id: string) => Credential | undefined,
  now: number,
): string {
  const part = (name: string) => new RegExp(`${name}=([^,]*)`).exec(authorization)?.[1]?.trim() ?? "";
  const id = part("Credential");
  const credential = check(find(id), id, header(request.headers, "x-acs-security-token"), now);
  checkTime(header(request.headers, "x-acs-date"), now);
  const signedHeaders = part("SignedHeaders");
  const canonicalQuery = [...request.query]
    .map(([k, v]) => [encode(k), encode(v)])
    .sort(([a = ""], [b = ""]) => (a < b ? -1 : a > b ? 1 : 0))
    .map((kv) => kv.join("="))
    .join("&");
  const canonicalHeaders = signedHeaders
    .split(";")
    .map((name) => `${name}:${header(request.headers, name).trim()}\n`)
    .join("");
  const bodyHash = createHash("sha256").update(request.body).digest("hex");
  const canonical = [request.method, request.path, canonicalQuery, canonicalHeaders, signedHeaders, bodyHash].join(
    "\n",
  );
  const toSign = `ACS3-HMAC-SHA256\n${createHash("sha256").update(canonical).digest("hex")}`;
  const want = createHmac("sha256", credential.accessKeySecret).update(toSign).digest("hex");
  if (!same(part("Signature"), want))
    throw new ApiError(400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation.");
  return id;
}

function v1(request: SignedRequest, find: (id: string) => Credential | undefined, now: number): string {
  const all = new Map([...request.query, ...new URLSearchParams(request.body.toString())]);
  const id = all.get("AccessKeyId") ?? "";
  if (id === "") throw new ApiError(400, "MissingParameter", "AccessKeyId is mandatory for this action.");
  const credential = check(find(id), id, all.get("SecurityToken") ?? "", now);
  checkTime(all.get("Timestamp") ?? "", now);
  const canonical = [...all]
    .filter(([k]) => k !== "Signature")
    .map(([k, v]) => [encode(k), encode(v)])
    .sort(([a = ""], [b = ""]) => (a < b ? -1 : 1))
    .map((kv) => kv.join("="))
    .join("&");
  const want = createHmac("sha1", `${credential.accessKeySecret}&`)
    .update(`${request.method}&${encode("/")}&${encode(canonical)}`)
    .digest("base64");
  if (!same(all.get("Signature") ?? "", want))
    throw new ApiError(400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation.");
  return id;
}
