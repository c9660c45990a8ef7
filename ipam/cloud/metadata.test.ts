import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createMetadataServer } from "../../test/cloud/metadata-server.ts";
import { createModel } from "../../test/cloud/model.ts";
import { roleCredentials } from "./credentials.ts";
import { awaitNetwork, createMetadataClient, discoverEnis, discoverSelf, type MetadataClient } from "./metadata.ts";
import { parseAddressList, parseLines, parseMacList } from "./metadata-parse.ts";

describe("lists of the metadata service", () => {
  it.each<[string, string, readonly string[] | undefined]>([
    ["a JSON array", '["10.0.0.5","10.0.0.6"]', ["10.0.0.5", "10.0.0.6"]],
    ["brackets without quotes", "[2408::1, 2408::2]", ["2408::1", "2408::2"]],
    ["one address", "[2408::1]", ["2408::1"]],
    ["prefixes", "[10.0.0.16/28]", ["10.0.0.16/28"]],
    ["an empty array", "[]", []],
    ["nothing", "", []],
    ["a page of a proxy", "<html>", undefined],
    ["words in brackets", "[none]", undefined],
  ])("%s", (_claim, text, want) => expect(parseAddressList(text)).toEqual(want));

  it("of MACs have a slash behind each", () =>
    expect(parseMacList("00:16:3E:00:00:01/\n00:16:3e:00:00:02/\n\njunk/")).toEqual([
      "00:16:3e:00:00:01",
      "00:16:3e:00:00:02",
    ]));

  it("of lines, whichever way they are written", () => {
    expect(parseLines("10.0.0.16/28\n10.0.0.32/28\n")).toEqual(["10.0.0.16/28", "10.0.0.32/28"]);
    expect(parseLines('["10.0.0.16/28"]')).toEqual(["10.0.0.16/28"]);
  });
});

/** Answers in order; each names what it wants of the request. */
function scripted(answers: readonly [status: number, body: string][]) {
  const seen: string[] = [];
  const left = [...answers];
  let now = 0;
  const client = createMetadataClient("http://metadata", {
    now: () => now,
    sleep: async (ms) => {
      now += ms;
    },
    fetch: async (url, init) => {
      const token = (init.headers as Record<string, string>)["X-aliyun-ecs-metadata-token"];
      seen.push(
        `${init.method ?? "GET"} ${url.replace("http://metadata/latest/", "")}${token ? ` token=${token}` : ""}`,
      );
      const next = left.shift();
      if (next === undefined) throw new Error("connection refused");
      return new Response(next[1], { status: next[0] });
    },
  });
  return { client, seen, advance: (ms: number) => (now += ms) };
}

describe("metadata client", () => {
  it("reads with a token, and fetches another after half of its life", async () => {
    const s = scripted([
      [200, "t1"],
      [200, "i-1\n"],
      [200, "i-1"],
      [200, "t2"],
      [200, "i-1"],
    ]);
    expect(await s.client.get("instance-id")).toBe("i-1");
    await s.client.get("instance-id");
    s.advance(1_800_001);
    await s.client.get("instance-id");
    expect(s.seen).toEqual([
      "PUT api/token",
      "GET meta-data/instance-id token=t1",
      "GET meta-data/instance-id token=t1",
      "PUT api/token",
      "GET meta-data/instance-id token=t2",
    ]);
  });

  it("reads without one where the service has none, and does not ask for one each time", async () => {
    const s = scripted([
      [404, ""],
      [200, "a"],
      [200, "b"],
    ]);
    expect([await s.client.get("x"), await s.client.get("y")]).toEqual(["a", "b"]);
    expect(s.seen).toEqual(["PUT api/token", "GET meta-data/x", "GET meta-data/y"]);
  });

  it("fetches a new token once when the old one is refused", async () => {
    const s = scripted([
      [200, "t1"],
      [401, ""],
      [200, "t2"],
      [200, "a"],
    ]);
    expect(await s.client.get("x")).toBe("a");
  });

  it("gives up when the new one is refused, too", async () => {
    const s = scripted([
      [200, "t1"],
      [401, ""],
      [200, "t2"],
      [401, ""],
      [200, "t3"],
    ]);
    await expect(s.client.get("x")).rejects.toThrow("did not give x: status 401");
    expect(s.seen).toHaveLength(4);
  });

  it("has no value where there is none", async () => {
    const s = scripted([
      [404, ""],
      [404, ""],
    ]);
    expect(await s.client.get("ipv6s")).toBeUndefined();
  });

  it.each([[429], [500], [503]])("tries again after status %i", async (status) => {
    const s = scripted([
      [404, ""],
      [status, ""],
      [status, ""],
      [200, "a"],
    ]);
    expect(await s.client.get("x")).toBe("a");
  });

  it("does not try again after another refusal, and says what to check", async () => {
    const s = scripted([
      [404, ""],
      [400, ""],
    ]);
    await expect(s.client.get("x")).rejects.toThrow(
      /http:\/\/metadata did not give x: status 400; is this an ECS instance/,
    );
  });

  it("gives up on a service that is not there after five tries", async () => {
    const s = scripted([]);
    await expect(s.client.get("x")).rejects.toThrow("connection refused");
    expect(s.seen).toHaveLength(5);
  });
});

