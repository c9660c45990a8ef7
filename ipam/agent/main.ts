/** terway-agent: reads its configuration, finds out who it is, and keeps the store full until SIGTERM. */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { setTimeout as pause } from "node:timers/promises";
import { type EniConfOutcome, keysNotActedOn, parseEniConf } from "../../shared/config/eni-conf.ts";
import type { EniConfig } from "../../shared/config/eni-conf-keys.ts";
import { trunkingEnabled } from "../../shared/config/eni-conf-rules.ts";
import {
  addressesPerEni,
  clampToInstance,
  memberEnis,
  podEnis,
  stackProblem,
  type InstanceLimits as TypeLimits,
} from "../../shared/config/instance-limits.ts";
import { familiesOf, type IpStack } from "../../shared/config/ip-stack.ts";
import { formatCidr, tryParseCidr } from "../../shared/net/cidr.ts";
import { hash128 } from "../../shared/net/hash.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createAlibabaCloud } from "../cloud/alibaba.ts";
import { type CloudApi, CloudError, type InstanceLimits } from "../cloud/cloud-api.ts";
import { fixedCredentials, roleCredentials } from "../cloud/credentials.ts";
import { awaitNetwork, createMetadataClient, discoverSelf, type Self } from "../cloud/metadata.ts";
import { createRateLimiter, type RateLimiter, ratesOf } from "../cloud/rate-limit.ts";
import { toTypeLimits } from "../cloud/type-limits.ts";
import type { Budget, PoolAction } from "../pool/decide.ts";
import { nodeVSwitches, poolConfigOf } from "../pool/pool-config.ts";
import { getFact, setFacts } from "../store/facts.ts";
import { isDamage, openStore, repairStore, type Store } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentFacts, lockForAgent, startAgent } from "./agent.ts";
import { lookAtVSwitches } from "./cloud-sync.ts";
import { type AgentConfig, type AgentContext, emptyLately, type PoolSpec } from "./context.ts";
import { createLog } from "./log.ts";
import { openManifests } from "./manifests.ts";
import { keepHeapSmall } from "./memory.ts";
import { createMetrics, serveMetrics } from "./metrics.ts";
import { keepNodeEnis } from "./node-enis.ts";
import { readOptions } from "./options.ts";
import { keepPodFacts, type PodFactsOptions } from "./pod-facts.ts";
import { endPolicy, startPolicy } from "./policy.ts";
import type { AgentOptions } from "./settings.ts";
import { createShapingKeeper } from "./shaping.ts";

const log = createLog((line) => process.stderr.write(line));

function readConfig(path: string): EniConfOutcome & { readonly config: NonNullable<EniConfOutcome["config"]> } {
  const outcome = parseEniConf(readFileSync(path, "utf8"));
  for (const warning of outcome.warnings) log("warn", `${path}: ${warning.key}: ${warning.message}`);
  if (outcome.config === undefined) throw new Error(`${path}: ${outcome.faults.map((f) => f.message).join("; ")}`);
  const idle = keysNotActedOn(outcome);
  if (idle.length > 0) log("warn", `${path}: read but not acted on yet: ${idle.join(", ")}`);
  return { ...outcome, config: outcome.config };
}

