/**
 * A small cluster on this machine: the emulated cloud, nodes in two zones with an agent each, and a CNI runtime for
 * every node. What the demo, the lab, the end-to-end tests and the benchmark stand on.
 */
import { type ChildProcess, spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { familiesOf, type IpStack } from "../../shared/config/ip-stack.ts";
import { type Cloud, type CloudOptions, createCloud, DEFAULT_SECURITY_GROUP } from "../cloud/cloud.ts";
import type { Instance } from "../cloud/model.ts";
import { createNetns, type Netns } from "../cloud/netns.ts";
import { patient } from "../kernel/patience.ts";
import { type CniRuntime, type Conflist, createRuntime, type PluginConf, type Pod } from "../runtime/cni-runtime.ts";
import { exec, inNetns } from "../runtime/exec.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
export const CNI_PATH = [join(root, "dist/cni"), "/usr/lib/cni", "/opt/cni/bin"];

export type LabMode = "eniip-veth" | "vpc" | "eni-exclusive" | "eniip-ipvlan" | "trunk";

const NETWORK_MODES: Readonly<Record<LabMode, string>> = {
  "eniip-veth": "ENIIP",
  "eniip-ipvlan": "ENIIP",
  vpc: "VPC",
  "eni-exclusive": "ENI",
  trunk: "Trunk",
};

export interface WorldOptions {
  /** Tells several worlds on one machine apart; namespaces begin with it. */
  readonly prefix: string;
  readonly nodes: number;
  readonly mode: LabMode;
  readonly instanceType: string;
  readonly poolMin: number;
  readonly poolMax: number;
  /** Absent: ipv4. */
  readonly ipStack?: IpStack;
  readonly cooldownSeconds?: number;
  /** More keys of eni_conf. */
  readonly eniConf?: Readonly<Record<string, unknown>>;
  readonly cloud?: Partial<CloudOptions>;
  readonly reconcileSeconds?: number;
  /** Restarted agents fill up at their own time, as in a fleet; else at once. */
  readonly spread?: boolean;
  /** Agents read manifests from a folder, see {@link WorldNode.manifest}. */
  readonly manifests?: boolean;
  /** Do not start agents. */
  readonly agents?: boolean;
  /** Types of the chained plugins to keep of the shipped conflist; the interface plugin alone unless given. */
  readonly chained?: readonly string[];
}

export interface WorldNode {
  readonly name: string;
  readonly zone: string;
  readonly instance: Instance;
  /** Path of the node's network namespace. */
  readonly netns: string;
  readonly dir: string;
  readonly store: string;
  readonly conflistPath: string;
  readonly metricsAddress: string;
  readonly agentLog: string;
  readonly runtime: CniRuntime;
  agent: ChildProcess | undefined;
  startAgent(env?: Readonly<Record<string, string>>): void;
  /** Resolves when the process has ended. */
  stopAgent(signal?: NodeJS.Signals): Promise<void>;
  /** From /metrics of the agent. */
  metric(name: string): Promise<number | undefined>;
  newPod(): WorldPod;
  /** Writes a file of manifests into the agent's folder, as one step. */
  manifest(file: string, ...objects: readonly object[]): void;
}

export interface WorldPod extends Pod {
  readonly ns: Netns;
  destroy(): void;
}

export interface World {
  readonly prefix: string;
  readonly cloud: Cloud;
  readonly nodes: readonly WorldNode[];
  readonly dir: string;
  close(): Promise<void>;
}

const ZONES = ["cn-emulated-a", "cn-emulated-b"] as const;

/** The conflist of the mode, as shipped, with this node's store; chained plugins that are not wanted are left out. */
function conflistOf(options: WorldOptions, store: string, logDir: string): Conflist {
  const { mode, cooldownSeconds, chained = [] } = options;
  const shipped = JSON.parse(readFileSync(join(root, "conflist", `${mode}.conflist`), "utf8")) as Conflist;
  const plugins = shipped.plugins
    .filter((p) => p.ipam !== undefined || chained.includes(p.type))
    .map((p): PluginConf => {
      const ipam = p.ipam as Record<string, unknown> | undefined;
      // A pod that asks for an ENI waits until it is made: longer where everything takes longer.
      const waitSeconds = patient(30);
      return {
        ...p,
        store,
        logDir,
        ...(ipam
          ? {
              ipam: {
                ...ipam,
                store,
                logDir,
                waitSeconds,
                ...(cooldownSeconds === undefined ? {} : { cooldownSeconds }),
              },
            }
          : {}),
      } as PluginConf;
    });
  // Debian's portmap knows no 1.1.0.
  return { ...shipped, cniVersion: chained.includes("portmap") ? shipped.cniVersion : "1.1.0", plugins };
}

/** Services of each family in use. */
export function serviceCidrs(stack: IpStack): readonly string[] {
  return familiesOf(stack).map((family) => (family === 4 ? "172.16.0.0/16" : "fd00:16::/108"));
}

/** Of a node in VPC mode. */
function podCidrs(stack: IpStack, node: number): readonly string[] {
  return familiesOf(stack).map((family) => (family === 4 ? `172.20.${node}.0/24` : `fd00:20:0:${node}::/64`));
}

export async function createWorld(options: WorldOptions): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), "terway-world-"));
  const has6 = (options.ipStack ?? "ipv4") !== "ipv4";
  const cloud = await createCloud({
    prefix: options.prefix,
    fabric: true,
    ipv6: has6,
    ...options.cloud,
  });
  for (const [i, zone] of ZONES.entries()) {
    const six = (n: number) => (has6 ? { cidr6: `2408:4000:0:${n}::/64` } : {});
    cloud.model.addVSwitch({ id: `vsw-node-${i}`, zone, cidr: `10.${i}.0.0/24`, ...six(i + 1) });
    cloud.model.addVSwitch({ id: `vsw-pod-${i}`, zone, cidr: `10.${i + 10}.0.0/20`, ...six(i + 17) });
  }
  const nodes: WorldNode[] = [];
  const pods = new Set<WorldPod>();
  for (let i = 0; i < options.nodes; i++) {
    const node = createNode(options, cloud, dir, i, pods);
    nodes.push(node);
    openNodes.add(node);
  }
  if (options.agents !== false) for (const node of nodes) node.startAgent();
  return {
    prefix: options.prefix,
    cloud,
    nodes,
    dir,
    async close() {
      await Promise.all(nodes.map((n) => n.stopAgent("SIGTERM")));
      for (const node of nodes) openNodes.delete(node);
      for (const pod of pods) pod.destroy();
      await cloud.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

function createNode(
  options: WorldOptions,
  cloud: Cloud,
  worldDir: string,
  index: number,
  pods: Set<WorldPod>,
): WorldNode {
  const { ipStack = "ipv4" } = options;
  const zoneIndex = index % ZONES.length;
  const name = `node-${index + 1}`;
  const instance = cloud.addInstance({ name, type: options.instanceType, vswitchId: `vsw-node-${zoneIndex}` });
  const netns = cloud.fabric?.instanceNetns(instance.id).path ?? "";
  const dir = join(worldDir, name);
  mkdirSync(dir, { recursive: true });
  const store = join(dir, "ipam.db");
  const conflist = conflistOf(options, store, join(dir, "log"));
  const conflistPath = join(dir, "10-terway.conflist");
  writeFileSync(conflistPath, JSON.stringify(conflist, null, 2));
  const eniConfPath = join(dir, "eni_conf");
  writeFileSync(
    eniConfPath,
    JSON.stringify({
      version: "1",
      network_mode: NETWORK_MODES[options.mode],
      security_group: DEFAULT_SECURITY_GROUP,
      service_cidr: serviceCidrs(ipStack).join(","),
      vswitches: Object.fromEntries(ZONES.map((zone, i) => [zone, [`vsw-pod-${i}`]])),
      max_pool_size: options.poolMax,
      min_pool_size: options.poolMin,
      // The built-in brake is for fleets that share an account: 10 calls a minute would make every test wait.
      rate_limit: { eni_create_qps: 10, eni_delete_qps: 10, ip_assign_qps: 20, ip_unassign_qps: 20, burst_size: 20 },
      ...options.eniConf,
    }),
  );
  const agentLog = join(dir, "agent.log");
  const manifestDir = join(dir, "manifests");
  if (options.manifests) mkdirSync(manifestDir);
  const metricsAddress = "127.0.0.1:9191";
  let serial = 0;
  const node: WorldNode = {
    name,
    zone: instance.zone,
    instance,
    netns,
    dir,
    store,
    conflistPath,
    metricsAddress,
    agentLog,
    runtime: createRuntime({ conflist, cniPath: CNI_PATH, netns }),
    agent: undefined,
    startAgent(env = {}) {
      const log = openSync(agentLog, "a");
      const args = [
        "--disable-warning=ExperimentalWarning",
        join(root, "ipam/agent/main.ts"),
        "--config",
        eniConfPath,
        "--store",
        store,
        "--metadata",
        cloud.inside.metadataUrl,
        "--node-name",
        name,
        "--metrics",
        metricsAddress,
        ...(options.mode === "vpc" ? podCidrs(ipStack, index).flatMap((cidr) => ["--pod-cidr", cidr]) : []),
        "--ip-stack",
        ipStack,
        ...(options.manifests ? ["--policy-dir", manifestDir] : []),
      ];
      const endpoint = `http://${cloud.inside.apiEndpoint}`;
      node.agent = inNetns(netns, () =>
        spawn(process.execPath, args, {
          env: {
            PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
            NODE_OPTIONS: process.env.NODE_OPTIONS ?? "", // what the virtual machine wants of Node
            ECS_ENDPOINT: endpoint,
            VPC_ENDPOINT: endpoint,
            ...(options.reconcileSeconds === undefined
              ? {}
              : { TERWAY_TEST_RECONCILE_SECONDS: String(options.reconcileSeconds) }),
            ...(options.spread ? {} : { TERWAY_TEST_SEED: "0" }),
            ...env,
          },
          stdio: ["ignore", log, log],
        }),
      );
      closeSync(log);
    },
    async stopAgent(signal = "SIGTERM") {
      const child = node.agent;
      if (child === undefined) return;
      node.agent = undefined;
      if (child.exitCode !== null || child.signalCode !== null) return;
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill(signal);
      await ended;
    },
    async metric(metricName) {
      const script = `fetch("http://${metricsAddress}/metrics").then(r=>r.text()).then(t=>process.stdout.write(t)).catch(()=>0)`;
      const { stdout } = await exec({ path: process.execPath, args: ["-e", script], env: {}, stdin: "", netns });
      const line = stdout.split("\n").find((l) => l.startsWith(`${metricName}{`));
      return line === undefined ? undefined : Number(line.split(" ").at(-1));
    },
    manifest(file, ...objects) {
      const documents = objects.length > 0 ? objects : [{ apiVersion: "v1", kind: "List", items: [] }];
      writeFileSync(join(dir, file), documents.map((o) => `---\n${JSON.stringify(o)}\n`).join(""));
      renameSync(join(dir, file), join(manifestDir, file));
    },
    newPod() {
      serial += 1;
      const id = `${name}-pod-${serial}`;
      const ns = createNetns(`${options.prefix}-${id}`);
      const pod: WorldPod = {
        containerId: id,
        netns: ns.path,
        ifname: "eth0",
        namespace: "default",
        name: id,
        uid: `uid-${id}`,
        ns,
        destroy() {
          if (!pods.delete(pod)) return;
          ns.close();
        },
      };
      pods.add(pod);
      return pod;
    },
  };
  return node;
}

/** Nodes of the worlds that are up: what their agents said last tells why something did not happen. */
const openNodes = new Set<WorldNode>();
const LAST_LINES = 15;

function lastWords({ name, agent, agentLog }: WorldNode): string {
  const state =
    agent === undefined
      ? "not started"
      : (agent.signalCode ?? (agent.exitCode === null ? "runs" : `exit ${agent.exitCode}`));
  const lines = existsSync(agentLog) ? readFileSync(agentLog, "utf8").trimEnd().split("\n").slice(-LAST_LINES) : [];
  return `\n${name}: agent ${state}${lines.map((l) => `\n  ${l}`).join("")}`;
}

/** Waits until `look` says something. @throws with `what` after the time is up, which is longer on a slow machine. */
export async function until<T>(
  what: string,
  ms: number,
  look: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const deadline = performance.now() + patient(ms);
  for (;;) {
    const seen = await look();
    if (seen !== undefined && seen !== false) return seen;
    if (performance.now() > deadline)
      throw new Error(`${what} did not happen within ${patient(ms)} ms${[...openNodes].map(lastWords).join("")}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
