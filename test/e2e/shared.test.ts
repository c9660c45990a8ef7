/** ENIIP shared mode on two emulated nodes: what must hold while agents, pods and foreign hands come and go. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { listAttachments } from "../../ipam/store/attachments.ts";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { poolView } from "../lab/store-view.ts";
import { ping, tcpEcho } from "../lab/traffic.ts";
import { CNI_PATH, createWorld, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { CniCallError, cacheKey, createRuntime } from "../runtime/cni-runtime.ts";

let world: World;
let node: WorldNode;
let other: WorldNode;

const view = (n: WorldNode) => poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME));
const ip = (n: WorldNode, ...args: string[]) => runTool("ip", ["-n", n.netns.split("/").at(-1) ?? "", ...args]);
const warm = (n: WorldNode, idle: number) => until(`${n.name} warm`, 20_000, () => view(n).idle >= idle);

async function attach(n: WorldNode): Promise<{ pod: WorldPod; ip: string }> {
  const pod = n.newPod();
  const { result } = await n.runtime.add(pod);
  return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
}

async function failure(work: Promise<unknown>): Promise<CniCallError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof CniCallError) return error;
    throw error;
  }
  throw new Error("it should have failed");
}

/** Nothing of the pod is left on the node. */
function leftovers(n: WorldNode, address: string): string[] {
  const text = ["link", "rule", "route show table all", "neigh"].flatMap((what) =>
    ip(n, ...what.split(" ")).split("\n"),
  );
  return text.filter((line) => line.includes(`${address} `) || line.includes(`${address}/`));
}

beforeAll(async () => {
  world = await createWorld({
    prefix: `e${process.pid % 10000}`,
    nodes: 2,
    mode: "eniip-veth",
    instanceType: "ecs.g7.xlarge",
    poolMin: 6,
    poolMax: 30,
    cooldownSeconds: 1,
  });
  const [a, b] = world.nodes;
  if (a === undefined || b === undefined) throw new Error("two nodes are needed");
  [node, other] = [a, b];
  await until("stores", 20_000, () => {
    try {
      return view(node).idle >= 6 && view(other).idle >= 6;
    } catch {
      return false;
    }
  });
});
afterAll(() => world?.close());
beforeEach(async () => {
  for (const n of world.nodes) if (n.agent === undefined) n.startAgent();
  await warm(node, 6);
});

