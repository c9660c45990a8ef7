/** The configuration of terway-policy beyond what every plugin reads. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { placesOf } from "../terway-ipam/config.ts";

export interface PolicyConfig {
  readonly store: string;
  readonly logDir: string;
  /** What becomes of a pod whose policy is not known. */
  readonly unknown: "allow" | "deny" | "wait";
  /** How long ADD waits for the policy under `wait`. */
  readonly waitMs: number;
  /** Connections that an address has from before its pod's policy was in force end with ADD. */
  readonly cutEstablished: boolean;
  /** Tell nflog group 84 of drops, where this plugin makes the table; undefined: leave it as it is. */
  readonly logDrops: boolean | undefined;
}

const POSTURES = ["allow", "deny", "wait"] as const;
const DEFAULT_WAIT_SECONDS = 10;

/** @throws {CniFailure} invalidConfig, naming every fault. */
export function parsePolicyConfig(call: CniCall, environment: Readonly<Record<string, string>>): PolicyConfig {
  const { raw } = call.conf;
  const faults: string[] = [];
  const flag = (key: string): boolean | undefined => {
    const value = raw[key];
    if (value !== undefined && typeof value !== "boolean")
      faults.push(`${key} is ${JSON.stringify(value)}, want true or false`);
    return typeof value === "boolean" ? value : undefined;
  };
  const { default: unknown = "allow", waitSeconds = DEFAULT_WAIT_SECONDS } = raw;
  const posture = POSTURES.find((p) => p === unknown);
  if (posture === undefined) faults.push(`default is ${JSON.stringify(unknown)}, want "allow", "deny" or "wait"`);
  if (typeof waitSeconds !== "number" || !(waitSeconds >= 0 && waitSeconds <= 120))
    faults.push(`waitSeconds is ${JSON.stringify(waitSeconds)}, want seconds from 0 to 120`);
  const [cutEstablished, logDrops] = [flag("cutEstablished"), flag("logDrops")];
  if (faults.length > 0)
    throw new CniFailure(
      CODE.invalidConfig,
      `network "${call.conf.name}": ${faults.join("; ")}`,
      "correct the terway-policy entry of the conflist",
    );
  return {
    ...placesOf(call, environment),
    unknown: posture ?? "allow",
    waitMs: 1000 * Number(waitSeconds),
    cutEstablished: cutEstablished ?? true,
    logDrops,
  };
}
