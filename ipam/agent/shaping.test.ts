/** The agent's part of bandwidth, on links of this kernel: limits follow facts and profiles; ENIs send in order. */
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import {
  EGRESS_BANDWIDTH,
  formatPodFacts,
  INGRESS_BANDWIDTH,
  NETWORK_PRIORITY,
} from "../../shared/config/pod-facts.ts";
import { planEniQos } from "../../shared/datapath/eni-qos.ts";
import { newLink } from "../../shared/netlink/rtnl/link.ts";
import { RTM_GETQDISC } from "../../shared/netlink/uapi/rtnetlink.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { SysError } from "../../shared/sys/sys.ts";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import { throughput } from "../../test/lab/iperf.ts";
import { inNetns } from "../../test/runtime/exec.ts";
import { putAttachment } from "../store/attachments.ts";
import { makeEni, putEni } from "../store/contract/kit.ts";
import { setEniLink } from "../store/enis.ts";
import { setFacts } from "../store/facts.ts";
import { openStore, type Store } from "../store/open.ts";
import { putPodFacts } from "../store/pod-facts.ts";
import { listShaping } from "../store/shaping.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AgentContext } from "./context.ts";
import { createShapingKeeper, type ShapingKeeper } from "./shaping.ts";
import { countedSince, isViolation, type Reading } from "./shaping-sample.ts";

const M = 1e6;
const prefix = `sk${process.pid % 10000}`;
const said: string[] = [];
const registry = new Registry();
let dir: string;
let store: Store;
let node: Netns;
let far: Netns;
let keeper: ShapingKeeper;
const pods: Record<string, Netns> = {};
let repairs = 0;
const repaired = (n: number) => {
  repairs += n;
};

const tc = (ns: Netns, ...args: string[]) => runTool("tc", ["-n", ns.name, ...args]);
const look = (verify = false) => inNetns(node.path, () => keeper.look(verify));
const qosFile = () => join(dir, "qos.json");

function addPod(name: string, host: string, address: string, peer: string): void {
  const ns = createNetns(`${prefix}-${name}`);
  pods[name] = ns;
  node.nl.apply([newLink({ kind: "veth", name: host, peer: { name: "eth0", netnsFd: ns.fd } })]);
  for (const [n, dev, a] of [
    [node, host, peer],
    [ns, "eth0", address],
  ] as const) {
    runTool("ip", ["-n", n.name, "addr", "add", `${a}/24`, "dev", dev]);
    runTool("ip", ["-n", n.name, "link", "set", dev, "up"]);
  }
  runTool("ip", ["-n", ns.name, "route", "add", "default", "via", peer]);
  const stat = sys.stat(ns.path);
  inTransaction(store.db, () =>
    putAttachment(store.db, {
      network: "net",
      containerId: name,
      ifname: "eth0",
      netns: ns.path,
      netnsDev: stat?.dev,
      netnsIno: stat?.ino,
      podNamespace: "default",
      podName: name,
      podUid: undefined,
      plugin: "terway-eni",
      mode: "shared",
      eniId: undefined,
      hostIfname: host,
      datapath: undefined,
      state: "ready",
      createdMs: 0,
      at: 0,
    }),
  );
}

function facts(name: string, annotations: Record<string, string>, labels: Record<string, string> = {}): void {
  const json = formatPodFacts({ labels, annotations });
  // Another process writes facts: by a handle of its own, as data_version counts.
  const db = openNodeSql(store.path);
  putPodFacts(db, { namespace: "default", name, uid: undefined, facts: json, at: 0 });
  db.close();
}

let mtime = 1000;
function qos(value: unknown): void {
  writeFileSync(qosFile(), typeof value === "string" ? value : JSON.stringify(value));
  mtime += 10;
  utimesSync(qosFile(), mtime, mtime);
}

