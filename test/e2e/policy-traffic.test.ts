/**
 * Policies under traffic, with the agent as a process: an allowed flow loses nothing while everything around it changes,
 * a denied one gets nothing through, and neither agent nor table can go away without that being made good.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { getCompiled } from "../../ipam/store/policy.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { readTableAtOnce } from "../../shared/policy/read.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { runTool } from "../cloud/netns.ts";
import { patient } from "../kernel/patience.ts";
import type { PodStream } from "../lab/pod-process.ts";
import { attachAll } from "../lab/policy-node.ts";
import { createVethNode, type VethNode, type VethPod } from "../lab/veth-node.ts";
import { inNetns } from "../runtime/exec.ts";

const root = mkdtempSync(join(tmpdir(), "terway-policy-traffic-"));
let node: VethNode;
let nft: NftSocket;
let store: Store;
let agent: ChildProcess | undefined;
let lines: string[] = [];

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const nftDo = (...args: string[]) => runTool("ip", ["netns", "exec", node.ns.name, "nft", ...args]);

async function until(what: string, look: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + patient(20_000);
  while (!(await look())) {
    if (performance.now() > deadline) throw new Error(`never: ${what}; the agent said ${lines.join(" | ")}`);
    await pause(20);
  }
}

function startAgent(...more: string[]): void {
  const main = fileURLToPath(new URL("../lab/policy-agent-main.ts", import.meta.url));
  const args = ["--store", store.path, "--dir", join(root, "policies"), ...more];
  lines = [];
  agent = inNetns(node.ns.path, () =>
    spawn(process.execPath, ["--disable-warning=ExperimentalWarning", main, ...args], {
      stdio: ["pipe", "pipe", "inherit"],
    }),
  );
  if (agent.stdout)
    createInterface({ input: agent.stdout }).on("line", (line) =>
      lines.push((JSON.parse(line) as { msg: string }).msg),
    );
}

async function endAgent(signal?: NodeJS.Signals): Promise<void> {
  const child = agent;
  agent = undefined;
  if (child === undefined) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  if (signal === undefined) child.stdin?.end();
  else child.kill(signal);
  if (child.exitCode === null && child.signalCode === null) await ended;
}

const agentStarted = () => until("the agent's start", () => lines.includes("started"));

/** Replaces the folder's file; a reader sees the old one or the new one. */
function write(manifests: readonly unknown[]): void {
  writeFileSync(join(root, "next"), manifests.map((m) => JSON.stringify(m)).join("\n---\n"));
  renameSync(join(root, "next"), join(root, "policies", "all.yaml"));
}

const podManifests = () =>
  node.pods.map((p) => ({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: p.name, namespace: "d", labels: { app: p.name } },
    status: { podIPs: [{ ip: p.ip4 }, { ip: p.ip6 }] },
  }));

/** Pods reach `server` when they are named here; `serial` stands for what has nothing to do with them. */
function policies(allowed: readonly string[], serial = 0): unknown[] {
  const blocks = [0, 1].map((i) => ({ ipBlock: { cidr: `172.${16 + i}.${serial & 255}.0/24` } }));
  return [
    ...podManifests(),
    {
      apiVersion: "networking.k8s.io/v1",
      kind: "NetworkPolicy",
      metadata: { name: "server", namespace: "d" },
      spec: {
        podSelector: { matchLabels: { app: "server" } },
        ingress: [
          { from: [{ podSelector: { matchExpressions: [{ key: "app", operator: "In", values: allowed }] } }] },
          { from: blocks },
        ],
      },
    },
  ];
}

/** The serial of the policy that packets to the server meet now. @throws {Error} When the kernel has half of one. */
function serialInForce(server: VethPod): number {
  const table = readTableAtOnce(nft);
  const verdict = table?.sets.get("to4")?.elements.find((e) => e.startsWith(`${server.ip4} `));
  const chain = table?.chains.get(verdict?.split("goto ")[1] ?? "");
  if (chain === undefined) throw new Error(`${verdict} leads nowhere`);
  const members = chain.rules.flatMap(({ expressions }) =>
    expressions.flatMap((e) => (e.kind === "lookup" ? (table?.sets.get(e.set)?.elements ?? []) : [])),
  );
  const blocks = members.filter((m) => m.startsWith("172."));
  const serials = new Set(blocks.map((m) => Number(m.split(".")[2])));
  if (blocks.length !== 2 || serials.size !== 1) throw new Error(`half a policy: ${members.join(" ")}`);
  return [...serials][0] ?? -1;
}

beforeAll(async () => {
  node = await createVethNode(`pt${process.pid % 10000}`, ["server", "friend", "stranger"], [80, 81]);
  nft = inNetns(node.ns.path, () => openNft(nodeSys));
  mkdirSync(join(root, "policies"));
  store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(root, "ipam.db"));
  attachAll(store, node, ({ name }) => ({ namespace: "d", name }));
}, patient(60_000));
afterAll(async () => {
  await endAgent();
  nft?.close();
  store?.db.close();
  await node?.close();
  rmSync(root, { recursive: true, force: true });
});

async function allowedStreams(): Promise<readonly PodStream[]> {
  const { process } = node.pod("friend");
  const { ip4, ip6 } = node.pod("server");
  return [await process.stream("tcp", ip4, 80), await process.stream("udp", ip6, 80)];
}

async function deniedStreams(): Promise<readonly PodStream[]> {
  const { process } = node.pod("stranger");
  const { ip4, ip6 } = node.pod("server");
  return [await process.stream("udp", ip4, 81), await process.stream("udp", ip6, 81)];
}

