/** Fleets in virtual time: the real decisions against the emulated cloud's own model and the account's budgets. */
import { describe, expect, it } from "vitest";
import { ApiError, createModel, type Model } from "../../test/cloud/model.ts";
import { classify } from "../cloud/classify.ts";
import { type Rate, ratesOf } from "../cloud/rate-limit.ts";
import { createVirtualClock, type VirtualClock } from "./sim/clock.ts";
import type { Reply, SimCloud, SimEniInfo } from "./sim/cloud.ts";
import { createSimNode, type SimNode, type SimNodeOptions } from "./sim/node.ts";
import { createRandom } from "./sim/random.ts";
import type { PoolConfig } from "./state.ts";

/** Calls a minute for the whole account (alicloud-api section 4). */
const BUDGETS: Readonly<Record<string, number>> = {
  CreateNetworkInterface: 500,
  AttachNetworkInterface: 500,
  DetachNetworkInterface: 400,
  DeleteNetworkInterface: 500,
  DescribeNetworkInterfaces: 800,
  AssignPrivateIpAddresses: 400,
  UnassignPrivateIpAddresses: 400,
  DescribeInstanceTypes: 400,
  DescribeVSwitches: 300,
};
const THROTTLING = ["Throttling", "Throttling.User", "Throttling.Api"];

interface Call {
  readonly atMs: number;
  readonly node: string;
  readonly action: string;
  readonly target: string;
  readonly code: string;
}

interface Account {
  readonly calls: Call[];
  run<T>(node: string, action: string, target: string, work: () => T, done: (reply: Reply<T>) => void): void;
}

function createAccount(clock: VirtualClock, random: () => number, budgets: Readonly<Record<string, number>>): Account {
  const calls: Call[] = [];
  const used = new Map<string, number>();
  function answer<T>(action: string, work: () => T): Reply<T> {
    const window = `${action}/${Math.floor(clock.now() / 60_000)}`;
    used.set(window, (used.get(window) ?? 0) + 1);
    const code = THROTTLING[calls.length % 3] ?? "";
    if ((used.get(window) ?? 0) > (budgets[action] ?? Number.POSITIVE_INFINITY))
      return { kind: "failed", failure: { class: classify(code), code, message: "over the budget" } };
    try {
      return { kind: "ok", value: work() };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return { kind: "failed", failure: { class: classify(error.code), code: error.code, message: error.message } };
    }
  }
  return {
    calls,
    run(node, action, target, work, done) {
      clock.after(100 + 200 * random(), () => {
        const reply = answer(action, work);
        calls.push({ atMs: clock.now(), node, action, target, code: reply.kind === "ok" ? "ok" : reply.failure.code });
        done(reply);
      });
    },
  };
}

function infoOf(model: Model, id: string): SimEniInfo | undefined {
  const eni = model.enis.get(id);
  return (
    eni && {
      id,
      status: eni.status,
      vswitchId: eni.vswitchId,
      addresses: [...eni.ips].filter((ip) => ip !== eni.primaryIp),
    }
  );
}

function cloudOf(model: Model, account: Account, node: string, instanceId: string): SimCloud {
  const run = <T>(action: string, target: string, work: () => T, done: (r: Reply<T>) => void) =>
    account.run(node, action, target, work, done);
  const must = (id: string): SimEniInfo => {
    const info = infoOf(model, id);
    if (info === undefined) throw new ApiError(404, "InvalidEniId.NotFound", id);
    return info;
  };
  return {
    describeEnis: (done) =>
      run("DescribeNetworkInterfaces", instanceId, () => model.attachedTo(instanceId).map((e) => must(e.id)), done),
    describeEni: (id, done) => run("DescribeNetworkInterfaces", id, () => infoOf(model, id), done),
    describeVSwitches: (done) =>
      run(
        "DescribeVSwitches",
        "",
        () => [...model.vswitches.values()].map((v) => ({ id: v.id, available: model.available(v) })),
        done,
      ),
    describeLimits: (done) =>
      run(
        "DescribeInstanceTypes",
        instanceId,
        () => {
          const type = model.typeOf(model.instanceOf(instanceId));
          return { enis: type.eniQuantity - 1, perEni: type.ipv4PerEni - 1 };
        },
        done,
      ),
    createEni: (vswitchId, count, done) =>
      run("CreateNetworkInterface", vswitchId, () => must(makeEni(model, vswitchId, count)), done),
    attachEni: (id, done) => run("AttachNetworkInterface", id, () => model.attach(id, instanceId), done),
    detachEni: (id, done) => run("DetachNetworkInterface", id, () => model.detach(id, instanceId), done),
    deleteEni: (id, done) => run("DeleteNetworkInterface", id, () => model.deleteEni(id), done),
    assign: (id, count, done) =>
      run("AssignPrivateIpAddresses", id, () => model.assign(id, count, [], undefined), done),
    unassign: (id, ips, done) => run("UnassignPrivateIpAddresses", id, () => model.unassign(id, ips), done),
  };
}

