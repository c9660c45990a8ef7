/** VPC routes, dual stack, and terway-ipam alone under other plugins. */

import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openStore } from "../../ipam/store/open.ts";
import { getPodFacts } from "../../ipam/store/pod-facts.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { OUTSIDE_IP, OUTSIDE_IP6 } from "../cloud/fabric.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { inMode, needs, type PlacementOptions } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type World } from "../lab/world.ts";
import { createRuntime, type PluginConf } from "../runtime/cni-runtime.ts";

const worlds: World[] = [];
const folder = mkdtempSync(join(tmpdir(), "terway-modes-"));
afterAll(async () => {
  for (const world of worlds) await world.close();
  rmSync(folder, { recursive: true, force: true });
});

const bare = (cidr: string | undefined) => cidr?.split("/")[0] ?? "";

describe("VPC mode", inMode("vpc"), () => {
  it("routes each node's pod ranges, with one entry a node and family in the VPC's table", async () => {
    const world = await createWorld({
      prefix: `v${process.pid % 10000}`,
      nodes: 2,
      mode: "vpc",
      instanceType: "ecs.g7.large",
      poolMin: 0,
      poolMax: 5,
      ipStack: "dual",
      cloud: { mtuBytes: 1450 },
      manifests: true,
    });
    worlds.push(world);
    const [a, b] = world.nodes;
    if (!a || !b) throw new Error("two nodes");
    await until(
      "the routes",
      20_000,
      () => [...world.cloud.model.routes.values()].filter((r) => r.status === "Available").length === 4,
    );
    const pods = [a.newPod(), a.newPod(), b.newPod()];
    const results = [
      await until("a pod", 15_000, () => a.runtime.add(pods[0] ?? a.newPod()).catch(() => undefined)),
      await a.runtime.add(pods[1] ?? a.newPod()),
      await until("a pod", 15_000, () => b.runtime.add(pods[2] ?? b.newPod()).catch(() => undefined)),
    ];
    const four = results.map((r) => r.result.ips?.[0]?.address);
    expect(four.map((x) => x?.replace(/\d+\/24$/, "0/24"))).toEqual([
      "172.20.0.0/24",
      "172.20.0.0/24",
      "172.20.1.0/24",
    ]);
    const six = results.map((r) => r.result.ips?.[1]?.address);
    expect(six.map((x) => x?.replace(/::\w+\/64$/, "::/64"))).toEqual([
      "fd00:20::/64",
      "fd00:20::/64",
      "fd00:20:0:1::/64",
    ]);
    for (const [ips, outside] of [
      [four, OUTSIDE_IP],
      [six, OUTSIDE_IP6],
    ] as const) {
      const reach = [
        await ping(pods[0]?.netns ?? "", bare(ips[1])),
        await ping(pods[0]?.netns ?? "", bare(ips[2])),
        await ping(pods[2]?.netns ?? "", bare(ips[0])),
        await ping(pods[2]?.netns ?? "", outside),
        await ping(a.netns, bare(ips[0])),
      ];
      expect(reach).toEqual([true, true, true, true, true]);
    }
    // As the node's own link (F-41).
    expect(runTool("ip", ["-n", pods[0]?.ns.name ?? "", "link", "show", "eth0"])).toContain(" mtu 1450 ");
    await a.runtime.check(pods[0] ?? a.newPod());

    // Beside them a pod with an ENI of its own, by the extended resource (MODE-24).
    const own = a.newPod();
    const resources = { limits: { "aliyun/eni": 1 } };
    const metadata = { name: own.name, namespace: "default", uid: own.uid };
    a.manifest("own.json", {
      apiVersion: "v1",
      kind: "Pod",
      metadata,
      spec: { containers: [{ name: "c", resources }] },
    });
    const store = openStore({ sys: nodeSys, openSql: openNodeSql }, a.store, { mustExist: true });
    await until("the pod's facts", 20_000, () => getPodFacts(store.db, "default", own.name ?? ""));
    store.db.close();
    const [mine, mine6] = (await a.runtime.add(own)).result.ips?.map((ip) => bare(ip.address)) ?? [];
    expect(mine).toMatch(/^10\.10\./);
    expect(mine6).toMatch(/^2408:/);
    expect([
      await ping(own.netns, bare(four[0])),
      await ping(own.netns, bare(four[2])),
      await ping(pods[2]?.netns ?? "", mine ?? ""),
      await ping(pods[0]?.netns ?? "", mine6 ?? ""),
      await ping(own.netns, OUTSIDE_IP6),
      await ping(a.netns, mine ?? ""),
    ]).toEqual([true, true, true, true, true, true]);
    await a.runtime.check(own);
    await a.runtime.del(own);
    for (const [i, pod] of pods.entries()) await (i < 2 ? a : b).runtime.del(pod);
    expect(world.cloud.fabric?.spoofed()).toBe(0);
  }, 60_000);
});

