/**
 * Host ports of pods with a way of their own into the VPC: why their conflists say `"masqAll": true` to portmap. The rules
 * are what portmap writes (1.5.0 or later with that key); Debian's is older.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { mustRender } from "../../ipam/conflist/render.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { connections, serve } from "../lab/traffic.ts";
import type { World, WorldPod } from "../lab/world.ts";

const HOST_PORT = 18_080;
const TIMES = 8;

function hostPort(netns: string, podIp: string, port: number, masqAll: boolean): void {
  const script = `table ip portmap
    delete table ip portmap
    table ip portmap {
      chain pre { type nat hook prerouting priority dstnat; tcp dport ${HOST_PORT} fib daddr type local ${masqAll ? "ct mark set 0x2000" : ""} dnat to ${podIp}:${port}; }
      chain out { type nat hook output priority -100; tcp dport ${HOST_PORT} fib daddr type local dnat to ${podIp}:${port}; }
      chain post { type nat hook postrouting priority srcnat; ct mark 0x2000 masquerade; }
    }`;
  runTool("nsenter", [`--net=${netns}`, "nft", "-f", "-"], script);
}

describe.each([
  { mode: "eni-exclusive", kind: "exclusive", secondary: 0 },
  { mode: "eniip-ipvlan", kind: "shared", secondary: 1 },
] as const)("host ports in mode $mode", ({ mode, kind, secondary }) => {
  describe("behind portmap", inMode(mode), () => {
    let world: World;
    let here: Prepared;
    let pod: WorldPod;
    let ip = "";

    beforeAll(async () => {
      world = await createIdleWorld({
        prefix: `h${process.pid % 10000}`,
        nodes: 2,
        mode,
      });
      const [a] = world.nodes;
      if (a === undefined) throw new Error("a node is needed");
      here = await prepareByHand(world, a, kind, 1, secondary);
      pod = a.newPod();
      const { result } = await a.runtime.add(pod);
      ip = result.ips?.[0]?.address.split("/")[0] ?? "";
      // Masqueraded, all have the node's address: the kernel drops the SYN of one that chose the port another has just left.
      const clients = [world.cloud.fabric?.outside.path ?? "", world.nodes[1]?.netns ?? "", a.netns];
      for (const [i, netns] of clients.entries()) {
        const range = `net.ipv4.ip_local_port_range=${30_000 + 10_000 * i} ${39_999 + 10_000 * i}`;
        runTool("nsenter", [`--net=${netns}`, "sysctl", "-qw", range]);
      }
    });
    afterAll(async () => {
      here?.store.db.close();
      await world?.close();
    });

    it("the shipped conflist asks for it", () => {
      expect(mustRender({ mode }).plugins.find((p) => p.type === "portmap")).toMatchObject({ masqAll: true });
    });

    // A strict filter (1) in the pod drops them: node check warns where pods would inherit one.
    it.each([0, 2])(
      "reach the pod from everywhere with masqAll (rp_filter %i in the pod)",
      async (rpFilter) => {
        const script = `for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo ${rpFilter} > $f; done`;
        runTool("nsenter", [`--net=${pod.netns}`, "sh", "-c", script]);
        const server = await serve(pod.netns);
        try {
          hostPort(here.node.netns, ip, server.port, true);
          const nodeIp = world.cloud.model.eniOf(here.node.instance.primaryEniId).primaryIp;
          expect({
            outside: await connections(world.cloud.fabric?.outside.path ?? "", nodeIp, HOST_PORT, TIMES),
            otherNode: await connections(world.nodes[1]?.netns ?? "", nodeIp, HOST_PORT, TIMES),
            node: await connections(here.node.netns, nodeIp, HOST_PORT, TIMES),
          }).toEqual({ outside: TIMES, otherNode: TIMES, node: TIMES });
        } finally {
          server.close();
        }
      },
      patient(60_000),
    );

    it(
      "reach it from the node alone without masqAll",
      async () => {
        const server = await serve(pod.netns);
        try {
          hostPort(here.node.netns, ip, server.port, false);
          const nodeIp = world.cloud.model.eniOf(here.node.instance.primaryEniId).primaryIp;
          expect({
            outside: await connections(world.cloud.fabric?.outside.path ?? "", nodeIp, HOST_PORT, 1),
            node: await connections(here.node.netns, nodeIp, HOST_PORT, TIMES),
          }).toEqual({ outside: 0, node: TIMES });
        } finally {
          server.close();
        }
      },
      patient(60_000),
    );
  });
});
