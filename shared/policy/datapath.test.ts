/** The datapath with real packets: what is compiled is what happens, at every moment. */
import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { runTool } from "../../test/cloud/netns.ts";
import { ping } from "../../test/lab/traffic.ts";
import { createVethNode, type VethNode, type VethPod } from "../../test/lab/veth-node.ts";
import { exec, inNetns } from "../../test/runtime/exec.ts";
import { encodeBatch, type NftSocket, openNft } from "../netlink/nft/socket.ts";
import { nodeSys } from "../sys/node.ts";
import type { CompiledPolicy, PolicyRule, Profile } from "./compiled.ts";
import { cutDenied } from "./cut.ts";
import { linkText } from "./names.ts";
import { putPod, removePod } from "./pod-program.ts";
import { type LocalPod, verdictsOf } from "./pod-verdicts.ts";
import { type Programmed, policyProblems, programPolicy, readCounters, removePolicy, repairPolicy } from "./program.ts";
import { readTable } from "./read.ts";

let node: VethNode;
let nft: NftSocket;
const nftList = () => runTool("ip", ["netns", "exec", node.ns.name, "nft", "list", "ruleset"]);

beforeAll(async () => {
  node = await createVethNode(`pol${process.pid % 10000}`, ["a", "b", "c", "out"], [80, 81, 90]);
  nft = inNetns(node.ns.path, () => openNft(nodeSys));
});
afterAll(async () => {
  nft?.close();
  await node?.close();
});
beforeEach(() => {
  removePolicy(nft);
});

const rule = (verdict: PolicyRule["verdict"], more: Partial<PolicyRule> = {}): PolicyRule => ({
  verdict,
  origin: `test ${verdict}`,
  ...more,
});
const profile = (id: string, direction: Profile["direction"], more: Partial<Profile> = {}): Profile => ({
  id,
  direction,
  admin: [],
  baseline: [],
  ...more,
});

/** Addresses of pods by name, `{ID}` lists for sets. */
function compile(parts: {
  readonly profiles: readonly Profile[];
  readonly sets?: Readonly<Record<string, readonly string[]>>;
  readonly endpoints?: Readonly<Record<string, readonly string[]>>;
  readonly pods: Readonly<Record<string, { readonly ingress?: string; readonly egress?: string }>>;
}): CompiledPolicy {
  return {
    revision: 1,
    sets: Object.entries(parts.sets ?? {}).map(([id, cidrs]) => ({ id, cidrs })),
    endpointSets: Object.entries(parts.endpoints ?? {}).map(([id, endpoints]) => ({ id, endpoints })),
    profiles: parts.profiles,
    pods: Object.entries(parts.pods).map(([name, p]) => ({ namespace: "t", name, ...p })),
  };
}
/** The pods of this node; `out` plays a remote one. */
const locals = (): LocalPod[] =>
  node.pods.flatMap((p, i) =>
    p.name === "out" ? [] : [{ namespace: "t", name: p.name, addresses: [p.ip4, p.ip6, linkText(`h${i}`)] }],
  );
const both = (...names: string[]) => names.flatMap((n) => [`${node.pod(n).ip4}/32`, `${node.pod(n).ip6}/128`]).sort();
const put = (compiled: CompiledPolicy) => programPolicy(nft, () => ({ compiled, pods: locals() }));

