/** NetworkPolicy where packets pass no hook of the node: pods with an ENI of their own, or an IPvlan child of one. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PolicyCompiler } from "../../ipam/policy/compiler.ts";
import { attachedPods, createEnforcer } from "../../ipam/policy/enforcer.ts";
import { readManifests } from "../../ipam/policy/read/object.ts";
import { oracleAllows } from "../../ipam/policy/testkit/oracle.ts";
import { openStore } from "../../ipam/store/open.ts";
import { putCompiled } from "../../ipam/store/policy.ts";
import { listShaping } from "../../ipam/store/shaping.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { throughput } from "../lab/iperf.ts";
import { ALLOWED_MS, DENIED_MS, type PodProcess, startPodProcess } from "../lab/pod-process.ts";
import { ONLY_80 } from "../lab/policy-node.ts";
import { type SctpProcess, startSctp } from "../lab/sctp.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, type LabMode, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { type CniRuntime, createRuntime } from "../runtime/cni-runtime.ts";
import { inNetns } from "../runtime/exec.ts";

const PORTS = [80, 81];

interface Attached {
  readonly pod: WorldPod;
  readonly ip: string;
  readonly process: PodProcess;
  readonly by: CniRuntime;
}

type Manifest = Readonly<Record<string, unknown>>;

const np = (namespace: string, spec: Manifest): Manifest => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: `p-${namespace}`, namespace },
  spec,
});
const space = (...values: string[]) => ({
  namespaceSelector: { matchExpressions: [{ key: "ns", operator: "In", values }] },
});
const all = { podSelector: {} };
const sctp81 = { protocol: "SCTP", port: 81 };

/** Namespaces x and y have a pod each on one node, z on another; labels app=NAMESPACE. */
const MATRIX: readonly {
  readonly what: string;
  readonly everywhere?: boolean;
  readonly manifests: (ip: (ns: string) => string) => Manifest[];
}[] = [
  { what: "default deny ingress", manifests: () => [np("x", all)] },
  { what: "namespaces", manifests: () => [np("x", { ...all, ingress: [{ from: [space("z")] }] })] },
  {
    what: "namespace and pod, ports of three protocols, a range",
    everywhere: true,
    manifests: () => [
      np("y", {
        ...all,
        ingress: [
          {
            from: [{ ...space("x"), podSelector: { matchLabels: { app: "x" } } }],
            ports: [{ port: 80, endPort: 90 }, { protocol: "UDP", port: 81 }, sctp81],
          },
          { from: [space("z")], ports: [{ port: "web" }] },
        ],
      }),
    ],
  },
  {
    what: "egress, and ingress at the other end",
    everywhere: true,
    manifests: () => [
      np("x", { ...all, policyTypes: ["Egress"], egress: [{ to: [space("y", "z")], ports: [{ port: 80 }, sctp81] }] }),
      np("z", { ...all, ingress: [{ from: [space("x")], ports: [{ port: 80 }] }] }),
    ],
  },
  {
    what: "blocks with a hole",
    manifests: (ip) => [
      np("z", { ...all, ingress: [{ from: [{ ipBlock: { cidr: "0.0.0.0/0", except: [`${ip("x")}/32`] } }] }] }),
    ],
  },
  {
    what: "an admin policy above",
    manifests: () => [
      np("y", all),
      {
        apiVersion: "policy.networking.k8s.io/v1alpha1",
        kind: "AdminNetworkPolicy",
        metadata: { name: "above" },
        spec: {
          priority: 5,
          subject: { namespaces: { matchLabels: { ns: "y" } } },
          ingress: [
            { name: "no-z", action: "Deny", from: [{ namespaces: { matchLabels: { ns: "z" } } }] },
            { name: "all", action: "Allow", from: [{ namespaces: {} }] },
          ],
        },
      },
    ],
  },
];

