/**
 * terway-bandwidth against Debian's Go `bandwidth`: what each adds to ADD and DEL, and how near to the rate pods are held.
 *
 *   .ci/node test/bench/bandwidth.ts [--json] [--pods N] [--rounds N] [--no-rates]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { openStore } from "../../ipam/store/open.ts";
import { newLink } from "../../shared/netlink/rtnl/link.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { throughput } from "../lab/iperf.ts";
import { CNI_PATH } from "../lab/world.ts";
import { createRuntime } from "../runtime/cni-runtime.ts";
import type { Call, Run } from "./driver.ts";
import { percentile } from "./percentile.ts";
import { buildDriver, runPlan } from "./run-driver.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    pods: { type: "string", default: "32" },
    rounds: { type: "string", default: "4" },
    "no-rates": { type: "boolean", default: false },
  },
});
const PODS = Number(values.pods);
const ROUNDS = Number(values.rounds);
const prefix = `bb${process.pid % 1000}`;
const LIMITS = { ingressRate: 10e6, ingressBurst: 1e6, egressRate: 10e6, egressBurst: 1e6 };
const RATES = [1e6, 10e6, 100e6, 1e9];
const SECONDS = 4;

const PEERS = {
  terway: { path: join(root, "dist/cni/terway-bandwidth"), limits: LIMITS },
  "terway, no limit": { path: join(root, "dist/cni/terway-bandwidth"), limits: undefined },
  go: { path: "/usr/lib/cni/bandwidth", limits: LIMITS },
} as const;
type Peer = keyof typeof PEERS;

/** What an interface plugin leaves: a veth with both ends up. */
function makeLinks(node: Netns, pods: readonly Netns[]): void {
  for (const [i, pod] of pods.entries()) {
    node.nl.apply([newLink({ kind: "veth", name: `v${i}`, peer: { name: "eth0", netnsFd: pod.fd } })]);
    runTool("ip", ["-n", node.name, "link", "set", `v${i}`, "up"]);
    runTool("ip", ["-n", pod.name, "link", "set", "eth0", "up"]);
  }
}