/** What is in force on this instance. */
function agentConfig(
  read: EniConfig,
  self: Self,
  limits: InstanceLimits,
  { ipStack = read.ipStack, reconcileMs }: Pick<AgentOptions, "ipStack" | "reconcileMs">,
): AgentConfig {
  const typeLimits = toTypeLimits(self.instanceType, limits);
  const problem = stackProblem(typeLimits, read.networkMode, ipStack);
  if (problem !== undefined) throw new Error(problem);
  const { config, warnings } = clampToInstance(read, typeLimits, ipStack);
  for (const w of warnings) log("warn", `eni_conf: ${w.key}: ${w.message}`);
  const vswitchIds = nodeVSwitches(config, self.zone);
  if (vswitchIds.length === 0)
    throw new Error(
      `eni_conf: vswitches has no vSwitch of this node's zone ${self.zone}, only of ${Object.keys(config.vswitches).join(", ")}: add one`,
    );
  if (config.networkMode === "Trunk" && memberEnis(typeLimits) === 0)
    throw new Error(
      `eni_conf: network_mode Trunk needs an instance type with trunk ENIs, which ${self.instanceType} is not: use ENIIP, or another type`,
    );
  if (trunkingEnabled(config) && memberEnis(typeLimits) === 0)
    log("warn", `eni_conf: trunking is on, and ${self.instanceType} has no trunk ENIs: pods get whole ENIs instead`);
  return {
    mode: MODES[config.networkMode],
    ownKind: ownKindOf(config, typeLimits),
    viaNode: config.serviceCidrs,
    ipStack,
    eniSlots: Math.min(podEnis(typeLimits), config.maxEni ?? Number.POSITIVE_INFINITY),
    pools: poolsOf(config, typeLimits, ipStack, reconcileMs),
    vswitchIds,
    securityGroups: [config.securityGroup],
    eniTags: config.eniTags,
    orphanTtlMs: config.orphanEniTtlSeconds * 1000,
    vswitchCacheTtlMs: config.vpcCacheTtlSeconds * 1000,
  };
}

const MODES = { ENIIP: "shared", VPC: "vpc", ENI: "exclusive", Trunk: "trunk" } as const;

/** Whether this instance can and may have members of a trunk. */
function trunks(config: EniConfig, limits: TypeLimits): boolean {
  return trunkingEnabled(config) && memberEnis(limits) > 0;
}

/** What a pod gets that asks for an ENI of its own (CFG-35). */
function ownKindOf(config: EniConfig, limits: TypeLimits): AgentConfig["ownKind"] {
  if (config.networkMode === "Trunk") return "member";
  return trunks(config, limits) && config.eniCapPolicy === "prefer_trunk" ? "member" : "exclusive";
}

/** The pools of the mode; those after the first begin empty and serve pods that ask for them. */
function poolsOf(
  config: EniConfig,
  limits: TypeLimits,
  ipStack: IpStack,
  reconcileMs: number | undefined,
): readonly PoolSpec[] {
  const sized = { ...poolConfigOf(config, ipStack), ...(reconcileMs !== undefined && { reconcileMs }) };
  const onDemand = { ...sized, minIdle: 0, maxIdle: 0, reservePercent: 0, preAttach: 0 };
  const spec = (kind: PoolSpec["kind"], pool: PoolSpec["pool"]): PoolSpec => ({
    kind,
    pool,
    limits: {
      enis: kind === "member" ? Math.min(memberEnis(limits), config.memberAdapters ?? 4094) : podEnis(limits),
      perEni: kind === "shared" ? addressesPerEni(limits, ipStack) : 1,
      ...(kind === "shared" ? {} : { whole: true }),
    },
  });
  switch (config.networkMode) {
    case "ENIIP":
      return [
        spec("shared", sized),
        spec("exclusive", onDemand),
        ...(trunks(config, limits) ? [spec("member", onDemand)] : []),
      ];
    case "ENI":
      return [spec("exclusive", sized)];
    case "Trunk":
      return [spec("member", sized), spec("shared", onDemand), spec("exclusive", onDemand)];
    case "VPC":
      return [spec("exclusive", onDemand)];
    default:
      return config.networkMode satisfies never;
  }
}

/** What the store remembers of the instance type: asking again can wait. */
function rememberedLimits(store: Store, self: Self): InstanceLimits | undefined {
  const text = getFact(store.db, "instance_limits");
  const known = getFact(store.db, "instance_type") === self.instanceType && text !== undefined;
  return known ? (JSON.parse(text) as InstanceLimits) : undefined;
}

function rememberLimits(store: Store, limits: InstanceLimits): void {
  inTransaction(store.db, () => setFacts(store.db, { instance_limits: JSON.stringify(limits) }));
}

/** Without the limits nothing can be decided: asked until there is an answer. */
async function askLimits(cloud: CloudApi, instanceType: string): Promise<InstanceLimits> {
  for (let failures = 0; ; failures++) {
    try {
      return await cloud.instanceLimits(instanceType);
    } catch (error) {
      if (!(error instanceof CloudError)) throw error;
      log("error", `waiting for the limits of ${instanceType}: ${error.message}`);
      const own = Math.min(60_000, 2000 * 2 ** failures) * (0.5 + Math.random());
      await pause(Math.max(own, error.retryAfterMs ?? 0));
    }
  }
}

