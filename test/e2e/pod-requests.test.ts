/**
 * Pods that ask by their manifests: for an ENI of their own, security groups, network planes, several interfaces. On one
 * node beside ordinary pods of shared ENIs; with whole ENIs, and with members of a trunk where the kernel has VLANs.
 */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Eni, listEnis } from "../../ipam/store/enis.ts";
import { getFact } from "../../ipam/store/facts.ts";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { getPodFacts } from "../../ipam/store/pod-facts.ts";
import { parsePodFacts } from "../../shared/config/pod-facts.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode, type PlacementOptions } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { poolView } from "../lab/store-view.ts";
import { ping, tcpEcho } from "../lab/traffic.ts";
import { createWorld, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";

interface Case {
  readonly kind: "exclusive" | "member";
  readonly placed: PlacementOptions;
  readonly instanceType: string;
  readonly eniConf: Readonly<Record<string, unknown>>;
}

const CASES: readonly Case[] = [
  { kind: "exclusive", placed: inMode("eniip-veth"), instanceType: "ecs.g7.4xlarge", eniConf: {} },
  {
    kind: "member",
    placed: inMode("trunk"),
    instanceType: "ecs.c7.16xlarge",
    eniConf: { enable_eni_trunking: true, eni_cap_policy: "prefer_trunk" },
  },
];

const nsName = (path: string) => path.split("/").at(-1) ?? "";
const ips = (result: { readonly ips?: readonly { readonly address: string }[] }) =>
  (result.ips ?? []).flatMap((ip) => (ip.address.includes(":") ? [] : (ip.address.split("/")[0] ?? "")));
const ips6 = (result: Parameters<typeof ips>[0]) =>
  (result.ips ?? []).flatMap((ip) => (ip.address.includes(":") ? (ip.address.split("/")[0] ?? "") : []));
const idle = (n: WorldNode) => {
  try {
    return poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME)).idle;
  } catch {
    return 0; // the agent has not made the store yet
  }
};