/** Every packet of the allowed ones came back, and they were at it all the time; none of the denied ones. */
async function expectWhole(good: readonly PodStream[], bad: readonly PodStream[]): Promise<void> {
  for (const stream of good) {
    const { sent, echoed } = await stream.stop();
    expect(sent).toBeGreaterThan(100);
    expect(echoed).toBe(sent);
  }
  for (const stream of bad) {
    const { sent, echoed } = await stream.stop();
    expect(sent).toBeGreaterThan(100);
    expect(echoed).toBe(0);
  }
}

describe("policies under traffic", () => {
  it(
    "change, with an agent that is killed and comes again: the allowed flow is whole, the denied one has nothing",
    async () => {
      const server = node.pod("server");
      write(policies(["friend"]));
      startAgent();
      await agentStarted();
      // The store has it before the kernel.
      await until("the policy", () => readTableAtOnce(nft)?.sets.get("to4")?.elements.length === 3);
      expect([getCompiled(store.db)?.pods.length, serialInForce(server)]).toEqual([3, 0]);
      const [good, bad] = [await allowedStreams(), await deniedStreams()];
      let serial = 0;
      for (const killed of [true, true, true, false]) {
        for (let i = 0; i < 12; i++) {
          serial += 1;
          write(policies(["friend"], serial));
          await pause(i);
        }
        // Killed at an instant that nobody chose: old rules or new ones, never half of them.
        await endAgent(killed ? "SIGKILL" : undefined);
        expect(serialInForce(server)).toBeLessThanOrEqual(serial);
        startAgent("--log-drops");
        await agentStarted();
        await until("the last policy", () => serialInForce(server) === serial);
      }
      // What is denied is told by name, in both families.
      for (const family of ["ip4", "ip6"] as const) {
        const [from, to] = [node.pod("stranger")[family], server[family]];
        const drop = `policy dropped ingress: d/stranger (${from}) to d/server (${to}), udp 81`;
        await until(`"${drop}"`, () => lines.includes(drop));
      }
      await expectWhole(good, bad);
    },
    patient(60_000),
  );

  it(
    "are put back when the table is flushed or replaced by nonsense: what is allowed goes on, what came in through the hole ends (F-38)",
    async () => {
      const server = node.pod("server");
      const harms: readonly (readonly [string, () => void])[] = [
        ["a flushed ruleset", () => nftDo("flush", "ruleset")],
        [
          "a table of our name with another map",
          () => {
            const ours = "inet terway-policy";
            nftDo(`delete table ${ours}; add table ${ours}; add set ${ours} to4 { type ipv4_addr; }`);
          },
        ],
        ["a flushed chain", () => nftDo("flush", "chain", "inet", "terway-policy", "to-pod")],
      ];
      const [good, bad] = [await allowedStreams(), await deniedStreams()];
      for (const [what, harm] of harms) {
        const before = serialInForce(server);
        const told = lines.length;
        harm();
        await until(`${what} is put right`, () =>
          lines.slice(told).some((l) => l.includes("put right (changed by nft")),
        );
        expect(serialInForce(server)).toBe(before);
      }
      for (const stream of good) {
        const { sent, echoed } = await stream.stop();
        expect([sent > 100, echoed]).toEqual([true, sent]);
      }
      // Packets may have passed while there was no table; the connection that they made does not stay.
      for (const stream of bad) {
        const then = await stream.count();
        await pause(200);
        const now = await stream.stop();
        expect(now.sent).toBeGreaterThan(then.sent);
        expect(now.echoed).toBe(then.echoed);
      }
    },
    patient(60_000),
  );

  it(
    "let live what was open when a policy denies it, and end it with --cut-established",
    async () => {
      const server = node.pod("server");
      const stranger = node.pod("stranger");
      const change = async (allowed: readonly string[], serial: number) => {
        write(policies(allowed, serial));
        await until("the change", () => serialInForce(server) === serial);
      };
      await change(["friend", "stranger"], 200);
      const lives = await stranger.process.stream("tcp", server.ip4, 80);
      await change(["friend"], 201);
      await pause(200);
      const before = await lives.count();
      await pause(100);
      expect((await lives.count()).echoed).toBeGreaterThan(before.echoed);
      await endAgent();
      startAgent("--cut-established");
      await agentStarted();
      const friend = await allowedStreams();
      // The change decides, not the start: what the last agent let live goes with the next change of policy.
      await change(["friend"], 202);
      await until("the cut", async () => {
        const then = await lives.count();
        await pause(100);
        const now = await lives.count();
        return now.sent > then.sent && now.echoed === then.echoed;
      });
      await lives.stop();
      await expectWhole(friend, []);
    },
    patient(60_000),
  );

  it(
    "never touch a connection that was opened in a pod's first millisecond",
    async () => {
      const [server, friend] = [node.pod("server"), node.pod("friend")];
      await endAgent();
      // Nothing of ours is there, and nothing tracks connections, until the friend's ADD puts its verdicts.
      nftDo("flush", "ruleset");
      const first = friend.process.stream("tcp", server.ip4, 80);
      write(policies(["friend"], 210));
      startAgent();
      const streams = [await first, await friend.process.stream("udp", server.ip4, 80)];
      await agentStarted();
      await until("the policy", () => serialInForce(server) === 210);
      for (let serial = 211; serial < 216; serial++) {
        write(policies(["friend"], serial));
        await until("the change", () => serialInForce(server) === serial);
      }
      await endAgent("SIGKILL");
      nftDo("flush", "ruleset");
      startAgent();
      await agentStarted();
      await until("the policy again", () => serialInForce(server) === 215);
      // Whoever answers may be the first that the new table sees.
      await expectWhole(streams, []);
    },
    patient(60_000),
  );
});
