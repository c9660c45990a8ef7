/** terway-agent: reads its configuration, finds out who it is, and keeps the store full until SIGTERM. */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { parseArgs } from "node:util";
import { type EniConfOutcome, keysNotActedOn, parseEniConf } from "../../shared/config/eni-conf.ts";
import { createAlibabaCloud } from "../cloud/alibaba.ts";
import type { InstanceLimits } from "../cloud/cloud-api.ts";
import { fixedCredentials, roleCredentials } from "../cloud/credentials.ts";
import { createMetadataClient, DEFAULT_METADATA_URL, discoverSelf, type Self } from "../cloud/metadata.ts";
import { createRateLimiter, ratesOf } from "../cloud/rate-limit.ts";
import { DEFAULT_STORE } from "../store/open.ts";
import { lockForAgent, openAgentStore, startAgent } from "./agent.ts";
import { type AgentConfig, type AgentContext, nowMs } from "./context.ts";
import { createMetrics } from "./metrics.ts";
import { startPolicy } from "./policy.ts";
import type { AgentOptions } from "./settings.ts";
import { createShapingKeeper } from "./shaping.ts";

function readOptions(): AgentOptions {
  const { values } = parseArgs({
    options: {
      config: { type: "string", default: "/etc/eni/eni_conf" },
      store: { type: "string", default: process.env.TERWAY_STORE ?? DEFAULT_STORE },
      metadata: { type: "string", default: process.env.METADATA_URL ?? DEFAULT_METADATA_URL },
      "node-name": { type: "string" },
      "pod-cidr": { type: "string", multiple: true, default: [] },
      "ip-stack": { type: "string", default: "ipv4" },
      metrics: { type: "string" },
      "reconcile-seconds": { type: "string", default: "600" },
      "policy-dir": { type: "string" },
      "qos-config": { type: "string" },
    },
  });
  return {
    storePath: values.store,
    configPath: values.config,
    metadataUrl: values.metadata,
    ecsEndpoint: process.env.ECS_ENDPOINT,
    vpcEndpoint: process.env.VPC_ENDPOINT,
    nodeName: values["node-name"],
    podCidrs: values["pod-cidr"],
    metricsAddress: values.metrics,
    ipStack: values["ip-stack"] === "dual" ? "dual" : "ipv4",
    reconcileMs: Number(values["reconcile-seconds"]) * 1000,
    policyDir: values["policy-dir"],
    qosConfigPath: values["qos-config"],
    dieAt: process.env.TERWAY_TEST_DIE_AT,
  };
}

/** The API takes no more in one call. */
const ADDRESSES_PER_CALL = 10;

type LogLevel = "info" | "warn" | "error";
const lastSaid = new Map<string, number>();
const SAY_AGAIN_MS = 60_000;

/** JSON lines on stderr. The same words are said once a minute. */
function log(level: LogLevel, msg: string, fields: Readonly<Record<string, unknown>> = {}): void {
  const now = performance.now();
  if (now - (lastSaid.get(msg) ?? Number.NEGATIVE_INFINITY) < SAY_AGAIN_MS) return;
  lastSaid.set(msg, now);
  if (lastSaid.size > 1000) lastSaid.clear();
  process.stderr.write(`${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`);
}

function readConfig(path: string): EniConfOutcome & { readonly config: NonNullable<EniConfOutcome["config"]> } {
  const outcome = parseEniConf(readFileSync(path, "utf8"));
  for (const warning of outcome.warnings) log("warn", `${path}: ${warning.key}: ${warning.message}`);
  if (outcome.config === undefined) throw new Error(`${path}: ${outcome.faults.map((f) => f.message).join("; ")}`);
  const idle = keysNotActedOn(outcome);
  if (idle.length > 0) log("warn", `${path}: read but not acted on yet: ${idle.join(", ")}`);
  return { ...outcome, config: outcome.config };
}

