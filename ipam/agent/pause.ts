/** How long to wait after a failure, for what is tried until it works. Pure. */
import type { CloudErrorClass } from "../cloud/classify.ts";
import { CloudError } from "../cloud/cloud-api.ts";

const FIRST_MS = 5000;
/** What goes away by itself. */
const LONGEST_MS = 60_000;
/** What somebody has to mend, or what every further call makes worse. */
const LONGEST_REFUSED_MS = 600_000;

const REFUSALS: ReadonlySet<CloudErrorClass> = new Set([
  "throttled",
  "quota",
  "auth",
  "config",
  "eni-limit",
  "vswitch-full",
  "not-ours",
  "bug",
  "unknown",
]);

/**
 * @param failures How often in a row, this one included.
 * @param jitter 0 to 1: nodes that failed together must not try again together.
 */
export function pauseAfter(error: unknown, failures: number, jitter: number): number {
  const failure = error instanceof CloudError ? error : undefined;
  const most = failure !== undefined && REFUSALS.has(failure.class) ? LONGEST_REFUSED_MS : LONGEST_MS;
  const growing = Math.min(most / 2, FIRST_MS * 2 ** Math.min(failures - 1, 12));
  return Math.max(failure?.retryAfterMs ?? 0, growing) + jitter * growing;
}
