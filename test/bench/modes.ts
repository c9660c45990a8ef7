/**
 * The modes with an uplink against the nearest Go reference chain, in one run and in turn, one pod at a time: exclusive against
 * `host-device`, IPvlan against `ipvlan`, trunk against `vlan`, each with `host-local`. What this kernel cannot do is
 * said and left out. Without a pause a call also waits for what the kernel still does for the one before it: it takes
 * links away behind an RCU barrier, after DEL has returned; --pause 100 measures calls that come by themselves.
 *
 *   node test/bench/modes.ts [--json] [--pods N] [--rounds N] [--mode NAME] [--pause MS]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { addAddress } from "../../ipam/store/addresses.ts";
import { type EniKind, setEniLink, setEniState, upsertEni } from "../../ipam/store/enis.ts";
import { setFacts } from "../../ipam/store/facts.ts";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { getLink, linkIndexOf, setLink } from "../../shared/netlink/rtnl/link.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import type { Call, Run } from "./driver.ts";
import { percentile } from "./percentile.ts";
import { buildDriver, runPlan } from "./run-driver.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const OURS = join(root, "dist/cni");
const GO = "/usr/lib/cni";
const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    pods: { type: "string", default: "24" },
    rounds: { type: "string", default: "5" },
    mode: { type: "string" },
    pause: { type: "string", default: "0" },
  },
});
const PODS = Number(values.pods);
const ROUNDS = Number(values.rounds);
const PAUSE_MS = Number(values.pause);
const prefix = `bm${process.pid % 1000}`;
const macOf = (i: number) => `00:16:3e:01:00:${(i + 1).toString(16).padStart(2, "0")}`;

interface Mode {
  readonly name: string;
  readonly plugin: string;
  readonly conf: Readonly<Record<string, unknown>>;
  readonly kind: EniKind;
  /** ENIs of the pods' own, or one for all. */
  readonly enis: number;
  /** A command that makes such a link, where this kernel can. */
  readonly probe: readonly string[] | undefined;
  /** Configuration of the Go plugin for pod i. */
  readonly go: (i: number) => Readonly<Record<string, unknown>>;
}

const MODES: readonly Mode[] = [
  {
    name: "exclusive",
    plugin: "terway-eni",
    conf: { mode: "exclusive" },
    kind: "exclusive",
    enis: PODS,
    probe: undefined,
    go: (i) => ({ type: "host-device", device: `go${i}` }),
  },
  {
    name: "ipvlan",
    plugin: "terway-ipvlan",
    conf: {},
    kind: "shared",
    enis: 1,
    probe: ["link", "add", "probe0", "link", "eth1", "type", "ipvlan", "mode", "l2"],
    go: () => ({ type: "ipvlan", master: "go0", mode: "l2" }),
  },
  {
    name: "trunk",
    plugin: "terway-trunk",
    conf: {},
    kind: "member",
    enis: PODS,
    probe: ["link", "add", "probe0", "link", "eth1", "type", "vlan", "id", "7"],
    go: (i) => ({ type: "vlan", master: "go0", vlanId: i + 100 }),
  },
];