function suite(c: Case): void {
  let world: World;
  let node: WorldNode;
  let other: WorldNode;
  let store: Store;

  beforeAll(async () => {
    world = await createWorld({
      prefix: `q${process.pid % 10000}`,
      nodes: 2,
      mode: "eniip-veth",
      instanceType: c.instanceType,
      poolMin: 2,
      poolMax: 4,
      cooldownSeconds: 1,
      ipStack: "dual",
      manifests: true,
      eniConf: c.eniConf,
      chained: ["terway-policy"],
    });
    world.cloud.model.addVSwitch({
      id: "vsw-plane",
      zone: "cn-emulated-a",
      cidr: "10.40.0.0/24",
      cidr6: "2408:4000:0:40::/64",
    });
    // What nobody reaches who does not belong to it.
    world.cloud.model.addSecurityGroup("sg-closed", []);
    [node, other] = world.nodes as [WorldNode, WorldNode];
    await until("addresses on each node", 30_000, () => idle(node) >= 2 && idle(other) >= 2);
    store = openStore({ sys: nodeSys, openSql: openNodeSql }, node.store, { mustExist: true });
  }, patient(60_000));
  afterAll(async () => {
    store?.db.close();
    await world?.close();
  });

  /** A pod with these annotations, its facts in the store. */
  async function podAsking(annotations: Readonly<Record<string, string>>, more: object = {}): Promise<WorldPod> {
    const pod = node.newPod();
    const metadata = { name: pod.name, namespace: "default", uid: pod.uid, annotations, ...more };
    node.manifest(`${pod.name}.json`, { apiVersion: "v1", kind: "Pod", metadata, spec: { nodeName: node.name } });
    const facts = () => getPodFacts(store.db, "default", pod.name ?? "")?.facts;
    await until("the pod's facts", 20_000, () => {
      const now = facts();
      return now !== undefined && parsePodFacts(now).refused?.again !== true;
    });
    return pod;
  }
  const ordinary = async (n: WorldNode) => {
    const pod = n.newPod();
    return { pod, ip: ips((await n.runtime.add(pod)).result)[0] ?? "" };
  };
  const eniOf = (ip: string): Eni | undefined => {
    const id = store.db.get("SELECT eni_id FROM address WHERE address = ?", [ip])?.eni_id;
    return listEnis(store.db).find((e) => e.id === id);
  };
  const transmitted = (pod: WorldPod, ifname: string) =>
    (
      JSON.parse(runTool("ip", ["-n", nsName(pod.netns), "-j", "-s", "link", "show", ifname])) as [
        { stats64: { tx: { packets: number } } },
      ]
    )[0].stats64.tx.packets;

  it(
    "get an ENI of their own with their groups, beside ordinary pods",
    async () => {
      const [plain, far] = [await ordinary(node), await ordinary(other)];
      const pod = await podAsking({ "k8s.aliyun.com/eni": "true", "k8s.aliyun.com/security-group": "sg-closed" });
      const { result } = await node.runtime.add(pod);
      const [ip = ""] = ips(result);
      expect(eniOf(ip)).toMatchObject({ kind: c.kind, dedicated: true, securityGroups: ["sg-closed"], primary4: ip });
      expect(eniOf(plain.ip)).toMatchObject({ kind: "shared", dedicated: false });
      expect({
        out: await ping(pod.netns, OUTSIDE_IP),
        toFar: await tcpEcho(far.pod.netns, far.ip, pod.netns),
        fromNode: await ping(node.netns, ip),
        plain: await ping(plain.pod.netns, far.ip),
        fromFar: await ping(far.pod.netns, ip, 1),
        fromPlain: await ping(plain.pod.netns, ip, 1),
      }).toEqual({ out: true, toFar: true, fromNode: true, plain: true, fromFar: false, fromPlain: false });
      await node.runtime.check(pod);
      // What was made for it is for nobody else: the next ordinary pod shares an ENI, though that one is free.
      await node.runtime.del(pod);
      const next = await ordinary(node);
      expect(eniOf(next.ip)?.kind).toBe("shared");
      for (const x of [plain, next]) await node.runtime.del(x.pod);
      await other.runtime.del(far.pod);
      pod.destroy();
      expect(world.cloud.fabric?.spoofed()).toBe(0);
    },
    patient(90_000),
  );

  // The same on every node with shared ENIs: once is enough.
  const onHost: (name: string, test: () => Promise<void>, ms: number) => void =
    c.kind === "exclusive" ? it : () => undefined;

  onHost(
    "share ENIs by their groups",
    async () => {
      const groups = { "k8s.aliyun.com/security-groups": "sg-closed" };
      const [a, b] = [await podAsking(groups), await podAsking(groups)];
      const [ipA = ""] = ips((await node.runtime.add(a)).result);
      const [ipB = ""] = ips((await node.runtime.add(b)).result);
      expect(eniOf(ipA)).toMatchObject({ kind: "shared", dedicated: true, securityGroups: ["sg-closed"] });
      expect(eniOf(ipB)?.id).toBe(eniOf(ipA)?.id);
      const plain = await ordinary(node);
      expect(eniOf(plain.ip)?.id).not.toBe(eniOf(ipA)?.id);
      const far = await ordinary(other);
      expect([await ping(far.pod.netns, ipA, 1), await ping(a.netns, far.ip)]).toEqual([false, true]);
      for (const pod of [a, b, plain.pod]) await node.runtime.del(pod);
      await other.runtime.del(far.pod);
    },
    patient(90_000),
  );

  it("do not start with a request that makes no sense, and the log says where", async () => {
    const pod = await podAsking({ "k8s.aliyun.com/eni": "perhaps" });
    await expect(node.runtime.add(pod)).rejects.toThrow(
      /asks for what it cannot have: metadata\.annotations\[k8s\.aliyun\.com\/eni\]: must be "true" or "false"/,
    );
    expect(readFileSync(node.agentLog, "utf8")).toMatch(/refused: .*metadata\.annotations\[k8s\.aliyun\.com\/eni\]/);
  });

  it(
    "have several interfaces, each in its network plane, and answer by the one that was asked",
    async () => {
      const plane = {
        vSwitchOptions: ["vsw-plane"],
        securityGroupIDs: [...world.cloud.model.eniOf(node.instance.primaryEniId).securityGroups],
      };
      node.manifest("planes.json", {
        apiVersion: "network.alibabacloud.com/v1beta1",
        kind: "PodNetworking",
        metadata: { name: "storage" },
        spec: plane,
      });
      const request = JSON.stringify([
        { interfaceName: "eth1", network: "storage", routes: [{ dst: `${OUTSIDE_IP}/32` }] },
      ]);
      const pod = await podAsking({ "k8s.aliyun.com/pod-networks-request": request }, { labels: { app: "guarded" } });
      const far = await ordinary(other);
      const added = await node.runtime.add(pod);
      const [eth0 = "", eth1 = ""] = ips(added.result);
      const [six0 = "", six1 = ""] = ips6(added.result);
      expect(eth1).toMatch(/^10\.40\.0\./);
      expect([eniOf(eth0)?.kind, eniOf(eth1)]).toMatchObject(["shared", { kind: c.kind, vswitchId: "vsw-plane" }]);
      expect(added.result.interfaces?.filter((i) => i.sandbox).map((i) => i.name)).toEqual([
        "eth0",
        "eth1",
        "host-eth1",
      ]);
      const pings = async (from: string, to: string) =>
        runTool("nsenter", [`--net=${from}`, "ping", "-q", "-c10", "-i0.02", "-W2", to]).includes(" 0% packet loss");
      const sent = async (work: () => Promise<boolean>) => {
        const before = ["eth0", "eth1"].map((name) => transmitted(pod, name));
        expect(await work()).toBe(true);
        // Each interface may also send a little of its own accord.
        return ["eth0", "eth1"].map((name, i) => transmitted(pod, name) - (before[i] ?? 0) >= 10);
      };
      expect({
        askedOnEth0: await sent(() => pings(far.pod.netns, eth0)),
        askedOnEth1: await sent(() => pings(far.pod.netns, eth1)),
        askedOnEth1By6: await sent(() => pings(far.pod.netns, six1)),
        byDefault: await sent(() => pings(pod.netns, far.ip)),
        byExtraRoute: await sent(() => pings(pod.netns, OUTSIDE_IP)),
      }).toEqual({
        askedOnEth0: [true, false],
        askedOnEth1: [false, true],
        askedOnEth1By6: [false, true],
        byDefault: [true, false],
        byExtraRoute: [false, true],
      });
      expect([await ping(far.pod.netns, six0), await ping(node.netns, six1)]).toEqual([true, true]);
      expect([await ping(node.netns, eth0), await ping(node.netns, eth1)]).toEqual([true, true]);
      await node.runtime.check(pod);
      expect(ips((await node.runtime.add(pod)).result)).toEqual([eth0, eth1]);

      // Policies hold on every interface, wherever its packets pass.
      const reached = async () => [await ping(far.pod.netns, eth0, 1), await ping(far.pod.netns, eth1, 1)].join();
      const spec = { podSelector: { matchLabels: { app: "guarded" } }, policyTypes: ["Ingress"] };
      const policy = { apiVersion: "networking.k8s.io/v1", kind: "NetworkPolicy", metadata: { name: "guard" }, spec };
      node.manifest("policy.json", policy);
      await until("the policy in force", 20_000, async () => (await reached()) === "false,false");
      node.manifest("policy.json");
      await until("the policy gone", 20_000, async () => (await reached()) === "true,true");

      // The runtime knows of eth0 alone.
      store.db.run("UPDATE attachment SET created_ms = created_ms - 60000");
      store.db.run("UPDATE address SET since_ms = since_ms - 60000 WHERE state = 'allocated'");
      await node.runtime.gc([{ containerID: pod.containerId, ifname: "eth0" }]);
      await node.runtime.check(pod);
      runTool("ip", ["-n", nsName(pod.netns), "rule", "del", "from", eth1]);
      await expect(node.runtime.check(pod)).rejects.toThrow(/rule is missing in the pod/);

      await node.runtime.del(pod);
      await node.runtime.del(pod);
      await other.runtime.del(far.pod);
      expect(store.db.all("SELECT ifname FROM attachment WHERE container_id = ?", [pod.containerId])).toEqual([]);
      await until(
        "an empty pod",
        5000,
        () => runTool("ip", ["-n", nsName(pod.netns), "-o", "link"]).split("\n").length <= 2,
      );
      expect(world.cloud.fabric?.spoofed()).toBe(0);
    },
    patient(90_000),
  );

  it(
    "do not start half-way when one of their interfaces cannot be had",
    async () => {
      world.cloud.model.addVSwitch({ id: "vsw-full", zone: "cn-emulated-a", cidr: "10.41.0.0/24", limit: 0 });
      node.manifest("full.json", {
        apiVersion: "network.alibabacloud.com/v1beta1",
        kind: "PodNetworking",
        metadata: { name: "full" },
        spec: { vSwitchOptions: ["vsw-full"] },
      });
      const request = JSON.stringify([
        { interfaceName: "eth1", network: "storage" },
        { interfaceName: "eth2", network: "full" },
      ]);
      const pod = await podAsking({ "k8s.aliyun.com/pod-networks-request": request });
      await expect(node.runtime.add(pod)).rejects.toThrow(/no free address.*vsw-full/);
      expect(store.db.all("SELECT ifname FROM attachment WHERE container_id = ?", [pod.containerId])).toEqual([]);
      expect(store.db.all("SELECT address FROM address WHERE container_id = ?", [pod.containerId])).toEqual([]);
      await until(
        "an empty pod",
        5000,
        () => runTool("ip", ["-n", nsName(pod.netns), "-o", "link"]).split("\n").length <= 2,
      );
    },
    patient(90_000),
  );

  it(
    "may have the default route by another interface, and keep their facts as long as they live",
    async () => {
      const request = JSON.stringify([
        { interfaceName: "eth0", network: "storage" },
        { interfaceName: "eth1", network: "storage", defaultRoute: true },
      ]);
      const pod = await podAsking({ "k8s.aliyun.com/pod-networks-request": request });
      const [eth0 = "", eth1 = ""] = ips((await node.runtime.add(pod)).result);
      expect(new Set([eniOf(eth0)?.id, eniOf(eth1)?.id]).size).toBe(2);
      expect(runTool("ip", ["-n", nsName(pod.netns), "route", "get", OUTSIDE_IP])).toMatch(/dev eth1 src/);
      const far = await ordinary(other);
      expect([await ping(far.pod.netns, eth0), await ping(far.pod.netns, eth1)]).toEqual([true, true]);
      const known = (name = "") => getPodFacts(store.db, "default", name) !== undefined;
      const another = await podAsking({});
      node.manifest(`${pod.name}.json`);
      node.manifest(`${another.name}.json`);
      await until("facts gone with the manifest", 20_000, () => !known(another.name));
      expect(known(pod.name)).toBe(true);
      await node.runtime.check(pod);
      await node.runtime.del(pod);
      await until("facts gone with the pod", 20_000, () => !known(pod.name));
      expect(getFact(store.db, "asking_pods")).not.toContain(`/${pod.name}\n`);
      await other.runtime.del(far.pod);
    },
    patient(90_000),
  );

  onHost(
    "and the node itself sends by the ENIs of a MultiENIConfig, by destination",
    async () => {
      const { model } = world.cloud;
      const [group = ""] = model.eniOf(node.instance.primaryEniId).securityGroups;
      const entry = (name: string, subnetID: string, zone: string, more: object) => {
        return { eniID: name, subnetID, securityGroupID: group, zone, tags: { Tier: name }, ...more };
      };
      const route = (destination: string, eni: string) => ({ destination, eni, priority: 100 });
      node.manifest("multi.json", {
        apiVersion: "terway.aliyun.com/v1beta1",
        kind: "MultiENIConfig",
        metadata: { name: "terway-multi-eni", namespace: "kube-system" },
        spec: {
          eniConfigs: [
            entry("front", "vsw-node-0", "cn-emulated-a", { primary: true }),
            entry("back", "vsw-plane", "cn-emulated-a", {}),
            entry("far", "vsw-pod-1", "cn-emulated-b", {}),
          ],
          routingPolicy: {
            defaultENI: "front",
            policyRoutes: [route(`${OUTSIDE_IP}/32`, "back"), route("172.16.0.0/16", "back")],
          },
        },
      });
      const ip = (...args: string[]) => runTool("ip", ["-n", nsName(node.netns), ...args]);
      const way = (to: string, ...more: string[]) => ip("route", "get", to, ...more).replace(/\s+/g, " ");
      const own = () => model.attachedTo(node.instance.id).filter((e) => e.tags.has("Tier"));
      // An agent that dies meanwhile makes nothing twice.
      const made = () => [...model.enis.values()].filter((e) => e.tags.get("Tier") === "back");
      await until("the ENI made", 40_000, () => made().length > 0);
      await node.stopAgent("SIGKILL");
      node.startAgent();
      await until("the route", 40_000, () => /src 10\.40\.0\./.test(way(OUTSIDE_IP)));
      expect(made().length).toBe(1);
      expect(own().map((e) => [e.vswitchId, e.tags.get("Tier")])).toEqual([["vsw-plane", "back"]]);
      const nodeIp = model.eniOf(node.instance.primaryEniId).primaryIp;
      expect(way("172.16.0.10")).toContain(`src ${nodeIp}`);
      expect(way(OUTSIDE_IP, "from", nodeIp)).toMatch(/ dev eth0 /);
      const bound = (source: string) =>
        runTool("nsenter", [`--net=${node.netns}`, "ping", "-c1", "-W2", "-I", source, OUTSIDE_IP]);
      bound(nodeIp);
      bound(own()[0]?.primaryIp ?? "");
      expect(await ping(node.netns, OUTSIDE_IP)).toBe(true);
      const plain = await ordinary(node);
      expect([await ping(node.netns, plain.ip), await ping(plain.pod.netns, OUTSIDE_IP)]).toEqual([true, true]);
      await node.runtime.del(plain.pod);

      ip("rule", "del", "priority", "2052");
      await until("the rule again", 20_000, () => ip("rule").includes("2052:"));
      node.manifest("multi.json");
      await until("the ENI gone", 40_000, () => own().length === 0);
      expect(way(OUTSIDE_IP)).toContain(`src ${nodeIp}`);
      expect(ip("rule")).not.toMatch(/205[0-2]:/);
      expect(world.cloud.fabric?.spoofed()).toBe(0);
    },
    patient(120_000),
  );
}

for (const c of CASES) describe(`pods that ask for ${c.kind} ENIs`, c.placed, () => suite(c));