describe("RAM role credentials", () => {
  const answer = (id: string, expires: string, code = "Success") =>
    JSON.stringify({
      AccessKeyId: id,
      AccessKeySecret: "hush",
      SecurityToken: `token-${id}`,
      Expiration: expires,
      Code: code,
    });
  function role(keys: () => string | undefined) {
    let reads = 0;
    let now = 0;
    const metadata: MetadataClient = {
      async get(path) {
        if (path === "ram/security-credentials/") return "KubernetesWorkerRole";
        reads += 1;
        const text = keys();
        if (text === undefined) throw new Error("the service is away");
        return text;
      },
    };
    return { source: roleCredentials(metadata, () => now), reads: () => reads, at: (ms: number) => (now = ms) };
  }
  const iso = (ms: number) => new Date(ms).toISOString();

  it("are kept until ten minutes before their end", async () => {
    const r = role(() => answer(`k${r.reads()}`, iso(3_600_000)));
    expect((await r.source()).accessKeyId).toBe("k1");
    r.at(2_999_000);
    expect((await r.source()).accessKeyId).toBe("k1");
    r.at(3_000_000);
    expect((await r.source()).accessKeyId).toBe("k2");
  });

  it("that live 20 s are renewed a quarter before their end (F-44)", async () => {
    const r = role(() => answer(`k${r.reads()}`, iso(r.reads() * 20_000)));
    await r.source();
    r.at(14_999);
    expect((await r.source()).accessKeyId).toBe("k1");
    r.at(15_000);
    expect((await r.source()).accessKeyId).toBe("k2");
  });

  it("stay in use while new ones cannot be had", async () => {
    let away = false;
    const r = role(() => (away ? undefined : answer("k1", iso(3_600_000))));
    await r.source();
    away = true;
    r.at(4_000_000);
    expect((await r.source()).accessKeyId).toBe("k1");
    const reads = r.reads();
    await r.source();
    expect(r.reads()).toBe(reads);
  });

  it("are fetched once for many callers at a time", async () => {
    const r = role(() => answer("k1", iso(3_600_000)));
    await Promise.all([r.source(), r.source(), r.source()]);
    expect(r.reads()).toBe(1);
  });

  it("that the cloud refuses are replaced, if there are others", async () => {
    let id = "k1";
    const r = role(() => answer(id, iso(3_600_000)));
    const refused = await r.source();
    expect(await r.source.replace?.(refused)).toBe(false);
    id = "k2";
    expect(await r.source.replace?.(refused)).toBe(true);
    expect((await r.source()).accessKeyId).toBe("k2");
    const reads = r.reads();
    expect(await r.source.replace?.(refused)).toBe(true);
    expect(r.reads()).toBe(reads);
  });

  it.each([
    ["another code", answer("k", "", "Failed"), "code Failed"],
    ["no JSON", "hush", "code unreadable"],
  ])("are refused with %s, and no secret is in the message", async (_claim, text, want) => {
    const r = role(() => text);
    const error = await r.source().catch((e: Error) => e);
    expect(String(error)).toContain(want);
    expect(String(error)).not.toContain("hush");
  });

  it("are missed loudly without a role", async () => {
    const source = roleCredentials({ get: async () => undefined });
    await expect(source()).rejects.toThrow(/no RAM role: attach one/);
  });
});

