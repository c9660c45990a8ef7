/** The agent dies, the cloud misbehaves: nothing is leaked, nothing is doubled, pods keep their addresses. */
import { closeSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { inMode } from "../kernel/features.ts";
import { poolView } from "../lab/store-view.ts";
import { ping } from "../lab/traffic.ts";
import { createWorld, until, type World, type WorldNode, type WorldOptions } from "../lab/world.ts";

let world: World | undefined;
afterEach(async () => {
  await world?.close();
  world = undefined;
});

let serial = 0;
async function oneNode(options: Partial<WorldOptions> = {}): Promise<WorldNode> {
  serial += 1;
  world = await createWorld({
    prefix: `f${process.pid % 10000}x${serial}`,
    nodes: 1,
    mode: "eniip-veth",
    instanceType: "ecs.g7.large",
    poolMin: 4,
    poolMax: 6,
    cooldownSeconds: 0,
    eniConf: { resource_gc: { enable: true, idle_ip_ttl_seconds: 1 } },
    cloud: { delays: { attachMs: 50, detachMs: 50, deleteMs: 30, routeMs: 30 } },
    ...options,
  });
  const [node] = world.nodes;
  if (node === undefined) throw new Error("no node");
  return node;
}

const view = (n: WorldNode) => poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME));
const warm = (n: WorldNode, idle = 4) =>
  until("warm", 20_000, () => {
    try {
      return view(n).idle >= idle;
    } catch {
      return false;
    }
  });

/** Store and cloud know the same ENIs and addresses, and nothing is under way. */
function differences(w: World, n: WorldNode): string[] {
  const db = openNodeSql(n.store);
  try {
    const inStore = db
      .all("SELECT address FROM address WHERE pool = 'eni'")
      .map((r) => String(r.address))
      .sort();
    const pooled = [...w.cloud.model.enis.values()].filter((e) => e.type === "Secondary");
    const inCloud = pooled.flatMap((e) => [...e.ips].filter((ip) => ip !== e.primaryIp)).sort();
    return [
      ...inStore.filter((a) => !inCloud.includes(a)).map((a) => `${a} only in the store`),
      ...inCloud.filter((a) => !inStore.includes(a)).map((a) => `${a} only in the cloud`),
      ...pooled.filter((e) => e.status !== "InUse").map((e) => `${e.id} is ${e.status}`),
      ...(view(n).intents > 0 ? ["an intent is open"] : []),
      ...w.cloud.model.violations(),
    ];
  } finally {
    db.close();
  }
}

const settled = (n: WorldNode) =>
  until("store and cloud agree", 25_000, () => {
    const found = world ? differences(world, n) : ["no world"];
    return found.length === 0;
  }).catch((error: Error) => {
    throw new Error(`${error.message}: ${world ? differences(world, n).join("; ") : ""}`);
  });

describe("an agent killed at any point of a cloud operation (F-11)", inMode("eniip-veth"), () => {
  it.each([
    "create-eni:asked",
    "create-eni:created",
    "create-eni:made",
    "create-eni:attach-asked",
    "create-eni:attached",
    "create-eni:in-service",
  ])(
    "%s: its successor finishes the work",
    async (point) => {
      const node = await oneNode({ agents: false });
      node.startAgent({ TERWAY_TEST_DIE_AT: point });
      await until("the agent dies", 15_000, () => node.agent?.signalCode === "SIGKILL");
      node.startAgent();
      await warm(node);
      await settled(node);
      // One ENI: it was made once.
      expect([...(world?.cloud.model.enis.values() ?? [])].filter((e) => e.type === "Secondary").length).toBe(1);
    },
    60_000,
  );

  it.each([
    "assign:asked",
    "assign:done",
    "unassign:asked",
    "unassign:done",
    "detach-eni:asked",
    "detach-eni:detached",
    "detach-eni:deleted",
  ])(
    "%s: its successor finishes the work",
    async (point) => {
      const node = await oneNode({ agents: false });
      node.startAgent();
      await warm(node);
      await node.stopAgent("SIGTERM");
      node.startAgent({ TERWAY_TEST_DIE_AT: point });
      let deaths = 0;
      const revive = () => {
        if (node.agent?.signalCode !== "SIGKILL") return;
        deaths += 1;
        node.startAgent();
      };
      // Load that makes the pool grow, then shrink to nothing.
      const pods = [];
      for (let i = 0; i < 8; i++) {
        const pod = node.newPod();
        await until("a pod", 20_000, async () => {
          revive();
          return node.runtime.add(pod).then(
            () => true,
            () => false,
          );
        });
        pods.push(pod);
      }
      expect(await ping(pods[7]?.netns ?? "", OUTSIDE_IP)).toBe(true);
      for (const pod of pods) await node.runtime.del(pod);
      await until("its death", 30_000, () => {
        revive();
        return deaths > 0;
      });
      await until("the pool rests", 30_000, () => view(node).idle >= 4 && view(node).idle <= 6);
      await settled(node);
    },
    90_000,
  );
});

