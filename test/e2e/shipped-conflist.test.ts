/** The conflists as they are shipped, whole chains with Debian's portmap: a pod with a limit and a host port comes and goes. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { connections, ping, serve } from "../lab/traffic.ts";
import { CNI_PATH, until, type World, type WorldPod } from "../lab/world.ts";
import { type CniRuntime, type Conflist, createRuntime } from "../runtime/cni-runtime.ts";

const HOST_PORT = 18_090;

describe.each([
  { mode: "eniip-veth", kind: "shared", secondary: 1 },
  { mode: "eni-exclusive", kind: "exclusive", secondary: 0 },
  { mode: "eniip-ipvlan", kind: "shared", secondary: 1 },
] as const)("the shipped conflist of mode $mode", ({ mode, kind, secondary }) => {
  describe("runs as it is", inMode(mode), () => {
    let world: World;
    let here: Prepared;
    let runtime: CniRuntime;
    let pod: WorldPod;

    beforeAll(async () => {
      world = await createIdleWorld({
        prefix: `c${process.pid % 10000}`,
        nodes: 1,
        mode,
      });
      const [node] = world.nodes;
      if (node === undefined) throw new Error("a node is needed");
      here = await prepareByHand(world, node, kind, 1, secondary);
      const shipped = JSON.parse(
        readFileSync(new URL(`../../conflist/${mode}.conflist`, import.meta.url), "utf8"),
      ) as Conflist;
      // Nothing but where this node of several on one machine keeps its things.
      const places = { store: node.store, logDir: join(node.dir, "log") };
      const plugins = shipped.plugins.map((p) => (p.type.startsWith("terway-") ? { ...p, ...places } : p));
      runtime = createRuntime({
        conflist: { ...shipped, plugins },
        cniPath: [...CNI_PATH, "/usr/lib/cni"],
        netns: node.netns,
      });
      pod = node.newPod();
    });
    afterAll(async () => {
      here?.store.db.close();
      await world?.close();
    });

    it(
      "for a pod with a limit and a host port, and leaves nothing behind",
      async () => {
        const server = await serve(pod.netns);
        // By name: ADD may bring an ENI up, which stays so.
        const links = () =>
          runTool("ip", ["-n", here.node.netns.split("/").at(-1) ?? "", "-br", "link"])
            .split("\n")
            .map((line) => line.split(/[\s@]/)[0])
            .sort()
            .join();
        const before = links();
        const asked = {
          ...pod,
          runtimeConfig: {
            portMappings: [{ hostPort: HOST_PORT, containerPort: server.port, protocol: "tcp" }],
            bandwidth: {
              ingressRate: 100_000_000,
              ingressBurst: 10_000_000,
              egressRate: 100_000_000,
              egressBurst: 10_000_000,
            },
          },
        };
        try {
          await runtime.add(asked);
          const nodeIp = world.cloud.model.eniOf(here.node.instance.primaryEniId).primaryIp;
          const queues = runTool("nsenter", [`--net=${pod.netns}`, "tc", "qdisc"]);
          expect({
            outside: await ping(pod.netns, OUTSIDE_IP),
            hostPort: await connections(here.node.netns, nodeIp, HOST_PORT, 5),
            limited: queues.includes("tbf"),
          }).toEqual({ outside: true, hostPort: 5, limited: true });
        } finally {
          server.close();
        }
        await runtime.del(asked);
        await until("the node as before", 5000, () => links() === before);
      },
      patient(60_000),
    );
  });
});
