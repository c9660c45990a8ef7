/** What a failed call means for the next decisions. Pure. */
import { type CloudErrorClass, isDenied } from "../cloud/classify.ts";
import { FAILURE_WINDOW_MS } from "./counts.ts";
import type { ConditionReason, Inhibition, PoolAction } from "./state.ts";

export interface Failure {
  readonly class: CloudErrorClass;
  readonly code: string;
  readonly retryAfterMs: number | undefined;
  readonly message: string;
  /** Until the wall clock's next full minute, when the budgets of the account begin anew. Absent: not known. */
  readonly untilNextMinuteMs?: number | undefined;
}

export interface Blocked {
  /** Key of {@link Inhibition}: `vswitch:ID`, `eni:ID`, an action's kind, or `all`. */
  readonly key: string;
  readonly inhibition: Inhibition;
}

const LONGEST_MS = 600_000;

/**
 * @param kind The action that failed.
 * @param failures How often in a row, this one included.
 * @param jitter 0 to 1: nodes that failed together must not try again together.
 * @param eniId The ENI that it was about, where there was one.
 * @param previousAtMs When it failed before this, if within the last minute.
 * @returns undefined when nothing has to wait: our view is stale, and looking mends it.
 */
export function blockedBy(
  failure: Failure,
  kind: PoolAction["kind"],
  vswitchId: string,
  nowMs: number,
  failures: number,
  jitter: number,
  eniId?: string,
  previousAtMs?: number,
): Blocked | undefined {
  const block = (key: string, ms: number, reason: string, condition?: ConditionReason): Blocked => ({
    key,
    inhibition: { untilMs: nowMs + ms, sinceMs: nowMs, reason, ...(condition && { condition }) },
  });
  /** Doubles with every failure in a row. */
  const growing = (firstMs: number, mostMs: number) => Math.min(mostMs, firstMs * 2 ** Math.min(failures - 1, 12));
  const target = eniId === undefined ? kind : `eni:${eniId}`;
  switch (failure.class) {
    case "throttled":
      // The more often in a row, the wider apart the nodes: one minute's budget serves only so many of them.
      return block(
        kind,
        (failure.retryAfterMs ?? failure.untilNextMinuteMs ?? 5000) + jitter * growing(5000, LONGEST_MS),
        `the cloud API throttles this account (${failure.code})`,
        "CloudThrottled",
      );
    case "vswitch-full":
      return block(
        `vswitch:${vswitchId}`,
        probeAfterMs(nowMs, previousAtMs),
        fullReason(vswitchId, failure.code),
        "VSwitchExhausted",
      );
    case "eni-limit":
      return block(
        "create",
        growing(60_000, LONGEST_MS),
        `the instance has its maximum of ENIs (${failure.code}): use a larger type, or detach what is not ours`,
        "EniLimitReached",
      );
    case "quota":
      return failure.code.startsWith("SecurityGroup")
        ? block(
            kind,
            growing(60_000, LONGEST_MS),
            `a security group is full (${failure.message}): use another, or an enterprise group`,
            "SecurityGroupFull",
          )
        : block(
            kind,
            LONGEST_MS,
            `a quota of the account is used up (${failure.message}): ask for more`,
            "QuotaExceeded",
          );
    case "config":
      return block(
        failure.code.startsWith("InvalidVSwitchId") ? `vswitch:${vswitchId}` : kind,
        growing(60_000, LONGEST_MS),
        `eni_conf does not fit the cloud: ${failure.message}`,
        "ConfigRejected",
      );
    case "auth":
      return isDenied(failure)
        ? block(kind, growing(15_000, 300_000), `a right is missing: ${failure.message}`, "CloudAuthFailed")
        : block(
            "all",
            growing(15_000, 300_000),
            `the cloud refuses our credentials: ${failure.message}`,
            "CloudAuthFailed",
          );
    case "retry":
      return block(
        target,
        growing(1000, 60_000) * (0.5 + jitter / 2),
        `the cloud API is not available (${failure.code})`,
        failures > 2 ? "CloudUnavailable" : undefined,
      );
    case "conflict":
    case "state":
      return block(target, growing(1000, 30_000) * (0.5 + jitter / 2), "");
    case "idempotent-failed":
      return block(target, growing(500, 60_000), "");
    case "capacity":
      return block(target, growing(5000, LONGEST_MS), "");
    case "gone":
      // A look tells whether it is; until then it is not asked again and again.
      return eniId === undefined ? undefined : block(target, growing(5000, LONGEST_MS), "");
    case "not-ours":
      return block(
        target,
        Number.POSITIVE_INFINITY,
        `ENI ${eniId ?? ""} is managed by somebody else (${failure.code}): it is left alone`,
        "UnexpectedAnswer",
      );
    case "bug":
    case "unknown":
      return block(
        target,
        growing(30_000, LONGEST_MS),
        `unexpected answer of the cloud: ${failure.message}`,
        "UnexpectedAnswer",
      );
    default:
      return failure.class satisfies never;
  }
}

function fullReason(vswitchId: string, code: string): string {
  return `vSwitch ${vswitchId} has 0 free addresses (${code}): free some, or add a vSwitch of this zone to eni_conf`;
}

/** At most two failing calls a minute (F-09), looked at or not. */
function probeAfterMs(nowMs: number, previousAtMs: number | undefined): number {
  if (previousAtMs === undefined) return FAILURE_WINDOW_MS / 2;
  return Math.max(FAILURE_WINDOW_MS / 2, previousAtMs + FAILURE_WINDOW_MS - nowMs);
}