/** Members of a trunk are more work than a test does by hand. The agent goes when they are there: it has policies, too. */
async function preparedByAgent(node: WorldNode): Promise<Prepared> {
  const open = () => openStore({ sys: nodeSys, openSql: openNodeSql }, node.store, { mustExist: true });
  await until(`two ENIs ready on ${node.name}`, 60_000, () => {
    try {
      return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle >= 2;
    } catch {
      return false; // the agent has not made the store yet
    }
  });
  await node.stopAgent("SIGTERM");
  return { node, store: open(), enis: [] };
}

function suite(mode: LabMode, secondary: number): void {
  let world: World;
  let here: Prepared;
  let there: Prepared;
  const processes: PodProcess[] = [];

  beforeAll(async () => {
    world = await createWorld({
      prefix: `w${process.pid % 10000}`,
      nodes: 2,
      mode,
      instanceType: mode === "trunk" ? "ecs.c7.16xlarge" : "ecs.g7.xlarge",
      poolMin: mode === "trunk" ? 2 : 0,
      poolMax: mode === "trunk" ? 3 : 0,
      cooldownSeconds: 0,
      agents: mode === "trunk",
    });
    const [a, b] = world.nodes as [WorldNode, WorldNode];
    if (mode === "trunk") {
      here = await preparedByAgent(a);
      there = await preparedByAgent(b);
    } else {
      const kind = mode === "eni-exclusive" ? "exclusive" : "shared";
      here = await prepareByHand(world, a, kind, 2, secondary);
      there = await prepareByHand(world, b, kind, 1, secondary);
    }
    inTransaction(here.store.db, () => putCompiled(here.store.db, ONLY_80));
  }, patient(60_000));
  afterAll(async () => {
    for (const p of processes) await p.close();
    here?.store.db.close();
    there?.store.db.close();
    await world?.close();
  });

  interface How {
    readonly posture?: string;
    readonly namespace?: string;
    readonly limits?: Readonly<Record<string, number>>;
  }

  async function attach(node: WorldNode, name: string, how: How = {}): Promise<Attached> {
    const { posture = "allow", namespace = "default", limits } = how;
    const { conflist } = node.runtime;
    const places = { store: node.store, logDir: node.dir };
    const bandwidth = { type: "terway-bandwidth", capabilities: { bandwidth: true }, ...places };
    const policy = { type: "terway-policy", ...places, default: posture };
    const by = createRuntime({
      conflist: { ...conflist, plugins: [...conflist.plugins, bandwidth, policy] },
      cniPath: CNI_PATH,
      netns: node.netns,
    });
    const runtimeConfig = limits && { runtimeConfig: { bandwidth: limits } };
    const pod = { ...node.newPod(), name, namespace, ...runtimeConfig };
    const { result } = await by.add(pod);
    const process = await startPodProcess(pod.netns);
    processes.push(process);
    await process.serve(PORTS);
    return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "", process, by };
  }

  it(
    "lets pods reach each other exactly as the policies mean, in every protocol",
    async () => {
      const ends = new Map<string, Attached & { readonly sctp: SctpProcess }>();
      for (const [ns, where] of [
        ["x", here],
        ["y", here],
        ["z", there],
      ] as const) {
        const attached = await attach(where.node, "a", { namespace: ns });
        ends.set(ns, { ...attached, sctp: await startSctp(attached.pod.netns, PORTS) });
      }
      const ipOf = (ns: string) => ends.get(ns)?.ip ?? "";
      const pods = [...ends].map(([ns, { ip }]) => ({
        apiVersion: "v1",
        kind: "Pod",
        metadata: { name: "a", namespace: ns, labels: { app: ns } },
        spec: { containers: [{ name: "main", ports: [{ name: "web", containerPort: 81 }] }] },
        status: { phase: "Running", podIPs: [{ ip }] },
      }));
      const spaces = [...ends.keys()].map((ns) => ({
        apiVersion: "v1",
        kind: "Namespace",
        metadata: { name: ns, labels: { ns } },
      }));
      const nodes = [here, there].map(({ node, store }) => {
        const nft = inNetns(node.netns, () => openNft(nodeSys));
        return { store, nft, enforcer: createEnforcer(store, nft, { cutEstablished: true }) };
      });
      let revision = 10;
      // Where the kernel is emulated, some of them: each takes seconds there.
      for (const { what, manifests } of MATRIX.filter((c) => mode === "eni-exclusive" || c.everywhere)) {
        const cluster = [...spaces, ...pods, ...manifests(ipOf)];
        const objects = cluster.flatMap(readManifests).map(({ object, faults }) => {
          if (object === undefined) throw new Error(faults.map((f) => `${f.path}: ${f.message}`).join("; "));
          return object;
        });
        revision += 1;
        for (const { store, enforcer } of nodes) {
          const compiler = new PolicyCompiler({ revision });
          compiler.setAttached(attachedPods(store));
          compiler.apply(objects.map((object) => ({ type: "set" as const, object })));
          enforcer.bring(compiler.compile());
        }
        const tries = [...ends].flatMap(([from, a]) =>
          [...ends]
            .filter(([to]) => to !== from)
            .flatMap(([to, b]) =>
              (["tcp", "udp", "sctp"] as const).flatMap((protocol) =>
                PORTS.map((port) => {
                  const podOf = (ns: string) => pods.find((p) => p.metadata.namespace === ns);
                  const meant = oracleAllows(cluster, {
                    from: { address: a.ip, pod: podOf(from) },
                    to: { address: b.ip, pod: podOf(to) },
                    protocol,
                    port,
                  });
                  const waitMs = meant ? ALLOWED_MS : DENIED_MS;
                  const seen =
                    protocol === "sctp"
                      ? a.sctp.probe(b.ip, port, waitMs)
                      : a.process.probe(protocol, b.ip, port, waitMs);
                  return { flow: `${from} to ${to} ${protocol} ${port}`, meant, seen };
                }),
              ),
            ),
        );
        const wrong: string[] = [];
        for (const { flow, meant, seen } of tries)
          if ((await seen) !== meant) wrong.push(`${flow}: ${meant ? "was not let through" : "was let through"}`);
        expect([what, wrong]).toEqual([what, []]);
        expect(tries.some(({ meant }) => meant) && tries.some(({ meant }) => !meant)).toBe(true);
      }
      // By difference: what concerns no pod here enters no pod; what does ends what is open there and no longer allowed.
      const [first] = nodes;
      if (first === undefined) throw new Error("there is no node");
      const now = first.enforcer.compiled;
      if (now === undefined) throw new Error("nothing is compiled");
      const extra = { id: "unrelated", cidrs: ["192.0.2.1/32"] };
      const unrelated = first.enforcer.bring({ ...now, revision: now.revision + 1, sets: [...now.sets, extra] });
      expect(unrelated.changed.filter((line) => line.startsWith("in pod"))).toEqual([]);
      const [x, y] = [ends.get("x"), ends.get("y")];
      const open = await x?.process.stream("tcp", y?.ip ?? "", 80);
      expect((await open?.count())?.sent).toBeGreaterThanOrEqual(0);
      const closed = { id: "closed", direction: "ingress", admin: [], policies: [], baseline: [] } as const;
      const shut = first.enforcer.bring({
        revision: now.revision + 2,
        sets: [],
        endpointSets: [],
        profiles: [closed],
        pods: [{ namespace: "y", name: "a", ingress: "closed" }],
      });
      expect(shut.changed.some((line) => line.startsWith(`in pod y/a: cut ${x?.ip} to ${y?.ip} port 80`))).toBe(true);
      await new Promise((resolve) => setTimeout(resolve, patient(100))); // what was on its way is there
      const then = await open?.count();
      await until("something is sent", 5000, async () => ((await open?.count())?.sent ?? 0) > (then?.sent ?? 0));
      expect((await open?.stop())?.echoed).toBe(then?.echoed);
      for (const { nft } of nodes) nft.close();
      for (const { by, pod, sctp } of ends.values()) {
        await sctp.close();
        await by.del(pod);
      }
      // What comes after finds the policy of the beginning.
      inTransaction(here.store.db, () => putCompiled(here.store.db, { ...ONLY_80, revision: 100 }));
    },
    patient(60_000),
  );

  // Behind IPvlan: bandwidth.test.ts. An emulated machine takes its time for flows.
  if (mode === "eni-exclusive")
    it(
      "holds them to their rates on the same links, with both plugins chained",
      async () => {
        const limits = { ingressRate: 20e6, egressRate: 10e6 };
        const web = await attach(here.node, "limited", { limits });
        const far = await attach(there.node, "far");
        await web.by.check(web.pod);
        const flow = { server: web.pod.netns, client: far.pod.netns, address: web.ip, seconds: 2 };
        // How near to the rate is bandwidth.test.ts's question; without a limit it is many times as much.
        const shares = [
          (await throughput(flow)) / limits.ingressRate,
          (await throughput({ ...flow, reverse: true })) / limits.egressRate,
        ];
        for (const share of shares) {
          expect(share).toBeGreaterThan(0.3);
          expect(share).toBeLessThan(1.5);
        }
        for (const x of [web, far]) await x.by.del(x.pod);
        expect(listShaping(here.store.db)).toEqual([]);
      },
      patient(60_000),
    );

  // The same code as in mode exclusive; what packets meet was tried above.
  if (mode === "trunk") return;

  it(
    "is in force in the pod before its first packet, and follows changes",
    async () => {
      const [web, near, far] = [
        await attach(here.node, "web"),
        await attach(here.node, "near"),
        await attach(there.node, "far"),
      ];
      const seen = async () => [
        await near.process.reaches("tcp", web.ip, 80),
        await far.process.reaches("tcp", web.ip, 80),
        await near.process.probe("udp", web.ip, 80),
        await far.process.probe("udp", web.ip, 80),
        await ping(far.pod.netns, web.ip, 0.3),
        await web.process.reaches("udp", far.ip, 80),
        await ping(here.node.netns, web.ip),
      ];
      expect(await seen()).toEqual([true, true, false, false, false, true, true]);
      await web.by.check(web.pod);
      // The profile goes: everything is allowed again, and the table in the pod says so.
      const nft = inNetns(here.node.netns, () => openNft(nodeSys));
      try {
        const enforcer = createEnforcer(here.store, nft);
        const { changed } = enforcer.bring({ ...ONLY_80, revision: 2, profiles: [], pods: [] }, false);
        expect(changed.some((line) => line.startsWith("in pod default/web"))).toBe(true);
        expect(await far.process.reaches("udp", web.ip, 80)).toBe(true);
        enforcer.bring({ ...ONLY_80, revision: 3 });
        expect(await far.process.probe("udp", web.ip, 80)).toBe(false);
        // A foreign hand inside the pod is noticed by CHECK and put right.
        runTool("nsenter", [`--net=${web.pod.netns}`, "nft", "flush", "ruleset"]);
        await expect(web.by.check(web.pod)).rejects.toThrow(/in the pod: /);
        expect(enforcer.mend().changed.length).toBeGreaterThan(0);
        await web.by.check(web.pod);
      } finally {
        nft.close();
      }
      for (const x of [web, near, far]) await x.by.del(x.pod);
    },
    patient(60_000),
  );

  it(
    "denies a pod that nobody knows, where that is the posture",
    async () => {
      const [unknown, far] = [await attach(here.node, "unknown", { posture: "deny" }), await attach(there.node, "far")];
      expect([
        await far.process.probe("tcp", unknown.ip, 80),
        await unknown.process.probe("tcp", far.ip, 80),
        await ping(here.node.netns, unknown.ip),
      ]).toEqual([false, false, true]);
      for (const x of [unknown, far]) await x.by.del(x.pod);
    },
    patient(60_000),
  );
}

describe("terway-policy in mode exclusive", inMode("eni-exclusive"), () => suite("eni-exclusive", 0));
describe("terway-policy behind IPvlan", inMode("eniip-ipvlan"), () => suite("eniip-ipvlan", 2));
describe("terway-policy behind a trunk", inMode("trunk"), () => suite("trunk", 0));