describe("pods of shared ENIs", inMode("eniip-veth"), () => {
  it("reach each other, the node, other nodes and the outside, and leave nothing behind", async () => {
    const [a, b, c] = [await attach(node), await attach(node), await attach(other)];
    expect([
      await ping(a.pod.netns, b.ip),
      await ping(a.pod.netns, c.ip),
      await ping(c.pod.netns, b.ip),
      await ping(a.pod.netns, OUTSIDE_IP),
    ]).toEqual([true, true, true, true]);
    const nodeIp = world.cloud.model.eniOf(node.instance.primaryEniId).primaryIp;
    expect([
      await ping(a.pod.netns, nodeIp),
      await ping(node.netns, a.ip),
      await ping(world.cloud.fabric?.outside.path ?? "", a.ip),
    ]).toEqual([true, true, true]);
    expect(await tcpEcho(c.pod.netns, c.ip, a.pod.netns)).toBe(true);
    await node.runtime.check(a.pod);
    for (const [n, x] of [
      [node, a],
      [node, b],
      [other, c],
    ] as const) {
      await n.runtime.del(x.pod);
      expect(leftovers(n, x.ip)).toEqual([]);
    }
    expect(world.cloud.fabric?.spoofed()).toBe(0);
  });

  it("start, stop and are checked while the agent is down, until the pool is empty (F-01)", async () => {
    await node.stopAgent("SIGKILL");
    await until("nothing cools down", 10_000, () => view(node).cooling === 0);
    const idle = view(node).idle;
    const pods = [];
    for (let i = 0; i < idle; i++) pods.push(await attach(node));
    const started = performance.now();
    const error = await failure(node.runtime.add(node.newPod()));
    expect(performance.now() - started).toBeLessThan(1000);
    expect([error.code, error.message]).toEqual([11, expect.stringContaining("terway-agent does not run")]);
    expect((await failure(node.runtime.status())).code).toBe(50);
    await node.runtime.check(pods[0]?.pod ?? node.newPod());
    node.startAgent();
    const late = node.newPod();
    // As kubelet does: again, until it works.
    await until("a pod after the agent came back", 20_000, () =>
      node.runtime.add(late).then(
        () => true,
        () => false,
      ),
    );
    expect(await ping(late.netns, OUTSIDE_IP)).toBe(true);
    for (const p of [...pods.map((x) => x.pod), late]) await node.runtime.del(p);
    await node.runtime.status();
  }, 60_000);

  it("are deleted in whatever state runtime and namespace are (F-02)", async () => {
    const file = join(world.dir, "plain");
    writeFileSync(file, "");
    const netnsForms = {
      present: (p: WorldPod) => p.netns,
      missing: () => "/run/netns/nothing-here",
      empty: () => "",
      "a plain file": () => file,
    };
    const prevForms: Record<string, unknown> = {
      good: undefined,
      missing: null,
      empty: {},
      "of another version": { cniVersion: "9.9.9" },
      nonsense: "text",
    };
    for (const [netnsForm, netns] of Object.entries(netnsForms)) {
      for (const [prevForm, prev] of Object.entries(prevForms)) {
        const { pod, ip: address } = await attach(node);
        if (prev === null) node.runtime.cache.delete(cacheKey(pod));
        else if (prev !== undefined) node.runtime.cache.set(cacheKey(pod), prev);
        const asSeen = { ...pod, netns: netns(pod) };
        await node.runtime.del(asSeen);
        await node.runtime.del(asSeen);
        expect([netnsForm, prevForm, leftovers(node, address)]).toEqual([netnsForm, prevForm, []]);
        pod.destroy();
      }
    }
    await node.runtime.del({ containerId: "never-added", netns: "", ifname: "eth0" });
    expect(view(node).allocated).toBe(0);
  }, 120_000);

  it("win over leftovers of an address's last owner, and DEL leaves none of them (F-07)", async () => {
    const first = await attach(node);
    await node.runtime.del(first.pod);
    const db = openNodeSql(node.store);
    // The next pod gets exactly this address.
    db.run("UPDATE address SET cool_until_ms = CASE address WHEN ? THEN 0 ELSE 9e15 END WHERE state = 'idle'", [
      first.ip,
    ]);
    ip(node, "link", "add", "dead0", "type", "veth", "peer", "name", "dead1");
    ip(node, "link", "set", "dead0", "up");
    for (const pref of ["100", "2048", "3000"])
      ip(node, "rule", "add", "from", first.ip, "lookup", "17999", "pref", pref);
    ip(node, "rule", "add", "to", first.ip, "lookup", "17999", "pref", "90");
    ip(node, "route", "add", "default", "dev", "dead0", "table", "17999");
    ip(node, "route", "add", `${first.ip}/32`, "dev", "dead0");
    ip(node, "route", "add", `${first.ip}/32`, "dev", "dead0", "metric", "50", "table", "17000");
    const again = await attach(node);
    db.run("UPDATE address SET cool_until_ms = 0 WHERE state = 'idle'");
    db.close();
    expect(again.ip).toBe(first.ip);
    expect([await ping(again.pod.netns, OUTSIDE_IP), await ping(node.netns, again.ip)]).toEqual([true, true]);
    await node.runtime.del(again.pod);
    expect(leftovers(node, first.ip)).toEqual([]);
    ip(node, "link", "del", "dead0");
  });

  it("get one interface and one answer when two calls come at once (F-49)", async () => {
    const pod = node.newPod();
    const [a, b] = await Promise.all([node.runtime.add(pod), node.runtime.add(pod)]);
    expect(b.result.ips).toEqual(a.result.ips);
    expect(b.result.interfaces).toEqual(a.result.interfaces);
    await Promise.all([node.runtime.del(pod), node.runtime.del(pod)]);
    expect(leftovers(node, a.result.ips?.[0]?.address.split("/")[0] ?? "")).toEqual([]);
  });

  it("cannot be set up in the node's namespace, nor in another pod's", async () => {
    const a = await attach(node);
    expect((await failure(node.runtime.add({ ...node.newPod(), netns: node.netns }))).message).toContain(
      "the node's own",
    );
    expect((await failure(node.runtime.add({ ...node.newPod(), netns: a.pod.netns }))).code).toBe(100);
    await node.runtime.del(a.pod);
  });

  it("are put right within 2 s when foreign hands remove rules or routes, and CHECK names what is missing", async () => {
    const a = await attach(node);
    await node.stopAgent("SIGKILL");
    ip(node, "rule", "del", "from", a.ip);
    expect((await failure(node.runtime.check(a.pod))).message).toMatch(
      new RegExp(`rule is missing: from ${a.ip}/32 lookup 1700[1-3] pref 2048`),
    );
    node.startAgent();
    await until(
      "repair at start",
      15_000,
      async () => (await ping(a.pod.netns, OUTSIDE_IP)) && leftovers(node, a.ip).some((l) => l.startsWith("2048:")),
    );
    const steps = [
      () => ip(node, "rule", "flush"),
      () => ip(node, "route", "flush", "table", "17000"),
      () => ip(node, "route", "flush", "table", "17001"),
      () => ip(node, "link", "set", "eth1", "down"),
    ];
    for (const [i, step] of steps.entries()) {
      step();
      if (i === 0)
        for (const [pref, table] of [
          ["32766", "main"],
          ["32767", "default"],
          ["0", "local"],
        ] as const)
          if (pref !== "0") ip(node, "rule", "add", "pref", pref, "lookup", table);
      // 2 s are promised; the rest is for a machine that is busy with other things.
      await until(`repair ${i}`, 10_000, () => ping(a.pod.netns, OUTSIDE_IP, 0.2));
      await until(`check ${i}`, 10_000, () =>
        node.runtime.check(a.pod).then(
          () => true,
          () => false,
        ),
      );
    }
    await node.runtime.del(a.pod);
  }, 60_000);

  it("are put right when foreign hands change MTU and MAC of the node's end, and then left alone", async () => {
    const a = await attach(node);
    const db = openNodeSql(node.store);
    const repairs = () => Number(db.get("SELECT count(*) AS n FROM journal WHERE op = 'repair'")?.n);
    const [host] = listAttachments(db).filter((x) => x.containerId === a.pod.containerId);
    ip(node, "link", "set", host?.hostIfname ?? "", "mtu", "1400", "address", "02:00:00:00:00:99");
    await until("repair", 10_000, () =>
      node.runtime.check(a.pod).then(
        () => true,
        () => false,
      ),
    );
    expect(await ping(a.pod.netns, OUTSIDE_IP)).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 500)); // what the repair itself stirred up
    const before = repairs();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    expect(repairs()).toBe(before);
    db.close();
    await node.runtime.del(a.pod);
  }, 60_000);

  it("are put right, and swept, although another pod's record cannot be read", async () => {
    const [unreadable, a, dead] = [await attach(node), await attach(node), await attach(node)];
    const db = openNodeSql(node.store);
    const setDatapath = (text: string) =>
      db.run("UPDATE attachment SET datapath = ? WHERE container_id = ?", [text, unreadable.pod.containerId]);
    const row = db.get("SELECT datapath FROM attachment WHERE container_id = ?", [unreadable.pod.containerId]);
    setDatapath("no JSON");
    db.run("UPDATE attachment SET created_ms = created_ms - 60000 WHERE container_id = ?", [dead.pod.containerId]);
    dead.pod.destroy();
    ip(node, "rule", "del", "from", a.ip);
    await until("the repair", 10_000, () => ping(a.pod.netns, OUTSIDE_IP, 0.2));
    await until("the sweep", 20_000, () => leftovers(node, dead.ip).length === 0 && view(node).allocated === 2);
    expect(readFileSync(node.agentLog, "utf8")).toMatch(/cannot put right \(netlink event\): .*JSON/);
    setDatapath(String(row?.datapath));
    db.close();
    for (const { pod } of [unreadable, a]) await node.runtime.del(pod);
  }, 60_000);

  it("that are gone without DEL are collected by GC, and by the agent alone (F-03)", async () => {
    const [kept, lost, dead] = [await attach(node), await attach(node), await attach(node)];
    // GC leaves alone what is younger than its grace: made old here.
    const db = openNodeSql(node.store);
    db.run("UPDATE attachment SET created_ms = created_ms - 60000");
    db.run("UPDATE address SET since_ms = since_ms - 60000 WHERE state = 'allocated'");
    db.close();
    await node.runtime.gc([kept, dead].map((x) => ({ containerID: x.pod.containerId, ifname: "eth0" })));
    expect(leftovers(node, lost.ip)).toEqual([]);
    expect(await ping(kept.pod.netns, OUTSIDE_IP)).toBe(true);
    dead.pod.destroy();
    await until("the sweep", 20_000, () => leftovers(node, dead.ip).length === 0 && view(node).allocated === 1);
    await node.runtime.del(kept.pod);
  }, 60_000);

  it("killed half-way through ADD leave nothing once deleted or collected (F-03)", async () => {
    const keep: { pod: WorldPod }[] = [];
    for (let i = 0; i < 40; i++) {
      const pod = node.newPod();
      const killed = await node.runtime.add(pod, { killAfterMs: Math.random() * 12 }).then(
        () => false,
        () => true,
      );
      if (i % 2 === 0) await node.runtime.del(pod);
      else if (killed && i % 4 === 1)
        pod.destroy(); // no DEL ever comes
      else keep.push({ pod });
      if (i % 2 === 0) pod.destroy();
    }
    // What the runtime thinks may exist is retried: the same key ends in one working pod.
    for (const { pod } of keep) {
      await node.runtime.add(pod);
      if (!(await ping(pod.netns, OUTSIDE_IP))) {
        const name = pod.netns.split("/").at(-1) ?? "";
        const inPod = ["addr", "route", "neigh"].map((what) => runTool("ip", ["-n", name, what])).join("\n");
        throw new Error(
          `${pod.name} does not reach the outside:\n${inPod}\n${ip(node, "rule")}\n${ip(node, "route", "show", "table", "all")}\n${readFileSync(node.agentLog, "utf8").slice(-3000)}`,
        );
      }
      await node.runtime.del(pod);
      pod.destroy();
    }
    await until("nothing is allocated", 30_000, () => view(node).allocated === 0 && view(node).attachments === 0);
    expect(
      ip(node, "rule")
        .split("\n")
        .filter((l) => l.startsWith("2048:")),
    ).toEqual([]);
    expect(
      ip(node, "-o", "link")
        .split("\n")
        .filter((l) => l.includes("cali")),
    ).toEqual([]);
  }, 120_000);

  it("of a burst are all served, and none waits unfairly long (F-21)", async () => {
    const pods = Array.from({ length: 20 }, () => node.newPod());
    const added = await Promise.all(pods.map((p) => node.runtime.add(p)));
    expect(new Set(added.map((a) => a.result.ips?.[0]?.address)).size).toBe(20);
    await Promise.all(pods.map((p) => node.runtime.del(p)));
    expect(view(node).allocated).toBe(0);
  }, 60_000);

  it("get their answer in every version of the spec (F-48)", async () => {
    for (const cniVersion of ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]) {
      const runtime = createRuntime({
        conflist: { ...node.runtime.conflist, cniVersion },
        cniPath: CNI_PATH,
        netns: node.netns,
      });
      const pod = node.newPod();
      const { result } = await runtime.add(pod);
      expect(result.cniVersion).toBe(cniVersion);
      expect((result.ips?.[0] as { version?: string } | undefined)?.version).toBe(cniVersion < "1" ? "4" : undefined);
      await runtime.del(pod);
    }
  });
});

