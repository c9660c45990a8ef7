/**
 * Our plugins against Debian's Go plugins, in one run and in turn: latency, throughput, CPU, memory. Then the parts
 * that are files of their own here: other modes, chained plugins, limits, policies, packets, the store.
 *
 *   npm run bench [-- --json] [--pods N] [--rounds N]
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { addAddress } from "../../ipam/store/addresses.ts";
import { setEniLink, setEniState, upsertEni } from "../../ipam/store/enis.ts";
import { setFacts } from "../../ipam/store/facts.ts";
import { openStore } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import type { Call, Run } from "./driver.ts";
import { percentile } from "./percentile.ts";
import { buildDriver, runPlan } from "./run-driver.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    pods: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
  },
});
const PODS = Number(values.pods);
const ROUNDS = Number(values.rounds);
const CONCURRENCY = [1, 8, 32];
const OURS = join(root, "dist/cni");
const GO = "/usr/lib/cni";
const prefix = `bench${process.pid % 1000}`;

interface Peer {
  readonly name: string;
  readonly path: string;
  readonly stdin: string;
}

interface Figures {
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** Longest wait over the median: fairness. */
  readonly maxOverMedian: number;
  readonly cpuMs: number;
  readonly peakRssMiB: number;
  readonly perSecond: number;
}

function figures(runs: readonly Run[]): Figures {
  const wall = runs.flatMap((r) => r.samples.map((s) => s.wallMs));
  const p50Ms = percentile(wall, 50);
  return {
    p50Ms,
    p99Ms: percentile(wall, 99),
    maxOverMedian: percentile(
      runs.map(
        (r) =>
          Math.max(...r.samples.map((s) => s.wallMs)) /
          percentile(
            r.samples.map((s) => s.wallMs),
            50,
          ),
      ),
      50,
    ),
    cpuMs: percentile(
      runs.flatMap((r) => r.samples.map((s) => s.cpuMs)),
      50,
    ),
    peakRssMiB: Math.max(...runs.flatMap((r) => r.samples.map((s) => s.peakRssKiB))) / 1024,
    perSecond: percentile(
      runs.map((r) => (1000 * r.samples.length) / r.totalMs),
      50,
    ),
  };
}