/** `a→b tcp80 udp80`: what of the default probes comes through, both families alike. */
async function reach(from: string, to: string | VethPod, ports: readonly number[] = [80]): Promise<string> {
  const target = typeof to === "string" ? node.pod(to) : to;
  const tries = ports.flatMap((port) =>
    (["tcp", "udp"] as const).flatMap((protocol) =>
      [target.ip4, target.ip6].map(async (ip) => ({
        name: `${protocol}${port}${ip.includes(":") ? "-6" : "-4"}`,
        reached: await node.pod(from).process.probe(protocol, ip, port),
      })),
    ),
  );
  const icmp = [target.ip4, target.ip6].map(async (ip) => ({
    name: `icmp${ip.includes(":") ? "-6" : "-4"}`,
    reached: await ping(node.pod(from).ns.path, ip, 0.3),
  }));
  const seen = await Promise.all([...tries, ...icmp]);
  const ok = seen.filter((s) => s.reached).map((s) => s.name);
  const fours = ok.filter((n) => n.endsWith("-4")).map((n) => n.slice(0, -2));
  const sixes = ok.filter((n) => n.endsWith("-6")).map((n) => n.slice(0, -2));
  expect(sixes).toEqual(fours);
  return fours.join(" ");
}
/** From that source address. */
async function pingFrom(pod: VethPod, source: string, to: string, waitSeconds: number): Promise<boolean> {
  const args = ["-c1", `-W${waitSeconds}`, "-I", source, to];
  const environment = { path: "/usr/bin/ping", args, env: { PATH: "/usr/bin:/bin" }, stdin: "", netns: pod.ns.path };
  return (await exec(environment)).status === 0;
}
const ALL = "tcp80 udp80 icmp";

describe("without policies", () => {
  it("everything passes, with the table and without", async () => {
    expect(await reach("a", "b")).toBe(ALL);
    put(compile({ profiles: [], pods: { a: {}, b: {}, c: {} } }));
    expect(await reach("a", "b")).toBe(ALL);
    expect(await reach("out", "a")).toBe(ALL);
  });
});

