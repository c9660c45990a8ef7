/**
 * IPv4 and IPv6, and IPv6 alone, in the modes whose pods have addresses of ENIs (F-37): real packets of each family, and
 * what only IPv6 has: duplicate detection, router advertisements, a second half of ADD that may fail.
 */
import { createSocket } from "node:dgram";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { listAttachments } from "../../ipam/store/attachments.ts";
import type { EniKind } from "../../ipam/store/enis.ts";
import { setFacts } from "../../ipam/store/facts.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import type { IpStack } from "../../shared/config/ip-stack.ts";
import { enableForwarding } from "../../shared/datapath/ipv6.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { OUTSIDE_IP, OUTSIDE_IP6 } from "../cloud/fabric.ts";
import { createNetns, runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { ADVERTISED_PREFIX, advertise, ipv6State } from "../lab/router-advertisement.ts";
import { connections, ping, serve, tcpEcho } from "../lab/traffic.ts";
import { type LabMode, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { inNetns } from "../runtime/exec.ts";

interface Case {
  readonly mode: LabMode;
  readonly kind: EniKind;
  readonly enis: number;
  readonly secondary: number;
}

const CASES: readonly Case[] = [
  { mode: "eniip-veth", kind: "shared", enis: 2, secondary: 2 },
  { mode: "eni-exclusive", kind: "exclusive", enis: 3, secondary: 0 },
  { mode: "eniip-ipvlan", kind: "shared", enis: 2, secondary: 2 },
  { mode: "trunk", kind: "member", enis: 3, secondary: 0 },
];
const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];

interface Attached {
  readonly on: Prepared;
  readonly pod: WorldPod;
  /** By family. */
  readonly ips: Readonly<Partial<Record<Family, string>>>;
}

const nsName = (path: string) => path.split("/").at(-1) ?? "";
const ipTool = (netns: string, ...args: string[]) => runTool("ip", ["-n", nsName(netns), ...args]);
const linkNames = (netns: string) =>
  (JSON.parse(ipTool(netns, "-j", "link")) as { ifname: string }[]).map((l) => l.ifname).sort();
const isSix = (address: string) => address.includes(":");

/** As the first instruction of a container. @throws while the address cannot be had. */
function bindTo(netns: string, address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = createSocket({ type: "udp6", lookup: (host, _options, done) => done(null, host, 6) });
    socket.once("error", reject);
    socket.once("listening", () => socket.close(() => resolve()));
    // Bound within this call, in the namespace of this moment.
    inNetns(netns, () => socket.bind({ address, port: 0, exclusive: true }));
  });
}