/** The API operation whose budget stands for an action's. */
const ACTION_CALLS: Readonly<Record<PoolAction["kind"], string>> = {
  create: "CreateNetworkInterface",
  assign: "AssignPrivateIpAddresses",
  unassign: "UnassignPrivateIpAddresses",
  remove: "DetachNetworkInterface",
};

/** The limiter counts by performance.now(), the pool by CLOCK_BOOTTIME. */
function budgetsOf(limiter: RateLimiter, now: number): Readonly<Partial<Record<PoolAction["kind"], Budget>>> {
  const own = performance.now();
  return Object.fromEntries(
    Object.entries(ACTION_CALLS).map(([kind, call]) => {
      const { tokens, nextAtMs } = limiter.budget(call, own);
      return [kind, { tokens, nextAtMs: nextAtMs - own + now }];
    }),
  );
}

/** Nodes that start together must not call together: 0 to 1, from the instance's id. */
function seedOf(instanceId: string): number {
  const [a = 0, b = 0] = hash128(instanceId);
  return (a * 256 + b) / 65_536;
}

/** For tests: SIGKILL at a named point, the nth time. */
function killPoint(dieAt: string | undefined): (point: string) => void {
  const [wanted = "", nth = "1"] = dieAt?.split("@") ?? [];
  let left = Number(nth);
  return (point) => {
    if (point === wanted && --left === 0) process.kill(process.pid, "SIGKILL");
  };
}

/** Of the families that pods have. @throws when one of them has none. */
function podCidrsOf(podCidrs: readonly string[], ipStack: IpStack): readonly string[] {
  const cidrs = podCidrs.map((text) => {
    const cidr = tryParseCidr(text);
    if (cidr === undefined)
      throw new Error(`--pod-cidr is ${JSON.stringify(text)}: want a network such as 10.9.1.0/24`);
    return cidr;
  });
  return familiesOf(ipStack).flatMap((family) => {
    const found = cidrs.filter((cidr) => cidr.ip.family === family);
    if (found.length === 0 && cidrs.length > 0)
      throw new Error(`ip_stack ${ipStack} in network_mode VPC needs an IPv${family} pod range: give it by --pod-cidr`);
    // As the route table has it.
    return found.map(formatCidr);
  });
}

const DEPS = { sys: nodeSys, openSql: openNodeSql };