/** Links that stand for ENIs, ours under their MAC addresses, the Go peers' by name; and a store as the agent leaves it. */
function prepare(mode: Mode, node: Netns, storePath: string): Store {
  const links = mode.kind === "exclusive" ? PODS : 1;
  const ip = (...args: string[]) => runTool("ip", ["-n", node.name, ...args]);
  ip("addr", "add", "10.1.0.1/32", "dev", "lo");
  for (let i = 0; i < links; i++) {
    ip("link", "add", `eth${i + 1}`, "address", macOf(i), "type", "veth", "peer", "name", `wire${i}`);
    ip("link", "add", `go${i}`, "type", "veth", "peer", "name", `gowire${i}`);
    for (const name of [`wire${i}`, `gowire${i}`]) ip("link", "set", name, "up");
    if (mode.kind !== "exclusive") for (const name of [`eth${i + 1}`, `go${i}`]) ip("link", "set", name, "up");
  }
  const linkOf = (ifname: string) => {
    const [{ ifindex }] = JSON.parse(ip("-j", "link", "show", ifname)) as [{ readonly ifindex: number }];
    return { ifname, ifindex, mtu: 1500, preparedBoot: store.bootId };
  };
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, storePath);
  const eni = {
    state: "ready",
    vswitchId: "vsw-bench",
    securityGroups: ["sg"],
    cidr4: "10.1.0.0/16",
    gateway4: "10.1.255.253",
    primary6: undefined,
    cidr6: undefined,
    gateway6: undefined,
    mtu: 1500,
    createdMs: 0,
  } as const;
  inTransaction(store.db, () => {
    if (mode.kind === "member") {
      upsertEni(store.db, { ...eni, id: "eni-trunk", mac: macOf(0), kind: "trunk", primary4: "10.1.0.1" });
      setEniLink(store.db, "eni-trunk", linkOf("eth1"));
    }
    for (let i = 0; i < mode.enis; i++) {
      const id = `eni-${i}`;
      const mac = mode.kind === "member" ? macOf(100 + i) : macOf(i);
      const member = mode.kind === "member" ? { trunkId: "eni-trunk", vlanId: i + 1 } : {};
      upsertEni(store.db, { ...eni, ...member, id, mac, kind: mode.kind, primary4: `10.1.1.${i + 1}` });
      setEniState(store.db, id, "ready");
      // A member's link is made in its pod.
      if (mode.kind !== "member") setEniLink(store.db, id, linkOf(`eth${i + 1}`));
      const addresses = mode.kind === "shared" ? PODS : 1;
      for (let a = 0; a < addresses; a++) addAddress(store.db, id, `10.1.${a + 2}.${i + 1}`, 0);
    }
    setFacts(store.db, { node_ip: "10.1.0.1", cooldown_ms: "0", via_node: '["172.16.0.0/16"]' });
  });
  return store;
}

interface Move {
  readonly intoPodMs: number;
  readonly backMs: number;
}

/**
 * What no plugin of this mode can go below: the kernel's own time for one RTM_NEWLINK that takes a link into another
 * namespace. It waits for an RCU grace period there (__dev_change_net_namespace).
 */
function moveBare(node: Netns, pods: readonly Netns[]): Move[] {
  const timed = (from: Netns, to: Netns, name: string) => {
    const [found] = from.nl.apply([getLink({ name })]);
    const index = found?.ok ? linkIndexOf(found.replies[0] ?? new Uint8Array(16)) : 0;
    if (PAUSE_MS > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE_MS);
    const start = performance.now();
    from.nl.apply([setLink({ index, netnsFd: to.fd })]);
    return performance.now() - start;
  };
  const there = pods.map((pod, i) => timed(node, pod, `go${i}`));
  return pods.map((pod, i) => ({ intoPodMs: there[i] ?? 0, backMs: timed(pod, node, `go${i}`) }));
}

interface Figures {
  readonly p50Ms: number;
  readonly cpuMs: number;
}
interface Pair {
  readonly terway: Figures;
  readonly go: Figures;
  readonly ratio: number;
}

interface Measured {
  readonly add: Pair;
  readonly del: Pair;
  /** Only where a link that exists is moved. */
  readonly bareMove?: Move;
}