function agentConfig(
  config: ReturnType<typeof readConfig>["config"],
  self: Self,
  limits: InstanceLimits,
  options: AgentOptions,
): AgentConfig {
  const vswitchIds = config.vswitches[self.zone] ?? [];
  if (vswitchIds.length === 0)
    throw new Error(
      `eni_conf: vswitches has no vSwitch of this node's zone ${self.zone}, only of ${Object.keys(config.vswitches).join(", ")}: add one`,
    );
  if (config.networkMode !== "ENIIP" && config.networkMode !== "VPC")
    throw new Error(`eni_conf: network_mode ${config.networkMode} is not built yet: use ENIIP or VPC`);
  const dualStack = options.ipStack === "dual";
  const perEni = Math.max(0, Math.min(limits.ipv4PerEni - 1, dualStack ? limits.ipv6PerEni : Number.POSITIVE_INFINITY));
  const capacity = Math.max(0, limits.enis - 1) * perEni;
  const maxIdle = Math.min(config.maxPoolSize, capacity);
  const minIdle = Math.min(config.minPoolSize, maxIdle);
  if (maxIdle < config.maxPoolSize || minIdle < config.minPoolSize) {
    log(
      "warn",
      `pool ${config.minPoolSize} to ${config.maxPoolSize} is more than this instance type carries: ${minIdle} to ${maxIdle} is in force`,
    );
  }
  return {
    mode: config.networkMode === "VPC" ? "vpc" : "shared",
    vswitchIds,
    securityGroups: [config.securityGroup],
    eniTags: config.eniTags,
    orphanTtlMs: config.orphanEniTtlSeconds * 1000,
    pool: {
      minIdle,
      maxIdle,
      batch: ADDRESSES_PER_CALL,
      idleTtlMs: config.idleIpTtlSeconds * 1000,
      dualStack,
      fill: config.eniSelectionPolicy === "least-ip" ? "fewest" : "most",
      hotPlug: config.hotPlug,
    },
  };
}

/** For tests: SIGKILL at a named point, the nth time. */
function killPoint(dieAt: string | undefined): (point: string) => void {
  const [wanted = "", nth = "1"] = dieAt?.split("@") ?? [];
  let left = Number(nth);
  return (point) => {
    if (point === wanted && --left === 0) process.kill(process.pid, "SIGKILL");
  };
}

async function main(): Promise<void> {
  const options = readOptions();
  const { config } = readConfig(options.configPath);
  const store = openAgentStore(options.storePath);
  lockForAgent(options.storePath);
  if (store.notice !== undefined) log("error", store.notice);
  const nodeName = options.nodeName ?? hostname();
  const metrics = createMetrics(nodeName);
  const metadata = createMetadataClient(options.metadataUrl);
  const self = await discoverSelf(metadata);
  const cloud = createAlibabaCloud({
    region: self.region,
    ecsEndpoint: options.ecsEndpoint,
    vpcEndpoint: options.vpcEndpoint,
    credentials:
      config.accessKey !== "" ? fixedCredentials(config.accessKey, config.accessSecret) : roleCredentials(metadata),
    observe: metrics.observeCall,
    limiter: createRateLimiter(ratesOf(config), nowMs()),
    onLimited: metrics.limitHit,
  });
  const limits = await cloud.instanceLimits(self.instanceType);
  const inForce = agentConfig(config, self, limits, options);
  const first6 = (await metadata.get(`network/interfaces/macs/${self.primaryMac}/ipv6s`))
    ?.replace(/[[\]\s]/g, "")
    .split(",")[0];
  const ctx: AgentContext = {
    store,
    cloud,
    self,
    limits,
    config: inForce,
    metrics,
    inhibitions: {},
    log,
    wake: () => undefined,
    reached: killPoint(options.dieAt),
  };
  const agent = await startAgent(
    ctx,
    {
      nodeName,
      podCidrs: options.podCidrs,
      dualStack: inForce.pool.dualStack,
      node6: first6,
      pick: config.preferEniWithMostIps ? "most" : "fewest",
    },
    options.metricsAddress,
    options.reconcileMs,
  );
  const { disableNetworkPolicy, eniTags } = config;
  const policy = disableNetworkPolicy ? undefined : startPolicy(ctx, { dir: options.policyDir, nodeName, eniTags });
  const shaping = createShapingKeeper(ctx, nodeName, options.qosConfigPath);
  shaping.start();
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      log("info", `${signal}: stopping; pods and ENIs stay as they are`);
      shaping.stop();
      policy?.stop();
      agent.stop();
      process.exit(0);
    });
  }
}

main().catch((error: Error) => {
  log("error", `terway-agent cannot run: ${error.message}`);
  process.exit(1);
});