describe("cloud faults", inMode("eniip-veth"), () => {
  it("an answer that is lost does not double an ENI or an address", async () => {
    const node = await oneNode({ agents: false });
    for (const action of ["CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses"]) {
      world?.cloud.api.faults.push({ action, times: 1, effect: { kind: "drop-after" } });
    }
    node.startAgent();
    await warm(node);
    const pods = [];
    for (let i = 0; i < 6; i++) {
      const pod = node.newPod();
      await until("a pod", 20_000, () =>
        node.runtime.add(pod).then(
          () => true,
          () => false,
        ),
      );
      pods.push(pod);
    }
    await settled(node);
    for (const pod of pods) await node.runtime.del(pod);
  }, 90_000);

  it("a right to look at vSwitches that is missing: pods get addresses all the same, and the log names it", async () => {
    const node = await oneNode({ agents: false });
    world?.cloud.api.faults.push({
      action: "DescribeVSwitches",
      times: Number.POSITIVE_INFINITY,
      effect: { kind: "error", status: 403, code: "Forbidden.RAM" },
    });
    node.startAgent();
    await warm(node);
    const pod = node.newPod();
    await node.runtime.add(pod);
    expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
    expect(readFileSync(node.agentLog, "utf8")).toContain("vpc:DescribeVSwitches is not allowed");
    await node.runtime.del(pod);
  }, 90_000);

  it("a full vSwitch: as many pods as addresses, clear errors, and recovery without a restart (F-09)", async () => {
    const node = await oneNode({ poolMin: 0, poolMax: 10 });
    const vswitch = world?.cloud.model.vswitches.get("vsw-pod-0");
    if (vswitch === undefined) throw new Error("no vSwitch");
    vswitch.limit = 6; // one of them is the ENI's own
    await until("the store", 15_000, () => {
      try {
        return view(node).intents === 0;
      } catch {
        return false;
      }
    });
    await until("the agent listens", 15_000, () => node.metric("terway_ip_pool_total").then((n) => n !== undefined));
    const run = async (pod: ReturnType<WorldNode["newPod"]>) =>
      node.runtime.add(pod).then(
        () => undefined,
        (e: Error & { code?: number }) => e,
      );
    const pods = Array.from({ length: 8 }, () => node.newPod());
    const errors: (Error & { code?: number })[] = [];
    let running = 0;
    for (const pod of pods) {
      const error = await run(pod);
      if (error === undefined) running += 1;
      else errors.push(error);
    }
    expect(running).toBeLessThanOrEqual(5);
    expect(running).toBeGreaterThan(0);
    for (const e of errors) expect([e.code, e.message]).toEqual([11, expect.stringContaining("vsw-pod-0")]);
    vswitch.limit = undefined;
    await until("recovery", 45_000, async () => {
      for (const pod of pods) if ((await run(pod)) !== undefined) return false;
      return true;
    });
    for (const pod of pods) expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
    for (const pod of pods) await node.runtime.del(pod);
  }, 180_000);

  it("throttling is waited out; an address taken away by others is reported, and foreign ENIs are left alone (F-13, F-43)", async () => {
    const node = await oneNode({ agents: false, reconcileSeconds: 2 });
    const cloud = world?.cloud;
    if (cloud === undefined) throw new Error("no cloud");
    const foreign = cloud.model.createEni(
      {
        vswitchId: "vsw-pod-0",
        securityGroups: ["sg-emu-default"],
        count: 2,
        count6: 0,
        primaryIp: undefined,
        ips: [],
        deleteOnRelease: false,
        name: "other",
        description: "",
        type: "Secondary",
        tags: new Map([["creator", "somebody"]]),
      },
      undefined,
    );
    cloud.model.attach(foreign.id, node.instance.id);
    cloud.api.faults.push({
      action: "CreateNetworkInterface",
      times: 1,
      effect: { kind: "error", status: 400, code: "Throttling.User" },
    });
    node.startAgent();
    // The account's budget comes back with the next minute of the wall clock; then calls are spread over some seconds.
    await until("the pool in spite of throttling", 90_000, () => {
      try {
        return view(node).idle >= 4;
      } catch {
        return false;
      }
    });
    const pod = node.newPod();
    await node.runtime.add(pod);
    const mine = [...cloud.model.enis.values()].find((e) => e.type === "Secondary" && e.id !== foreign.id);
    const db = openNodeSql(node.store);
    const idle = db.all("SELECT address FROM address WHERE state = 'idle'").map((r) => String(r.address));
    db.close();
    cloud.model.unassign(mine?.id, idle.slice(0, 1));
    await until("the store follows", 15_000, () => {
      const again = openNodeSql(node.store);
      const there = again.get("SELECT 1 AS n FROM address WHERE address = ?", [idle[0] ?? ""]);
      again.close();
      return there === undefined;
    });
    expect(cloud.model.enis.get(foreign.id)?.status).toBe("InUse");
    expect(foreign.ips.size).toBe(3);
    expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
    await node.runtime.del(pod);
  }, 180_000);
});

