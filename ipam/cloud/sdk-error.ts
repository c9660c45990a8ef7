/** From what the SDK throws to a {@link CloudError}: class, request id, no secret. */
import { classify, isDenied } from "./classify.ts";
import { CloudError } from "./cloud-api.ts";
import type { Credentials } from "./credentials.ts";

interface SdkError {
  readonly code?: unknown;
  readonly message?: string;
  readonly statusCode?: number;
  /** Header `x-acs-retry-after`, milliseconds. */
  readonly retryAfter?: number;
  readonly requestId?: string;
  readonly data?: { readonly RequestId?: string; readonly Message?: string };
}

/** The request never left the node: nothing can have been done. */
const NOT_SENT: ReadonlySet<string> = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENETDOWN",
  "CERT_HAS_EXPIRED",
]);
const LONGEST_MESSAGE = 300;
/** The others are of ECS. */
const VPC_ACTIONS: ReadonlySet<string> = new Set([
  "DescribeVSwitches",
  "DescribeRouteEntryList",
  "CreateRouteEntry",
  "DeleteRouteEntry",
]);

/** @param secrets Of the call: cut out of the message, wherever the cloud or a library may have put them. */
export function toCloudError(action: string, error: unknown, secrets: Partial<Credentials> = {}): CloudError {
  if (error instanceof CloudError) return error;
  const e = error as SdkError;
  const status = typeof e.statusCode === "number" && Number.isFinite(e.statusCode) ? e.statusCode : undefined;
  const code = typeof e.code === "string" && e.code !== "undefined" ? e.code : "";
  const known = classify(code, status);
  // Without an answer whether it was done is not known; the same ClientToken finds out.
  const broken = status === undefined && known === "unknown";
  const requestId = e.data?.RequestId ?? (e.requestId === "undefined" ? undefined : e.requestId);
  const words = clean(e.data?.Message ?? e.message ?? String(error), secrets);
  return new CloudError(
    {
      action,
      code: code || (status === undefined ? "ConnectionBroken" : `HTTP${status}`),
      class: broken ? "retry" : known,
      requestId: requestId ?? "",
      message: isDenied({ class: known, code }) ? `${words}; ${remedy(action)}` : words,
      retryAfterMs: typeof e.retryAfter === "number" ? e.retryAfter : undefined,
      outcomeUnknown: (broken && !NOT_SENT.has(code)) || (status ?? 0) >= 500,
    },
    // NB: not the error itself: it carries the request's headers with the signature.
    error instanceof Error ? new Error(clean(`${error.name}: ${error.message}`, secrets)) : undefined,
  );
}

function remedy(action: string): string {
  const product = VPC_ACTIONS.has(action) ? "vpc" : "ecs";
  return `allow ${product}:${action} to the instance's RAM role, or to the owner of access_key`;
}

function clean(text: string, secrets: Partial<Credentials>): string {
  let out = text.replace(/\s+/g, " ").trim();
  for (const secret of [secrets.accessKeySecret, secrets.securityToken, secrets.accessKeyId])
    if (secret !== undefined && secret.length > 3) out = out.split(secret).join("***");
  return out.length > LONGEST_MESSAGE ? `${out.slice(0, LONGEST_MESSAGE - 3)}...` : out;
}
