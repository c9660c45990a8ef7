/** terway-bandwidth with real traffic: under Debian's ptp with terway-ipam, under terway-eni, and on links of the pod's own. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { AgentContext } from "../../ipam/agent/context.ts";
import { createShapingKeeper } from "../../ipam/agent/shaping.ts";
import { putAttachment } from "../../ipam/store/attachments.ts";
import { makeAttachment } from "../../ipam/store/contract/kit.ts";
import { setFacts } from "../../ipam/store/facts.ts";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { putPodFacts } from "../../ipam/store/pod-facts.ts";
import { forgetBoot } from "../../ipam/store/reboot.ts";
import { listShaping, putShaping } from "../../ipam/store/shaping.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { EGRESS_BANDWIDTH, formatPodFacts, INGRESS_BANDWIDTH } from "../../shared/config/pod-facts.ts";
import { applyEniQos } from "../../shared/datapath/eni-qos-kernel.ts";
import { shapingDifferences } from "../../shared/datapath/shaping.ts";
import {
  applyShaping,
  findShapedLinks,
  openShapingSockets,
  readQdiscs,
  readShaping,
  removeShaping,
  type ShapingSockets,
} from "../../shared/datapath/shaping-kernel.ts";
import { newLink } from "../../shared/netlink/rtnl/link.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { needs } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { type Measurement, shareOf, throughput, throughputBySecond } from "../lab/iperf.ts";
import { createPtpRuntime } from "../lab/ptp-chain.ts";
import { CNI_PATH, createWorld, until } from "../lab/world.ts";
import { CniCallError, type CniRuntime, createRuntime, type PluginConf, type Pod } from "../runtime/cni-runtime.ts";
import { inNetns } from "../runtime/exec.ts";

const prefix = `bw${process.pid % 10000}`;
const M = 1e6;
const DAMAGED_JSON = '{"version":1,"datap';
/** While an emulated machine stands still, tokens beyond the bucket's size are lost: there a flow may be slower, never faster. */
const LEAST = patient(1) > 1 ? 0.85 : 0.95;
/** Payload of flows that last: the claim is 5 %, either way. */
const within5 = (share: number) => share > LEAST && share < 1.05;

/** A machine that is busy with other things starves a flow, and then counts in one second what belongs to two: measured again. */
async function steadyShareOf(limit: number, m: Measurement): Promise<number> {
  let share = await shareOf(limit, m);
  for (let again = 0; !within5(share) && again < 3; again++) share = await shareOf(limit, m);
  return share;
}
const isHeld = async (limit: number, m: Measurement) => within5(await steadyShareOf(limit, m));

let dir: string;
let node: Netns;
let storePath: string;
let store: Store;
const spaces: Netns[] = [];
let count = 0;

function newSpace(): Netns {
  const ns = createNetns(`${prefix}-${++count}`);
  spaces.push(ns);
  return ns;
}

function newPod(more: Partial<Pod> = {}): Pod & { readonly ns: Netns } {
  const ns = newSpace();
  return { containerId: ns.name, netns: ns.path, ifname: "eth0", ns, ...more };
}

function runtimeWith(bandwidth: Partial<PluginConf> = {}, behind: readonly PluginConf[] = []): CniRuntime {
  const plugin = { type: "terway-bandwidth", capabilities: { bandwidth: true }, ...bandwidth };
  return createPtpRuntime(node.path, { store: storePath, logDir: dir }, [plugin, ...behind]);
}

/** Sockets as the agent has them, with the node's namespace in place of ours. */
function socketsOf(pod: Netns, from = node): ShapingSockets & { close(): void } {
  return inNetns(from.path, () => {
    const own = sys.open("/proc/thread-self/ns/net", O_RDONLY);
    return openShapingSockets(sys, pod.fd, own);
  });
}

const tc = (ns: Netns, ...args: string[]) => runTool("tc", ["-n", ns.name, ...args]);
const links = (ns: Netns) =>
  runTool("ip", ["-n", ns.name, "-br", "link"])
    .split("\n")
    .map((l) => l.split(/[@\s]/)[0])
    .filter((name) => name !== "" && name !== "lo");