function makeEni(model: Model, vswitchId: string, count: number): string {
  const request = {
    vswitchId,
    count,
    securityGroups: ["sg-1"],
    count6: 0,
    primaryIp: undefined,
    ips: [],
    deleteOnRelease: true,
    name: "",
    description: "",
    type: "Secondary" as const,
    tags: new Map<string, string>(),
  };
  return model.createEni(request, undefined).id;
}

interface World {
  readonly clock: VirtualClock;
  readonly random: () => number;
  readonly account: Account;
  readonly nodes: SimNode[];
  readonly models: Model[];
  addNode(tweaks: NodeTweaks): SimNode;
}

interface NodeTweaks {
  readonly config?: Partial<PoolConfig>;
  readonly type?: string;
  readonly known?: boolean;
  /** Secondary addresses of each ENI that is attached already. */
  readonly attached?: readonly number[];
  readonly rates?: Readonly<Record<string, Rate>>;
  readonly vswitchIds?: readonly string[];
}

const POOL: PoolConfig = {
  minIdle: 10,
  maxIdle: 25,
  batch: 10,
  idleTtlMs: 300_000,
  stack: "ipv4",
  fill: "most",
  hotPlug: true,
};
const UNSET = {
  eniCreateQps: undefined,
  eniDeleteQps: undefined,
  ipAssignQps: undefined,
  ipUnassignQps: undefined,
  burstSize: undefined,
};
/** Nodes that share one emulated VPC: the model looks through all of its ENIs at every call. */
const NODES_PER_MODEL = 25;

function createWorld(seed: number, budgets: Readonly<Record<string, number>> = BUDGETS): World {
  const clock = createVirtualClock();
  const random = createRandom(seed);
  const account = createAccount(clock, random, budgets);
  const nodes: SimNode[] = [];
  const models: Model[] = [];
  function modelForNext(): Model {
    const index = Math.floor(nodes.length / NODES_PER_MODEL);
    const known = models[index];
    if (known !== undefined) return known;
    const model = createModel({
      region: "cn-test",
      vpcCidr: "10.0.0.0/8",
      delays: { attachMs: 3500, detachMs: 3000, deleteMs: 2000, routeMs: 100 },
      schedule: clock.after,
    });
    model.addSecurityGroup("sg-1");
    model.addVSwitch({ id: "vsw-node", zone: "z", cidr: "10.1.0.0/16" });
    model.addVSwitch({ id: "vsw-1", zone: "z", cidr: "10.2.0.0/16" });
    models.push(model);
    return model;
  }
  return {
    clock,
    random,
    account,
    nodes,
    models,
    addNode({
      config = {},
      type = "ecs.g7.xlarge",
      known = true,
      attached = [],
      rates = ratesOf(UNSET),
      vswitchIds = ["vsw-1"],
    }) {
      const model = modelForNext();
      const name = `n${nodes.length}`;
      const instance = model.addInstance({ name, type, vswitchId: "vsw-node", securityGroup: "sg-1" });
      const limits = model.typeOf(instance);
      const options: SimNodeOptions = {
        name,
        clock,
        random,
        known,
        rates,
        vswitchIds,
        cloud: cloudOf(model, account, name, instance.id),
        config: { ...POOL, ...config },
        limits: { enis: limits.eniQuantity - 1, perEni: limits.ipv4PerEni - 1 },
      };
      const node = createSimNode(options);
      for (const count of attached) {
        const eni = model.enis.get(makeEni(model, vswitchIds[0] ?? "", count));
        if (eni === undefined) throw new Error("no ENI");
        eni.status = "InUse";
        eni.instanceId = instance.id;
        node.inventory.addEni(
          eni.id,
          eni.vswitchId,
          "ready",
          [...eni.ips].filter((ip) => ip !== eni.primaryIp),
          0,
        );
      }
      nodes.push(node);
      return node;
    },
  };
}

const percentile = (values: readonly number[], p: number) =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor((values.length * p) / 100))] ?? 0;
const throttledShare = (calls: readonly Call[]) =>
  calls.filter((c) => THROTTLING.includes(c.code)).length / Math.max(1, calls.length);
const HOUR = 3_600_000;