describe("dual stack", inMode("eniip-veth"), () => {
  it("gives each pod both families of one ENI, usable at once", async () => {
    const world = await createWorld({
      prefix: `d${process.pid % 10000}`,
      nodes: 2,
      mode: "eniip-veth",
      instanceType: "ecs.g7.large",
      poolMin: 3,
      poolMax: 5,
      ipStack: "dual",
      cooldownSeconds: 1,
    });
    worlds.push(world);
    const [a, b] = world.nodes;
    if (!a || !b) throw new Error("two nodes");
    for (const node of [a, b]) {
      await until("warm", 20_000, () => {
        try {
          return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle >= 3;
        } catch {
          return false;
        }
      });
    }
    const [x, y] = [a.newPod(), b.newPod()];
    const [rx, ry] = [await a.runtime.add(x), await b.runtime.add(y)];
    expect(rx.result.ips?.map((i) => i.address.includes(":"))).toEqual([false, true]);
    // No address waits for duplicate detection.
    expect(
      runTool("ip", ["-n", x.netns.split("/").at(-1) ?? "", "-6", "addr", "show", "scope", "global"]),
    ).not.toContain("tentative");
    const [x6, y6] = [bare(rx.result.ips?.[1]?.address), bare(ry.result.ips?.[1]?.address)];
    expect([
      await ping(x.netns, y6),
      await ping(y.netns, x6),
      await ping(x.netns, OUTSIDE_IP6),
      await ping(a.netns, x6),
      await ping(x.netns, bare(ry.result.ips?.[0]?.address)),
    ]).toEqual([true, true, true, true, true]);
    await a.runtime.check(x);
    await a.runtime.del(x);
    await b.runtime.del(y);
    const db = openNodeSql(a.store);
    expect(db.get("SELECT count(*) AS n FROM address WHERE state = 'allocated'")?.n).toBe(0);
    db.close();
  }, 60_000);
});

describe("IPv6 alone", inMode("eniip-veth"), () => {
  it("has the agent keep IPv6 addresses and ask for no IPv4 ones, as far as the type carries them", async () => {
    const world = await createWorld({
      prefix: `x${process.pid % 10000}`,
      nodes: 1,
      mode: "eniip-veth",
      // Three IPv6 addresses an ENI, nine IPv4 ones.
      instanceType: "ecs.emulated.v6few",
      poolMin: 4,
      poolMax: 6,
      ipStack: "ipv6",
      cooldownSeconds: 1,
    });
    worlds.push(world);
    const [node] = world.nodes;
    if (!node) throw new Error("a node");
    await until("warm", 20_000, () => {
      try {
        return poolView(node.store, nodeSys.clock(CLOCK_BOOTTIME)).idle >= 4;
      } catch {
        return false;
      }
    });
    await node.runtime.status();
    const [x, y] = [node.newPod(), node.newPod()];
    const six = [await node.runtime.add(x), await node.runtime.add(y)].map((r) => r.result.ips?.map((i) => i.address));
    expect(six.every((ips) => ips?.length === 1 && ips[0]?.endsWith("/128"))).toBe(true);
    expect([await ping(x.netns, bare(six[1]?.[0])), await ping(x.netns, OUTSIDE_IP6)]).toEqual([true, true]);
    const enis = world.cloud.model.attachedTo(node.instance.id).filter((e) => e.type === "Secondary");
    expect(enis.every((e) => e.ips.size === 1 && e.ips6.size <= 3)).toBe(true);
    expect(world.cloud.api.counts().AssignPrivateIpAddresses).toBeUndefined();
    for (const pod of [x, y]) await node.runtime.del(pod);
  }, 60_000);
});

