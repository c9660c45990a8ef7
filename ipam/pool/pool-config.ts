/** The pool's part of `eni_conf`, in the pool's words. */
import type { EniConfig } from "../../shared/config/eni-conf-keys.ts";
import type { IpStack } from "../../shared/config/ip-stack.ts";
import type { PoolConfig } from "./state.ts";

/** Addresses and prefixes that one call may ask for (alicloud-api section 6). */
export const ADDRESSES_PER_CALL = 10;

/** Below this a whole fleet's looks would use up the account's budget (alicloud-api section 4). */
export const SHORTEST_RECONCILE_MS = 60_000;

/** How old the picture of ENIs and addresses may become; undefined where nothing says so. */
function reconcileMs(config: EniConfig): number | undefined {
  const { eniCacheTtlSeconds, ipCacheTtlSeconds, gc, gcIntervalSeconds } = config;
  const asked = [eniCacheTtlSeconds, ipCacheTtlSeconds, gc ? gcIntervalSeconds : undefined];
  const given = asked.filter((seconds) => seconds !== undefined);
  return given.length === 0 ? undefined : Math.max(SHORTEST_RECONCILE_MS, Math.min(...given) * 1000);
}

/** @param config Clamped to the instance, with the node's annotations applied. */
export function poolConfigOf(config: EniConfig, stack: IpStack): PoolConfig {
  const reconcile = reconcileMs(config);
  return {
    minIdle: config.minPoolSize,
    maxIdle: config.maxPoolSize,
    batch: ADDRESSES_PER_CALL,
    idleTtlMs: config.idleIpTtlSeconds * 1000,
    stack,
    fill: config.eniSelectionPolicy === "least-ip" ? "fewest" : "most",
    hotPlug: config.hotPlug,
    reservePercent: config.ipReservePercent,
    preAttach: config.preAttachEniCount,
    vswitchPolicy: config.vswitchSelectionPolicy,
    ...(reconcile !== undefined && { reconcileMs: reconcile }),
    ...(config.warmup && {
      warmupBatch: Math.min(ADDRESSES_PER_CALL, config.warmupBatchSize),
      warmupIntervalMs: config.warmupIntervalSeconds * 1000,
    }),
    ...(config.batch && { batchWindowMs: config.batchIntervalMs, batchSize: config.batchSize }),
  };
}

/** vSwitches of the node's zone, in the order given (POOL-17). */
export function nodeVSwitches(config: EniConfig, zone: string): readonly string[] {
  return config.vswitches[zone] ?? [];
}