async function main(): Promise<void> {
  keepHeapSmall();
  const options = readOptions(process.argv.slice(2), process.env, (text) => log("warn", text));
  const { config } = readConfig(options.configPath);
  const store = openStore(DEPS, options.storePath);
  lockForAgent(options.storePath);
  if (store.notice !== undefined) log("error", store.notice);
  const nodeName = options.nodeName ?? hostname();
  const metrics = createMetrics(nodeName);
  const metadata = createMetadataClient(options.metadataUrl);
  const self = await discoverSelf(metadata);
  // By the clock of the calls.
  const limiter = createRateLimiter(ratesOf(config), performance.now());
  const cloud = createAlibabaCloud({
    region: self.region,
    ecsEndpoint: options.ecsEndpoint,
    vpcEndpoint: options.vpcEndpoint,
    credentials:
      config.accessKey !== "" ? fixedCredentials(config.accessKey, config.accessSecret) : roleCredentials(metadata),
    observe: metrics.observeCall,
    limiter,
    onLimited: metrics.limitHit,
  });
  const remembered = rememberedLimits(store, self);
  const limits = remembered ?? (await askLimits(cloud, self.instanceType));
  let inForce = agentConfig(config, self, limits, options);
  const facts: AgentFacts = {
    nodeName,
    podCidrs: inForce.mode === "vpc" ? podCidrsOf(options.podCidrs, inForce.ipStack) : [],
    node6: (await metadata.get(`network/interfaces/macs/${self.primaryMac}/ipv6s`))
      ?.replace(/[[\]\s]/g, "")
      .split(",")[0],
    pick: config.preferEniWithMostIps ? "most" : "fewest",
    seed: options.seed ?? seedOf(self.instanceId),
    limitsAsked: remembered === undefined,
    storeKept: store.notice === undefined && process.env[STORE_LOST] === undefined,
  };
  if (options.metricsAddress !== undefined) await serveMetrics(metrics.registry, options.metricsAddress);
  if (remembered === undefined) rememberLimits(store, limits);
  let soon: () => void = () => undefined;
  const ctx: AgentContext = {
    store,
    cloud,
    self,
    get config() {
      return inForce;
    },
    metrics,
    lately: emptyLately(),
    toldNetwork: (mac) => awaitNetwork(metadata, mac, familiesOf(inForce.ipStack)),
    budgets: (now) => budgetsOf(limiter, now),
    relimit(asked) {
      inForce = agentConfig(config, self, asked, options);
      rememberLimits(store, asked);
      const { maxIdle = 0, minIdle = 0 } = inForce.pools[0]?.pool ?? {};
      inTransaction(store.db, () => setFacts(store.db, { max_pool: String(maxIdle), min_pool: String(minIdle) }));
    },
    log,
    wake: () => soon(),
    onWake(decide) {
      soon = decide;
    },
    storeLost: (error) => beginAnew(store, error),
    reached: killPoint(options.dieAt),
  };
  if (inForce.ipStack !== "ipv4" && facts.node6 === undefined)
    log(
      "error",
      `ip_stack ${inForce.ipStack}: this node's primary ENI has no IPv6 address, by which the node could reach its pods: assign one and start the agent again`,
    );
  const agent = startAgent(ctx, facts);
  const { disableNetworkPolicy, eniTags } = config;
  const shaping = createShapingKeeper(ctx, nodeName, options.qosConfigPath);
  shaping.start();
  const { policyDir, cutEstablished, logDrops } = options;
  const manifests = policyDir === undefined ? undefined : openManifests(ctx, policyDir);
  const podFacts = manifests && keepPodFacts(ctx, manifests, podFactsOptions(ctx, nodeName));
  const stopNodeEnis = manifests ? keepNodeEnis(ctx, manifests) : () => undefined;
  if (disableNetworkPolicy) endPolicy(ctx);
  const policy = disableNetworkPolicy
    ? undefined
    : startPolicy(ctx, { manifests, nodeName, eniTags, cutEstablished, logDrops });
  manifests?.start();
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      log("info", `${signal}: stopping; pods and ENIs stay as they are`);
      shaping.stop();
      manifests?.stop();
      podFacts?.stop();
      stopNodeEnis();
      policy?.stop();
      agent.stop();
      process.exit(0);
    });
  }
}

function podFactsOptions(ctx: AgentContext, nodeName: string): PodFactsOptions {
  return {
    nodeName,
    means: () => ({
      mode: ctx.config.mode,
      zone: ctx.self.zone,
      kinds: ctx.config.pools.map((p) => p.kind),
      own: ctx.config.ownKind,
      securityGroups: [...ctx.config.securityGroups].sort(),
    }),
    zonesOf: async (ids) => new Map((await lookAtVSwitches(ctx, ids)).map((v) => [v.id, v.zone])),
  };
}

/** Of the process that goes on with another store: what it read there may not be all there was. */
const STORE_LOST = "TERWAY_STORE_LOST";

/**
 * The store is damaged, or another file by now: repairs it if need be, and starts the program anew in this same process.
 * Everything that had the old one open ends with that; calls under way are in the store as intents.
 */
function beginAnew(store: Store, error: unknown): never {
  log("error", `starting anew: ${(error as Error).message}`);
  try {
    store.db.close();
    if (isDamage(error)) {
      const { notice, db } = repairStore(DEPS, store.path);
      if (notice !== undefined) log("error", notice);
      db.close();
    }
  } catch (failure) {
    fail(failure as Error);
  }
  const { execPath, execArgv, argv, env } = process;
  return process.execve?.(execPath, [execPath, ...execArgv, ...argv.slice(1)], { ...env, [STORE_LOST]: "1" }) as never;
}

function fail(error: Error): never {
  log("error", `terway-agent cannot run: ${error.message}`);
  process.exit(1);
}

main().catch((error: Error) => fail(error));
