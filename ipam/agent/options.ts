/** Reads the flags and the environment of the agent's process. */
import { parseArgs } from "node:util";
import { IP_STACKS, type IpStack } from "../../shared/config/ip-stack.ts";
import { DEFAULT_METADATA_URL } from "../cloud/metadata.ts";
import { SHORTEST_RECONCILE_MS } from "../pool/pool-config.ts";
import { DEFAULT_STORE } from "../store/open.ts";
import type { AgentOptions } from "./settings.ts";

/**
 * @param warn Told of what was taken for something else than it says.
 * @throws {Error} What cannot be taken at all, with what is wanted instead.
 */
export function readOptions(
  args: string[],
  env: Readonly<Record<string, string | undefined>>,
  warn: (text: string) => void,
): AgentOptions {
  const { values } = parseArgs({
    args,
    options: {
      config: { type: "string", default: "/etc/eni/eni_conf" },
      store: { type: "string", default: env.TERWAY_STORE ?? DEFAULT_STORE },
      metadata: { type: "string", default: env.METADATA_URL ?? DEFAULT_METADATA_URL },
      "node-name": { type: "string" },
      "pod-cidr": { type: "string", multiple: true, default: [] },
      "ip-stack": { type: "string" },
      metrics: { type: "string" },
      "reconcile-seconds": { type: "string" },
      "policy-dir": { type: "string" },
      "qos-config": { type: "string" },
      "cut-established": { type: "boolean", default: false },
      "log-drops": { type: "boolean", default: false },
    },
  });
  return {
    storePath: values.store,
    configPath: values.config,
    metadataUrl: values.metadata,
    ecsEndpoint: env.ECS_ENDPOINT,
    vpcEndpoint: env.VPC_ENDPOINT,
    nodeName: values["node-name"],
    podCidrs: values["pod-cidr"],
    metricsAddress: values.metrics,
    ipStack: stackOf(values["ip-stack"]),
    reconcileMs:
      numberOf("TERWAY_TEST_RECONCILE_SECONDS", env.TERWAY_TEST_RECONCILE_SECONDS, 1000) ??
      reconcileOf(values["reconcile-seconds"], warn),
    seed: numberOf("TERWAY_TEST_SEED", env.TERWAY_TEST_SEED),
    policyDir: values["policy-dir"],
    qosConfigPath: values["qos-config"],
    cutEstablished: values["cut-established"],
    logDrops: values["log-drops"],
    dieAt: env.TERWAY_TEST_DIE_AT,
  };
}

function stackOf(text: string | undefined): IpStack | undefined {
  if (text === undefined) return undefined;
  const stack = IP_STACKS.find((s) => s === text);
  if (stack === undefined) throw new Error(`--ip-stack is ${JSON.stringify(text)}: want ${IP_STACKS.join(", ")}`);
  return stack;
}

/** As `eni_conf`'s intervals, which are held to the same minimum. */
function reconcileOf(text: string | undefined, warn: (text: string) => void): number | undefined {
  const askedMs = numberOf("--reconcile-seconds", text, 1000);
  if (askedMs === undefined || askedMs >= SHORTEST_RECONCILE_MS) return askedMs;
  const seconds = SHORTEST_RECONCILE_MS / 1000;
  warn(
    `--reconcile-seconds is ${text}: less than ${seconds} is too often for the cloud's limits, ${seconds} is in force`,
  );
  return SHORTEST_RECONCILE_MS;
}

function numberOf(name: string, text: string | undefined, unit = 1): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text) * unit;
  if (text === "" || !Number.isFinite(value) || value < 0)
    throw new Error(`${name} is ${JSON.stringify(text)}: want a number`);
  return value;
}