for (const { mode, kind, enis, secondary } of CASES)
  describe(mode, inMode(mode, "policyRouting6"), () => {
    let world: World;
    let here: Prepared;
    let there: Prepared;
    let outside: string;
    let pristine: string[];
    const outsideIp = { 4: OUTSIDE_IP, 6: OUTSIDE_IP6 };

    const primary = (node: WorldNode) => world.cloud.model.eniOf(node.instance.primaryEniId);
    const nodeIp = (node: WorldNode, family: Family) =>
      family === 4 ? primary(node).primaryIp : ([...primary(node).ips6][0] ?? "");
    const setStack = (stack: IpStack) => {
      for (const { store } of [here, there]) inTransaction(store.db, () => setFacts(store.db, { ip_stack: stack }));
    };

    async function attach(on: Prepared, pod = on.node.newPod()): Promise<Attached> {
      const { result } = await on.node.runtime.add(pod);
      const ips = (result.ips ?? []).map((i) => i.address.split("/")[0] ?? "");
      const [four, six] = [ips.find((i) => !isSix(i)), ips.find(isSix)];
      const made: Attached = { on, pod, ips: { ...(four ? { 4: four } : {}), ...(six ? { 6: six } : {}) } };
      attached.add(made);
      return made;
    }

    const attached = new Set<Attached>();
    afterEach(async () => {
      setStack("dual");
      for (const x of attached) await detach(x);
    });

    async function detach(...pods: readonly Attached[]): Promise<void> {
      for (const x of pods) {
        attached.delete(x);
        await x.on.node.runtime.del(x.pod);
      }
      await until("ENIs and links back", 5000, () => linkNames(here.node.netns).join() === pristine.join());
    }

    /** What pods left on the node: links, routes and rules of either family. */
    function traces(): string[] {
      const { netns } = here.node;
      return [
        ...linkNames(netns).filter((name) => name.startsWith("cal")),
        ...["-4", "-6"].flatMap((family) => [
          ...ipTool(netns, family, "rule")
            .split("\n")
            .filter((line) => /^2048:/.test(line)),
          ...ipTool(netns, family, "route", "show", "table", "all")
            .split("\n")
            .filter((line) => /table (17000|16999)/.test(line)),
        ]),
        ...listAttachments(here.store.db).map((a) => `attachment ${a.containerId}`),
        ...here.store.db.all("SELECT address FROM address WHERE state = 'allocated'").map((a) => String(a.address)),
      ];
    }

    const idle = (family: Family) =>
      Number(here.store.db.get("SELECT count(*) AS n FROM address WHERE state = 'idle' AND family = ?", [family])?.n);

    /** The ways that differ most: other tests go all of them by IPv4. */
    async function reachFew(family: Family, a: Attached, far: Attached) {
      const to = far.ips[family] ?? "";
      return [
        await ping(a.pod.netns, to),
        await ping(a.pod.netns, outsideIp[family]),
        await ping(here.node.netns, a.ips[family] ?? ""),
        await tcpEcho(far.pod.netns, to, a.pod.netns),
      ];
    }
    const FEW = [true, true, true, true];

    /** From everywhere to everywhere. */
    async function reach(family: Family, a: Attached, same: Attached, other: Attached, far: Attached) {
      const to = (x: Attached) => x.ips[family] ?? "";
      const [mine, theirs] = [nodeIp(here.node, family), nodeIp(there.node, family)];
      return {
        samePath: await ping(a.pod.netns, to(same)),
        otherEni: await ping(a.pod.netns, to(other)),
        otherNode: await ping(a.pod.netns, to(far)),
        back: await ping(far.pod.netns, to(other)),
        outside: await ping(a.pod.netns, outsideIp[family]),
        fromOutside: await ping(outside, to(a)),
        ownNode: await ping(a.pod.netns, mine),
        fromOwnNode: await ping(here.node.netns, to(a)),
        otherNodeIp: await ping(a.pod.netns, theirs),
        fromOtherNode: await ping(there.node.netns, to(a)),
        tcp: await tcpEcho(far.pod.netns, to(far), a.pod.netns),
      };
    }
    const ALL = {
      samePath: true,
      otherEni: true,
      otherNode: true,
      back: true,
      outside: true,
      fromOutside: true,
      ownNode: true,
      fromOwnNode: true,
      otherNodeIp: true,
      fromOtherNode: true,
      tcp: true,
    };

    beforeAll(async () => {
      world = await createIdleWorld({
        prefix: `k${process.pid % 10000}`,
        nodes: 2,
        mode,
        instanceType: kind === "member" ? "ecs.c7.16xlarge" : "ecs.g7.xlarge",
        ipStack: "dual",
      });
      const [a, b] = world.nodes;
      if (a === undefined || b === undefined) throw new Error("two nodes are needed");
      here = await prepareByHand(world, a, kind, enis, secondary, "dual");
      there = await prepareByHand(world, b, kind, 1, secondary, "dual");
      outside = world.cloud.fabric?.outside.path ?? "";
      pristine = linkNames(here.node.netns);
    }, patient(30_000));
    afterAll(async () => {
      here?.store.db.close();
      there?.store.db.close();
      await world?.close();
    });

    it(
      "dual stack: both addresses are usable when ADD returns, and carry packets everywhere",
      async () => {
        const a = await attach(here);
        expect(ipTool(a.pod.netns, "-6", "route", "get", a.ips[6] ?? "")).toMatch(/^local /);
        await bindTo(a.pod.netns, a.ips[6] ?? "");
        expect(ipTool(a.pod.netns, "-6", "addr")).not.toMatch(/tentative|dadfailed/);
        const [b, c, far] = [await attach(here), await attach(here), await attach(there)];
        expect(await reachFew(4, a, far)).toEqual(FEW);
        expect(await reach(6, a, b, c, far)).toEqual(ALL);
        await here.node.runtime.check(a.pod);
        await detach(a, b, c, far);
        expect(traces()).toEqual([]);
        expect(world.cloud.fabric?.spoofed()).toBe(0);
      },
      patient(30_000),
    );

    it(
      "IPv6 alone: no IPv4 in the pod, IPv6 everywhere, Services through the node",
      async () => {
        setStack("ipv6");
        const [a, c, far] = [await attach(here), await attach(here), await attach(there)];
        expect([a, c, far].map((x) => Object.keys(x.ips))).toEqual([["6"], ["6"], ["6"]]);
        expect(ipTool(a.pod.netns, "-4", "addr", "show", "scope", "global")).toBe("");
        expect(ipTool(a.pod.netns, "-4", "route", "show", "table", "main")).toBe("");
        expect(await reachFew(6, a, far)).toEqual(FEW);
        const reached: number[] = [];
        for (const backend of [c, far]) {
          const server = await serve(backend.pod.netns);
          const script = `table ip6 kube-proxy
            delete table ip6 kube-proxy
            table ip6 kube-proxy { chain pre { type nat hook prerouting priority dstnat;
              ip6 daddr fd00:16::10 tcp dport 80 dnat to [${backend.ips[6]}]:${server.port}; }; }`;
          runTool("nsenter", [`--net=${here.node.netns}`, "nft", "-f", "-"], script);
          reached.push(await connections(a.pod.netns, "fd00:16::10", 80, 5));
          server.close();
        }
        expect(reached).toEqual([5, 5]);
        await here.node.runtime.check(a.pod);
        await detach(a, c, far);
        expect(traces()).toEqual([]);
        expect(world.cloud.fabric?.spoofed()).toBe(0);
      },
      patient(30_000),
    );

    it(
      "a router advertisement changes nothing, neither in the pod nor on the node (F-37)",
      async () => {
        const made = await attach(here);
        const { pod } = made;
        const router = world.cloud.fabric?.router.path ?? "";
        // The link of the pod's and the node's ENI, as the router sees them; a veth's other end is on the node.
        const portOf = (mac: string) => {
          const neighbours = JSON.parse(ipTool(router, "-6", "-j", "neigh")) as { lladdr?: string; dev: string }[];
          return neighbours.find((n) => n.lladdr === mac)?.dev ?? "";
        };
        const eni = here.store.db.get(
          "SELECT mac FROM eni e JOIN address a ON a.eni_id = e.id WHERE a.container_id = ?",
          [pod.containerId],
        );
        const before = { pod: ipv6State(pod.netns), node: ipv6State(here.node.netns) };
        const byVeth = linkNames(here.node.netns).find((name) => name.startsWith("cal")) ?? "";
        await advertise(here.node.netns, byVeth, pod.netns);
        await advertise(router, portOf(String(eni?.mac)), kind === "shared" ? here.node.netns : pod.netns);
        if (mode === "eniip-ipvlan") await advertise(router, portOf(String(eni?.mac)), pod.netns);
        await advertise(router, portOf(primary(here.node).mac), here.node.netns);
        expect({ pod: ipv6State(pod.netns), node: ipv6State(here.node.netns) }).toEqual(before);
        expect(JSON.stringify(before)).not.toContain(ADVERTISED_PREFIX);
        await here.node.runtime.check(pod);
        await detach(made);
      },
      patient(30_000),
    );

    it(
      "an ADD that fails in its IPv6 half leaves nothing of the IPv4 half",
      async () => {
        const pod = here.node.newPod();
        const free = FAMILIES.map(idle);
        // Somebody's default route is in the way of ours.
        ipTool(pod.netns, "-6", "route", "add", "default", "dev", "lo", "metric", "1024");
        await expect(here.node.runtime.add(pod)).rejects.toThrow(/ip -6 route add|::\/0/);
        await until("ENIs back", 5000, () => linkNames(here.node.netns).join() === pristine.join());
        await until("an empty pod", 5000, () => linkNames(pod.netns).join() === "lo");
        expect([traces(), FAMILIES.map(idle)]).toEqual([[], free]);
        expect(ipTool(pod.netns, "-4", "route", "show", "table", "all", "type", "unicast")).toBe("");
        ipTool(pod.netns, "-6", "route", "flush", "default");
        // The address of a family is missing: nothing is taken of the other.
        const { db } = here.store;
        inTransaction(db, () => db.run("UPDATE address SET state = 'releasing' WHERE family = 6 AND state = 'idle'"));
        await expect(here.node.runtime.add(pod)).rejects.toThrow(/IPv4: [1-9]\d* idle.*IPv6: 0 idle/);
        expect([traces(), idle(4)]).toEqual([[], free[0]]);
        inTransaction(db, () => db.run("UPDATE address SET state = 'idle' WHERE family = 6 AND state = 'releasing'"));
        // New links of the node have no IPv6.
        const without = (on: 0 | 1) =>
          runTool("nsenter", [`--net=${here.node.netns}`, "sysctl", "-qw", `net.ipv6.conf.default.disable_ipv6=${on}`]);
        without(1);
        await expect(here.node.runtime.add(pod)).rejects.toThrow(/IPv6 is disabled.*disable_ipv6=0/);
        without(0);
        await until("ENIs back", 5000, () => linkNames(here.node.netns).join() === pristine.join());
        expect([traces(), FAMILIES.map(idle)]).toEqual([[], free]);
        const again = await attach(here, pod);
        expect(await ping(pod.netns, OUTSIDE_IP6)).toBe(true);
        await detach(again);
      },
      patient(30_000),
    );

    it(
      "CHECK names what is missing of IPv6, and DEL works all the same",
      async () => {
        // Some runtimes make sandboxes without IPv6.
        const pod = here.node.newPod();
        runTool("nsenter", [`--net=${pod.netns}`, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
        const a = await attach(here, pod);
        const six = a.ips[6] ?? "";
        const { netns } = a.pod;
        const node = here.node.netns;
        expect(await ping(netns, "::1")).toBe(true);
        const uplink = mode !== "eniip-veth";
        const host = linkNames(node).find((name) => name.startsWith("cal")) ?? "";
        const faults: [string, readonly string[], RegExp][] = [
          [netns, ["-6", "route", "del", "default"], /route is missing in the pod: ::\/0/],
          [
            node,
            ["-6", "route", "del", six, "dev", host, "table", uplink ? "16999" : "17000"],
            /route is missing: .*:/,
          ],
          [node, ["-6", "neigh", "del", six, "dev", host], new RegExp(`neighbour ${six} is missing on the node`)],
          [node, ["-6", "rule", "del", "priority", uplink ? "511" : "2048"], /rule is missing: /],
          [netns, ["-6", "addr", "flush", "dev", "eth0", "scope", "global"], new RegExp(`address ${six} is missing`)],
        ];
        await here.node.runtime.check(pod);
        for (const [where, command, words] of faults) {
          ipTool(where, ...command);
          await expect(here.node.runtime.check(pod)).rejects.toThrow(words);
        }
        await detach(a);
        expect(traces()).toEqual([]);
        const next = await attach(here);
        expect(await ping(next.pod.netns, OUTSIDE_IP6)).toBe(true);
        await detach(next);
      },
      patient(30_000),
    );
  });

describe("a node that has its default route by router advertisement", () => {
  it(
    "keeps it when it begins to forward",
    async () => {
      const [router, node] = ["r", "n"].map((end) => createNetns(`k${process.pid % 10000}${end}`));
      if (router === undefined || node === undefined) throw new Error("no namespaces");
      try {
        ipTool(router.path, "link", "add", "down0", "type", "veth", "peer", "name", "eth0", "netns", node.name);
        ipTool(router.path, "link", "set", "down0", "up");
        ipTool(node.path, "link", "set", "eth0", "up");
        const learned = () => ipv6State(node.path).filter((line) => line.startsWith("default via"));
        const forwarding = (on: 0 | 1) =>
          runTool("nsenter", [`--net=${node.path}`, "sysctl", "-qw", `net.ipv6.conf.all.forwarding=${on}`]);
        await advertise(router.path, "down0", node.path);
        expect(learned()).toHaveLength(1);
        // What the kernel does by itself.
        forwarding(1);
        expect(learned()).toEqual([]);
        forwarding(0);
        await advertise(router.path, "down0", node.path);
        expect(learned()).toHaveLength(1);
        const said = inNetns(node.path, () => enableForwarding(nodeSys, node.nl, [6]));
        expect(said).toEqual(["net/ipv6/conf/eth0/accept_ra was 1", "net/ipv6/conf/all/forwarding was 0"]);
        expect(learned()).toHaveLength(1);
        expect(inNetns(node.path, () => enableForwarding(nodeSys, node.nl, [6]))).toEqual([]);
      } finally {
        for (const netns of [router, node]) netns.close();
      }
    },
    patient(30_000),
  );
});