describe("F-13: a fleet restarts within 10 s", () => {
  const NODES = 2000;
  const world = createWorld(13);
  for (let i = 0; i < NODES; i++)
    world.clock.after(10_000 * world.random(), () => {
      const node = world.addNode({ attached: [12] });
      const at = 60_000 * world.random();
      for (let pod = 0; pod < 3; pod++) world.clock.after(at, () => node.startPod(`${node.name}-${pod}`));
    });
  world.clock.runUntil(HOUR);
  const { calls } = world.account;
  const byNode = new Map<string, Call[]>();
  for (const c of calls) byNode.set(c.node, [...(byNode.get(c.node) ?? []), c]);

  it("needs at most 3 calls a node to be ready", () => {
    const counts = [...byNode.values()].map(
      (own) => own.filter((c) => c.atMs < 900_000 && c.action !== "AssignPrivateIpAddresses").length,
    );
    expect(byNode.size).toBe(NODES);
    expect(Math.max(...counts)).toBeLessThanOrEqual(3);
  });

  it("starts pods without a call on the way", () => {
    const waits = world.nodes.flatMap((n) => n.stats.podWaitMs);
    expect(waits).toHaveLength(3 * NODES);
    expect(percentile(waits, 99)).toBeLessThan(1000);
  });

  it("throttles less than 5 % of its calls", () => expect(throttledShare(calls)).toBeLessThan(0.05));

  it("makes no calls then but one look in ten minutes", () => {
    const steady = calls.filter((c) => c.atMs > 1_200_000);
    expect(new Set(steady.map((c) => c.action))).toEqual(new Set(["DescribeNetworkInterfaces"]));
    for (const own of byNode.values()) {
      const looks = own.filter((c) => c.action === "DescribeNetworkInterfaces" && c.atMs > 600_000).map((c) => c.atMs);
      for (const [i, at] of looks.entries()) if (i > 0) expect(at - (looks[i - 1] ?? 0)).toBeGreaterThan(600_000);
    }
  });
});

describe("150 new nodes at once (what took another CNI 15 min)", () => {
  const world = createWorld(405);
  for (let i = 0; i < 150; i++) {
    const node = world.addNode({ known: false, attached: [] });
    for (let pod = 0; pod < 8; pod++)
      world.clock.after(1000 + 5000 * world.random(), () => node.startPod(`${node.name}-${pod}`));
  }
  world.clock.runUntil(300_000);

  it("have all their pods within a minute, and their floor soon after", () => {
    const waits = world.nodes.flatMap((n) => n.stats.podWaitMs);
    expect(waits).toHaveLength(150 * 8);
    expect(Math.max(...waits)).toBeLessThan(60_000);
    for (const node of world.nodes) {
      const idle = node.inventory.view(world.clock.now()).reduce((n, e) => n + e.idle.length, 0);
      expect(idle).toBeGreaterThanOrEqual(10);
    }
    expect(throttledShare(world.account.calls)).toBeLessThan(0.05);
    expect(world.models.flatMap((m) => m.violations())).toEqual([]);
  });
});

describe("F-52: a day of batch load", () => {
  const NODES = 20;
  const PERIOD = 300_000;
  const PODS = 30;
  const DAY = 24 * HOUR;
  const world = createWorld(52);
  const nodes = Array.from({ length: NODES }, () => world.addNode({ known: false, type: "ecs.g7.2xlarge" }));
  const idleOutOfBand: string[] = [];
  for (const node of nodes) {
    const offset = PERIOD * world.random();
    const period = (n: number) => {
      // Up in steps of five, a while at the top, and down again.
      for (let pod = 0; pod < PODS; pod++) {
        const name = `${node.name}-${n}-${pod}`;
        world.clock.after(Math.floor(pod / 5) * 20_000, () => node.startPod(name));
        world.clock.after(180_000 + Math.floor(pod / 10) * 10_000, () => node.stopPod(name));
      }
      world.clock.after(PERIOD - 1000, () => {
        const view = node.inventory.view(world.clock.now());
        const idle = view.reduce((sum, e) => sum + e.idle.length, 0);
        if (idle < POOL.minIdle || idle > POOL.maxIdle)
          idleOutOfBand.push(`${node.name}@${world.clock.now()}: ${idle}`);
      });
      if ((n + 1) * PERIOD < DAY) world.clock.after(PERIOD, () => period(n + 1));
    };
    world.clock.after(offset, () => period(0));
  }
  world.clock.runUntil(DAY + PERIOD);
  const { calls } = world.account;

  it("costs less than 0.2 calls a pod", () => {
    const pods = nodes.reduce((n, node) => n + node.stats.podWaitMs.length, 0);
    expect(pods).toBeGreaterThan(NODES * PODS * 280);
    expect(calls.length / pods).toBeLessThan(0.2);
    expect(calls.filter((c) => c.code !== "ok")).toEqual([]);
  });

  it("keeps the idle count in its band between the waves", () => expect(idleOutOfBand).toEqual([]));

  it("never assigns within 60 s of an unassign on the same ENI", () => {
    const last = new Map<string, number>();
    let closest = Number.POSITIVE_INFINITY;
    for (const c of calls) {
      if (c.action === "UnassignPrivateIpAddresses") last.set(c.target, c.atMs);
      if (c.action === "AssignPrivateIpAddresses")
        closest = Math.min(closest, c.atMs - (last.get(c.target) ?? Number.NEGATIVE_INFINITY));
    }
    expect(closest).toBeGreaterThan(60_000);
  });

  it("does not attach and detach ENIs all day", () => {
    expect(calls.filter((c) => c.action === "DetachNetworkInterface").length).toBeLessThanOrEqual(NODES);
  });

  it("shrinks to the floor when the load is over, and gives the ENIs back", () => {
    world.clock.runUntil(DAY + HOUR);
    for (const node of nodes) {
      const view = node.inventory.view(world.clock.now());
      expect(view.map((e) => e.idle.length)).toEqual([POOL.minIdle]);
    }
    expect(world.models.flatMap((m) => m.violations())).toEqual([]);
  });
});