describe("a profile", () => {
  it("isolates in its own direction only; the node reaches its pods always", async () => {
    put(
      compile({
        profiles: [profile("none", "ingress", { policies: [] }), profile("none-out", "egress", { policies: [] })],
        pods: { a: { ingress: "none" }, b: { egress: "none-out" }, c: {} },
      }),
    );
    expect(await reach("b", "c")).toBe("");
    expect(await reach("c", "a")).toBe("");
    expect(await reach("out", "a")).toBe("");
    expect(await reach("a", "c")).toBe(ALL);
    expect(await reach("c", "b")).toBe(ALL);
    expect(await reach("a", "out")).toBe(ALL);
    expect(await reach("b", "out")).toBe("");
    for (const ip of [node.pod("a").ip4, node.pod("a").ip6]) expect(await ping(node.ns.path, ip)).toBe(true);
    // A pod that may not send does not reach the node either, but answers it.
    expect(await ping(node.pod("b").ns.path, node.ip4, 0.3)).toBe(false);
    expect(await ping(node.pod("b").ns.path, node.ip6, 0.3)).toBe(false);
    expect(await ping(node.ns.path, node.pod("b").ip4)).toBe(true);
    expect(await ping(node.ns.path, node.pod("b").ip6)).toBe(true);
    expect(await ping(node.pod("a").ns.path, node.ip6)).toBe(true);
  });

  it("holds for whatever source address a pod uses: link-local ones, and such as are not its own", async () => {
    const onNode = (...args: string[]) => runTool("ip", ["-n", node.ns.name, ...args]);
    const [open, shut] = [node.pod("a"), node.pod("b")];
    const ends = [open, shut].map((pod) => {
      const host = `h${node.pods.indexOf(pod)}`;
      const inPod = (...args: string[]) => runTool("ip", ["-n", pod.ns.name, ...args]);
      const strange = `fd88::99${node.pods.indexOf(pod)}`;
      inPod("addr", "replace", "fe80::a/64", "dev", "eth0", "nodad");
      onNode("route", "replace", `${strange}/128`, "dev", host);
      const use = () => inPod("addr", "replace", `${strange}/128`, "dev", "eth0", "nodad");
      const unuse = () => inPod("addr", "del", `${strange}/128`, "dev", "eth0");
      const forget = () => {
        inPod("neigh", "flush", "all");
        onNode("neigh", "flush", "all");
      };
      return { pod, host, strange, use, unuse, forget };
    });
    put(
      compile({
        profiles: [profile("none-out", "egress", { policies: [] })],
        pods: { a: {}, b: { egress: "none-out" }, c: {} },
      }),
    );
    for (const { pod, host, strange, use, unuse, forget } of ends) {
      const allowed = pod === open;
      use();
      forget();
      expect([
        pod.name,
        await ping(pod.ns.path, "fe80::1%eth0", allowed ? 2 : 0.3),
        await pingFrom(pod, "fe80::a%eth0", node.ip6, allowed ? 2 : 0.3),
        await pingFrom(pod, strange, node.ip6, allowed ? 2 : 0.3),
        await pingFrom(pod, strange, node.pod("c").ip6, allowed ? 2 : 0.3),
      ]).toEqual([pod.name, allowed, allowed, allowed, allowed]);
      // The node reaches its pods, and what links need passes: both sides find each other anew.
      forget();
      expect(await ping(node.ns.path, `fe80::a%${host}`)).toBe(true);
      expect(await ping(node.ns.path, pod.ip6)).toBe(true);
      unuse();
    }
  });

  it("lets in by peers, by ports, and by both", async () => {
    put(
      compile({
        sets: { friends: both("b", "out") },
        profiles: [
          profile("p", "ingress", {
            policies: [
              rule("accept", { peers: ["friends"], ports: [{ protocol: "tcp", first: 80, last: 81 }] }),
              rule("accept", {
                ports: [
                  { protocol: "udp", first: 90, last: 90 },
                  { protocol: "tcp", first: 90, last: 95 },
                ],
              }),
            ],
          }),
        ],
        pods: { a: { ingress: "p" }, b: {}, c: {} },
      }),
    );
    expect(await reach("b", "a", [80, 81, 90])).toBe("tcp80 tcp81 tcp90 udp90");
    expect(await reach("out", "a", [80, 81, 90])).toBe("tcp80 tcp81 tcp90 udp90");
    expect(await reach("c", "a", [80, 81, 90])).toBe("tcp90 udp90");
  });

  it("matches every protocol where ports are absent", async () => {
    put(
      compile({
        sets: { friends: both("b") },
        profiles: [profile("p", "ingress", { policies: [rule("accept", { peers: ["friends"] })] })],
        pods: { a: { ingress: "p" } },
      }),
    );
    expect([await reach("b", "a"), await reach("c", "a")]).toEqual([ALL, ""]);
  });

  it("knows blocks with holes, up to the ends of the address space", async () => {
    const [b, c] = [node.pod("b"), node.pod("c")];
    put(
      compile({
        // 10.88.0.8/29 holds a (10), b (11), c (12) and out (13); 10.88.0.12/32 is excepted.
        sets: { block: ["10.88.0.8/30", "10.88.0.13/32", "224.0.0.0/3", "fd88::/125", `${b.ip6}/128`, "ffff::/16"] },
        profiles: [profile("p", "egress", { policies: [rule("accept", { peers: ["block"] })] })],
        pods: { a: { egress: "p" } },
      }),
    );
    expect([await reach("a", b), await reach("a", c)]).toEqual([ALL, ""]);
    expect(policyProblems(nft, { compiled: compile({ profiles: [], pods: {} }), pods: [] })).not.toEqual([]);
  });

  it("judges peers' named ports by address and port at once", async () => {
    const [b, c] = [node.pod("b"), node.pod("c")];
    put(
      compile({
        endpoints: { web: [`${b.ip4} tcp 80`, `${b.ip6} tcp 80`, `${c.ip4} udp 90`, `${c.ip6} udp 90`].sort() },
        profiles: [profile("p", "egress", { policies: [rule("accept", { endpoints: ["web"] })] })],
        pods: { a: { egress: "p" } },
      }),
    );
    expect([await reach("a", "b", [80, 90]), await reach("a", "c", [80, 90])]).toEqual(["tcp80", "udp90"]);
  });

  it("is judged by tiers: admin first, pass goes on, baseline where nothing isolates", async () => {
    const tcp80 = { ports: [{ protocol: "tcp" as const, first: 80, last: 80 }] };
    const udp = { ports: [{ protocol: "udp" as const, first: 0, last: 65535 }] };
    put(
      compile({
        sets: { b: both("b"), c: both("c") },
        profiles: [
          profile("iso", "ingress", {
            admin: [
              rule("pass", { peers: ["b"], ...tcp80 }),
              rule("drop", { peers: ["b"] }),
              rule("accept", { peers: ["c"] }),
            ],
            policies: [rule("accept", tcp80)],
            baseline: [rule("accept")], // never asked: a NetworkPolicy isolates
          }),
          profile("open", "ingress", {
            admin: [rule("drop", { peers: ["c"], ...tcp80 })],
            baseline: [rule("drop", udp)],
          }),
        ],
        pods: { a: { ingress: "iso" }, b: { ingress: "open" }, c: {} },
      }),
    );
    expect(await reach("b", "a")).toBe("tcp80"); // passed on, allowed there
    expect(await reach("c", "a")).toBe(ALL); // by the admin, whatever the policies say
    expect(await reach("out", "a")).toBe("tcp80");
    expect(await reach("c", "b")).toBe("icmp");
    expect(await reach("a", "b")).toBe("tcp80 icmp");
  });

  it("counts what its rules matched", async () => {
    put(
      compile({
        sets: { b: both("b") },
        profiles: [
          profile("p", "ingress", {
            policies: [rule("accept", { peers: ["b"], origin: "NetworkPolicy t/web ingress[0]" })],
          }),
        ],
        pods: { a: { ingress: "p" } },
      }),
    );
    await reach("b", "a");
    await reach("c", "a");
    const counters = new Map(readCounters(nft).map((c) => [`${c.chain}: ${c.origin}`, c.packets]));
    expect(counters.get("in-p: NetworkPolicy t/web ingress[0]")).toBe(6);
    expect(counters.get("drop-ingress: denied ingress")).toBeGreaterThanOrEqual(6);
  });
});

