/**
 * Our own brake in front of the cloud's: token buckets, one per operation. Time comes in as an argument (monotonic), so
 * that the same code runs in the agent and in virtual time.
 *
 * The cloud's budgets belong to the account and the region, and one node cannot see what the others use (alicloud-api
 * section 4): a node that is not told otherwise keeps far below its share.
 */
import type { EniConfig } from "../../shared/config/eni-conf-keys.ts";

export interface Rate {
  readonly perMinute: number;
  /** Calls at once after a quiet time; at least 1. */
  readonly burst: number;
}

/** Operations that change something, as the limiter groups them. */
export type LimitedAction =
  | "CreateNetworkInterface"
  | "AttachNetworkInterface"
  | "DetachNetworkInterface"
  | "DeleteNetworkInterface"
  | "AssignPrivateIpAddresses"
  | "UnassignPrivateIpAddresses"
  | "AssignIpv6Addresses"
  | "UnassignIpv6Addresses";

/** Every operation not named in the table. */
const OTHER: Rate = { perMinute: 500, burst: 500 };

/** What one process may use of an account at most (alicloud-api section 4), calls a minute. */
const PER_PROCESS: Readonly<Record<string, number>> = {
  CreateNetworkInterface: 500,
  AttachNetworkInterface: 500,
  DeleteNetworkInterface: 500,
  DetachNetworkInterface: 400,
  DescribeNetworkInterfaces: 800,
  DescribeNetworkInterfaceAttribute: 2000,
  AssignPrivateIpAddresses: 400,
  UnassignPrivateIpAddresses: 400,
  AssignIpv6Addresses: 400,
  UnassignIpv6Addresses: 400,
  DescribeInstanceTypes: 400,
  DescribeVSwitches: 300,
};

/** A node's own brake where `rate_limit` says nothing. */
const NODE_LOCAL: Rate = { perMinute: 10, burst: 2 };

type RateKeys = Pick<EniConfig, "eniCreateQps" | "eniDeleteQps" | "ipAssignQps" | "ipUnassignQps" | "burstSize">;

/** Rates in force: `rate_limit` where it is set, else the node-local brake; never above what one process may use. */
export function ratesOf(config: RateKeys): Readonly<Record<string, Rate>> {
  const of = (action: LimitedAction, qps: number | undefined, unset: Rate): [string, Rate] => {
    const most = PER_PROCESS[action] ?? OTHER.perMinute;
    if (qps === undefined)
      return [action, config.burstSize === undefined ? unset : { ...unset, burst: config.burstSize }];
    const perMinute = Math.min(most, qps * 60);
    return [action, { perMinute, burst: Math.max(1, config.burstSize ?? Math.ceil(qps)) }];
  };
  const full = (action: string): Rate => ({ perMinute: PER_PROCESS[action] ?? 500, burst: PER_PROCESS[action] ?? 500 });
  return Object.fromEntries([
    ...Object.keys(PER_PROCESS).map((action): [string, Rate] => [action, full(action)]),
    of("CreateNetworkInterface", config.eniCreateQps, NODE_LOCAL),
    of("AttachNetworkInterface", config.eniCreateQps, full("AttachNetworkInterface")),
    of("DeleteNetworkInterface", config.eniDeleteQps, full("DeleteNetworkInterface")),
    of("DetachNetworkInterface", config.eniDeleteQps, full("DetachNetworkInterface")),
    of("AssignPrivateIpAddresses", config.ipAssignQps, NODE_LOCAL),
    of("AssignIpv6Addresses", config.ipAssignQps, NODE_LOCAL),
    of("UnassignPrivateIpAddresses", config.ipUnassignQps, full("UnassignPrivateIpAddresses")),
    of("UnassignIpv6Addresses", config.ipUnassignQps, full("UnassignIpv6Addresses")),
  ]);
}

export interface RateLimiter {
  /** Takes a token, and says how long the call has to wait for it: 0 when it may go at once. Tokens are given in order. */
  take(action: string, nowMs: number): number;
  /** How many calls could go at once now, and when the next one after them. Takes nothing. */
  budget(action: string, nowMs: number): { readonly tokens: number; readonly nextAtMs: number };
  /** Calls that had to wait, by operation: `terway_api_rate_limit_hits`. */
  hits(): Readonly<Record<string, number>>;
}

export function createRateLimiter(rates: Readonly<Record<string, Rate>>, nowMs: number): RateLimiter {
  /** Tokens may go below zero: those are promised to calls that wait. */
  const buckets = new Map<string, { tokens: number; atMs: number }>();
  const hits: Record<string, number> = {};
  const rateOf = (action: string) => rates[action] ?? OTHER;

  function refill(action: string, now: number): { tokens: number; atMs: number } {
    const { perMinute, burst } = rateOf(action);
    const bucket = buckets.get(action) ?? { tokens: burst, atMs: nowMs };
    buckets.set(action, bucket);
    // A clock that stands or jumps back adds nothing and takes nothing.
    const elapsed = Math.max(0, now - bucket.atMs);
    bucket.tokens = Math.min(burst, bucket.tokens + (elapsed * perMinute) / 60_000);
    bucket.atMs = Math.max(bucket.atMs, now);
    return bucket;
  }
  /** Until the bucket holds this much. */
  const untilMs = (action: string, bucket: { tokens: number }, level: number) =>
    Math.max(0, ((level - bucket.tokens) * 60_000) / rateOf(action).perMinute);

  return {
    take(action, now) {
      const bucket = refill(action, now);
      // The tolerance keeps a sum of many small refills from missing a whole token.
      const wait = bucket.tokens >= 1 - 1e-9 ? 0 : untilMs(action, bucket, 1);
      bucket.tokens -= 1;
      if (wait > 0) hits[action] = (hits[action] ?? 0) + 1;
      return wait;
    },
    budget(action, now) {
      const bucket = refill(action, now);
      const tokens = Math.max(0, Math.floor(bucket.tokens + 1e-9));
      return { tokens, nextAtMs: now + untilMs(action, bucket, Math.max(0, tokens) + 1) };
    },
    hits: () => ({ ...hits }),
  };
}