describe("F-09: a vSwitch runs out of addresses", () => {
  const world = createWorld(9);
  const other = world.addNode({
    attached: [29],
    type: "ecs.g7.4xlarge",
    config: { minIdle: 0, maxIdle: 0, idleTtlMs: HOUR },
  });
  const config = { minIdle: 0, maxIdle: 8, idleTtlMs: HOUR };
  const node = world.addNode({ attached: [0, 0, 0], type: "ecs.g7.4xlarge", config });
  const [model] = world.models;
  const vswitch = model?.vswitches.get("vsw-1");
  if (model === undefined || vswitch === undefined) throw new Error("no vSwitch");
  for (let pod = 0; pod < 29; pod++) other.startPod(`o${pod}`);
  vswitch.limit =
    [...model.enis.values()].filter((e) => e.vswitchId === "vsw-1").reduce((n, e) => n + e.ips.size, 0) + 10;
  for (let pod = 0; pod < 40; pod++) world.clock.after(1000, () => node.startPod(`p${pod}`));
  const { calls } = world.account;
  const failing = () => calls.filter((c) => c.node === node.name && c.code !== "ok").map((c) => c.atMs);
  world.clock.runUntil(180_000);
  const ranWhileFull = node.running();
  const told = node.stats.told.map((t) => t.message);
  const conditions = node.conditions();

  it("runs as many pods as it has addresses for, and tells the others which vSwitch and how many are free", () => {
    expect(ranWhileFull).toBe(10);
    expect(told.length).toBeGreaterThan(3);
    for (const message of told) expect(message).toMatch(/vSwitch vsw-1 has 0 free addresses/);
    expect(conditions.map((c) => c.reason)).toEqual(["VSwitchExhausted"]);
  });

  it("fails at most twice a minute meanwhile", () => {
    const at = failing();
    expect(at.length).toBeGreaterThan(0);
    for (const from of at) expect(at.filter((t) => t >= from && t < from + 60_000).length).toBeLessThanOrEqual(2);
  });

  it("goes on within 15 s after addresses were freed elsewhere", () => {
    for (let pod = 0; pod < 20; pod++) other.stopPod(`o${pod}`);
    // They cool down for 30 s before they go back to the vSwitch.
    world.clock.runUntil(212_000);
    const freed = calls.findLast((c) => c.action === "UnassignPrivateIpAddresses" && c.code === "ok")?.atMs ?? 0;
    expect(freed).toBeGreaterThan(180_000);
    world.clock.runUntil(freed + 15_000);
    expect(node.running()).toBe(30);
  });

  it("goes on within 15 s after a vSwitch was added to eni_conf", () => {
    model.addVSwitch({ id: "vsw-2", zone: "z", cidr: "10.3.0.0/16" });
    const at = world.clock.now();
    node.setVSwitches(["vsw-1", "vsw-2"]);
    world.clock.runUntil(at + 15_000);
    expect(node.running()).toBe(40);
    expect(model.violations()).toEqual([]);
  });

  it("says once when it begins and once when it ends", () => {
    world.clock.runUntil(world.clock.now() + 180_000);
    // Full, some room, full again until the second vSwitch came.
    expect(node.stats.events.map((e) => e.event)).toEqual(["+VSwitchExhausted", "-VSwitchExhausted"]);
    expect(node.conditions()).toEqual([]);
  });
});
