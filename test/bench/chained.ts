/**
 * What the two chained plugins add together: terway-bandwidth and terway-policy against Debian's Go `bandwidth` and
 * `firewall`, one pod at a time, in turn. Every pod has limits in both directions; ours has its NetworkPolicies besides,
 * on a node that holds 200 of them for 500 pods and 20,000 pods elsewhere.
 *
 *   .ci/node test/bench/chained.ts [--json] [--pods N] [--rounds N]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { PolicyCompiler } from "../../ipam/policy/compiler.ts";
import { createEnforcer } from "../../ipam/policy/enforcer.ts";
import { openStore } from "../../ipam/store/open.ts";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import { newLink } from "../../shared/netlink/rtnl/link.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { inNetns } from "../runtime/exec.ts";
import type { Call, Sample } from "./driver.ts";
import { percentile } from "./percentile.ts";
import { benchCluster, benchPod, localIp } from "./policy-cluster.ts";
import { buildDriver, runPlan } from "./run-driver.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    pods: { type: "string", default: "32" },
    rounds: { type: "string", default: "4" },
  },
});
const PODS = Number(values.pods);
const ROUNDS = Number(values.rounds);
const SIZE = { localPods: 500, policies: 200, remotePods: 20_000 };
/** What the two may add at most, ms (medians), and as a share of what the Go plugins add. */
const WANT = { ADD: 5, DEL: 3, share: 0.2 } as const;
const prefix = `bc${process.pid % 1000}`;
const LIMITS = { ingressRate: 10e6, ingressBurst: 1e6, egressRate: 10e6, egressBurst: 1e6 };

const CHAINS = {
  terway: [join(root, "dist/cni/terway-bandwidth"), join(root, "dist/cni/terway-policy")],
  go: ["/usr/lib/cni/bandwidth", "/usr/lib/cni/firewall"],
} as const;
type Peer = keyof typeof CHAINS;
const VERBS = ["ADD", "DEL"] as const;
type Verb = (typeof VERBS)[number];

/** What an interface plugin leaves: a veth with both ends up. */
function makeLinks(node: Netns, pods: readonly Netns[]): void {
  for (const [i, pod] of pods.entries()) {
    node.nl.apply([newLink({ kind: "veth", name: `v${i}`, peer: { name: "eth0", netnsFd: pod.fd } })]);
    runTool("ip", ["-n", node.name, "link", "set", `v${i}`, "up"]);
    runTool("ip", ["-n", pod.name, "link", "set", "eth0", "up"]);
  }
}

