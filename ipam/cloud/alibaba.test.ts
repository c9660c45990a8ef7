/** The adapter against the emulated API, through the unmodified SDKs. */
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type ApiServer, createApiServer } from "../../test/cloud/api-server.ts";
import { createModel, type Instance, type Model } from "../../test/cloud/model.ts";
import type { Credential } from "../../test/cloud/signature.ts";
import { type AlibabaOptions, createAlibabaCloud } from "./alibaba.ts";
import { type CloudApi, CloudError } from "./cloud-api.ts";
import { fixedCredentials } from "./credentials.ts";
import { createRateLimiter } from "./rate-limit.ts";

const STS: Credential = { accessKeyId: "STS.k1", accessKeySecret: "hush-role", securityToken: "token-1" };
const FIXED: Credential = { accessKeyId: "key", accessKeySecret: "hush-fixed" };

let model: Model;
let api: ApiServer;
let instance: Instance;
let port = 0;
let server: Server;
/** Takes the place of the emulator while it is set. */
let instead: ((headers: IncomingHttpHeaders) => { status: number; body: string } | "silence") | undefined;
let seen: IncomingHttpHeaders[] = [];
let valid: Credential[] = [];
const budgets: Record<string, number> = {};
const observed: [action: string, code: string][] = [];

beforeAll(async () => {
  model = createModel({
    region: "cn-emulated",
    vpcCidr: "10.0.0.0/8",
    delays: { attachMs: 0, detachMs: 0, deleteMs: 0, routeMs: 0 },
    schedule: (_ms, work) => work(),
  });
  model.addSecurityGroup("sg-1");
  model.addSecurityGroup("sg-2");
  model.addVSwitch({ id: "vsw-1", zone: "cn-emulated-a", cidr: "10.1.0.0/24", cidr6: "2408:4000::/64" });
  model.addVSwitch({ id: "vsw-2", zone: "cn-emulated-a", cidr: "10.2.0.0/24", limit: 2 });
  instance = model.addInstance({ name: "n", type: "ecs.g7.large", vswitchId: "vsw-1", securityGroup: "sg-1" });
  api = createApiServer({ model, credentials: () => valid, latencyMs: 0, budgets, throttlingCode: "Throttling.User" });
  server = createServer((request, response) => {
    seen.push(request.headers);
    const answer = instead?.(request.headers);
    if (answer === undefined) api.server.emit("request", request, response);
    else if (answer !== "silence") response.writeHead(answer.status, { "content-type": "text/html" }).end(answer.body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  port = (server.address() as AddressInfo).port;
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
});
beforeEach(() => {
  instead = undefined;
  seen = [];
  valid = [STS, FIXED];
  observed.length = 0;
  api.faults.length = 0;
  for (const action of Object.keys(budgets)) delete budgets[action];
});

function connect(more: Partial<AlibabaOptions> = {}): CloudApi {
  const endpoint = `http://127.0.0.1:${port}`;
  return createAlibabaCloud({
    region: "cn-emulated",
    ecsEndpoint: endpoint,
    vpcEndpoint: endpoint,
    credentials: fixedCredentials(FIXED.accessKeyId, FIXED.accessKeySecret),
    observe: (action, code) => observed.push([action, code]),
    ...more,
  });
}

let serial = 0;
const newToken = () => `token-${++serial}`;
const request = (tweaks: object = {}) => ({
  vswitchId: "vsw-1",
  securityGroups: ["sg-1"],
  count4: 3,
  count6: 0,
  tags: { creator: "terway" },
  name: "n",
  clientToken: newToken(),
  ...tweaks,
});
async function failure(work: Promise<unknown>): Promise<CloudError> {
  const error = await work.then(
    () => new Error("it did not fail"),
    (e: unknown) => e,
  );
  if (!(error instanceof CloudError)) throw error;
  return error;
}

/** One row per operation: that it is done, and what it brings. */
const operations: Record<keyof CloudApi, (cloud: CloudApi) => Promise<void>> = {
  async createEni(cloud) {
    const eni = await cloud.createEni(request({ count6: 2, tags: { creator: "terway", a: "b" } }));
    const made = model.eniOf(eni.id);
    expect(eni).toEqual({
      id: made.id,
      mac: made.mac,
      status: "Available",
      type: "Secondary",
      vswitchId: "vsw-1",
      instanceId: undefined,
      primary4: made.primaryIp,
      ips4: [...made.ips],
      ips6: [...made.ips6],
      prefixes: [],
      securityGroups: ["sg-1"],
      tags: { creator: "terway", a: "b" },
      name: "n",
      description: "terway pool",
      zone: "cn-emulated-a",
      createdAt: "",
      deleteOnRelease: true,
      serviceManaged: false,
      trunkEniId: undefined,
      vlanId: undefined,
    });
    expect([eni.ips4.length, eni.ips6.length]).toEqual([4, 2]);
  },
  async describeInstanceEnis(cloud) {
    expect((await cloud.describeInstanceEnis(instance.id)).map((e) => e.id)).toContain(instance.primaryEniId);
  },
  async describeEni(cloud) {
    expect((await cloud.describeEni(instance.primaryEniId))?.type).toBe("Primary");
    expect(await cloud.describeEni("eni-none")).toBeUndefined();
  },
  async describeEnis(cloud) {
    expect(await cloud.describeEnis([])).toEqual([]);
    expect((await cloud.describeEnis([instance.primaryEniId, "eni-none"])).map((e) => e.id)).toEqual([
      instance.primaryEniId,
    ]);
    await expect(cloud.describeEnis(Array.from({ length: 101 }, () => "eni-x"))).rejects.toThrow("at most 100");
  },
  async findEnisByTags(cloud) {
    const one = await cloud.createEni(request({ tags: { creator: "terway", mine: "yes" } }));
    await cloud.createEni(request({ tags: { creator: "terway", mine: "no" } }));
    expect((await cloud.findEnisByTags({ mine: "yes", creator: "terway" })).map((e) => e.id)).toEqual([one.id]);
  },
  async attachEni(cloud) {
    const { id } = await cloud.createEni(request());
    await cloud.attachEni(id, instance.id);
    expect(await cloud.describeEni(id)).toMatchObject({ status: "InUse", instanceId: instance.id });
    model.detach(id, instance.id);
  },
  async detachEni(cloud) {
    const { id } = await cloud.createEni(request());
    model.attach(id, instance.id);
    await cloud.detachEni(id, instance.id);
    expect(await cloud.describeEni(id)).toMatchObject({ status: "Available", instanceId: undefined });
  },
  async deleteEni(cloud) {
    const { id } = await cloud.createEni(request());
    await cloud.deleteEni(id);
    expect(await cloud.describeEni(id)).toBeUndefined();
  },
  async modifyEni(cloud) {
    const { id } = await cloud.createEni(request());
    await cloud.modifyEni(id, { securityGroups: ["sg-2"], deleteOnRelease: false });
    expect(await cloud.describeEni(id)).toMatchObject({ securityGroups: ["sg-2"], deleteOnRelease: false, name: "n" });
  },
  async tagEnis(cloud) {
    const { id } = await cloud.createEni(request());
    await cloud.tagEnis([id], { node: "i-1" });
    expect((await cloud.describeEni(id))?.tags).toEqual({ creator: "terway", node: "i-1" });
  },
  async untagEnis(cloud) {
    const { id } = await cloud.createEni(request());
    await cloud.untagEnis([id], ["creator"]);
    expect((await cloud.describeEni(id))?.tags).toEqual({});
  },
  async assign(cloud) {
    const eni = await cloud.createEni(request());
    const added = await cloud.assign(eni.id, 4, newToken());
    expect(added).toHaveLength(4);
    expect((await cloud.describeEni(eni.id))?.ips4).toEqual([...eni.ips4, ...added]);
    model.faults.partialAssign = 1;
    expect(await cloud.assign(eni.id, 2, newToken())).toHaveLength(1);
  },
  async unassign(cloud) {
    const eni = await cloud.createEni(request());
    await cloud.unassign(eni.id, eni.ips4.slice(1, 3));
    expect((await cloud.describeEni(eni.id))?.ips4).toEqual([eni.primary4, eni.ips4[3]]);
  },
  async assign6(cloud) {
    const { id } = await cloud.createEni(request());
    const added = await cloud.assign6(id, 2, newToken());
    expect((await cloud.describeEni(id))?.ips6).toEqual(added);
  },
  async unassign6(cloud) {
    const eni = await cloud.createEni(request({ count6: 2 }));
    await cloud.unassign6(eni.id, eni.ips6.slice(0, 1));
    expect((await cloud.describeEni(eni.id))?.ips6).toEqual(eni.ips6.slice(1));
  },
  async describeVSwitches(cloud) {
    const [one, two] = await cloud.describeVSwitches(["vsw-1", "vsw-2"]);
    expect(one).toMatchObject({ id: "vsw-1", zone: "cn-emulated-a", cidr4: "10.1.0.0/24", cidr6: "2408:4000::/64" });
    expect(two).toMatchObject({ id: "vsw-2", cidr6: undefined, available: 2, routeTableId: model.routeTableId });
  },
  async instanceLimits(cloud) {
    const want = { enis: 3, enisTotal: 3, ipv4PerEni: 10, ipv6PerEni: 10, trunkSupported: false };
    expect(await cloud.instanceLimits("ecs.g7.large")).toEqual(want);
    expect(await failure(cloud.instanceLimits("ecs.none"))).toMatchObject({ class: "config" });
  },
  async describeSecurityGroups(cloud) {
    expect(await cloud.describeSecurityGroups(["sg-2"])).toEqual([{ id: "sg-2", vpcId: model.vpcId, type: "normal" }]);
  },
  async listRoutes(cloud) {
    await cloud.createRoute(model.routeTableId, "172.20.1.0/24", instance.id, newToken());
    expect(await cloud.listRoutes(model.routeTableId)).toContainEqual(
      expect.objectContaining({ destination: "172.20.1.0/24", status: "Available", nextHopIds: [instance.id] }),
    );
  },
  async createRoute(cloud) {
    const token = newToken();
    await cloud.createRoute(model.routeTableId, "172.20.2.0/24", instance.id, token);
    await cloud.createRoute(model.routeTableId, "172.20.2.0/24", instance.id, token);
    expect([...model.routes.values()].filter((r) => r.destination === "172.20.2.0/24")).toHaveLength(1);
  },
  async deleteRoute(cloud) {
    await cloud.createRoute(model.routeTableId, "172.20.3.0/24", instance.id, newToken());
    await cloud.deleteRoute(model.routeTableId, "172.20.3.0/24", instance.id);
    expect([...model.routes.values()].map((r) => r.destination)).not.toContain("172.20.3.0/24");
  },
};

describe("every operation", () => {
  const cloud = () => connect();
  it.each(Object.entries(operations))("%s", (_name, run) => run(cloud()));

  it("is in the table, and in the adapter", () =>
    expect(Object.keys(cloud()).sort()).toEqual(Object.keys(operations).sort()));
});

describe("the adapter", () => {
  it("reads all pages", async () => {
    const ids = new Set<string>();
    for (let i = 0; i < 12; i++)
      ids.add(model.createEni({ ...modelRequest, tags: new Map([["paged", "yes"]]) }, undefined).id);
    expect(new Set((await connect().findEnisByTags({ paged: "yes" })).map((e) => e.id))).toEqual(ids);
    const paged = api.audit.findLast((a) => a.action === "DescribeNetworkInterfaces");
    expect(paged?.params.MaxResults).toBe("500");
    for (const id of ids) model.deleteEni(id);
  });

  it("signs with a role's credentials, too, and says who it is", async () => {
    const credentials = async () => ({ ...STS, securityToken: STS.securityToken ?? "" });
    await connect({ credentials }).describeEni("eni-none");
    expect(api.audit.at(-1)).toMatchObject({ caller: STS.accessKeyId, outcome: "ok" });
    expect(seen.at(-1)?.["user-agent"]).toContain("Kubernetes.Alicloud Terway");
    expect(seen.at(-1)?.["x-acs-action"]).toBe("DescribeNetworkInterfaces");
  });

  it("does not repeat a request by itself: that is the pool's decision", async () => {
    api.faults.push({
      action: "DescribeNetworkInterfaces",
      times: 9,
      effect: { kind: "error", status: 500, code: "InternalError" },
    });
    const error = await failure(connect().describeEni("eni-none"));
    expect(error).toMatchObject({ class: "retry", outcomeUnknown: true });
    expect(error.requestId).toMatch(/^[0-9A-F-]{36}$/);
    expect(seen).toHaveLength(1);
    expect(observed).toEqual([["DescribeNetworkInterfaces", "InternalError"]]);
  });

  it("finds with the same token what a lost answer had made (F-11)", async () => {
    api.faults.push({ action: "CreateNetworkInterface", times: 1, effect: { kind: "drop-after" } });
    const before = model.enis.size;
    const once = request();
    const error = await failure(connect().createEni(once));
    expect(error).toMatchObject({ class: "retry", outcomeUnknown: true });
    const eni = await connect().createEni(once);
    expect(model.enis.size).toBe(before + 1);
    expect(model.eniOf(eni.id).ips.size).toBe(4);
  });

  it("takes an answer without an ENI for a spent token", async () => {
    model.faults.emptyEniId = 1;
    expect(await failure(connect().createEni(request()))).toMatchObject({ class: "idempotent-failed" });
  });

  it.each([
    ["vswitch-full", (c: CloudApi) => c.createEni(request({ vswitchId: "vsw-2", count4: 5 }))],
    ["config", (c: CloudApi) => c.createEni(request({ vswitchId: "vsw-none" }))],
    ["config", (c: CloudApi) => c.createEni(request({ securityGroups: ["sg-none"] }))],
    ["gone", (c: CloudApi) => c.deleteEni("eni-none")],
    ["bug", (c: CloudApi) => c.detachEni(instance.primaryEniId, instance.id)],
    ["capacity", (c: CloudApi) => c.assign(instance.primaryEniId, 30, newToken())],
    ["gone", (c: CloudApi) => c.unassign(instance.primaryEniId, ["10.1.0.200"])],
  ] as const)("classifies what the cloud really answers: %s", async (cls, work) => {
    expect((await failure(work(connect()))).class).toBe(cls);
  });

  it("knows throttling by its longer codes", async () => {
    budgets.DescribeNetworkInterfaces = 0;
    expect(await failure(connect().describeEni("eni-none"))).toMatchObject({
      class: "throttled",
      code: "Throttling.User",
    });
  });

  it("replaces a key that the cloud refuses once, and repeats the call with the same token", async () => {
    let keys = { accessKeyId: "STS.old", accessKeySecret: "hush-old", securityToken: "token-0" };
    let replaced = 0;
    const credentials = Object.assign(async () => keys, {
      replace: async () => {
        replaced += 1;
        keys = { ...STS, securityToken: STS.securityToken ?? "" };
        return true;
      },
    });
    const eni = await connect({ credentials }).createEni(request());
    expect(replaced).toBe(1);
    expect(model.enis.has(eni.id)).toBe(true);
    expect(observed.map(([, code]) => code)).toEqual(["InvalidAccessKeyId.NotFound", "ok"]);
  });

  it("is loud about a key that cannot be replaced, and shows no secret", async () => {
    const keys = { accessKeyId: "STS.old", accessKeySecret: "hush-old", securityToken: "hush-token" };
    const error = await failure(
      connect({ credentials: Object.assign(async () => keys, { replace: async () => false }) }).describeEni("x"),
    );
    expect(error.class).toBe("auth");
    expect(`${error.stack} ${JSON.stringify(error)} ${String(error.cause)}`).not.toMatch(/hush/);
    expect(seen).toHaveLength(1);
  });

  it("does not ask for another key when a right is missing", async () => {
    api.faults.push({
      action: "DescribeVSwitches",
      times: 1,
      effect: { kind: "error", status: 403, code: "Forbidden.RAM" },
    });
    let asked = 0;
    const credentials = Object.assign(async () => FIXED, {
      replace: async () => {
        asked += 1;
        return true;
      },
    });
    expect(await failure(connect({ credentials }).describeVSwitches(["vsw-1"]))).toMatchObject({
      class: "auth",
      code: "Forbidden.RAM",
    });
    expect(asked).toBe(0);
  });

  it("says so when there are no credentials at all", async () => {
    const credentials = () => Promise.reject(new Error("this instance has no RAM role"));
    expect(await failure(connect({ credentials }).describeEni("x"))).toMatchObject({
      class: "auth",
      code: "NoCredentials",
      outcomeUnknown: false,
    });
    expect(seen).toHaveLength(0);
  });

  it("gives up on silence after its time-out", async () => {
    instead = () => "silence";
    const error = await failure(connect({ timeoutMs: 150 }).describeEni("x"));
    expect(error).toMatchObject({ class: "retry", outcomeUnknown: true });
  });

  it("takes a proxy's error page for an answer that tells nothing", async () => {
    instead = () => ({ status: 502, body: "<html>bad gateway</html>" });
    expect(await failure(connect().describeEni("x"))).toMatchObject({ class: "retry", outcomeUnknown: true });
  });

  it("knows that a request was never sent", async () => {
    const nowhere = connect({ ecsEndpoint: "http://127.0.0.1:1" });
    expect(await failure(nowhere.describeEni("x"))).toMatchObject({
      class: "retry",
      code: "ECONNREFUSED",
      outcomeUnknown: false,
    });
  });

  it("waits for our own brake and says so", async () => {
    const limiter = createRateLimiter({ DescribeNetworkInterfaces: { perMinute: 600, burst: 1 } }, performance.now());
    const waits: number[] = [];
    const cloud = connect({ limiter, onLimited: (_action, ms) => waits.push(ms) });
    const started = performance.now();
    await Promise.all([cloud.describeEni("a"), cloud.describeEni("b"), cloud.describeEni("c")]);
    expect(waits).toHaveLength(2);
    // 0, 100 and 200 ms: the tokens of 600 a minute.
    expect(performance.now() - started).toBeGreaterThan(150);
    expect(limiter.hits()).toEqual({ DescribeNetworkInterfaces: 2 });
  });
});

const modelRequest = {
  vswitchId: "vsw-1",
  securityGroups: ["sg-1"],
  count: 0,
  count6: 0,
  primaryIp: undefined,
  ips: [],
  deleteOnRelease: true,
  name: "",
  description: "",
  type: "Secondary" as const,
};