function calls(peer: Peer, verb: "ADD" | "DEL", pods: readonly Netns[], store: string, logDir: string): Call[] {
  const { path, limits } = PEERS[peer];
  return pods.map((pod, i) => ({
    path,
    stdin: JSON.stringify({
      cniVersion: "1.0.0",
      name: "bench",
      type: "bandwidth",
      store,
      logDir,
      ...(limits ? { runtimeConfig: { bandwidth: limits } } : {}),
      prevResult: {
        cniVersion: "1.0.0",
        interfaces: [{ name: `v${i}` }, { name: "eth0", sandbox: pod.path }],
        ips: [{ address: `10.9.0.${i + 1}/32`, interface: 1 }],
      },
    }),
    env: {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      CNI_COMMAND: verb,
      CNI_CONTAINERID: `c${i}`,
      CNI_NETNS: pod.path,
      CNI_IFNAME: "eth0",
      CNI_PATH: dirname(path),
      CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p${i}`,
    },
  }));
}

function addAndDel(node: Netns, folder: string) {
  const program = buildDriver();
  const storePath = join(folder, "ipam.db");
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, storePath);
  const pods: Netns[] = [];
  const runs = new Map<string, Run[]>();
  try {
    for (let i = 0; i < PODS; i++) pods.push(createNetns(`${prefix}-${i}`));
    // In turn, so that a machine that changes its speed changes it for all; the first round warms up.
    for (let round = 0; round <= ROUNDS; round++) {
      for (const peer of Object.keys(PEERS) as Peer[]) {
        makeLinks(node, pods);
        for (const verb of ["ADD", "DEL"] as const) {
          const plan = { netns: node.path, concurrency: 1, calls: calls(peer, verb, pods, storePath, folder) };
          const run = runPlan(program, plan);
          if (round > 0) runs.set(`${peer} ${verb}`, [...(runs.get(`${peer} ${verb}`) ?? []), run]);
        }
        for (let i = 0; i < PODS; i++) runTool("ip", ["-n", node.name, "link", "del", `v${i}`]);
      }
    }
  } finally {
    store.db.close();
    for (const pod of pods) pod.close();
  }
  return Object.fromEntries(
    [...runs].map(([name, all]) => {
      const samples = all.flatMap((r) => r.samples);
      const of = (pick: (s: (typeof samples)[number]) => number, p: number) => percentile(samples.map(pick), p);
      return [name, { p50Ms: of((s) => s.wallMs, 50), p99Ms: of((s) => s.wallMs, 99), cpuMs: of((s) => s.cpuMs, 50) }];
    }),
  );
}

/** Payload over configured rate, for each rate, direction, protocol and family. */
async function accuracy(node: Netns, folder: string) {
  const rows: { rate: number; direction: string; protocol: string; family: number; share: number }[] = [];
  const pod = createNetns(`${prefix}-r`);
  const places = { store: join(folder, "rates.db"), logDir: folder };
  const ipam = {
    type: "terway-ipam",
    ...places,
    cooldownSeconds: 0,
    ranges: [[{ subnet: "10.79.0.0/24" }], [{ subnet: "fd79::/64" }]],
  };
  const bandwidth = { type: "terway-bandwidth", capabilities: { bandwidth: true }, ...places };
  const conflist = { cniVersion: "1.0.0", name: "rates", plugins: [{ type: "ptp", ipam }, bandwidth] };
  const runtime = createRuntime({ netns: node.path, cniPath: CNI_PATH, conflist });
  try {
    for (const rate of [...RATES, Number.POSITIVE_INFINITY]) {
      const limits = Number.isFinite(rate) ? { bandwidth: { ingressRate: rate, egressRate: rate } } : {};
      const attachment = { containerId: "rates", netns: pod.path, ifname: "eth0", runtimeConfig: limits };
      const { result } = await runtime.add(attachment);
      for (const ip of result.ips ?? []) {
        const address = ip.address.split("/")[0] ?? "";
        const family = address.includes(":") ? 6 : 4;
        for (const direction of ["ingress", "egress"]) {
          for (const protocol of ["TCP", "UDP"]) {
            // What the machine carries: UDP without a limit says nothing but how fast iperf3 is.
            if (!Number.isFinite(rate) && protocol === "UDP") continue;
            const bits = await throughput({
              server: pod.path,
              client: node.path,
              address,
              reverse: direction === "egress",
              seconds: SECONDS,
              ...(protocol === "UDP" ? { udpBits: rate * 1.5 } : {}),
            });
            rows.push({ rate, direction, protocol, family, share: Number.isFinite(rate) ? bits / rate : bits });
          }
        }
      }
      await runtime.del(attachment);
    }
  } finally {
    pod.close();
  }
  return rows;
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "terway-bench-bw-"));
  const node = createNetns(`${prefix}-node`);
  try {
    const plugins = addAndDel(node, folder);
    const rates = values["no-rates"] ? [] : await accuracy(node, folder);
    const out = values.json ? process.stderr : process.stdout;
    out.write(`one chained plugin, one pod at a time, ${PODS} pods, ${ROUNDS} rounds in turn\n`);
    for (const [name, f] of Object.entries(plugins))
      out.write(
        `${name.padEnd(24)} p50 ${f.p50Ms.toFixed(2).padStart(7)} ms  p99 ${f.p99Ms.toFixed(1).padStart(6)} ms  CPU ${f.cpuMs.toFixed(2)} ms\n`,
      );
    if (rates.length > 0) out.write("\npayload as a share of the configured rate\n");
    for (const r of rates)
      out.write(
        Number.isFinite(r.rate)
          ? `${String(r.rate / 1e6).padStart(6)} Mbit/s ${r.direction.padEnd(7)} ${r.protocol} IPv${r.family} ${(100 * r.share).toFixed(1).padStart(6)} %\n`
          : `unlimited     ${r.direction.padEnd(7)} ${r.protocol} IPv${r.family} ${(r.share / 1e9).toFixed(2)} Gbit/s\n`,
      );
    if (values.json) process.stdout.write(`${JSON.stringify({ plugins, rates })}\n`);
  } finally {
    node.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