describe("against the emulated service", () => {
  const model = createModel({
    region: "cn-emulated",
    vpcCidr: "10.0.0.0/8",
    delays: { attachMs: 0, detachMs: 0, deleteMs: 0, routeMs: 0 },
    schedule: (_ms, work) => work(),
  });
  model.addSecurityGroup("sg-1");
  model.addVSwitch({ id: "vsw-1", zone: "cn-emulated-a", cidr: "10.1.0.0/24", cidr6: "2408:4000::/64" });
  const instance = model.addInstance({ name: "n", type: "ecs.g7.large", vswitchId: "vsw-1", securityGroup: "sg-1" });
  const primary = model.eniOf(instance.primaryEniId);
  const server = createMetadataServer({
    model,
    role: "r",
    credential: () => ({
      accessKeyId: "k",
      accessKeySecret: "s",
      securityToken: "t",
      expiresAt: Date.now() + 3_600_000,
    }),
    hardened: true,
  });
  // Says for whom we ask, as the fabric's source address does.
  const front = createServer((request, response) => {
    request.headers["x-emulator-source"] = primary.primaryIp;
    server.emit("request", request, response);
  });
  let client: MetadataClient;
  beforeAll(async () => {
    await new Promise<void>((resolve) => front.listen(0, "127.0.0.1", resolve));
    client = createMetadataClient(`http://127.0.0.1:${(front.address() as AddressInfo).port}`);
  });
  afterAll(() => {
    front.closeAllConnections();
    front.close();
  });

  it("a node learns who it is", async () => {
    expect(await discoverSelf(client)).toEqual({
      instanceId: instance.id,
      instanceType: "ecs.g7.large",
      region: "cn-emulated",
      zone: "cn-emulated-a",
      primaryMac: primary.mac,
      ip: primary.primaryIp,
      vpcId: model.vpcId,
      vswitchId: "vsw-1",
      vpcCidr: await client.get("vpc-cidr-block"),
    });
  });

  it("a node learns of its ENIs in both address families", async () => {
    const [eni] = await discoverEnis(client);
    expect(eni).toMatchObject({
      mac: primary.mac,
      eniId: primary.id,
      primary4: primary.primaryIp,
      addresses4: [...primary.ips],
      addresses6: [...primary.ips6],
      vswitchCidr4: "10.1.0.0/24",
      vswitchCidr6: "2408:4000::/64",
      gateway4: "10.1.0.253",
    });
  });

  it("leaves out an ENI that is listed with nothing behind it", async () => {
    const ghost: MetadataClient = {
      get: async (path) => (path.endsWith("macs/") ? `00:16:3e:ff:ff:ff/\n${primary.mac}/` : client.get(path)),
    };
    expect((await discoverEnis(ghost)).map((e) => e.eniId)).toEqual([primary.id]);
  });

  it("has credentials for the role", async () =>
    expect(await roleCredentials(client)()).toEqual({ accessKeyId: "k", accessKeySecret: "s", securityToken: "t" }));
});

describe("the network of an ENI that was just attached", () => {
  const ask = (families: readonly (4 | 6)[], values: (nowMs: number) => Readonly<Record<string, string>>) => {
    let nowMs = 0;
    const prefix = "network/interfaces/macs/aa:bb/";
    const metadata = { get: async (path: string) => values(nowMs)[path.slice(prefix.length)] };
    const sleep = async (ms: number) => {
      nowMs += ms;
    };
    return awaitNetwork(metadata, "aa:bb", families, { now: () => nowMs, sleep });
  };
  const four = { "vswitch-cidr-block": "10.0.0.0/24" };

  it("is waited for", async () =>
    expect(await ask([4], (now) => (now < 3000 ? {} : four))).toEqual({ cidr4: "10.0.0.0/24", cidr6: undefined }));

  it("is not known while a family in use is missing", async () => {
    expect(await ask([4, 6], () => four)).toBeUndefined();
    const six = { "vswitch-ipv6-cidr-block": "fd00::/64" };
    expect(await ask([4, 6], (now) => (now < 3000 ? four : { ...four, ...six }))).toEqual({
      cidr4: "10.0.0.0/24",
      cidr6: "fd00::/64",
    });
  });
});
