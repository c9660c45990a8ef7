/**
 * Service traffic as kube-proxy makes it, with strict reverse path filters everywhere (F-27), and Debian's portmap
 * behind our plugins (F-31).
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { connections, serve } from "../lab/traffic.ts";
import { CNI_PATH, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { createRuntime } from "../runtime/cni-runtime.ts";

const TIMES = 50;
const NODE_PORT = 30_080;
let world: World;
let nodes: Prepared[];
let node: WorldNode;
let pods: { readonly pod: WorldPod; readonly ips: readonly string[] }[];
let outside: string;

function strictFilters(): void {
  const script = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done";
  runTool("nsenter", [`--net=${node.netns}`, "sh", "-c", script]);
}

/** What kube-proxy's rules come to for one NodePort with one endpoint of this node (externalTrafficPolicy Local). */
function nodePort(family: "ip" | "ip6", podIp: string, port: number): void {
  const to = family === "ip6" ? `[${podIp}]:${port}` : `${podIp}:${port}`;
  const script = `table ${family} kube-proxy
    delete table ${family} kube-proxy
    table ${family} kube-proxy {
      chain pre { type nat hook prerouting priority dstnat; tcp dport ${NODE_PORT} fib daddr type local dnat to ${to}; }
      chain out { type nat hook output priority -100; tcp dport ${NODE_PORT} fib daddr type local dnat to ${to}; }
      chain post { type nat hook postrouting priority srcnat; ${family} saddr ${podIp} ${family} daddr ${podIp} masquerade; }
    }`;
  runTool("nsenter", [`--net=${node.netns}`, "nft", "-f", "-"], script);
}

beforeAll(async () => {
  world = await createIdleWorld({
    prefix: `s${process.pid % 10000}`,
    nodes: 2,
    mode: "eniip-veth",
    ipStack: "dual",
  });
  nodes = [];
  for (const n of world.nodes) nodes.push(await prepareByHand(world, n, "shared", 2, 1, "dual"));
  node = world.nodes[0] as WorldNode;
  outside = world.cloud.fabric?.outside.path ?? "";
  strictFilters();
  pods = [];
  // Two ENIs with one address each: the pods are on different ones.
  for (let i = 0; i < 2; i++) {
    const pod = node.newPod();
    const { result } = await node.runtime.add(pod);
    pods.push({ pod, ips: (result.ips ?? []).map((x) => x.address.split("/")[0] ?? "") });
  }
  strictFilters();
});
afterAll(async () => {
  for (const { store } of nodes ?? []) store.db.close();
  await world?.close();
});

describe.each([4, 6])("with strict reverse path filters, IPv%i", inMode("eniip-veth"), (family) => {
  const ipOf = (i: number) => pods[i]?.ips[family === 4 ? 0 : 1] ?? "";
  const nodeIp = () => {
    const primary = world.cloud.model.eniOf(node.instance.primaryEniId);
    return family === 4 ? primary.primaryIp : ([...primary.ips6][0] ?? "");
  };

  it.each([0, 1])(
    "pod %i is reached at its NodePort and its address, and reaches its own NodePort",
    async (i) => {
      const { pod } = pods[i] as { pod: WorldPod };
      const server = await serve(pod.netns);
      try {
        nodePort(family === 4 ? "ip" : "ip6", ipOf(i), server.port);
        expect({
          nodePort: await connections(outside, nodeIp(), NODE_PORT, TIMES),
          direct: await connections(outside, ipOf(i), server.port, TIMES),
          otherPod: await connections(pods[1 - i]?.pod.netns ?? "", nodeIp(), NODE_PORT, TIMES),
          hairpin: await connections(pod.netns, nodeIp(), NODE_PORT, TIMES),
          otherNode: await connections(world.nodes[1]?.netns ?? "", nodeIp(), NODE_PORT, TIMES),
          node: await connections(node.netns, ipOf(i), server.port, TIMES),
        }).toEqual({ nodePort: TIMES, direct: TIMES, otherPod: TIMES, hairpin: TIMES, otherNode: TIMES, node: TIMES });
      } finally {
        server.close();
      }
    },
    60_000,
  );
});

it("no packet was sent with an address that is not its ENI's", () => expect(world.cloud.fabric?.spoofed()).toBe(0));

describe("portmap behind terway-eni (F-31)", inMode("eniip-veth"), () => {
  it("forwards a port of the node to the pod, and nothing is left when it is gone", async () => {
    const conflist = {
      ...node.runtime.conflist,
      cniVersion: "1.0.0",
      plugins: [...node.runtime.conflist.plugins, { type: "portmap", capabilities: { portMappings: true } }],
    };
    const runtime = createRuntime({ conflist, cniPath: CNI_PATH, netns: node.netns });
    const [first] = pods;
    if (first === undefined) throw new Error("no pod");
    await node.runtime.del(first.pod);
    const pod = node.newPod();
    const server = await serve(pod.netns);
    const mapped = {
      ...pod,
      runtimeConfig: { portMappings: [{ hostPort: 18_080, containerPort: server.port, protocol: "tcp" }] },
    };
    try {
      await runtime.add(mapped);
      const nodeIp = world.cloud.model.eniOf(node.instance.primaryEniId).primaryIp;
      expect(await connections(outside, nodeIp, 18_080, 20)).toBe(20);
      // Not portmap's own CHECK: that of 1.1.1 looks for the IPv4 rules in the IPv6 table too.
      await node.runtime.check(mapped);
    } finally {
      server.close();
      await runtime.del(mapped);
    }
    const rules = runTool("nsenter", [`--net=${node.netns}`, "iptables-save", "-t", "nat"]);
    expect(rules).not.toContain("18080");
  }, 60_000);
});