function newKeeper(): ShapingKeeper {
  registry.clear();
  const ctx = {
    store,
    log: (_level: string, msg: string) => void said.push(msg),
    metrics: { registry, repaired },
  } as unknown as AgentContext;
  return inNetns(node.path, () => createShapingKeeper(ctx, "node-1", qosFile()));
}

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-sk-"));
  store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
  [node, far] = [createNetns(`${prefix}-node`), createNetns(`${prefix}-far`)];
  runTool("ip", ["netns", "exec", node.name, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
  node.nl.apply([newLink({ kind: "veth", name: "eni1", peer: { name: "eth0", netnsFd: far.fd } })]);
  for (const [n, dev, a] of [
    [node, "eni1", "10.80.9.1"],
    [far, "eth0", "10.80.9.2"],
  ] as const) {
    runTool("ip", ["-n", n.name, "addr", "add", `${a}/24`, "dev", dev]);
    runTool("ip", ["-n", n.name, "link", "set", dev, "up"]);
  }
  runTool("ip", ["-n", far.name, "route", "add", "default", "via", "10.80.9.1"]);
  addPod("a", "calia", "10.80.1.2", "10.80.1.1");
  addPod("b", "calib", "10.80.2.2", "10.80.2.1");
  qos("{}");
  keeper = newKeeper();
});
afterAll(() => {
  keeper?.stop();
  store?.db.close();
  for (const ns of [...Object.values(pods), far, node]) ns?.close();
  rmSync(dir, { recursive: true, force: true });
});

const rateOf = (ns: Netns, dev: string) => /tbf 5457: root .*rate (\S+)/.exec(tc(ns, "qdisc", "show", "dev", dev))?.[1];

/** How often `work` asks the kernel for a list of qdiscs. */
function qdiscLists(work: () => void): number {
  const sent = vi.spyOn(sys, "send");
  try {
    work();
    const types = sent.mock.calls.map(([, bytes]) => new DataView(bytes.buffer, bytes.byteOffset).getUint16(4, true));
    return types.filter((type) => type === RTM_GETQDISC).length;
  } finally {
    sent.mockRestore();
  }
}