async function failure(work: Promise<unknown>): Promise<CniCallError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof CniCallError) return error;
    throw error;
  }
  throw new Error("it should have failed");
}

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-bw-"));
  node = newSpace();
  storePath = join(dir, "ipam.db");
  store = openStore({ sys, openSql: openNodeSql }, storePath);
});
afterAll(() => {
  store?.db.close();
  for (const ns of spaces) ns.close();
  rmSync(dir, { recursive: true, force: true });
});

// A test that failed half-way must not fail the others.
afterEach(() => {
  for (const name of links(node)) runTool("ip", ["-n", node.name, "link", "del", name ?? ""]);
  store.db.exec("DELETE FROM shaping");
});

describe("a pod under ptp and terway-ipam", () => {
  it("is held to its rates within 5 % (F-45): TCP and UDP, both directions, IPv4 and IPv6; the result passes unchanged", async () => {
    const runtime = runtimeWith();
    const bare = createRuntime({
      netns: node.path,
      cniPath: CNI_PATH,
      conflist: { ...runtime.conflist, plugins: runtime.conflist.plugins.slice(0, 1) },
    });
    const unlimited = newPod();
    const plain = await bare.add(unlimited);
    const pod = newPod({ runtimeConfig: { bandwidth: { ingressRate: 4 * M, egressRate: 2 * M } } });
    const { result } = await runtime.add(pod);
    expect(Object.keys(result).sort()).toEqual(Object.keys(plain.result).sort());
    expect(result.interfaces?.map((i) => i.sandbox ?? "")).toEqual(["", pod.netns]);
    await runtime.check(pod);
    const wrong: string[] = [];
    for (const ip of result.ips ?? []) {
      const address = ip.address.split("/")[0] ?? "";
      for (const [direction, limit] of [
        ["ingress", 4 * M],
        ["egress", 2 * M],
      ] as const) {
        for (const udpBits of [undefined, 3 * limit]) {
          const share = await steadyShareOf(limit, {
            server: pod.netns,
            client: node.path,
            address,
            reverse: direction === "egress",
            seconds: 3,
            ...(udpBits === undefined ? {} : { udpBits }),
          });
          if (!within5(share)) wrong.push(`${direction} ${address} ${udpBits ? "UDP" : "TCP"}: ${share} of ${limit}`);
        }
      }
    }
    expect(wrong).toEqual([]);
    await runtime.del(pod);
    await bare.del(unlimited);
    expect([links(node), listShaping(store.db)]).toEqual([[], []]);
  }, 180_000);

  it("does not escape by removing its qdisc, which CHECK names and the agent's applier puts back", async () => {
    const runtime = runtimeWith({ egressRate: 10 * M });
    const pod = newPod();
    const { result } = await runtime.add(pod);
    const address = result.ips?.[0]?.address.split("/")[0] ?? "";
    tc(pod.ns, "qdisc", "del", "dev", "eth0", "root");
    const up = { server: pod.netns, client: node.path, address, reverse: true, seconds: 3 };
    expect(await throughput({ ...up, udpBits: 100 * M })).toBeLessThan(11 * M);
    expect(await throughput(up)).toBeLessThan(11 * M);
    const error = await failure(runtime.check(pod));
    expect([error.code, error.message]).toEqual([
      102,
      expect.stringContaining("egress in the pod has no limit, want tbf rate 10200000bit"),
    ]);
    const s = socketsOf(pod.ns);
    const found = findShapedLinks(s, "eth0");
    if (found === undefined) throw new Error("no link");
    applyShaping(s, found, { egress: { bitsPerSecond: 10 * M } }, readShaping(s, found));
    s.close();
    await runtime.check(pod);
    await runtime.del(pod);
  }, 120_000);

  it("waits no longer than 50 ms behind a full queue at 10 Mbit/s", async () => {
    const runtime = runtimeWith();
    const pod = newPod({ runtimeConfig: { bandwidth: { ingressRate: 10 * M, egressRate: 10 * M } } });
    const { result } = await runtime.add(pod);
    const address = result.ips?.[0]?.address.split("/")[0] ?? "";
    const flow = throughput({ server: pod.netns, client: node.path, address, seconds: 3, udpBits: 30 * M });
    await new Promise((done) => setTimeout(done, 1500));
    // Of many, the median: a busy machine delays some of them by itself.
    const out = runTool("ip", ["netns", "exec", node.name, "ping", "-c40", "-i0.02", "-W1", address].slice());
    const times = [...out.matchAll(/time=([\d.]+)/g)].map((m) => Number(m[1])).sort((a, b) => a - b);
    await flow;
    expect(times.length).toBeGreaterThan(5);
    expect(times[times.length >> 1]).toBeLessThan(50);
    await runtime.del(pod);
  }, 30_000);

  it("has its limits changed while it talks (F-45): on, other, off and on again, with the connection kept", async () => {
    const runtime = runtimeWith();
    const pod = newPod({ runtimeConfig: { bandwidth: { egressRate: 40 * M } } });
    const { result } = await runtime.add(pod);
    const address = result.ips?.[0]?.address.split("/")[0] ?? "";
    const s = socketsOf(pod.ns);
    const found = findShapedLinks(s, "eth0");
    if (found === undefined) throw new Error("no link");
    const change = (bitsPerSecond: number | undefined) =>
      applyShaping(s, found, bitsPerSecond === undefined ? {} : { egress: { bitsPerSecond } }, readShaping(s, found));
    const flow = throughputBySecond({ server: pod.netns, client: node.path, address, reverse: true, seconds: 7 });
    await new Promise((done) => setTimeout(done, 3500));
    expect(change(10 * M)).toEqual([
      expect.stringContaining("want tbf rate 10200000bit"),
      expect.stringContaining("limit 10710000bit"),
    ]);
    const perSecond = await flow;
    // One connection, faster before than it may be after; its end is within the new limit.
    expect(perSecond.length).toBeGreaterThanOrEqual(7);
    expect(Math.max(...perSecond.slice(0, 3))).toBeGreaterThan(11 * M);
    expect(Math.max(...perSecond.slice(-3, -1))).toBeLessThan(11 * M);
    expect(perSecond.at(-2)).toBeGreaterThan(0);
    // Off: what waits is sent, not thrown away; and nothing is left to do.
    change(undefined);
    expect(shapingDifferences({}, readShaping(s, found))).toEqual([]);
    const free = await throughput({ server: pod.netns, client: node.path, address, reverse: true, seconds: 1 });
    expect(free).toBeGreaterThan(100 * M);
    change(20 * M);
    expect(await isHeld(20 * M, { server: pod.netns, client: node.path, address, reverse: true, seconds: 2 })).toBe(
      true,
    );
    s.close();
    await runtime.del(pod);
  }, 120_000);

  it("gets nothing of ours when nothing limits it, and does without the store", async () => {
    const runtime = runtimeWith({ store: "/nowhere/that/can/be/made\0".replace("\0", "") });
    const pod = newPod();
    const { result } = await runtime.add(pod);
    expect(tc(pod.ns, "qdisc")).not.toContain("tbf");
    expect(tc(node, "qdisc", "show", "dev", result.interfaces?.[0]?.name ?? "")).toMatch(/^qdisc noqueue/);
    await runtimeWith().del(pod);
  });

  it("takes annotations and profiles from the store, refuses nonsense (F-45), and the conflist before them", async () => {
    const pod = newPod({ namespace: "default", name: "web" });
    setFacts(store.db, {
      qos_config: JSON.stringify({
        bandwidth_management: {
          application_profiles: [
            {
              name: "low",
              selector: { labels: { priority: "low" } },
              ingress_bandwidth: "5Mbps",
              egress_bandwidth: "6Mbps",
            },
          ],
        },
      }),
    });
    const facts = (annotations: Record<string, string>) =>
      putPodFacts(store.db, {
        namespace: "default",
        name: "web",
        uid: undefined,
        facts: formatPodFacts({ labels: { priority: "low" }, annotations }),
        at: 0,
      });
    const limitsNow = async (conf: Partial<PluginConf> = {}) => {
      const runtime = runtimeWith(conf);
      await runtime.add(pod);
      const [row] = listShaping(store.db);
      await runtime.check(pod);
      await runtime.del(pod);
      const { ingress, egress } = JSON.parse(row?.plan ?? "{}").limits ?? {};
      return [ingress?.bitsPerSecond, egress?.bitsPerSecond];
    };
    facts({});
    expect(await limitsNow()).toEqual([5 * M, 6 * M]);
    facts({ [INGRESS_BANDWIDTH]: "7M", [EGRESS_BANDWIDTH]: "0" });
    expect(await limitsNow()).toEqual([7 * M, undefined]);
    expect(await limitsNow({ egressRate: "8M" })).toEqual([7 * M, 8 * M]);
    facts({ [INGRESS_BANDWIDTH]: "" });
    expect(await limitsNow()).toEqual([5 * M, 6 * M]);
    for (const bad of ["1e3M", "-10M", "fast", "10m"]) {
      facts({ [INGRESS_BANDWIDTH]: bad });
      const error = await failure(runtimeWith().add(pod));
      expect([error.code, error.message]).toEqual([7, expect.stringContaining(`"${bad}"`)]);
      expect(error.message).toContain("10M, 1.5G, 500k, 1e6, 512Ki");
      await runtimeWith().del(pod);
    }
    setFacts(store.db, { qos_config: "{}" });
    expect([links(node), listShaping(store.db)]).toEqual([[], []]);
  }, 120_000);

  it("keeps what the conflist's own QoS says under the agent, whatever the cluster's says", async () => {
    const runtime = runtimeWith({
      qos: {
        bandwidth_management: {
          default_egress_bandwidth: "10M",
          application_profiles: [{ name: "free", selector: { labels: { tier: "free" } } }],
        },
      },
    });
    const named = (name: string) => newPod({ namespace: "qos", name });
    const [limited, free] = [named("limited"), named("free")];
    const facts = formatPodFacts({ labels: { tier: "free" }, annotations: {} });
    putPodFacts(store.db, { namespace: "qos", name: "free", uid: undefined, facts, at: 0 });
    const ctx = { store, log: () => undefined, metrics: { registry: new Registry(), repaired: () => undefined } };
    const keeper = inNetns(node.path, () => createShapingKeeper(ctx as unknown as AgentContext, "node", undefined));
    const look = () => inNetns(node.path, () => keeper.look(true));
    const rates = () => [limited, free].map(({ ns }) => /rate (\S+)/.exec(tc(ns, "qdisc", "show", "dev", "eth0"))?.[1]);
    try {
      await runtime.add(limited);
      await runtime.add(free);
      expect(rates()).toEqual(["10200Kbit", undefined]);
      // The agent leaves young ones alone.
      store.db.exec("UPDATE shaping SET created_ms = 0");
      look();
      expect(rates()).toEqual(["10200Kbit", undefined]);
      const cluster = { default_egress_bandwidth: "20M", default_ingress_bandwidth: "20M" };
      setFacts(store.db, { qos_config: JSON.stringify({ bandwidth_management: cluster }) });
      look();
      expect(rates()).toEqual(["10200Kbit", undefined]);
      await runtime.check(limited);
      // The conflist's profiles follow the pod's labels.
      putPodFacts(store.db, { namespace: "qos", name: "limited", uid: undefined, facts, at: 1 });
      putPodFacts(store.db, {
        namespace: "qos",
        name: "free",
        uid: undefined,
        facts: formatPodFacts({ labels: {}, annotations: {} }),
        at: 1,
      });
      look();
      expect(rates()[1]).toBe("10200Kbit");
      expect(JSON.parse(listShaping(store.db).find((r) => r.podName === "limited")?.plan ?? "{}").limits).toEqual({
        profile: "free",
      });
    } finally {
      keeper.stop();
      setFacts(store.db, { qos_config: "{}" });
    }
    for (const pod of [limited, free]) await runtime.del(pod);
    expect(listShaping(store.db)).toEqual([]);
  });

  it("is refused where somebody else shapes the link already, and nothing of ours stays", async () => {
    const go = { type: "bandwidth", ingressRate: 10 * M, ingressBurst: 8 * M };
    const ours = runtimeWith({ ingressRate: 5 * M });
    const chain = [...ours.conflist.plugins];
    const runtime = createRuntime({
      netns: node.path,
      cniPath: CNI_PATH,
      conflist: { ...ours.conflist, plugins: [chain[0], go, chain[1]] as PluginConf[] },
    });
    const pod = newPod();
    const error = await failure(runtime.add(pod));
    expect([error.plugin, error.code, error.message]).toEqual([
      "terway-bandwidth",
      7,
      expect.stringMatching(/ingress on the node's end is shaped by somebody else's tbf .*out of the chain/),
    ]);
    expect(listShaping(store.db)).toEqual([]);
    await runtime.del(pod);
    expect(links(node)).toEqual([]);
  });

  it("leaves nothing behind (F-45): DEL twice, without namespace, without prevResult, after a reboot, after GC", async () => {
    const runtime = runtimeWith({ ingressRate: 5 * M, egressRate: 5 * M });
    for (const how of ["twice", "no netns", "no prevResult", "reboot", "gc"]) {
      const pod = newPod();
      await runtime.add(pod);
      expect(listShaping(store.db).length).toBe(1);
      if (how === "no prevResult") runtime.cache.clear();
      if (how === "reboot") inTransaction(store.db, () => forgetBoot(store.db, `boot ${Math.random()}`));
      if (how === "gc") {
        // Younger than the grace it stays.
        await runtimeGc(runtime, []);
        expect(listShaping(store.db).length).toBe(1);
        store.db.run("UPDATE shaping SET created_ms = created_ms - 60000");
        await runtimeGc(runtime, [{ containerID: pod.containerId, ifname: "eth0" }]);
        expect(listShaping(store.db).length).toBe(1);
        await runtimeGc(runtime, []);
        expect(listShaping(store.db)).toEqual([]);
      }
      await runtime.del(how === "no netns" ? { ...pod, netns: "" } : pod);
      await runtime.del(pod);
      expect([how, listShaping(store.db), links(node), tc(pod.ns, "qdisc").includes("tbf")]).toEqual([
        how,
        [],
        [],
        false,
      ]);
    }
  }, 30_000);

  it("is named in CHECK when its row is damaged, and leaves nothing when deleted with it", async () => {
    const runtime = runtimeWith({ ingressRate: 5 * M, egressRate: 5 * M });
    const pod = newPod();
    await runtime.add(pod);
    store.db.run("UPDATE shaping SET plan = ?", [DAMAGED_JSON]);
    const error = await failure(runtime.check(pod));
    expect([error.code, error.message]).toEqual([
      102,
      expect.stringContaining("were changed: what the store says of them is damaged"),
    ]);
    await runtime.del(pod);
    expect([listShaping(store.db), links(node)]).toEqual([[], []]);
  }, 30_000);

  it("keeps in GC what the agent limits on a pod's further interfaces, which no runtime lists", async () => {
    const runtime = runtimeWith();
    const pod = newPod();
    const listed = { containerID: pod.containerId, ifname: "eth0" };
    const made = { network: runtime.conflist.name, containerId: pod.containerId };
    const row = { ...made, netns: pod.netns, netnsDev: 0, netnsIno: 0, podNamespace: undefined, podName: undefined };
    inTransaction(store.db, () => {
      for (const ifname of ["eth1", "eth2"])
        putShaping(store.db, { ...row, ifname, explicit: "{}", plan: "{}", createdMs: 0 });
      putAttachment(store.db, makeAttachment({ ...made, ifname: "eth1" }));
    });
    await runtimeGc(runtime, [listed]);
    expect(listShaping(store.db).map((r) => r.ifname)).toEqual(["eth1"]);
    store.db.run("DELETE FROM attachment");
    await runtimeGc(runtime, [listed]);
    expect(listShaping(store.db)).toEqual([]);
  });

  it("killed half-way through ADD (F-45) leave nothing once deleted, and can be added again", async () => {
    const runtime = runtimeWith({ ingressRate: 5 * M, egressRate: 5 * M });
    for (let i = 0; i < 25; i++) {
      const pod = newPod();
      await runtime.add(pod, { killAfterMs: 1 + Math.random() * 14 }).catch(() => undefined);
      await runtime.del(pod);
      if (i % 5 === 0) {
        await runtime.add(pod);
        await runtime.check(pod);
        await runtime.del(pod);
      }
      expect([i, links(node), listShaping(store.db)]).toEqual([i, [], []]);
    }
  }, 120_000);
});

