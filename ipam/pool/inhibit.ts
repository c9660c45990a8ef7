/** What a failed call means for the next decisions. Pure. */
import type { CloudErrorClass } from "../cloud/classify.ts";
import type { Inhibition } from "./decide.ts";

export interface Failure {
  readonly class: CloudErrorClass;
  readonly code: string;
  readonly retryAfterMs: number | undefined;
  readonly message: string;
}

export interface Blocked {
  /** Key of {@link Inhibition}: `vswitch:ID`, `create`, `assign` or `all`. */
  readonly key: string;
  readonly inhibition: Inhibition;
}

/** Long enough for at most two failing calls a minute, short enough to see within 15 s that there is room again. */
const VSWITCH_FULL_MS = 30_000;

/**
 * @param kind The action that failed.
 * @param jitter 0 to 1: nodes that failed together must not try again together.
 * @param failures How often in a row, this one included.
 */
export function blockedBy(
  failure: Failure,
  kind: "create" | "assign" | "unassign" | "remove",
  vswitchId: string,
  nowMs: number,
  failures: number,
  jitter: number,
): Blocked | undefined {
  const block = (key: string, ms: number, reason: string): Blocked => ({
    key,
    inhibition: { untilMs: nowMs + ms, reason },
  });
  const backoff = Math.min(60_000, 500 * 2 ** Math.min(failures, 8)) * (0.5 + jitter / 2);
  const of = kind === "create" ? "create" : "assign";
  switch (failure.class) {
    case "throttled":
      // The budget of the account comes anew at the next minute.
      return block(
        "all",
        failure.retryAfterMs ?? 5000 + 25_000 * jitter,
        `the cloud API throttles this account (${failure.code})`,
      );
    case "vswitch-full":
      return block(
        `vswitch:${vswitchId}`,
        VSWITCH_FULL_MS,
        `vSwitch ${vswitchId} has 0 free addresses (${failure.code})`,
      );
    case "eni-limit":
      return block("create", 60_000, `the instance has its maximum of ENIs (${failure.code})`);
    case "quota":
      return block("create", 300_000, `a quota is used up: ${failure.message}`);
    case "config":
      return block(of, 60_000, `the configuration does not fit the cloud: ${failure.message}`);
    case "auth":
      return block("all", 30_000, `the cloud refuses our credentials or rights: ${failure.message}`);
    case "retry":
    case "conflict":
    case "state":
    case "idempotent-failed":
      return block(of, backoff, `the cloud asks to try again (${failure.code})`);
    case "capacity":
    case "gone":
      return undefined; // our view is stale: reconciling mends it
    case "not-ours":
    case "bug":
    case "unknown":
      return block(of, Math.max(backoff, 30_000), `unexpected answer of the cloud: ${failure.message}`);
    default:
      return failure.class satisfies never;
  }
}
