/**
 * What a packet pays for large policies: a pod whose ingress policy names 10 ipBlocks, and the same with 10,000, in turn.
 * TCP throughput of one flow; connections a second; and packets that are
 * denied, each of which is looked up anew: that one is no promise, it shows what one look-up in a large tree costs.
 *
 *   .ci/node test/bench/packets.ts [--json] [--rounds N] [--seconds N] [--blocks N]
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { programPolicy } from "../../shared/policy/program.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { throughputPerCpu } from "../lab/iperf.ts";
import { createVethNode, type VethPod } from "../lab/veth-node.ts";
import { inNetns } from "../runtime/exec.ts";
import { percentile } from "./percentile.ts";

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    rounds: { type: "string", default: "7" },
    seconds: { type: "string", default: "2" },
    blocks: { type: "string", default: "10000" },
  },
});
const ROUNDS = Number(values.rounds);
const FEW = 10;
const MANY = Number(values.blocks);
const CONNECTIONS = 2000;
const PACKETS = 40_000;
const PORT = 7000;

/** Blocks that do not touch each other, and the client's own address: all but one never match. */
function policyOf(blocks: number, client: string): CompiledPolicy {
  const others = Array.from(
    { length: blocks - 1 },
    (_, i) => `172.${16 + (i >> 12)}.${(i >> 4) & 255}.${(i & 15) * 16}/29`,
  );
  return {
    revision: 1,
    sets: [{ id: "blocks", cidrs: [`${client}/32`, ...others] }],
    endpointSets: [],
    profiles: [
      {
        id: "p",
        direction: "ingress",
        admin: [],
        policies: [{ verdict: "accept", peers: ["blocks"], origin: "bench" }],
        baseline: [],
      },
    ],
    pods: [{ namespace: "bench", name: "server", ingress: "p" }],
  };
}

/** Starts the other file in a namespace. */
function peer(at: VethPod, ...args: readonly (string | number)[]): ChildProcess {
  const main = fileURLToPath(new URL("packets-peer.ts", import.meta.url));
  return inNetns(at.ns.path, () =>
    spawn(process.execPath, ["--disable-warning=ExperimentalWarning", main, ...args.map(String)], {
      stdio: ["pipe", "pipe", "inherit"],
    }),
  );
}

/** Its last line: CPU time, ms. */
async function cpuMsOf(child: ChildProcess): Promise<number> {
  let text = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    text += chunk.toString();
  });
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`a peer ended with ${code}`);
  return (JSON.parse(text.trim().split("\n").at(-1) ?? "{}") as { readonly cpuMs: number }).cpuMs;
}

/** Connections a second of CPU time, both ends and the kernel's work included: what else runs here does not count. */
async function connectionRate(client: VethPod, server: VethPod): Promise<number> {
  const serving = peer(server, "serve", PORT);
  if (serving.stdout) await once(serving.stdout, "data");
  const served = cpuMsOf(serving);
  const cpuMs = await cpuMsOf(peer(client, "connect", server.ip4, PORT, CONNECTIONS));
  serving.stdin?.end();
  return (CONNECTIONS * 1000) / (cpuMs + (await served));
}

/** Denied packets a second of CPU time: each goes through the pod's veth and the whole look-up, and is dropped. */
async function deniedRate(from: VethPod, server: VethPod): Promise<number> {
  return (PACKETS * 1000) / (await cpuMsOf(peer(from, "flood", server.ip4, PORT, PACKETS)));
}

const node = await createVethNode(`bp${process.pid % 1000}`, ["client", "server", "denied"], []);
const nft = inNetns(node.ns.path, () => openNft(nodeSys));
const seen = new Map<string, number[]>();
try {
  const [client, server, denied] = [node.pod("client"), node.pod("server"), node.pod("denied")];
  const pods = [{ namespace: "bench", name: "server", addresses: [server.ip4] }];
  for (let round = 0; round <= ROUNDS; round++) {
    // In turn, and in turn who is first: a machine that changes its speed changes it for both.
    for (const blocks of round % 2 === 0 ? [FEW, MANY] : [MANY, FEW]) {
      programPolicy(nft, () => ({ compiled: policyOf(blocks, client.ip4), pods }));
      const figures = {
        "throughput, Mbit a second of CPU":
          (await throughputPerCpu({
            server: server.ns.path,
            client: client.ns.path,
            address: server.ip4,
            seconds: Number(values.seconds),
          })) / 1e6,
        "connections a second of CPU": await connectionRate(client, server),
        "denied packets a second of CPU": await deniedRate(denied, server),
      };
      if (round === 0) continue; // warms up
      for (const [what, value] of Object.entries(figures))
        seen.set(`${what} ${blocks}`, [...(seen.get(`${what} ${blocks}`) ?? []), value]);
    }
  }
} finally {
  nft.close();
  await node.close();
}

const report = [
  "throughput, Mbit a second of CPU",
  "connections a second of CPU",
  "denied packets a second of CPU",
].map((what) => {
  const [few, many] = [FEW, MANY].map((n) => percentile(seen.get(`${what} ${n}`) ?? [], 50)) as [number, number];
  return { what, few: Math.round(few), many: Math.round(many), ratio: Number((many / few).toFixed(3)) };
});
if (values.json) process.stdout.write(`${JSON.stringify({ few: FEW, many: MANY, rounds: ROUNDS, report })}\n`);
else
  for (const { what, few, many, ratio } of report)
    process.stdout.write(
      `${what}: ${few} with ${FEW} ipBlocks, ${many} with ${MANY}: ${ratio}${what.startsWith("denied") ? "" : " (want >= 0.95)"}
`,
    );