/** Both plugins for each pod, one after the other; DEL in the other order, as runtimes do. */
function calls(peer: Peer, verb: Verb, pods: readonly Netns[], store: string, logDir: string): Call[] {
  const paths = verb === "ADD" ? CHAINS[peer] : [...CHAINS[peer]].reverse();
  return pods.flatMap((pod, i) => {
    const { namespace, name } = benchPod(i, true);
    return paths.map((path) => ({
      path,
      stdin: JSON.stringify({
        cniVersion: "1.0.0",
        name: "bench",
        type: path.slice(path.lastIndexOf("/") + 1),
        ...(peer === "terway" ? { store, logDir } : {}),
        ...(path.endsWith("bandwidth") ? { runtimeConfig: { bandwidth: LIMITS } } : {}),
        prevResult: {
          cniVersion: "1.0.0",
          interfaces: [{ name: `v${i}` }, { name: "eth0", sandbox: pod.path }],
          ips: [{ address: `${localIp(i)}/32`, interface: 1 }],
        },
      }),
      env: {
        PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
        CNI_COMMAND: verb,
        CNI_CONTAINERID: `c${i}`,
        CNI_NETNS: pod.path,
        CNI_IFNAME: "eth0",
        CNI_PATH: dirname(path),
        CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=${namespace};K8S_POD_NAME=${name}`,
      },
    }));
  });
}

/** A node whose agent has brought the policies into store and kernel; the agent keeps the store open. */
function preparePolicies(node: Netns, storePath: string) {
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, storePath);
  const compiler = new PolicyCompiler({ nodeName: "here" });
  compiler.apply(benchCluster(SIZE).events);
  const nft = inNetns(node.path, () => openNft(nodeSys));
  createEnforcer(store, nft).bring(compiler.compile());
  nft.close();
  return store;
}

/** Of the two plugins, for each pod. */
function perPod(samples: readonly Sample[], pick: (s: Sample) => number): number[] {
  const out: number[] = [];
  for (let i = 0; i + 1 < samples.length; i += 2)
    out.push(samples.slice(i, i + 2).reduce((sum, s) => sum + pick(s), 0));
  return out;
}

const folder = mkdtempSync(join(tmpdir(), "terway-bench-chained-"));
const node = createNetns(`${prefix}-node`);
const pods: Netns[] = [];
const samples = new Map<string, Sample[]>();
try {
  const program = buildDriver();
  const storePath = join(folder, "ipam.db");
  const store = preparePolicies(node, storePath);
  for (let i = 0; i < PODS; i++) pods.push(createNetns(`${prefix}-${i}`));
  // In turn, so that a machine that changes its speed changes it for both; the first round warms up.
  for (let round = 0; round <= ROUNDS; round++) {
    for (const peer of ["terway", "go"] as const) {
      makeLinks(node, pods);
      for (const verb of VERBS) {
        const run = runPlan(program, {
          netns: node.path,
          concurrency: 1,
          calls: calls(peer, verb, pods, storePath, folder),
        });
        if (round > 0) samples.set(`${peer} ${verb}`, [...(samples.get(`${peer} ${verb}`) ?? []), ...run.samples]);
      }
      for (let i = 0; i < PODS; i++) runTool("ip", ["-n", node.name, "link", "del", `v${i}`]);
      store.db.all("PRAGMA wal_checkpoint(PASSIVE)"); // the agent's part
    }
  }
  store.db.close();
} finally {
  for (const pod of pods) pod.close();
  node.close();
  rmSync(folder, { recursive: true, force: true });
}

function figures(peer: Peer, verb: Verb) {
  const all = samples.get(`${peer} ${verb}`) ?? [];
  const wall = perPod(all, (s) => s.wallMs);
  const each = CHAINS[peer].map((path, i): [string, number] => {
    const at = verb === "ADD" ? i : 1 - i;
    const own = all.filter((_, n) => n % 2 === at).map((s) => s.wallMs);
    return [path.slice(path.lastIndexOf("/") + 1), percentile(own, 50)];
  });
  return {
    p50Ms: percentile(wall, 50),
    p99Ms: percentile(wall, 99),
    cpuMs: percentile(
      perPod(all, (s) => s.cpuMs),
      50,
    ),
    eachP50Ms: Object.fromEntries(each),
  };
}

const report = VERBS.map((verb) => {
  const [terway, go] = [figures("terway", verb), figures("go", verb)];
  const ratio = terway.p50Ms / go.p50Ms;
  return { verb, terway, go, ratio, met: terway.p50Ms <= WANT[verb] && ratio <= WANT.share };
});
const out = values.json ? process.stderr : process.stdout;
out.write(`both chained plugins together, one pod at a time, ${PODS} pods, ${ROUNDS} rounds in turn\n`);
for (const { verb, terway, go, ratio, met } of report) {
  const side = (f: typeof terway) =>
    `p50 ${f.p50Ms.toFixed(2)} p99 ${f.p99Ms.toFixed(1)} CPU ${f.cpuMs.toFixed(2)} ms (${Object.entries(f.eachP50Ms)
      .map(([name, ms]) => `${name} ${ms.toFixed(2)}`)
      .join(", ")})`;
  out.write(`${verb}  ours ${side(terway)}  |  Go ${side(go)}\n`);
  out.write(
    `     ratio ${ratio.toFixed(3)} (want <= ${WANT.share}), ${met ? "met" : "MISSED"} with <= ${WANT[verb]} ms\n`,
  );
}
if (values.json) process.stdout.write(`${JSON.stringify({ pods: PODS, rounds: ROUNDS, report })}\n`);