/** GC exists since 1.1.0, which Debian's ptp does not speak. */
function runtimeGc(runtime: CniRuntime, valid: readonly { readonly containerID: string; readonly ifname: string }[]) {
  const plugins = runtime.conflist.plugins.slice(1);
  return createRuntime({
    netns: node.path,
    cniPath: CNI_PATH,
    conflist: { ...runtime.conflist, cniVersion: "1.1.0", plugins },
  }).gc(valid);
}

/** Bandwidth inside of the pod, from first to last, on whatever link leads to `far`. */
async function heldInside(pod: Netns, far: Netns, more: Partial<Measurement> = {}): Promise<void> {
  const s = socketsOf(pod);
  const found = findShapedLinks(s, "eth0");
  if (found === undefined) throw new Error("no link");
  expect(found.datapath).toBe("pod");
  const limits = {
    ingress: { bitsPerSecond: 4 * M },
    egress: { bitsPerSecond: 2 * M },
    priority: "guaranteed",
  } as const;
  applyShaping(s, found, limits);
  expect(shapingDifferences(limits, readShaping(s, found))).toEqual([]);
  expect(applyShaping(s, found, limits, readShaping(s, found))).toEqual([]);
  const flow = { server: pod.path, client: far.path, address: "10.78.0.2", seconds: 3, ...more };
  // Numbers, so that a failure says by how much.
  const shares = [await steadyShareOf(4 * M, flow), await steadyShareOf(2 * M, { ...flow, reverse: true })];
  expect(shares.filter((share) => !within5(share))).toEqual([]);
  removeShaping(s, found);
  expect([links(pod), tc(pod, "qdisc", "show", "dev", "eth0")]).toEqual([
    ["eth0"],
    expect.stringMatching(/^qdisc noqueue/),
  ]);
  s.close();
}