describe("limits of live pods", () => {
  it("follow annotations and profiles: on, changed in place, nonsense ignored, taken away", () => {
    const a = pods.a as Netns;
    look();
    expect(listShaping(store.db)).toEqual([]);
    facts("a", { [INGRESS_BANDWIDTH]: "10M", [EGRESS_BANDWIDTH]: "20M" });
    look();
    // Without terway-bandwidth in the chain of its network the pod is not ours to limit.
    expect(listShaping(store.db)).toEqual([]);
    setFacts(store.db, { shaped_networks: '["net"]' });
    look(true);
    expect([rateOf(node, "calia"), rateOf(a, "eth0")]).toEqual(["10200Kbit", "20400Kbit"]);
    facts("a", { [INGRESS_BANDWIDTH]: "30M", [EGRESS_BANDWIDTH]: "20M" });
    look();
    expect([rateOf(node, "calia"), rateOf(a, "eth0")]).toEqual(["30600Kbit", "20400Kbit"]);
    facts("a", { [INGRESS_BANDWIDTH]: "1e3M", [EGRESS_BANDWIDTH]: "5M" });
    look();
    expect([rateOf(node, "calia"), rateOf(a, "eth0")]).toEqual(["30600Kbit", "20400Kbit"]);
    expect(said.at(-1)).toMatch(/limits of default\/a stay as they are: annotation .*"1e3M" is no rate: want bits/);
    facts("a", {}, { priority: "low" });
    qos({
      bandwidth_management: {
        application_profiles: [
          { name: "low", selector: { labels: { priority: "low" } }, egress_bandwidth: "40Mbps", latency_sla: "5ms" },
        ],
      },
    });
    look();
    expect([rateOf(node, "calia"), rateOf(a, "eth0")]).toEqual(["1Tbit", "40800Kbit"]);
    expect(rateOf(node, "calib")).toBeUndefined();
    qos("{ nonsense");
    look();
    expect([said.at(-1), rateOf(a, "eth0")]).toEqual([expect.stringContaining("cannot be read"), "40800Kbit"]);
  });

  it("are put back when foreign hands take them away", () => {
    const a = pods.a as Netns;
    tc(a, "qdisc", "del", "dev", "eth0", "root");
    tc(node, "qdisc", "del", "dev", "calia", "clsact");
    look(true);
    expect([rateOf(a, "eth0"), repairs]).toEqual(["40800Kbit", 2]);
    expect(tc(node, "filter", "show", "dev", "calia", "ingress")).toContain("terway-bandwidth limit 42840000bit");
  });

  it("are put right, and written down again, where the row in the store is damaged", () => {
    const a = pods.a as Netns;
    const [before] = listShaping(store.db);
    tc(a, "qdisc", "del", "dev", "eth0", "root");
    store.db.run("UPDATE shaping SET plan = ?", ['{"version":1,"datap']);
    inNetns(node.path, () => keeper.sample());
    look(true);
    expect([rateOf(a, "eth0"), listShaping(store.db)]).toEqual(["40800Kbit", [before]]);
  });

  it("are read with one list of the node's qdiscs for all pods: the kernel tells those of all links or none", () => {
    facts("b", { [EGRESS_BANDWIDTH]: "5M" });
    look();
    for (const work of [() => keeper.sample(), () => keeper.look(true)])
      expect(qdiscLists(() => inNetns(node.path, work))).toBe(1 + 2); // and one in each pod
    facts("b", {});
    look();
  });

  it("are counted: bytes, drops and overlimits of the pod, its allocation, and SLA violations by profile", async () => {
    const a = pods.a as Netns;
    inNetns(node.path, () => keeper.sample());
    facts("a", { [INGRESS_BANDWIDTH]: "5M" }, { priority: "low" });
    look();
    const flow = throughput({ server: far.path, client: a.path, address: "10.80.9.2", seconds: 2, udpBits: 200 * M });
    // A queue of 30 ms is full: later than the profile's 5 ms allow.
    const value = async (name: string, ...labels: string[]) =>
      Number(
        (await registry.metrics())
          .split("\n")
          .find((l) => l.startsWith(`${name}{`) && labels.every((x) => l.includes(x)))
          ?.split(" ")
          .at(-1) ?? Number.NaN,
      );
    for (let i = 0; i < 100 && !((await value("terway_qos_violations_total", 'priority_class="low"')) > 0); i++) {
      await new Promise((done) => setTimeout(done, 100));
      inNetns(node.path, () => keeper.sample());
    }
    await flow;
    // What comes from elsewhere cannot be held back, only dropped; a sender in the pod itself waits.
    await throughput({ server: a.path, client: far.path, address: "10.80.1.2", seconds: 1, udpBits: 50 * M });
    inNetns(node.path, () => keeper.sample());
    const pod = ['node="node-1"', 'namespace="default"', 'pod="a"'];
    expect(await value("terway_qos_violations_total", 'priority_class="low"')).toBeGreaterThan(0);
    expect(await value("terway_qos_violation_count", 'priority_class="low"')).toBeGreaterThan(0);
    expect(await value("terway_network_bytes_total", ...pod)).toBeGreaterThan(1e6);
    expect(await value("terway_qos_dropped_total", ...pod, 'direction="ingress"')).toBeGreaterThan(0);
    expect(await value("terway_qos_overlimits_total", ...pod, 'direction="egress"')).toBeGreaterThan(0);
    expect(await value("terway_network_allocated_bandwidth_bytes", ...pod, 'direction="egress"')).toBe(5e6);
    expect(await value("terway_network_packets_total", 'interface="calia"')).toBeGreaterThan(100);
  }, 60_000);
});

