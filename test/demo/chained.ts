/** The chained plugins at work: one pod that a NetworkPolicy lets in, one that it keeps out, one with a limit. */
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { connections, sendRate, serve } from "../lab/traffic.ts";
import type { WorldNode, WorldPod } from "../lab/world.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const LIMIT_MBIT = 10;

export interface ChainedReport {
  readonly allowed: boolean;
  readonly denied: boolean;
  readonly limitMbit: number;
  readonly measuredMbit: number;
}

const POLICY = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web, namespace: default }
spec:
  podSelector: { matchLabels: { role: web } }
  policyTypes: [Ingress]
  ingress:
    - from: [{ podSelector: { matchLabels: { role: client } } }]
---
apiVersion: v1
kind: Namespace
metadata: { name: default, labels: { kubernetes.io/metadata.name: default } }
`;

const podManifest = (name: string, node: string) => `---
apiVersion: v1
kind: Pod
metadata: { name: ${name}, namespace: default, labels: { role: ${name} } }
spec: { nodeName: ${node} }
`;

/** Writes the manifests and has the CLI compile them into the node's store and kernel. @throws with its words. */
function syncPolicy(node: WorldNode): void {
  const folder = join(node.dir, "policies");
  mkdirSync(folder, { recursive: true });
  const pods = ["web", "client", "stranger"].map((name) => podManifest(name, node.name)).join("");
  writeFileSync(join(folder, "demo.yaml"), POLICY + pods);
  const cli = join(root, "ipam/cli/terway-cli");
  const args = ["policy", "sync", folder, "--store", node.store, "--node-name", node.name];
  const done = spawnSync("nsenter", [`--net=${node.netns}`, cli, ...args], { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`terway-cli policy sync: ${done.stdout}${done.stderr}`);
}

/** @param node Its conflist has terway-policy and terway-bandwidth. */
export async function chainedPods(node: WorldNode): Promise<ChainedReport> {
  const made: WorldPod[] = [];
  const attach = async (name: string, runtimeConfig: Readonly<Record<string, unknown>> = {}) => {
    const pod = { ...node.newPod(), name, runtimeConfig };
    const { result } = await node.runtime.add(pod);
    made.push(pod);
    return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
  };
  try {
    const bits = LIMIT_MBIT * 1_000_000;
    const [web, client, stranger] = [await attach("web"), await attach("client"), await attach("stranger")];
    const limited = await attach("limited", { bandwidth: { egressRate: bits, egressBurst: bits / 8 } });
    syncPolicy(node);
    const server = await serve(web.pod.netns);
    const open = await serve(client.pod.netns);
    try {
      return {
        allowed: (await connections(client.pod.netns, web.ip, server.port, 1)) === 1,
        denied: (await connections(stranger.pod.netns, web.ip, server.port, 1)) === 0,
        limitMbit: LIMIT_MBIT,
        measuredMbit: Math.round(10 * (await sendRate(limited.pod.netns, client.ip, open.port, 3_000_000))) / 10,
      };
    } finally {
      server.close();
      open.close();
    }
  } finally {
    for (const pod of made) {
      await node.runtime.del(pod);
      pod.destroy();
    }
  }
}
