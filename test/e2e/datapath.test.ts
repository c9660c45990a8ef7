/** What numbers and sizes must not break: interface indices, table and rule numbers, names, MTU, recycled addresses. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { ping, tcpEcho } from "../lab/traffic.ts";
import type { World, WorldNode, WorldPod } from "../lab/world.ts";
import { createRuntime } from "../runtime/cni-runtime.ts";

const nsName = (path: string) => path.split("/").at(-1) ?? "";
const ip = (netns: string, ...args: string[]) => runTool("ip", ["-n", nsName(netns), ...args]);

async function attach(node: WorldNode, pod = node.newPod()): Promise<{ readonly pod: WorldPod; readonly ip: string }> {
  const { result } = await node.runtime.add(pod);
  return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
}

async function makeWorld(prefix: string, mtuBytes: number): Promise<{ world: World; nodes: readonly Prepared[] }> {
  const world = await createIdleWorld({
    prefix: `${prefix}${process.pid % 10000}`,
    nodes: 2,
    mode: "eniip-veth",
    cloud: { mtuBytes },
  });
  const nodes = [];
  for (const node of world.nodes) nodes.push(await prepareByHand(world, node, "shared", 2, 4));
  return { world, nodes };
}

function close(made: { world: World; nodes: readonly Prepared[] } | undefined): Promise<void> | undefined {
  for (const { store } of made?.nodes ?? []) store.db.close();
  return made?.world.close();
}

describe("numbers and names (F-40)", inMode("eniip-veth"), () => {
  let made: Awaited<ReturnType<typeof makeWorld>>;
  let node: WorldNode;
  beforeAll(async () => {
    made = await makeWorld("n", 1500);
    node = made.nodes[0]?.node as WorldNode;
  });
  afterAll(() => close(made));

  it.each([253, 254, 255, 1254, 65_536, 2 ** 31 - 1])(
    "an ENI whose link has index %i carries its pods",
    async (index) => {
      // Another link under the ENI's MAC and name, with that index: as if the node had seen many links come and go.
      const eni = made.nodes[0]?.enis[0];
      const port = (
        JSON.parse(ip(node.netns, "-j", "link")) as { ifname: string; address: string; link_index: number }[]
      ).find((l) => l.address === eni?.mac);
      if (eni === undefined || port === undefined) throw new Error("no ENI on the node");
      ip(node.netns, "link", "set", port.ifname, "down");
      ip(node.netns, "link", "set", port.ifname, "address", "02:00:00:00:00:99", "name", "old0");
      const router = made.world.cloud.fabric?.router.name ?? "";
      runTool("ip", [
        ...["-n", nsName(node.netns), "link", "add", "new0", "index", String(index), "address", eni.mac],
        ...["type", "veth", "peer", "name", "wire0", "netns", router],
      ]);
      try {
        made.nodes[0]?.store.db.run("UPDATE eni SET prepared_boot = NULL");
        runTool("ip", ["-n", router, "link", "set", "wire0", "up"]);
        const { pod, ip: address } = await attach(node);
        const [route] = JSON.parse(
          ip(node.netns, "-j", "route", "get", OUTSIDE_IP, "from", address, "iif", hostIfnameOf(node)),
        ) as { dev: string; table?: string }[];
        expect(route?.dev).toBe("new0");
        expect(ip(node.netns, "rule", "list", "from", address)).toMatch(/lookup 1700[12]/);
        await node.runtime.check(pod);
        await node.runtime.del(pod);
      } finally {
        ip(node.netns, "link", "del", "new0");
        ip(node.netns, "link", "set", "old0", "address", eni.mac, "name", port.ifname);
        made.nodes[0]?.store.db.run("UPDATE eni SET prepared_boot = NULL");
      }
    },
  );

  it("foreign tables and rules in our range do not lead a pod astray", async () => {
    ip(node.netns, "route", "add", "blackhole", "default", "table", "17001", "metric", "50");
    ip(node.netns, "route", "add", "blackhole", "default", "table", "17002", "metric", "50");
    ip(node.netns, "rule", "add", "pref", "2048", "from", "192.0.2.0/24", "lookup", "9999");
    try {
      const { pod } = await attach(node);
      expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
      await node.runtime.del(pod);
      expect(ip(node.netns, "rule")).toContain("from 192.0.2.0/24 lookup 9999");
    } finally {
      ip(node.netns, "rule", "del", "pref", "2048", "from", "192.0.2.0/24");
      for (const table of ["17001", "17002"]) ip(node.netns, "route", "del", "blackhole", "default", "table", table);
    }
  });

  it("two pods whose host names would be the same get two", async () => {
    const first = await attach(node);
    const db = made.nodes[0]?.store.db;
    const pod = node.newPod();
    const { hostIfnameOf: nameOf } = await import("../../plugins/interface/plan.ts");
    const wanted = nameOf({ network: "terway", containerId: pod.containerId, ifname: "eth0" }, 0);
    const had = hostIfnameOf(node);
    ip(node.netns, "link", "set", had, "name", wanted);
    db?.run("UPDATE attachment SET host_ifname = ?, datapath = replace(datapath, ?, ?)", [wanted, had, wanted]);
    const second = await attach(node, pod);
    expect([await ping(node.netns, first.ip), await ping(node.netns, second.ip)]).toEqual([true, true]);
    await node.runtime.del(second.pod);
    expect(await ping(node.netns, first.ip)).toBe(true);
    await node.runtime.del(first.pod);
  });

  it("interface names of full length work", async () => {
    const { pod, ip: address } = await attach(node, { ...node.newPod(), ifname: "abcdefghijklmno" } as WorldPod);
    expect(await ping(node.netns, address)).toBe(true);
    await node.runtime.del(pod);
  });

  it("a recycled address is reached at its new owner at once (F-39)", async () => {
    const peer = await attach(made.nodes[1]?.node as WorldNode);
    const local = await attach(node);
    const reached: boolean[] = [];
    for (let i = 0; i < 8; i++) {
      const { pod, ip: address } = await attach(node);
      reached.push(
        await ping(node.netns, address, 0.5),
        await ping(peer.pod.netns, address, 0.5),
        await ping(local.pod.netns, address, 0.5),
      );
      await node.runtime.del(pod);
      pod.destroy();
    }
    expect(reached).toEqual(reached.map(() => true));
    await node.runtime.del(local.pod);
    await made.nodes[1]?.node.runtime.del(peer.pod);
  });
});

/** Of the pod that was attached last. */
function hostIfnameOf(node: WorldNode): string {
  const names = ip(node.netns, "-o", "link")
    .split("\n")
    .flatMap((l) => /: (cali[0-9a-f]+)@/.exec(l)?.[1] ?? []);
  const last = names.at(-1);
  if (last === undefined) throw new Error("no pod on the node");
  return last;
}