function address(ns: Netns, dev: string, cidr: string): void {
  runTool("ip", ["-n", ns.name, "addr", "add", cidr, "dev", dev]);
  runTool("ip", ["-n", ns.name, "link", "set", dev, "up"]);
}

/** An ENI of the node, eni0, and the namespace at its other end, far0. */
function newEni(): Netns {
  const far = newSpace();
  far.nl.apply([newLink({ kind: "veth", name: "far0", peer: { name: "eni0", netnsFd: node.fd } })]);
  runTool("ip", ["-n", node.name, "link", "set", "eni0", "up"]);
  return far;
}

/** As terway-ipvlan and terway-trunk do: the link is the pod's from the beginning. */
function childOfEni(pod: Netns, ...type: string[]): void {
  const parts = ["link", "add", "link", "eni0", "name", "eth0", "netns", pod.name, "type", ...type];
  runTool("ip", ["-n", node.name, ...parts]);
}

describe("a link that has no end on the node", () => {
  it("is held to its rates inside of the pod, and is free again afterwards", async () => {
    const [pod, far] = [newSpace(), newSpace()];
    far.nl.apply([newLink({ kind: "veth", name: "far0", peer: { name: "eth0", netnsFd: pod.fd } })]);
    address(far, "far0", "10.78.0.1/24");
    address(pod, "eth0", "10.78.0.2/24");
    await heldInside(pod, far);
  }, 120_000);

  it("is redirected to its ifb once, however often ADD comes and whatever went in between", () => {
    const [pod, far] = [newSpace(), newSpace()];
    far.nl.apply([newLink({ kind: "veth", name: "far0", peer: { name: "eth0", netnsFd: pod.fd } })]);
    const s = socketsOf(pod);
    const found = findShapedLinks(s, "eth0");
    if (found === undefined) throw new Error("no link");
    const limits = { ingress: { bitsPerSecond: 4 * M } };
    for (const gone of [undefined, undefined, "ifb-eth0"]) {
      if (gone) runTool("ip", ["-n", pod.name, "link", "del", gone]);
      applyShaping(s, found, limits);
      const state = readShaping(s, found);
      expect([state.pod.ingress.filter((f) => f.match).length, shapingDifferences(limits, state)]).toEqual([1, []]);
    }
    s.close();
  });

  it("loses its ifb in DEL though the row is damaged", async () => {
    const [pod, far] = [newPod(), newSpace()];
    far.nl.apply([newLink({ kind: "veth", name: "far0", peer: { name: "eth0", netnsFd: pod.ns.fd } })]);
    const { conflist } = runtimeWith({ ingressRate: 4 * M, prevResult: { cniVersion: "1.0.0" } });
    const alone = { ...conflist, plugins: conflist.plugins.slice(1) };
    const runtime = createRuntime({ netns: node.path, cniPath: CNI_PATH, conflist: alone });
    await runtime.add(pod);
    expect(links(pod.ns)).toEqual(["eth0", "ifb-eth0"]);
    store.db.run("UPDATE shaping SET plan = ?", [DAMAGED_JSON]);
    await runtime.del(pod);
    expect([links(pod.ns), listShaping(store.db)]).toEqual([["eth0"], []]);
  });

  // UDP: an emulated machine stops now and then, and TCP takes that for congestion.
  const udp = { udpBits: 12 * M };

  it("and so is an IPvlan child of the node's ENI", { ...needs("ipvlan"), timeout: patient(120_000) }, async () => {
    const [pod, far] = [newSpace(), newEni()];
    address(far, "far0", "10.78.0.1/24");
    childOfEni(pod, "ipvlan", "mode", "l2");
    address(pod, "eth0", "10.78.0.2/24");
    await heldInside(pod, far, udp);
  });

  it("and so is a member's VLAN on a trunk ENI", { ...needs("vlan"), timeout: patient(120_000) }, async () => {
    const [pod, far] = [newSpace(), newEni()];
    const ip = (...args: string[]) => runTool("ip", ["-n", far.name, "link", ...args]);
    ip("set", "far0", "up");
    ip("add", "link", "far0", "name", "far0.7", "type", "vlan", "id", "7");
    address(far, "far0.7", "10.78.0.1/24");
    childOfEni(pod, "vlan", "id", "7");
    address(pod, "eth0", "10.78.0.2/24");
    await heldInside(pod, far, udp);
  });
});