describe("service traffic", () => {
  /** VIP 172.16.0.10:8000 with the backend b:80, as kube-proxy's modes write it. */
  const kinds: readonly (readonly [string, (b: string) => string, string])[] = [
    [
      "nftables",
      (b) => `nft -f - <<E
        table ip proxy {
          chain pre { type nat hook prerouting priority dstnat; ip daddr 172.16.0.10 tcp dport 8000 dnat to ${b}:80; }
          chain post { type nat hook postrouting priority srcnat; ip saddr ${b} ip daddr ${b} masquerade; }
        }
E`,
      "nft delete table ip proxy",
    ],
    ...(["iptables-nft", "iptables-legacy"] as const).map(
      (tool) =>
        [
          tool,
          (b: string) => `${tool} -w -t nat -N KUBE-SVC && ${tool} -w -t nat -A PREROUTING -j KUBE-SVC &&
            ${tool} -w -t nat -A KUBE-SVC -d 172.16.0.10 -p tcp --dport 8000 -j DNAT --to-destination ${b}:80 &&
            ${tool} -w -t nat -A POSTROUTING -s ${b} -d ${b} -j MASQUERADE &&
            ${tool} -w -A FORWARD -m conntrack --ctstate INVALID -j DROP && ${tool} -w -A FORWARD -j ACCEPT`,
          `for t in nat filter; do ${tool} -w -t $t -F; ${tool} -w -t $t -X; nft delete table ip $t 2>&- || true; done`,
        ] as const,
    ),
  ];

  it.each(kinds)("is judged by the real backend, after DNAT, with rules by %s (F-38)", async (_kind, rules, undo) => {
    const b = node.pod("b");
    const onNode = (script: string) => runTool("ip", ["netns", "exec", node.ns.name, "sh", "-c", script]);
    onNode(rules(b.ip4));
    const policy = compile({
      sets: { a: both("a"), b: both("b"), service: ["172.16.0.10/32"] },
      profiles: [
        profile("to-b", "egress", {
          policies: [rule("accept", { peers: ["b"], ports: [{ protocol: "tcp", first: 80, last: 80 }] })],
        }),
        profile("to-vip", "egress", { policies: [rule("accept", { peers: ["service"] })] }),
        profile("from-a", "ingress", { policies: [rule("accept", { peers: ["a"] })] }),
      ],
      pods: { a: { egress: "to-b" }, b: { ingress: "from-a", egress: "to-vip" }, c: { egress: "to-vip" } },
    });
    put(policy);
    // A pod is never kept from itself, whatever its policies say.
    expect(await node.pod("b").process.probe("tcp", "172.16.0.10", 8000)).toBe(true);
    expect(await node.pod("a").process.probe("tcp", "172.16.0.10", 8000)).toBe(true);
    expect(await node.pod("c").process.probe("tcp", "172.16.0.10", 8000)).toBe(false);
    // Neither flushed ruleset of theirs nor of ours moves the order: it is by priority, not by who came first.
    removePolicy(nft);
    expect(await node.pod("c").process.probe("tcp", "172.16.0.10", 8000)).toBe(true);
    put(policy);
    expect(await node.pod("a").process.probe("tcp", "172.16.0.10", 8000)).toBe(true);
    expect(await node.pod("c").process.probe("tcp", "172.16.0.10", 8000)).toBe(false);
    onNode(undo);
  });
});

