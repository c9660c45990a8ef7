/**
 * What NetworkPolicy costs the agent: 500 pods here, 200 policies, 20,000 pods elsewhere. CPU time of the process, the
 * kernel's share included, from a changed object to the kernel's answer; a rebuild from nothing; memory.
 *
 *   node test/bench/policy.ts [--json] [--changes 100] [--remote 20000]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { keepHeapSmall } from "../../ipam/agent/memory.ts";
import { PolicyCompiler } from "../../ipam/policy/compiler.ts";
import { attachedPods, createEnforcer } from "../../ipam/policy/enforcer.ts";
import type { ObjectEvent } from "../../ipam/policy/objects.ts";
import { openStore } from "../../ipam/store/open.ts";
import { putPolicyAddress } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns } from "../cloud/netns.ts";
import { inNetns } from "../runtime/exec.ts";
import { percentile } from "./percentile.ts";
import { benchCluster, benchPod } from "./policy-cluster.ts";

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    changes: { type: "string", default: "100" },
    remote: { type: "string", default: "20000" },
  },
});
const size = { localPods: 500, policies: 200, remotePods: Number(values.remote) };
const folder = mkdtempSync(join(tmpdir(), "terway-bench-policy-"));
const node = createNetns(`benchp${process.pid % 1000}`);
const nft = inNetns(node.path, () => openNft(nodeSys));
const store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(folder, "ipam.db"));
const round = (n: number) => Number(n.toFixed(2));

/** What one piece of work takes. */
function measure<T>(work: () => T): { readonly value: T; readonly cpuMs: number; readonly wallMs: number } {
  const cpu = process.cpuUsage();
  const at = performance.now();
  const value = work();
  const { user, system } = process.cpuUsage(cpu);
  return { value, cpuMs: (user + system) / 1000, wallMs: performance.now() - at };
}

const enforcer = createEnforcer(store, nft);

/** As the agent does it: which pods are here, compile, store, program the difference. */
function bring(compiler: PolicyCompiler): number {
  compiler.setAttached(attachedPods(store));
  return enforcer.bring(compiler.compile()).changed.length;
}

keepHeapSmall(); // as the agent does
const rssBefore = process.memoryUsage().rss;
let cluster: ReturnType<typeof benchCluster> | undefined = benchCluster(size);
inTransaction(store.db, () => {
  for (const { namespace, name, addresses } of cluster?.attached ?? [])
    for (const address of addresses)
      putPolicyAddress(store.db, {
        network: "bench",
        containerId: `${namespace}.${name}`,
        ifname: "eth0",
        address,
        namespace,
        name,
        posture: "deny",
        sinceMs: 0,
      });
});
const compiler = new PolicyCompiler({ nodeName: "here" });
const first = measure(() => {
  compiler.apply(cluster?.events ?? []);
  return bring(compiler);
});
cluster = undefined;

function changes(local: boolean): number[] {
  return Array.from({ length: Number(values.changes) }, (_, i) => {
    // Every pod's label changes at most so often that each change is one.
    const [at, count] = [i * 7, local ? size.localPods : size.remotePods];
    const pod = benchPod(at % count, local);
    const app = `app-${(Number(pod.labels.app?.slice(4)) + 1 + Math.floor(at / count)) % 25}`;
    const event: ObjectEvent = { type: "set", object: { ...pod, labels: { ...pod.labels, app } } };
    const { cpuMs, value } = measure(() => {
      compiler.apply([event]);
      return bring(compiler);
    });
    if (value === 0) throw new Error("a changed label changed nothing: this measures nothing");
    return cpuMs;
  });
}

const remote = changes(false);
const local = changes(true);
const namespace = measure(() => {
  compiler.apply([{ type: "set", object: { kind: "Namespace", name: "team-3", labels: { zone: "z4" } } }]);
  return bring(compiler);
});
const idle = measure(() => bring(compiler));
const restart = measure(() => enforcer.mend());
const { compiled } = enforcer;
globalThis.gc?.();
const memory = process.memoryUsage();

const spread = (samples: readonly number[]) => ({
  p50: round(percentile(samples, 50)),
  p99: round(percentile(samples, 99)),
});
const figures = {
  size,
  compiled: {
    sets: compiled?.sets.length,
    addresses: compiled?.sets.reduce((n, set) => n + set.cidrs.length, 0),
    endpoints: compiled?.endpointSets.reduce((n, set) => n + set.endpoints.length, 0),
    profiles: compiled?.profiles.length,
  },
  rebuild: { cpuMs: round(first.cpuMs), wallMs: round(first.wallMs) },
  labelChangeCpuMs: { remotePod: spread(remote), localPod: spread(local) },
  namespaceLabelCpuMs: round(namespace.cpuMs),
  nothingChangedCpuMs: round(idle.cpuMs),
  comparedWithKernelCpuMs: round(restart.cpuMs),
  memoryMiB: {
    before: round(rssBefore / 2 ** 20),
    rss: round(memory.rss / 2 ** 20),
    heap: round(memory.heapUsed / 2 ** 20),
    forIt: round((memory.rss - rssBefore) / 2 ** 20),
  },
};
nft.close();
node.close();
store.db.close();
rmSync(folder, { recursive: true, force: true });

if (values.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
else {
  const { compiled: c, memoryMiB: m, labelChangeCpuMs: l } = figures;
  process.stdout.write(
    [
      `NetworkPolicy: ${size.localPods} pods here, ${size.policies} policies, ${size.remotePods} pods elsewhere`,
      `  compiled: ${c.sets} sets with ${c.addresses} addresses, ${c.endpoints} endpoints, ${c.profiles} profiles`,
      `  from nothing to the kernel: ${figures.rebuild.cpuMs} ms CPU, ${figures.rebuild.wallMs} ms (want < 2000)`,
      `  a label changes on a pod elsewhere: p50 ${l.remotePod.p50}, p99 ${l.remotePod.p99} ms CPU (want < 50)`,
      `  a label changes on a pod here: p50 ${l.localPod.p50}, p99 ${l.localPod.p99} ms CPU (want < 50)`,
      `  a label changes on a namespace of 1,025 pods: ${figures.namespaceLabelCpuMs} ms CPU`,
      `  nothing changed: ${figures.nothingChangedCpuMs} ms CPU; compared with the whole kernel table: ${figures.comparedWithKernelCpuMs} ms CPU`,
      `  memory: ${m.before} MiB before, ${m.rss} MiB with it: ${m.forIt} MiB (want < 143, which is 150 MB); heap ${m.heap} MiB`,
      "",
    ].join("\n"),
  );
}