function measure(mode: Mode, program: string): Measured {
  const folder = mkdtempSync(join(tmpdir(), "terway-bench-"));
  const node = createNetns(`${prefix}-node`);
  const pods: Netns[] = [];
  try {
    for (let i = 0; i < PODS; i++) pods.push(createNetns(`${prefix}-${i}`));
    const storePath = join(folder, "ipam.db");
    const store = prepare(mode, node, storePath);
    const call = (path: string, stdin: unknown, verb: string, i: number, pod: Netns): Call => ({
      path,
      stdin: JSON.stringify(stdin),
      env: {
        PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
        CNI_COMMAND: verb,
        CNI_CONTAINERID: `pod-${i}`,
        CNI_NETNS: pod.path,
        CNI_IFNAME: "eth0",
        CNI_PATH: `${OURS}:${GO}`,
      },
    });
    const ours = {
      cniVersion: "1.0.0",
      name: "bench",
      type: mode.plugin,
      ...mode.conf,
      store: storePath,
      logDir: folder,
      ipam: { type: "terway-ipam", cooldownSeconds: 0 },
    };
    const ipam = {
      type: "host-local",
      dataDir: folder,
      ranges: [[{ subnet: "10.99.0.0/16" }]],
      routes: [{ dst: "0.0.0.0/0" }],
    };
    const callsOf = (peer: "terway" | "go", verb: string) =>
      pods.map((pod, i) =>
        peer === "terway"
          ? call(join(OURS, mode.plugin), ours, verb, i, pod)
          : call(
              join(GO, String(mode.go(i).type)),
              { cniVersion: "1.0.0", name: "go", ...mode.go(i), ipam },
              verb,
              i,
              pod,
            ),
      );
    const runs = { terway: { ADD: [] as Run[], DEL: [] as Run[] }, go: { ADD: [] as Run[], DEL: [] as Run[] } };
    const moves: Move[] = [];
    for (let round = 0; round <= ROUNDS; round++) {
      if (mode.kind === "exclusive") {
        const timed = moveBare(node, pods);
        if (round > 0) moves.push(...timed);
      }
      for (const peer of ["terway", "go"] as const) {
        for (const verb of ["ADD", "DEL"] as const) {
          const run = runPlan(program, {
            netns: node.path,
            concurrency: 1,
            ...(PAUSE_MS > 0 && { pauseMs: PAUSE_MS }),
            calls: callsOf(peer, verb),
          });
          if (round > 0) runs[peer][verb].push(run);
        }
      }
      store.db.all("PRAGMA wal_checkpoint(PASSIVE)");
    }
    store.db.close();
    const figures = (all: readonly Run[]): Figures => ({
      p50Ms: percentile(
        all.flatMap((r) => r.samples.map((s) => s.wallMs)),
        50,
      ),
      cpuMs: percentile(
        all.flatMap((r) => r.samples.map((s) => s.cpuMs)),
        50,
      ),
    });
    const pair = (verb: "ADD" | "DEL"): Pair => {
      const [terway, go] = [figures(runs.terway[verb]), figures(runs.go[verb])];
      return { terway, go, ratio: terway.p50Ms / go.p50Ms };
    };
    const median = (of: keyof Move) =>
      percentile(
        moves.map((m) => m[of]),
        50,
      );
    const bareMove = moves.length > 0 && { intoPodMs: median("intoPodMs"), backMs: median("backMs") };
    return { add: pair("ADD"), del: pair("DEL"), ...(bareMove && { bareMove }) };
  } finally {
    for (const pod of pods) pod.close();
    node.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** @returns Why not; undefined: it can. */
function cannot(mode: Mode): string | undefined {
  if (mode.probe === undefined) return undefined;
  const probe = createNetns(`${prefix}-probe`);
  try {
    runTool("ip", ["-n", probe.name, "link", "add", "eth1", "type", "veth", "peer", "name", "wire"]);
    runTool("ip", ["-n", probe.name, ...mode.probe]);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  } finally {
    probe.close();
  }
}

const out = values.json ? process.stderr : process.stdout;
const program = buildDriver();
const results: unknown[] = [];
out.write(`one pod at a time, ${PODS} pods, ${ROUNDS} rounds in turn, ${PAUSE_MS} ms between calls; medians, ms\n\n`);
out.write("mode       verb   ours   CPU   |  Go (peer)             CPU   |  ratio\n");
for (const mode of MODES.filter((m) => values.mode === undefined || m.name === values.mode)) {
  const why = cannot(mode);
  if (why !== undefined) {
    out.write(`${mode.name.padEnd(10)} not on this kernel: ${why}\n`);
    results.push({ mode: mode.name, skipped: why });
    continue;
  }
  const { add, del, bareMove } = measure(mode, program);
  for (const [verb, p] of [
    ["ADD", add],
    ["DEL", del],
  ] as const) {
    const n = (x: number) => x.toFixed(2).padStart(6);
    out.write(
      `${mode.name.padEnd(10)} ${verb}  ${n(p.terway.p50Ms)} ${n(p.terway.cpuMs)}  |  ${n(p.go.p50Ms)} (${String(mode.go(0).type)}) ${n(p.go.cpuMs)}  |  ${n(p.ratio)}\n`,
    );
  }
  if (bareMove)
    out.write(
      `${mode.name.padEnd(10)} of both, one netlink request that moves the link: ${bareMove.intoPodMs.toFixed(2)} in ADD, ${bareMove.backMs.toFixed(2)} in DEL\n`,
    );
  results.push({ mode: mode.name, peer: mode.go(0).type, add, del, ...(bareMove && { bareMove }) });
}
if (values.json) process.stdout.write(`${JSON.stringify(results)}\n`);