/** A node with one ENI and a filled store, as the agent leaves them. The store stays open here, as it does in the agent. */
function prepareNode(node: Netns, storePath: string) {
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, storePath);
  // Its MAC address and index are the ENI's: ADD looks whether they are.
  const mac = "00:16:3e:00:00:01";
  runTool("ip", ["-n", node.name, "link", "add", "eth1", "address", mac, "type", "veth", "peer", "name", "wire"]);
  const [eth1] = JSON.parse(runTool("ip", ["-n", node.name, "-j", "link", "show", "eth1"])) as [{ ifindex: number }];
  for (const link of ["eth1", "wire"]) runTool("ip", ["-n", node.name, "link", "set", link, "up"]);
  runTool("ip", ["-n", node.name, "addr", "add", "10.1.0.1/32", "dev", "eth1"]);
  runTool("nsenter", [`--net=${node.path}`, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
  runTool("ip", [
    "-n",
    node.name,
    "route",
    "add",
    "default",
    "via",
    "10.1.255.253",
    "dev",
    "eth1",
    "onlink",
    "table",
    "17001",
  ]);
  inTransaction(store.db, () => {
    upsertEni(store.db, {
      id: "eni-bench",
      mac,
      kind: "shared",
      state: "ready",
      vswitchId: "vsw-bench",
      securityGroups: ["sg"],
      primary4: "10.1.0.1",
      cidr4: "10.1.0.0/16",
      gateway4: "10.1.255.253",
      primary6: undefined,
      cidr6: undefined,
      gateway6: undefined,
      mtu: 1500,
      createdMs: 0,
    });
    setEniState(store.db, "eni-bench", "ready");
    setEniLink(store.db, "eni-bench", { ifname: "eth1", ifindex: eth1.ifindex, mtu: 1500, preparedBoot: store.bootId });
    for (let i = 0; i < PODS * 2; i++) addAddress(store.db, "eni-bench", `10.1.${1 + (i >> 7)}.${1 + (i & 127)}`, 0);
    setFacts(store.db, { node_ip: "10.1.0.1", cooldown_ms: "0" });
  });
  return store;
}

function callsOf(peer: Peer, verb: string, pods: readonly Netns[]): Call[] {
  return pods.map((pod, i) => ({
    path: peer.path,
    stdin: peer.stdin,
    env: {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      CNI_COMMAND: verb,
      CNI_CONTAINERID: `${peer.name}-${i}`,
      CNI_NETNS: pod.path,
      CNI_IFNAME: "eth0",
      CNI_PATH: `${OURS}:${GO}`,
    },
  }));
}

const PARTS = ["modes", "chained", "bandwidth", "policy", "packets", "store"] as const;

/** The benchmark of one part, in a process of its own: it prints for people, or gives its figures. */
function runPart(part: (typeof PARTS)[number]): unknown {
  const args = ["--disable-warning=ExperimentalWarning", join(root, `test/bench/${part}.ts`)];
  if (!values.json) console.log(`\n${part}`);
  const ran = spawnSync(process.execPath, values.json ? [...args, "--json"] : args, {
    encoding: "utf8",
    stdio: ["ignore", values.json ? "pipe" : "inherit", "inherit"],
  });
  if (ran.status !== 0) throw new Error(`the ${part} benchmark failed: see its message above`);
  return values.json ? JSON.parse(ran.stdout.trim().split("\n").at(-1) ?? "{}") : undefined;
}

function main(): void {
  const program = buildDriver();
  const folder = mkdtempSync(join(tmpdir(), "terway-bench-"));
  const node = createNetns(`${prefix}-node`);
  const pods: Netns[] = [];
  try {
    for (let i = 0; i < PODS; i++) pods.push(createNetns(`${prefix}-${i}`));
    const storePath = join(folder, "ipam.db");
    const store = prepareNode(node, storePath);
    const ours: Peer = {
      name: "terway",
      path: join(OURS, "terway-eni"),
      stdin: JSON.stringify({
        cniVersion: "1.0.0",
        name: "bench",
        type: "terway-eni",
        mode: "shared",
        store: storePath,
        logDir: folder,
        ipam: { type: "terway-ipam", cooldownSeconds: 0 },
      }),
    };
    const go: Peer = {
      name: "go",
      path: join(GO, "ptp"),
      stdin: JSON.stringify({
        cniVersion: "1.0.0",
        name: "go",
        type: "ptp",
        ipam: {
          type: "host-local",
          dataDir: folder,
          ranges: [[{ subnet: "10.99.0.0/16" }]],
          routes: [{ dst: "0.0.0.0/0" }],
        },
      }),
    };
    const results = CONCURRENCY.map((concurrency) => {
      const runs = { terway: { ADD: [] as Run[], DEL: [] as Run[] }, go: { ADD: [] as Run[], DEL: [] as Run[] } };
      // In turn, so that a machine that changes its speed changes it for both; the first round warms up.
      for (let round = 0; round <= ROUNDS; round++) {
        for (const peer of [ours, go]) {
          for (const verb of ["ADD", "DEL"] as const) {
            const run = runPlan(program, { netns: node.path, concurrency, calls: callsOf(peer, verb, pods) });
            if (round > 0) runs[peer === ours ? "terway" : "go"][verb].push(run);
          }
          store.db.all("PRAGMA wal_checkpoint(PASSIVE)"); // the agent's part
        }
      }
      const of = (verb: "ADD" | "DEL") => {
        const [a, b] = [figures(runs.terway[verb]), figures(runs.go[verb])];
        return {
          terway: a,
          go: b,
          ratio: { p50: a.p50Ms / b.p50Ms, cpu: a.cpuMs / b.cpuMs, perSecond: a.perSecond / b.perSecond },
        };
      };
      return { concurrency, add: of("ADD"), del: of("DEL") };
    });
    store.db.close();
    const sizes = Object.fromEntries(
      ["ipam", "eni", "ipvlan", "trunk", "bandwidth", "policy"].map((p) => [
        `terway-${p}`,
        statSync(join(OURS, `terway-${p}`)).size / 1e6,
      ]),
    );
    const calls = { pods: PODS, rounds: ROUNDS, results, executableMB: sizes };
    report(calls);
    const parts = Object.fromEntries(PARTS.map((part) => [part, runPart(part)]));
    if (values.json) process.stdout.write(`${JSON.stringify({ ...calls, ...parts })}\n`);
  } finally {
    for (const pod of pods) pod.close();
    node.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Report {
  readonly pods: number;
  readonly rounds: number;
  readonly results: readonly { readonly concurrency: number; readonly add: Pair; readonly del: Pair }[];
  readonly executableMB: Readonly<Record<string, number>>;
}
interface Pair {
  readonly terway: Figures;
  readonly go: Figures;
  readonly ratio: { readonly p50: number; readonly cpu: number; readonly perSecond: number };
}

function report(r: Report): void {
  const out = values.json ? process.stderr : process.stdout;
  out.write(
    `terway-eni shared + terway-ipam against Go ptp + host-local: ${r.pods} pods, ${r.rounds} rounds in turn\n\n`,
  );
  out.write(
    "at once  verb   ours p50   p99   CPU ms  pods/s   |  Go p50    p99   CPU ms  pods/s   |  p50 ratio  CPU ratio  pods/s ratio  longest/median\n",
  );
  for (const { concurrency, add, del } of r.results) {
    for (const [verb, pair] of [
      ["ADD", add],
      ["DEL", del],
    ] as const) {
      const n = (x: number, width: number, digits = 1) => x.toFixed(digits).padStart(width);
      const side = (f: Figures) => `${n(f.p50Ms, 8, 2)} ${n(f.p99Ms, 7)} ${n(f.cpuMs, 7, 2)} ${n(f.perSecond, 7, 0)}`;
      out.write(
        `${String(concurrency).padStart(7)}  ${verb}   ${side(pair.terway)}   | ${side(pair.go)}   | ${n(pair.ratio.p50, 9, 2)} ${n(pair.ratio.cpu, 10, 2)} ${n(pair.ratio.perSecond, 12, 2)} ${n(pair.terway.maxOverMedian, 13, 1)}\n`,
      );
    }
  }
  const [single] = r.results;
  out.write(
    `\npeak memory of a plugin process: ours ${single?.add.terway.peakRssMiB.toFixed(1)} MiB, Go ${single?.add.go.peakRssMiB.toFixed(1)} MiB\n`,
  );
  out.write(
    `executables: ${Object.entries(r.executableMB)
      .map(([k, v]) => `${k} ${v.toFixed(2)} MB`)
      .join(", ")}\n`,
  );
}

main();