describe.each([1450, 1500, 8500])("an ENI with MTU %i (F-41)", inMode("eniip-veth"), (mtuBytes) => {
  let made: Awaited<ReturnType<typeof makeWorld>>;
  beforeAll(async () => {
    made = await makeWorld("j", mtuBytes);
  });
  afterAll(() => close(made));

  it("gives its pods that MTU, whole packets pass, and CHECK sees the ENI shrink", async () => {
    const [a, b] = made.nodes.map((n) => n.node);
    if (a === undefined || b === undefined) throw new Error("two nodes are needed");
    const [x, y] = [await attach(a), await attach(b)];
    expect(ip(x.pod.netns, "link", "show", "eth0")).toContain(`mtu ${mtuBytes} `);
    const whole = ["-c1", "-W2", "-M", "do", "-s", String(mtuBytes - 28), y.ip];
    expect(runTool("nsenter", [`--net=${x.pod.netns}`, "ping", ...whole])).toContain("1 received");
    expect(await tcpEcho(y.pod.netns, y.ip, x.pod.netns)).toBe(true);
    for (const eni of made.nodes[0]?.enis ?? []) {
      const name = (JSON.parse(ip(a.netns, "-j", "link")) as { ifname: string; address: string }[]).find(
        (l) => l.address === eni.mac,
      )?.ifname;
      ip(a.netns, "link", "set", name ?? "", "mtu", "1400");
    }
    await expect(a.runtime.check(x.pod)).rejects.toThrow(/has MTU 1400, less than the pod's/);
    await a.runtime.del(x.pod);
    await b.runtime.del(y.pod);
  });

  it("refuses a larger one in the conflist", async () => {
    const node = made.nodes[0]?.node as WorldNode;
    const [plugin, ...others] = node.runtime.conflist.plugins;
    if (plugin === undefined) throw new Error("an empty conflist");
    const conflist = { ...node.runtime.conflist, plugins: [{ ...plugin, mtu: mtuBytes + 1 }, ...others] };
    const runtime = createRuntime({ conflist, cniPath: [`${process.cwd()}/dist/cni`], netns: node.netns });
    await expect(runtime.add(node.newPod())).rejects.toThrow(
      `mtu ${mtuBytes + 1} is larger than the ${mtuBytes} bytes`,
    );
  });
});
