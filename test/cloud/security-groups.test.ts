/** Security groups: their API through the unmodified SDK, and what the fabric does about them. */
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { exec, inNetns } from "../runtime/exec.ts";
import { type Cloud, createCloud, DEFAULT_SECURITY_GROUP } from "./cloud.ts";
import { OUTSIDE_IP } from "./fabric.ts";
import type { EniRecord } from "./model.ts";
import { compileGroups, parseRule, type SecurityGroup } from "./security-groups.ts";

const require = createRequire(import.meta.url);
const { Config } = require("@alicloud/openapi-client") as typeof import("@alicloud/openapi-client");
const Ecs = require("@alicloud/ecs20140526") as typeof import("@alicloud/ecs20140526");
const RegionId = { regionId: "cn-emulated" };

const rule = (direction: "ingress" | "egress", fields: Record<string, string>) =>
  parseRule(direction, (name) => fields[name]);

describe("a rule", () => {
  it.each([
    ["an unknown protocol", "InvalidIpProtocol.ValueNotSupported", { IpProtocol: "sctp", SourceCidrIp: "10.0.0.0/8" }],
    ["no source", "MissingParameter.Source", { IpProtocol: "all" }],
    [
      "ports upside down",
      "InvalidIpPortRange.Malformed",
      { IpProtocol: "tcp", PortRange: "9/1", SourceCidrIp: "1.2.3.4" },
    ],
    [
      "ports of ICMP",
      "InvalidIpPortRange.Malformed",
      { IpProtocol: "icmp", PortRange: "1/9", SourceCidrIp: "1.2.3.4" },
    ],
    ["no ports of TCP", "MissingParameter", { IpProtocol: "tcp", SourceCidrIp: "1.2.3.4" }],
    ["priority 101", "InvalidPriority.Malformed", { IpProtocol: "all", Priority: "101", SourceCidrIp: "1.2.3.4" }],
    ["an unknown policy", "InvalidPolicy.Malformed", { IpProtocol: "all", Policy: "reject", SourceCidrIp: "1.2.3.4" }],
    ["an IPv6 block as IPv4", "InvalidSourceCidrIp.Malformed", { IpProtocol: "all", SourceCidrIp: "2408::/16" }],
    [
      "two sources",
      "InvalidParameter.Conflict",
      { IpProtocol: "all", SourceCidrIp: "1.2.3.4", Ipv6SourceCidrIp: "::1" },
    ],
    ["a prefix list", "UnsupportedParameter", { IpProtocol: "all", SourcePrefixListId: "pl-1" }],
  ])("with %s is refused", (_what, code, fields) => {
    expect(() => rule("ingress", fields)).toThrow(expect.objectContaining({ code }));
  });

  it("comes by priority, Drop first, after the group's own members and before the default", () => {
    const some = (fields: Record<string, string>, id: string) => ({
      ...rule("ingress", { IpProtocol: "TCP", ...fields }),
      id,
      createTime: "",
    });
    const group: SecurityGroup = {
      id: "sg-1",
      name: "",
      description: "",
      type: "normal",
      innerAccess: "Accept",
      rules: [
        some({ PortRange: "80/80", SourceCidrIp: "10.0.0.0/8", Priority: "5" }, "1"),
        some({ PortRange: "80/80", SourceGroupId: "sg-2", Policy: "Drop", Priority: "5" }, "2"),
        some({ PortRange: "-1/-1", Ipv6SourceCidrIp: "::/0" }, "3"),
      ],
      limit: undefined,
      tags: new Map(),
      creationTime: "",
    };
    expect(compileGroups([group], "ingress")).toEqual([
      "ip saddr @m4-sg-1 return",
      "ip6 saddr @m6-sg-1 return",
      "meta nfproto ipv6 meta l4proto tcp return",
      "ip saddr @m4-sg-2 meta l4proto tcp th dport 80-80 counter name denied drop",
      "ip6 saddr @m6-sg-2 meta l4proto tcp th dport 80-80 counter name denied drop",
      "ip saddr 10.0.0.0/8 meta l4proto tcp th dport 80-80 return",
      "counter name denied drop",
    ]);
    expect(compileGroups([group], "egress").at(-1)).toBe("return");
    expect(compileGroups([{ ...group, type: "enterprise", innerAccess: "Drop" }], "egress")).toEqual([
      "counter name denied drop",
    ]);
  });
});