describe("IPvlan children of one ENI", { ...needs("ipvlan"), timeout: patient(60_000) }, () => {
  it("send in order of their priority when the ENI is full", async () => {
    const far = newEni();
    address(far, "far0", "10.78.0.1/24");
    const rules = [{ interface: "eni0", classId: 1, rate: 10 * M, ceil: 10 * M }];
    expect(applyEniQos(sys, node.nl, "eni0", true, rules, readQdiscs(node.nl))).toBe("changed");
    expect(applyEniQos(sys, node.nl, "eni0", true, rules, readQdiscs(node.nl))).toBe("right");
    const flows = (["best-effort", "guaranteed"] as const).map((priority, i) => {
      const pod = newSpace();
      childOfEni(pod, "ipvlan", "mode", "l2");
      address(pod, "eth0", `10.78.0.${i + 2}/24`);
      const s = socketsOf(pod);
      const found = findShapedLinks(s, "eth0");
      if (found === undefined) throw new Error("no link");
      applyShaping(s, found, { priority });
      s.close();
      // Together they ask for 18 of 10 Mbit/s.
      const ports = { port: 5301 + i, udpBits: 9 * M };
      return throughput({ server: far.path, client: pod.path, address: "10.78.0.1", seconds: 4, ...ports });
    });
    const [low = 0, high = 0] = await Promise.all(flows);
    expect([high > 7 * M, low < 4 * M, high + low < 11 * M], `${low} and ${high} bits/s`).toEqual([true, true, true]);
    expect(applyEniQos(sys, node.nl, "eni0", false, [], readQdiscs(node.nl))).toBe("changed");
  });
});