describe("updates", () => {
  const isolated = (friends: readonly string[], extra: readonly string[] = []) =>
    compile({
      sets: { friends: [...friends].sort(), extra },
      profiles: [
        profile("p", "ingress", { policies: [rule("accept", { peers: ["friends"] })] }),
        profile("q", "egress", { policies: [rule("accept", { peers: ["extra"] }), rule("accept")] }),
      ],
      pods: { a: { ingress: "p" }, c: { egress: "q" } },
    });

  it("send only what differs, and nothing when nothing does", () => {
    const first = put(isolated(both("b")));
    expect(first.batches).toBe(2);
    const known = first.programmed;
    const again = programPolicy(nft, () => ({ compiled: isolated(both("b")), pods: locals() }), known);
    expect([again.batches, again.changed]).toEqual([0, []]);
    const wider = programPolicy(nft, () => ({ compiled: isolated(both("b", "c")), pods: locals() }), again.programmed);
    expect(wider.batches).toBe(1);
    expect(wider.changed).toEqual([
      `a4-friends lacks ${node.pod("c").ip4}/32`,
      `a6-friends lacks ${node.pod("c").ip6}/128`,
    ]);
    // Whoever remembers nothing finds the kernel as it should be.
    expect(put(isolated(both("b", "c"))).changed).toEqual([]);
  });

  it("turn a set of addresses into one of blocks and back", async () => {
    put(isolated(both("b")));
    put(isolated(["10.88.0.8/29", "fd88::8/125"]));
    expect(await reach("c", "a")).toBe(ALL);
    put(isolated(both("b")));
    expect([await reach("c", "a"), await reach("b", "a")]).toEqual(["", ALL]);
  });

  it("leave established flows alone, and never let a denied packet through", async () => {
    const friends = both("b");
    let known = put(isolated(friends)).programmed;
    const a = node.pod("a");
    const good = [
      await node.pod("b").process.stream("tcp", a.ip4, 80),
      await node.pod("b").process.stream("udp", a.ip6, 80),
    ];
    const bad = [
      await node.pod("c").process.stream("udp", a.ip4, 81),
      await node.pod("c").process.stream("udp", a.ip6, 81),
    ];
    for (let i = 0; i < 1000; i++) {
      const extra = [`172.31.${i & 255}.0/24`, `192.0.2.${i & 255}/32`].sort();
      // Every tenth time the pod's own profile is replaced by another with the same meaning.
      const compiled = isolated(friends, i % 3 === 0 ? extra.slice(1) : extra);
      const renamed: CompiledPolicy = {
        ...compiled,
        profiles: compiled.profiles.map((p) => (p.id === "p" ? { ...p, id: `p${Math.floor(i / 10)}` } : p)),
        pods: compiled.pods.map((p) => (p.ingress === "p" ? { ...p, ingress: `p${Math.floor(i / 10)}` } : p)),
      };
      known = programPolicy(nft, () => ({ compiled: renamed, pods: locals() }), known).programmed;
      if (i % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
    const [tcp, udp] = [await good[0]?.stop(), await good[1]?.stop()];
    expect(tcp?.sent).toBeGreaterThan(50);
    expect([tcp?.echoed, udp?.echoed]).toEqual([tcp?.sent, udp?.sent]);
    for (const stream of bad) expect((await stream.stop()).echoed).toBe(0);
    expect(put(isolated(friends)).changed.length).toBeGreaterThan(0);
  }, 60_000);

  it("cost as many bytes with 2,000 pods as with 10, for an ADD and for a change (F-16)", () => {
    const bytesWith = (count: number) => {
      removePolicy(nft);
      const pods = Array.from({ length: count }, (_, i): LocalPod => {
        const address = `10.99.${i >> 8}.${i & 255}`;
        return { namespace: "t", name: `p${i}`, addresses: [address] };
      });
      const compiled = compile({
        sets: { peers: pods.map((p) => `${p.addresses[0]}/32`).sort() },
        profiles: [profile("p", "ingress", { policies: [rule("accept", { peers: ["peers"] })] })],
        pods: Object.fromEntries(pods.map((p) => [p.name, { ingress: "p" }])),
      });
      const { programmed } = programPolicy(nft, () => ({ compiled, pods }));
      let bytes = 0;
      const counting: NftSocket = {
        ...nft,
        commit(requests, generation) {
          bytes += encodeBatch(requests, generation).length;
          nft.commit(requests, generation);
        },
      };
      const plan = {
        verdicts: verdictsOf(["10.98.0.1"], { ingress: "p" }),
        parts: () => compiled,
      };
      putPod(counting, () => plan, {});
      const added = bytes;
      const sets = compiled.sets.map((set) => ({ ...set, cidrs: [...set.cidrs, "10.98.0.1/32"].sort() }));
      const now = { ...compiled, sets, pods: [...compiled.pods, { namespace: "t", name: "new", ingress: "p" }] };
      const all = [...pods, { namespace: "t", name: "new", addresses: ["10.98.0.1"] }];
      const { changed } = programPolicy(counting, () => ({ compiled: now, pods: all }), programmed);
      expect(changed).toEqual(["a4-peers lacks 10.98.0.1/32"]);
      return [added, bytes - added];
    };
    expect(bytesWith(2000)).toEqual(bytesWith(10));
  });

  it("take a pod out of the maps, also when somebody else took a part of it or all", () => {
    const verdicts = (last: number) => verdictsOf([`10.97.0.${last}`, `2001:db8::${last}`], undefined);
    const left = () =>
      [...(readTable(nft)?.sets.values() ?? [])].flatMap(({ elements }) =>
        elements.filter((text) => /^(10\.97\.0\.|2001:db8::)/.test(text)),
      );
    for (const last of [1, 2])
      putPod(nft, () => ({ verdicts: verdicts(last), parts: () => compile({ profiles: [], pods: {} }) }), {});
    expect(left()).toHaveLength(12);
    removePod(nft, verdicts(1).slice(2, 4));
    let batches = 0;
    const counting = {
      transact: nft.transact,
      commit(requests: Parameters<typeof nft.commit>[0]) {
        batches += 1;
        nft.commit(requests);
      },
    };
    removePod(counting, verdicts(1));
    // What is refused costs the kernel a grace period of RCU: one for all, not each by itself.
    expect(batches).toBe(2);
    expect(left().sort()).toEqual(
      verdicts(2)
        .map((v) => v.element)
        .sort(),
    );
    removePod(nft, verdicts(2));
    removePod(nft, verdicts(2));
    expect(left()).toEqual([]);
    removePolicy(nft);
    removePod(nft, verdicts(2));
  });

  it("of pods and of anybody else at the same time do not undo each other", () => {
    const other = inNetns(node.ns.path, () => openNft(nodeSys));
    const pods = locals();
    let looks = 0;
    const report = programPolicy(nft, () => {
      looks += 1;
      // While this one computes, somebody else changes the tables.
      if (looks < 4) programPolicy(other, () => ({ compiled: isolated(both("b"), [`192.0.2.${looks}/32`]), pods }));
      return { compiled: isolated(both("b")), pods };
    });
    other.close();
    expect(looks).toBe(4);
    expect(report.changed).not.toEqual([]);
    expect(put(isolated(both("b"))).changed).toEqual([]);
  });
});

describe("cutting", () => {
  it("ends exactly the connections that are no longer allowed", async () => {
    const policy = (friends: readonly string[]) =>
      compile({
        sets: { friends },
        profiles: [profile("p", "ingress", { policies: [rule("accept", { peers: ["friends"] })] })],
        pods: { a: { ingress: "p" } },
      });
    // What the tests before left behind goes first.
    cutDenied(nft, { compiled: policy([]), pods: locals() }, []);
    put(policy(both("b", "c")));
    const a = node.pod("a");
    const streams = [
      await node.pod("b").process.stream("tcp", a.ip4, 80),
      await node.pod("b").process.stream("udp", a.ip6, 80),
      await node.pod("c").process.stream("tcp", a.ip4, 80),
      await node.pod("c").process.stream("udp", a.ip6, 80),
      await node.pod("a").process.stream("udp", node.pod("c").ip4, 80),
    ];
    await new Promise((resolve) => setTimeout(resolve, 100));
    const desired = { compiled: policy(both("b")), pods: locals() };
    programPolicy(nft, () => desired);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const cut = cutDenied(nft, desired, [node.ip4, node.ip6]);
    expect(cut.sort()).toEqual(
      [`${node.pod("c").ip4} to ${a.ip4} port 80 (tcp)`, `${node.pod("c").ip6} to ${a.ip6} port 80 (udp)`].sort(),
    );
    await new Promise((resolve) => setTimeout(resolve, 200));
    const reports = await Promise.all(streams.map((s) => s.stop()));
    const lost = reports.map((r) => r.sent - r.echoed);
    expect([lost[0], lost[1], lost[4]]).toEqual([0, 0, 0]);
    expect(lost[2]).toBeGreaterThan(10);
    expect(lost[3]).toBeGreaterThan(10);
    expect(cutDenied(nft, desired, [node.ip4, node.ip6])).toEqual([]);
    // Allowed again, it may begin again.
    const again = { compiled: policy(both("b", "c")), pods: locals() };
    programPolicy(nft, () => again);
    expect(cutDenied(nft, again, [node.ip4, node.ip6])).toEqual([]);
    expect(await node.pod("c").process.probe("udp", a.ip6, 80)).toBe(true);
  });
});

describe("large policies", () => {
  it("hold 10,000 blocks, and change one of them alone", async () => {
    const blocks = Array.from(
      { length: 10_000 },
      (_, i) => `172.${16 + (i >> 12)}.${(i >> 4) & 255}.${(i & 15) << 4}/28`,
    );
    const policy = (cidrs: readonly string[]) =>
      compile({
        sets: { blocks: cidrs },
        profiles: [profile("p", "ingress", { policies: [rule("accept", { peers: ["blocks"] })] })],
        pods: { a: { ingress: "p" } },
      });
    const first = put(policy([...blocks, "10.88.0.11/32"]));
    const desired = { compiled: policy([...blocks.slice(1), "10.88.0.12/32"]), pods: locals() };
    expect(await node.pod("b").process.probe("tcp", node.pod("a").ip4, 80)).toBe(true);
    const second = programPolicy(nft, () => desired, first.programmed);
    expect(second.changed).toEqual([
      "n4-blocks lacks 10.88.0.12/32",
      `n4-blocks has ${blocks[0]}, 10.88.0.11/32 that is not wanted`,
    ]);
    expect(await node.pod("b").process.probe("tcp", node.pod("a").ip4, 80)).toBe(false);
    expect(await node.pod("c").process.probe("tcp", node.pod("a").ip4, 80)).toBe(true);
    expect(policyProblems(nft, desired)).toEqual([]);
  });

  it("change from any blocks to any others", () => {
    const some = fc
      .uniqueArray(fc.tuple(fc.nat(63), fc.integer({ min: 26, max: 32 })), { maxLength: 24 })
      .map((list) => disjointBlocks(list.map(([n, length]) => ({ first: n & ~(2 ** (32 - length) - 1), length }))));
    let known: Programmed | undefined;
    fc.assert(
      fc.property(some, (cidrs) => {
        const desired = {
          compiled: compile({
            sets: { blocks: cidrs },
            profiles: [profile("p", "ingress", { policies: [rule("accept", { peers: ["blocks"] })] })],
            pods: {},
          }),
          pods: [],
        };
        known = programPolicy(nft, () => desired, known).programmed;
        expect(policyProblems(nft, desired)).toEqual([]);
      }),
      { numRuns: 100 },
    );
  });
});

/** 10.0.0.N/LENGTH, without those that are inside another; the last 64 addresses of all as well. */
function disjointBlocks(blocks: readonly { readonly first: number; readonly length: number }[]): string[] {
  const size = (b: { readonly length: number }) => 2 ** (32 - b.length);
  const kept: { readonly first: number; readonly length: number }[] = [];
  for (const b of [...blocks].sort((x, y) => x.length - y.length))
    if (kept.every((k) => b.first + size(b) <= k.first || k.first + size(k) <= b.first)) kept.push(b);
  return kept.flatMap((b) => [`10.0.0.${b.first}/${b.length}`, `255.255.255.${192 + b.first}/${b.length}`]).sort();
}

describe("foreign hands", () => {
  const wanted = () =>
    compile({
      sets: { friends: both("b"), nets: ["10.0.0.0/9", "2001:db8::/32"] },
      profiles: [
        profile("p", "ingress", {
          policies: [
            rule("accept", {
              peers: ["friends", "nets"],
              ports: [
                { protocol: "tcp", first: 1, last: 2 },
                { protocol: "udp", first: 5, last: 5 },
              ],
            }),
          ],
        }),
      ],
      pods: { a: { ingress: "p" } },
    });
  const nftDo = (...args: string[]) => runTool("ip", ["netns", "exec", node.ns.name, "nft", ...args]);
  /** Packets of the node itself (router solicitations) count meanwhile: what counters say is not compared. */
  const rulesOf = (listing: string) =>
    listing
      .replaceAll(/packets \d+ bytes \d+/g, "packets N bytes N")
      .split("\n")
      .sort();

  it.each([
    ["flush ruleset", ["flush", "ruleset"], "table inet terway-policy is missing"],
    ["flush a chain", ["flush", "chain", "inet", "terway-policy", "in-p"], "chain in-p was changed: it has 0 rules"],
    ["flush a map", ["flush", "map", "inet", "terway-policy", "to4"], "to4 lacks 10.88.0.10 : goto in-p"],
    ["flush a set", ["flush", "set", "inet", "terway-policy", "n4-nets"], "n4-nets lacks 10.0.0.0/9"],
    ["delete a rule's hook", ["flush", "chain", "inet", "terway-policy", "forward"], "chain forward was changed"],
    ["add a rule", ["insert", "rule", "inet", "terway-policy", "in-p", "accept"], "chain in-p was changed"],
    ["add a chain", ["add", "chain", "inet", "terway-policy", "theirs"], "chain theirs is not wanted"],
    ["add a set", ["add", "set", "inet", "terway-policy", "theirs", "{ type mark; }"], "set theirs is not wanted"],
  ])("that %s are noticed and undone", (_what, command, words) => {
    const desired = { compiled: wanted(), pods: locals() };
    put(desired.compiled);
    expect(policyProblems(nft, desired)).toEqual([]);
    const before = nftList();
    nftDo(...command);
    expect(policyProblems(nft, desired).join("\n")).toContain(words);
    expect(repairPolicy(nft, () => desired)).not.toEqual([]);
    expect(policyProblems(nft, desired)).toEqual([]);
    expect(rulesOf(nftList())).toEqual(rulesOf(before));
  });

  it("that put a set of another type under our name are undone", () => {
    const desired = { compiled: wanted(), pods: locals() };
    nftDo("add", "table", "inet", "terway-policy");
    nftDo("add", "set", "inet", "terway-policy", "a4-friends", "{ type mark; }");
    nftDo("add", "chain", "inet", "terway-policy", "forward");
    expect(policyProblems(nft, desired)).not.toEqual([]);
    repairPolicy(nft, () => desired);
    expect(policyProblems(nft, desired)).toEqual([]);
  });

  it("and their tables are not touched, and removal leaves nothing of ours", () => {
    nftDo("add", "table", "inet", "theirs");
    const before = nftList();
    put(wanted());
    expect(removePolicy(nft)).toBe(true);
    expect(nftList()).toBe(before);
    expect(removePolicy(nft)).toBe(false);
    nftDo("delete", "table", "inet", "theirs");
  });
});