describe("terway-ipam alone", () => {
  const plugins: Record<string, (host: Netns) => PluginConf> = {
    ptp: () => ({ type: "ptp" }),
    bridge: () => ({ type: "bridge", bridge: "br0", isGateway: true }),
    macvlan: (host) => {
      runTool("ip", ["-n", host.name, "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
      for (const link of ["up0", "up1"]) runTool("ip", ["-n", host.name, "link", "set", link, "up"]);
      return { type: "macvlan", master: "up0", mode: "bridge" };
    },
    ipvlan: (host) => {
      runTool("ip", ["-n", host.name, "link", "add", "up0", "type", "dummy"]);
      runTool("ip", ["-n", host.name, "link", "set", "up0", "up"]);
      return { type: "ipvlan", master: "up0", mode: "l2" };
    },
  };
  const places: Record<string, PlacementOptions> = {
    ptp: inMode("standalone-ipam-ptp"),
    bridge: inMode("standalone-ipam-bridge"),
    macvlan: inMode("standalone-ipam-macvlan"),
    ipvlan: needs("ipvlan", "dummy"),
  };

  for (const type of Object.keys(plugins)) {
    const options = { ...places[type], timeout: patient(30_000) };
    it(`serves ${type} with host-local's own configuration`, options, async () => {
      const host = createNetns(`i${process.pid % 10000}${type}`);
      const pods = [1, 2].map((i) => createNetns(`i${process.pid % 10000}${type}${i}`));
      try {
        runTool("nsenter", [`--net=${host.path}`, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        const ipam = {
          type: "terway-ipam",
          store: join(folder, `${type}.db`),
          logDir: folder,
          dataDir: "/nowhere",
          resolvConf: "/etc/resolv.conf",
          routes: [{ dst: "0.0.0.0/0" }],
          ranges: [
            [{ subnet: "10.77.0.0/24", rangeStart: "10.77.0.10", rangeEnd: "10.77.0.12", gateway: "10.77.0.1" }],
          ],
        };
        const runtime = createRuntime({
          conflist: {
            cniVersion: "1.0.0",
            name: `alone-${type}`,
            plugins: [{ ...(plugins[type]?.(host) ?? { type }), ipam }],
          },
          cniPath: CNI_PATH,
          netns: host.path,
        });
        const podOf = (i: number) => ({ containerId: `c${i}`, netns: pods[i]?.path ?? "", ifname: "eth0" });
        const results = [await runtime.add(podOf(0)), await runtime.add(podOf(1))];
        const ips = results.map((r) => bare(r.result.ips?.[0]?.address));
        expect(ips).toEqual(["10.77.0.10", "10.77.0.11"]);
        expect(await ping(pods[0]?.path ?? "", ips[1] ?? "")).toBe(true);
        await runtime.check(podOf(0));
        await runtime.del(podOf(0));
        await runtime.del(podOf(0));
        // The next after the last one given, not the one that just came free.
        expect(bare((await runtime.add(podOf(0))).result.ips?.[0]?.address)).toBe("10.77.0.12");
        for (const i of [0, 1]) await runtime.del(podOf(i));
      } finally {
        for (const netns of [...pods, host]) netns.close();
      }
    });
  }
});

describe("the six executables", () => {
  const names = ["terway-ipam", "terway-eni", "terway-bandwidth", "terway-policy"];

  it.each(names)("%s runs in an empty root and is small", (name) => {
    const root = join(folder, `root-${name}`);
    mkdirSync(root);
    cpSync(join("dist/cni", name), join(root, name));
    const done = spawnSync("/usr/sbin/chroot", [root, `/${name}`], {
      env: { CNI_COMMAND: "VERSION" },
      input: "{}",
      encoding: "utf8",
    });
    expect([done.stderr, done.status]).toEqual(["", 0]);
    expect(JSON.parse(done.stdout)).toEqual({
      cniVersion: "1.1.0",
      supportedVersions: ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    expect(spawnSync("stat", ["-c", "%s", join(root, name)], { encoding: "utf8" }).stdout.trim().length).toBeLessThan(
      8,
    );
  });
});