describe("after a reboot (F-23)", inMode("eniip-veth"), () => {
  it("every address is free before the first ADD, late DELs succeed, and pods start before the agent", async () => {
    const a = await attach(node);
    await node.stopAgent("SIGKILL");
    // Another boot id; rules and routes are gone, ENIs come back under other names.
    const db = openNodeSql(node.store);
    db.run("UPDATE fact SET value = 'former-boot' WHERE name = 'boot_id'");
    db.run("UPDATE eni SET prepared_boot = 'former-boot'");
    db.close();
    a.pod.destroy();
    for (const pref of ["512", "2048", "2049"]) {
      for (;;) {
        try {
          ip(node, "rule", "del", "pref", pref);
        } catch {
          break;
        }
      }
    }
    ip(node, "route", "flush", "table", "17000");
    ip(node, "link", "set", "eth1", "down");
    ip(node, "link", "set", "eth1", "name", "renamed0");
    await node.runtime.del(a.pod);
    expect(view(node).allocated).toBe(0);
    const b = await attach(node);
    expect(await ping(b.pod.netns, OUTSIDE_IP)).toBe(true);
    await node.runtime.del(b.pod);
    ip(node, "link", "set", "renamed0", "down");
    ip(node, "link", "set", "renamed0", "name", "eth1");
    node.startAgent();
    await warm(node, 6);
  }, 60_000);
});