describe("network priority", () => {
  it("lets the guaranteed pod send before the best-effort one when the ENI is full", async () => {
    qos({ traffic_shaping: { tc_rules: [{ interface: "eni1", class_id: 1, rate: "10Mbps", ceil: "10Mbps" }] } });
    facts("a", { [NETWORK_PRIORITY]: "best-effort" });
    facts("b", { [NETWORK_PRIORITY]: "guaranteed" });
    look();
    expect(tc(node, "qdisc", "show", "dev", "eni1")).toContain("qdisc htb 5457: root");
    const [a, b] = [pods.a as Netns, pods.b as Netns];
    const flow = (pod: Netns, port: number) =>
      throughput({ server: far.path, client: pod.path, address: "10.80.9.2", seconds: 3, port, udpBits: 9 * M });
    const [low, high] = await Promise.all([flow(a, 5301), flow(b, 5302)]);
    // Together they ask for 18 of 10 Mbit/s.
    expect([high > 7.5 * M, low < 4 * M]).toEqual([true, true]);
    look(true);
    expect(said.filter((s) => s.includes("eni1: sends in order")).length).toBe(1);
    qos("{}");
    facts("a", {});
    facts("b", {});
    look();
    expect(tc(node, "qdisc", "show", "dev", "eni1")).not.toContain("htb");
  }, 60_000);

  it("is put in force on each ENI whatever happens on the others, with one list of qdiscs for all", () => {
    node.nl.apply([newLink({ kind: "veth", name: "eni0", peer: { name: "eni0-far", netnsFd: far.fd } })]);
    const ordered = () => ["eni0", "eni1"].filter((eni) => tc(node, "qdisc", "show", "dev", eni).includes("htb 5457:"));
    const rule = { class_id: 1, rate: "10Mbps", ceil: "10Mbps" };
    qos({ traffic_shaping: { tc_rules: ["eni0", "eni1"].map((name) => ({ ...rule, interface: name })) } });
    const load = vi.spyOn(sys, "bpfLoad").mockImplementationOnce(() => {
      throw new SysError("bpf", "BPF_PROG_LOAD", 12);
    });
    expect(qdiscLists(look)).toBe(1);
    load.mockRestore();
    expect(said.slice(-2)).toEqual([
      "order in which eni0 sends: bpf BPF_PROG_LOAD: ENOMEM",
      "eni1: sends in order of priority",
    ]);
    expect(tc(node, "filter", "show", "dev", "eni1", "parent", "5457:")).toContain("bpf");
    // What was begun on the first goes too when nobody wants it any more.
    qos("{}");
    look();
    expect(ordered()).toEqual([]);
    runTool("ip", ["-n", node.name, "link", "del", "eni0"]);
  });

  describe("of the only pod that has one", () => {
    const hasOrder = () => tc(node, "qdisc", "show", "dev", "eni1").includes("htb 5457:");
    beforeAll(() => {
      putEni(store, makeEni(1), []);
      putEni(store, makeEni(2, { kind: "exclusive" }), []);
      inTransaction(store.db, () => {
        setEniLink(store.db, "eni-1", { ifname: "eni1", ifindex: 1, mtu: 1500, preparedBoot: "" });
        setEniLink(store.db, "eni-2", { ifname: "inpod", ifindex: 2, mtu: 1500, preparedBoot: "" });
      });
    });

    it("stays in force while another annotation of it is nonsense, and while its row is young", () => {
      facts("a", { [NETWORK_PRIORITY]: "guaranteed" });
      look();
      expect(hasOrder()).toBe(true);
      facts("a", { [NETWORK_PRIORITY]: "guaranteed", [EGRESS_BANDWIDTH]: "a lot" });
      look();
      expect(hasOrder()).toBe(true);
      inTransaction(store.db, () => store.db.run("UPDATE shaping SET created_ms = ?", [sys.clock(CLOCK_BOOTTIME)]));
      look(true);
      expect(hasOrder()).toBe(true);
      inTransaction(store.db, () => store.db.run("UPDATE shaping SET created_ms = 0"));
    });

    it("no rule is said to name an ENI that is in a pod", () => {
      expect(said.filter((s) => s.includes("inpod"))).toEqual([]);
    });

    it("is taken back by the next agent when it went while none ran", () => {
      keeper.stop();
      facts("a", {});
      keeper = newKeeper();
      look();
      expect(hasOrder()).toBe(false);
    });
  });

  it("leaves somebody else's qdisc on an ENI alone", () => {
    const foreign = {
      linkIndex: 3,
      handle: 0x10000,
      parent: 0xffffffff,
      kind: "htb",
      options: undefined,
      stats: undefined,
    };
    const state = { linkIndex: 3, qdiscs: [foreign], classes: [], filters: [] };
    expect(planEniQos(state, true, [])).toEqual({ kind: "foreign", qdisc: "htb" });
    expect(planEniQos(state, false, [])).toEqual({ kind: "right" });
  });
});

describe("samples", () => {
  const reading = (bytes: number, waitMs = 0): Reading => ({ bytes, packets: bytes, drops: 0, overlimits: 0, waitMs });
  it("count from the last one, and anew when the counters were", () => {
    expect(countedSince(reading(100), reading(150)).bytes).toBe(50);
    expect(countedSince(reading(100), reading(30)).bytes).toBe(30);
    expect(countedSince(undefined, reading(30)).bytes).toBe(30);
  });
  it.each<[string, number, number, boolean]>([
    ["in time and within the rate", 4, 1e6, false],
    ["late", 11, 1e6, true],
    ["a tenth above the allocation", 0, 1.3e6, true],
  ])("%s", (_what, waitMs, bytesPerSecond, violated) =>
    expect(
      isViolation({ egress: { bitsPerSecond: 8 * M }, latencySlaMs: 10 }, "egress", reading(1, waitMs), bytesPerSecond),
    ).toBe(violated),
  );
});
