/** What an answer says of a call that carries a ClientToken, and of its earlier tries. Pure. */
import type { CloudErrorClass } from "../cloud/classify.ts";
import { CloudError } from "../cloud/cloud-api.ts";

/** Refusals that say nothing of an earlier try: the cloud did not look that far. */
const SAYS_NOTHING: ReadonlySet<CloudErrorClass> = new Set(["throttled", "conflict", "auth", "unknown"]);

/** What was asked may have been done all the same. */
export function mayBeDone(error: CloudError): boolean {
  return error.outcomeUnknown || error.class === "retry";
}

/** The refusal is the token's own answer: no try with it went through. The next one takes a new token. */
export function endsToken(error: unknown): boolean {
  return error instanceof CloudError && !mayBeDone(error) && !SAYS_NOTHING.has(error.class);
}