describe("a pod of terway-eni", () => {
  it("is limited in the chain, checked, and leaves nothing", async () => {
    const world = await createWorld({
      prefix: `${prefix}w`,
      nodes: 1,
      mode: "eniip-veth",
      instanceType: "ecs.g7.xlarge",
      poolMin: 2,
      poolMax: 10,
    });
    try {
      const [n] = world.nodes;
      if (n === undefined) throw new Error("no node");
      const runtime = createRuntime({
        netns: n.netns,
        cniPath: CNI_PATH,
        conflist: {
          ...n.runtime.conflist,
          plugins: [
            ...n.runtime.conflist.plugins.filter((p) => p.type !== "terway-bandwidth"),
            { type: "terway-bandwidth", capabilities: { bandwidth: true }, store: n.store, logDir: n.dir },
          ],
        },
      });
      await until("an address", 20_000, () =>
        runtime.status().then(
          () => true,
          () => false,
        ),
      );
      const pod = { ...n.newPod(), runtimeConfig: { bandwidth: { ingressRate: 20 * M, egressRate: 10 * M } } };
      const { result } = await runtime.add(pod);
      await runtime.check(pod);
      const address = result.ips?.[0]?.address.split("/")[0] ?? "";
      const flow = { server: pod.netns, client: n.netns, address, seconds: 3 };
      expect(await isHeld(20 * M, flow)).toBe(true);
      expect(await isHeld(10 * M, { ...flow, reverse: true })).toBe(true);
      await runtime.del(pod);
      const db = openNodeSql(n.store);
      expect(listShaping(db)).toEqual([]);
      db.close();
    } finally {
      await world.close();
    }
  }, 90_000);
});