describe("groups in the fabric", () => {
  let cloud: Cloud;
  let ecs: InstanceType<typeof Ecs.default>;
  const hosts: { readonly netns: string; readonly eni: EniRecord }[] = [];

  beforeAll(async () => {
    cloud = await createCloud({ prefix: `sg${process.pid}`, fabric: true, ipv6: true, latencyMs: 0 });
    cloud.model.addVSwitch({ id: "vsw-a", zone: "cn-emulated-a", cidr: "10.1.0.0/24", cidr6: "2408:4000:0:1::/64" });
    ecs = new Ecs.default(
      new Config({
        accessKeyId: "emulated-key",
        accessKeySecret: "emulated-secret",
        endpoint: cloud.apiUrl.replace("http://", ""),
        protocol: "http",
        regionId: "cn-emulated",
      }) as never,
    );
    for (const name of ["a", "b", "c"]) {
      const instance = cloud.addInstance({ name, type: "ecs.g7.large", vswitchId: "vsw-a" });
      const netns = cloud.fabric?.instanceNetns(instance.id).path ?? "";
      hosts.push({ netns, eni: cloud.model.eniOf(instance.primaryEniId) });
    }
  });
  afterAll(() => cloud?.close());

  const host = (i: number) => {
    const found = hosts[i];
    if (found === undefined) throw new Error(`no host ${i}`);
    return found;
  };
  const run = (netns: string, command: string) =>
    exec({ path: "/bin/sh", args: ["-c", command], env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }, stdin: "", netns });
  const pings = async (from: number, address: string) =>
    (await run(host(from).netns, `ping -c1 -W1 ${address}`)).status === 0;
  const ip4 = (i: number) => host(i).eni.primaryIp;
  const ip6 = (i: number) => [...host(i).eni.ips6][0] ?? "";
  const both = async (from: number, to: number) => [await pings(from, ip4(to)), await pings(from, ip6(to))];

  async function newGroup(name: string, type = "normal"): Promise<string> {
    const made = await ecs.createSecurityGroup(
      new Ecs.CreateSecurityGroupRequest({
        ...RegionId,
        vpcId: "vpc-emu1",
        securityGroupName: name,
        securityGroupType: type,
      }),
    );
    return made.body?.securityGroupId ?? "";
  }
  const setGroups = (i: number, ...securityGroupId: string[]) =>
    ecs.modifyNetworkInterfaceAttribute(
      new Ecs.ModifyNetworkInterfaceAttributeRequest({
        ...RegionId,
        networkInterfaceId: host(i).eni.id,
        securityGroupId,
      }),
    );
  const authorize = (securityGroupId: string, ...permissions: object[]) =>
    ecs.authorizeSecurityGroup(
      new Ecs.AuthorizeSecurityGroupRequest({ ...RegionId, securityGroupId, permissions } as never),
    );
  const rulesOf = async (securityGroupId: string) =>
    (
      await ecs.describeSecurityGroupAttribute(
        new Ecs.DescribeSecurityGroupAttributeRequest({ ...RegionId, securityGroupId }),
      )
    ).body;

  it("let a new group's members reach each other and the world, and nobody else them", async () => {
    const group = await newGroup("fresh");
    await setGroups(0, group);
    await setGroups(1, group);
    const before = cloud.fabric?.denied() ?? 0;
    expect(await both(0, 1)).toEqual([true, true]);
    expect(await both(0, 2)).toEqual([true, true]); // the default group lets all in; the replies pass
    expect(await pings(0, OUTSIDE_IP)).toBe(true);
    expect(await both(2, 0)).toEqual([false, false]);
    expect(cloud.fabric?.denied()).toBe(before + 2);
    await ecs.modifySecurityGroupPolicy(
      new Ecs.ModifySecurityGroupPolicyRequest({ ...RegionId, securityGroupId: group, innerAccessPolicy: "Drop" }),
    );
    expect(await both(0, 1)).toEqual([false, false]);
    expect((await rulesOf(group))?.innerAccessPolicy).toBe("Drop");
  });

  it("follow rules as they are added and revoked, also for open connections", async () => {
    const group = await newGroup("web");
    await setGroups(0, group);
    await setGroups(1, group);
    await authorize(group, { ipProtocol: "ICMP", sourceCidrIp: `${ip4(2)}/32`, priority: "10" });
    await authorize(group, { ipProtocol: "ICMP", sourceCidrIp: `${ip4(2)}/32`, priority: "10" }); // again: no second one
    expect((await rulesOf(group))?.permissions?.permission).toMatchObject([
      { direction: "ingress", ipProtocol: "ICMP", portRange: "-1/-1", policy: "Accept", priority: "10" },
    ]);
    expect(await both(2, 0)).toEqual([true, false]);
    const flow = run(host(2).netns, `ping -i 0.2 -c 15 -W1 ${ip4(0)}`);
    await new Promise((resolve) => setTimeout(resolve, 700));
    await authorize(group, { ipProtocol: "ALL", sourceCidrIp: "0.0.0.0/0", policy: "Drop", priority: "1" });
    const received = Number(/(\d+) received/.exec((await flow).stdout)?.[1]);
    expect(received).toBeGreaterThan(0);
    expect(received).toBeLessThan(15);
    const drop = (await rulesOf(group))?.permissions?.permission?.find((r) => r.policy === "Drop")?.securityGroupRuleId;
    await ecs.revokeSecurityGroup(
      new Ecs.RevokeSecurityGroupRequest({ ...RegionId, securityGroupId: group, securityGroupRuleId: [drop ?? ""] }),
    );
    expect(await pings(2, ip4(0))).toBe(true);
    const gone = new Ecs.RevokeSecurityGroupRequest({
      ...RegionId,
      securityGroupId: group,
      securityGroupRuleId: [drop ?? ""],
    });
    await expect(ecs.revokeSecurityGroup(gone)).rejects.toMatchObject({ code: "InvalidParam.SecurityGroupRuleId" });
  });

  it("take groups as sources, ports, both families, and several groups on one ENI", async () => {
    const [front, back, extra] = [await newGroup("front"), await newGroup("back"), await newGroup("extra")];
    await setGroups(0, back);
    await setGroups(1, front);
    await authorize(back, { ipProtocol: "TCP", portRange: "8080/8081", sourceGroupId: front });
    const serve = 'require("net").createServer((s) => s.end("hi")).listen(Number(process.argv[1]), "::")';
    const servers = ["8080", "8082"].map((port) =>
      inNetns(host(0).netns, () => spawn(process.execPath, ["-e", serve, port], { stdio: "ignore" })),
    );
    const dial =
      'const [h, p] = process.argv.slice(1); const s = require("net").connect({ host: h, port: Number(p), timeout: 1500 });' +
      's.on("data", () => process.exit(0)); for (const e of ["error", "timeout"]) s.on(e, () => process.exit(1))';
    const connects = async (from: number, address: string, port: string) => {
      const args = ["-e", dial, address, port];
      return (await exec({ path: process.execPath, args, env: {}, stdin: "", netns: host(from).netns })).status === 0;
    };
    for (let i = 0; i < 50 && !(await connects(0, "127.0.0.1", "8082")); i++)
      await new Promise((r) => setTimeout(r, 50));
    expect(await Promise.all([ip4(0), ip6(0)].map((ip) => connects(1, ip, "8080")))).toEqual([true, true]);
    expect(await connects(1, ip4(0), "8082")).toBe(false);
    expect(await connects(2, ip4(0), "8080")).toBe(false);
    await setGroups(0, back, extra);
    await authorize(extra, { ipProtocol: "TCP", portRange: "8082/8082", sourceCidrIp: "10.1.0.0/24" });
    expect(await Promise.all(["8080", "8082"].map((port) => connects(1, ip4(0), port)))).toEqual([true, true]);
    await ecs.authorizeSecurityGroupEgress(
      new Ecs.AuthorizeSecurityGroupEgressRequest({
        ...RegionId,
        securityGroupId: front,
        permissions: [{ ipProtocol: "TCP", portRange: "8082/8082", destGroupId: extra, policy: "drop" }],
      } as never),
    );
    expect(await Promise.all(["8080", "8082"].map((port) => connects(1, ip4(0), port)))).toEqual([true, false]);
    for (const server of servers) server.kill();
    const remove = new Ecs.DeleteSecurityGroupRequest({ ...RegionId, securityGroupId: extra });
    await expect(ecs.deleteSecurityGroup(remove)).rejects.toMatchObject({ code: "DependencyViolation" });
    await setGroups(0, DEFAULT_SECURITY_GROUP);
    await setGroups(1, DEFAULT_SECURITY_GROUP);
    await ecs.revokeSecurityGroupEgress(
      new Ecs.RevokeSecurityGroupEgressRequest({
        ...RegionId,
        securityGroupId: front,
        permissions: [{ ipProtocol: "TCP", portRange: "8082/8082", destGroupId: extra, policy: "drop" }],
      } as never),
    );
    await ecs.deleteSecurityGroup(remove);
    const listed = await ecs.describeSecurityGroups(
      new Ecs.DescribeSecurityGroupsRequest({ ...RegionId, maxResults: 100 }),
    );
    const ids = listed.body?.securityGroups?.securityGroup?.map((g) => g.securityGroupId);
    expect(ids).toContain(front);
    expect(ids).not.toContain(extra);
  });

  it("of the enterprise kind let nothing out by default and name no groups", async () => {
    const group = await newGroup("strict", "enterprise");
    await setGroups(0, group);
    expect(await both(0, 2)).toEqual([false, false]);
    await expect(authorize(group, { ipProtocol: "ALL", sourceGroupId: DEFAULT_SECURITY_GROUP })).rejects.toMatchObject({
      code: "InvalidOperation.AdvancedSecurityGroup",
    });
    await setGroups(0, DEFAULT_SECURITY_GROUP);
    expect(await both(2, 0)).toEqual([true, true]);
  });
});