describe("a store that is taken away from a living agent", () => {
  it.each(["removed", "damaged"])(
    "%s: the agent goes on with a new one, and no pod's address is given twice",
    async (how) => {
      const node = await oneNode();
      await warm(node);
      const pod = node.newPod();
      const address = (await node.runtime.add(pod)).result.ips?.[0]?.address.split("/")[0] ?? "";
      if (how === "removed") {
        for (const suffix of ["", "-wal", "-shm"]) rmSync(node.store + suffix);
      } else {
        // Empty the log first: the first page may be there, and the agent would not read the file's. It does not run
        // meanwhile: woken by the empty log it may read that page before the damage, and then not again. In the middle of
        // a reading it keeps the log from being emptied.
        const db = openNodeSql(node.store);
        await until("an empty log", 10_000, () => {
          node.agent?.kill("SIGSTOP");
          const emptied = db.get("PRAGMA wal_checkpoint(TRUNCATE)")?.busy === 0;
          if (!emptied) node.agent?.kill("SIGCONT");
          return emptied;
        });
        db.close();
        // The first page is SQLite's own: whoever reads it next says that it is no database.
        const fd = openSync(node.store, "r+");
        writeSync(fd, new Uint8Array(4096).fill(0x5a), 0, 4096, 0);
        closeSync(fd);
        node.agent?.kill("SIGCONT");
      }
      await until("a new store that is full", 30_000, () => {
        try {
          return view(node).idle >= 4;
        } catch {
          return false;
        }
      });
      const others = [];
      for (let i = 0; i < 6; i++) {
        const other = node.newPod();
        const { result } = await node.runtime.add(other);
        expect(result.ips?.[0]?.address.split("/")[0]).not.toBe(address);
        others.push(other);
      }
      expect(await ping(pod.netns, OUTSIDE_IP)).toBe(true);
      for (const p of [pod, ...others]) await node.runtime.del(p);
      await until("its address is free again", 20_000, () => view(node).allocated === 0);
      await settled(node);
    },
    90_000,
  );
});

describe("damage that only the use of the store shows", () => {
  it("fails a DEL once, with code 11, and the next one finds the new store", async () => {
    const node = await oneNode();
    await warm(node);
    const pod = node.newPod();
    await node.runtime.add(pod);
    await node.stopAgent("SIGTERM");
    const db = openNodeSql(node.store);
    const page = Number(db.get("SELECT rootpage FROM sqlite_master WHERE name = 'attachment'")?.rootpage);
    const bytes = Number(db.get("PRAGMA page_size")?.page_size);
    db.get("PRAGMA wal_checkpoint(TRUNCATE)");
    db.close();
    const fd = openSync(node.store, "r+");
    writeSync(fd, new Uint8Array(bytes).fill(0xa5), 0, bytes, (page - 1) * bytes);
    closeSync(fd);
    await expect(node.runtime.del(pod)).rejects.toMatchObject({
      code: 11,
      message: expect.stringContaining("set aside"),
    });
    await node.runtime.del(pod);
    node.startAgent();
    await until("nothing is held", 40_000, () => view(node).allocated === 0 && view(node).attachments === 0);
  }, 90_000);
});

describe("restarts of the agent (F-42)", inMode("eniip-veth"), () => {
  it("20 kills during churn: pods keep their addresses, the two views agree", async () => {
    const node = await oneNode({ instanceType: "ecs.g7.xlarge" });
    await warm(node);
    const kept = node.newPod();
    const address = (await node.runtime.add(kept)).result.ips?.[0]?.address;
    for (let i = 0; i < 20; i++) {
      const pod = node.newPod();
      await node.runtime.add(pod).catch(() => undefined);
      await node.stopAgent("SIGKILL");
      node.startAgent();
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 600));
      await node.runtime.del(pod);
      pod.destroy();
    }
    await warm(node);
    await settled(node);
    expect((await node.runtime.add(kept)).result.ips?.[0]?.address).toBe(address);
    expect(await ping(kept.netns, OUTSIDE_IP)).toBe(true);
    await node.runtime.del(kept);
  }, 120_000);
});
