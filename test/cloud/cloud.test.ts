import { createRequire } from "node:module";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { exec } from "../runtime/exec.ts";
import { type Cloud, createCloud, DEFAULT_SECURITY_GROUP } from "./cloud.ts";
import { OUTSIDE_IP } from "./fabric.ts";

const require = createRequire(import.meta.url);
const { Config } = require("@alicloud/openapi-client") as typeof import("@alicloud/openapi-client");
const Ecs = require("@alicloud/ecs20140526") as typeof import("@alicloud/ecs20140526");
const Vpc = require("@alicloud/vpc20160428") as typeof import("@alicloud/vpc20160428");

let cloud: Cloud;
let ecs: InstanceType<typeof Ecs.default>;
let vpc: InstanceType<typeof Vpc.default>;
const RegionId = { regionId: "cn-emulated" };

function clients(accessKeySecret: string) {
  const config = () =>
    new Config({
      accessKeyId: "emulated-key",
      accessKeySecret,
      endpoint: cloud.apiUrl.replace("http://", ""),
      protocol: "http",
      regionId: "cn-emulated",
    });
  return { ecs: new Ecs.default(config() as never), vpc: new Vpc.default(config() as never) };
}

async function until<T>(look: () => T | undefined | false | Promise<T | undefined | false>): Promise<T> {
  for (let i = 0; i < 200; i++) {
    const seen = await look();
    if (seen !== undefined && seen !== false) return seen;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("it did not happen within 4 s");
}

beforeAll(async () => {
  cloud = await createCloud({
    prefix: `tc${process.pid}`,
    fabric: true,
    ipv6: true,
    delays: { attachMs: 50, detachMs: 50, deleteMs: 50, routeMs: 50 },
  });
  cloud.model.addVSwitch({ id: "vsw-a", zone: "cn-emulated-a", cidr: "10.1.0.0/24", cidr6: "2408:4000:0:1::/64" });
  cloud.model.addVSwitch({ id: "vsw-b", zone: "cn-emulated-b", cidr: "10.2.0.0/24", cidr6: "2408:4000:0:2::/64" });
  cloud.model.addVSwitch({ id: "vsw-tiny", zone: "cn-emulated-a", cidr: "10.3.0.0/24", limit: 3 });
  ({ ecs, vpc } = clients("emulated-secret"));
});
afterAll(() => cloud?.close());

describe("the unmodified SDKs", () => {
  it("walk an ENI through its whole life", async () => {
    const instance = cloud.addInstance({ name: "n1", type: "ecs.g7.large", vswitchId: "vsw-a" });
    const request = new Ecs.CreateNetworkInterfaceRequest({
      ...RegionId,
      vSwitchId: "vsw-a",
      securityGroupIds: [DEFAULT_SECURITY_GROUP],
      secondaryPrivateIpAddressCount: 2,
      clientToken: "t-1",
      deleteOnRelease: true,
      tag: [{ key: "creator", value: "test" }],
    });
    const first = (await ecs.createNetworkInterface(request)).body;
    const again = (await ecs.createNetworkInterface(request)).body;
    expect(again?.networkInterfaceId).toBe(first?.networkInterfaceId);
    const networkInterfaceId = first?.networkInterfaceId ?? "";
    expect(first?.privateIpSets?.privateIpSet?.length).toBe(3);
    await ecs.attachNetworkInterface(
      new Ecs.AttachNetworkInterfaceRequest({ ...RegionId, networkInterfaceId, instanceId: instance.id }),
    );
    const describe_ = async () =>
      (
        await ecs.describeNetworkInterfaces(
          new Ecs.DescribeNetworkInterfacesRequest({ ...RegionId, instanceId: instance.id, maxResults: 50 }),
        )
      ).body?.networkInterfaceSets?.networkInterfaceSet ?? [];
    await until(async () =>
      (await describe_()).find((e) => e.networkInterfaceId === networkInterfaceId && e.status === "InUse"),
    );
    const assigned = (
      await ecs.assignPrivateIpAddresses(
        new Ecs.AssignPrivateIpAddressesRequest({
          ...RegionId,
          networkInterfaceId,
          secondaryPrivateIpAddressCount: 3,
          clientToken: "t-2",
        }),
      )
    ).body;
    const ips = assigned?.assignedPrivateIpAddressesSet?.privateIpSet?.privateIpAddress ?? [];
    expect(ips.length).toBe(3);
    await ecs.unassignPrivateIpAddresses(
      new Ecs.UnassignPrivateIpAddressesRequest({ ...RegionId, networkInterfaceId, privateIpAddress: ips.slice(0, 2) }),
    );
    const six = (
      await ecs.assignIpv6Addresses(
        new Ecs.AssignIpv6AddressesRequest({
          ...RegionId,
          networkInterfaceId,
          ipv6AddressCount: 2,
          clientToken: "t-3",
        }),
      )
    ).body;
    expect(six?.ipv6Sets?.ipv6Address?.length).toBe(2);
    const now = (await describe_()).find((e) => e.networkInterfaceId === networkInterfaceId);
    expect([
      now?.privateIpSets?.privateIpSet?.length,
      now?.ipv6Sets?.ipv6Set?.length,
      now?.tags?.tag?.[0]?.tagKey,
    ]).toEqual([4, 2, "creator"]);
    await ecs.detachNetworkInterface(
      new Ecs.DetachNetworkInterfaceRequest({ ...RegionId, networkInterfaceId, instanceId: instance.id }),
    );
    await until(() => cloud.model.enis.get(networkInterfaceId)?.status === "Available");
    await ecs.deleteNetworkInterface(new Ecs.DeleteNetworkInterfaceRequest({ ...RegionId, networkInterfaceId }));
    await until(() => !cloud.model.enis.has(networkInterfaceId));
    expect(cloud.model.violations()).toEqual([]);
  });

  it("read types, vSwitches, groups, routes", async () => {
    const types = (
      await ecs.describeInstanceTypes(new Ecs.DescribeInstanceTypesRequest({ instanceTypes: ["ecs.g7.large"] }))
    ).body;
    expect(types?.instanceTypes?.instanceType?.[0]).toMatchObject({ eniQuantity: 3, eniPrivateIpAddressQuantity: 10 });
    const switches = (
      await vpc.describeVSwitches(new Vpc.DescribeVSwitchesRequest({ ...RegionId, zoneId: "cn-emulated-b" }))
    ).body;
    expect(switches?.vSwitches?.vSwitch?.map((v) => v.vSwitchId)).toEqual(["vsw-b"]);
    expect(switches?.vSwitches?.vSwitch?.[0]?.availableIpAddressCount).toBe(252);
    const groups = (await ecs.describeSecurityGroups(new Ecs.DescribeSecurityGroupsRequest({ ...RegionId }))).body;
    expect(groups?.securityGroups?.securityGroup?.[0]?.securityGroupId).toBe(DEFAULT_SECURITY_GROUP);
    const instance = [...cloud.model.instances.values()][0];
    const entry = (
      await vpc.createRouteEntry(
        new Vpc.CreateRouteEntryRequest({
          ...RegionId,
          routeTableId: "vtb-emu1",
          destinationCidrBlock: "172.20.0.0/24",
          nextHopType: "Instance",
          nextHopId: instance?.id ?? "",
        }),
      )
    ).body;
    await until(() => cloud.model.routes.get(entry?.routeEntryId ?? "")?.status === "Available");
    const list = (
      await vpc.describeRouteEntryList(new Vpc.DescribeRouteEntryListRequest({ ...RegionId, routeTableId: "vtb-emu1" }))
    ).body;
    expect(list?.routeEntrys?.routeEntry?.map((r) => r.destinationCidrBlock)).toEqual(["172.20.0.0/24"]);
    await vpc.deleteRouteEntry(
      new Vpc.DeleteRouteEntryRequest({ ...RegionId, routeEntryId: entry?.routeEntryId ?? "" }),
    );
    await until(() => cloud.model.routes.size === 0);
  });

  it.each([
    ["a full vSwitch", "InvalidVSwitchId.IpNotEnough", { vSwitchId: "vsw-tiny", secondaryPrivateIpAddressCount: 9 }],
    ["an unknown vSwitch", "InvalidVSwitchId.NotFound", { vSwitchId: "vsw-none" }],
    [
      "an unknown security group",
      "InvalidSecurityGroupId.NotFound",
      { vSwitchId: "vsw-a", securityGroupIds: ["sg-none"] },
    ],
  ])("get the code for %s", async (_what, code, fields) => {
    const request = new Ecs.CreateNetworkInterfaceRequest({
      ...RegionId,
      securityGroupIds: [DEFAULT_SECURITY_GROUP],
      ...fields,
    });
    await expect(ecs.createNetworkInterface(request)).rejects.toMatchObject({ code });
  });

  it("are refused with a wrong secret", async () => {
    const wrong = clients("guessed").ecs.describeSecurityGroups(new Ecs.DescribeSecurityGroupsRequest({ ...RegionId }));
    await expect(wrong).rejects.toMatchObject({ code: "SignatureDoesNotMatch" });
  });

  it("see injected errors and throttling", async () => {
    cloud.api.faults.push({
      action: "DescribeSecurityGroups",
      times: 1,
      effect: { kind: "error", status: 400, code: "Throttling.User" },
    });
    const call = () => ecs.describeSecurityGroups(new Ecs.DescribeSecurityGroupsRequest({ ...RegionId }));
    await expect(call()).rejects.toMatchObject({ code: expect.stringContaining("Throttling") });
    await call();
  });
});

describe("the limits", () => {
  const create = (fields: object) =>
    ecs.createNetworkInterface(
      new Ecs.CreateNetworkInterfaceRequest({
        ...RegionId,
        vSwitchId: "vsw-a",
        securityGroupIds: [DEFAULT_SECURITY_GROUP],
        ...fields,
      }),
    );

  it("of IPv6 may be lower than those of IPv4, and hold for what is attached and for what is added", async () => {
    const [few, none] = ["few", "none"].map((n) =>
      cloud.addInstance({ name: `v6${n}`, type: `ecs.emulated.v6${n}`, vswitchId: "vsw-a" }),
    );
    const eni =
      (await create({ secondaryPrivateIpAddressCount: 9, ipv6AddressCount: 3 })).body?.networkInterfaceId ?? "";
    expect(() => cloud.model.attach(eni, none?.id)).toThrow(
      expect.objectContaining({ code: "InvalidOperation.Ipv6CountExceeded" }),
    );
    expect(cloud.model.eniOf(none?.primaryEniId).ips6.size).toBe(0);
    cloud.model.attach(eni, few?.id);
    await until(() => cloud.model.eniOf(eni).status === "InUse");
    const six = new Ecs.AssignIpv6AddressesRequest({ ...RegionId, networkInterfaceId: eni, ipv6AddressCount: 1 });
    await expect(ecs.assignIpv6Addresses(six)).rejects.toMatchObject({ code: "InvalidOperation.Ipv6CountExceeded" });
    const large = (await create({ secondaryPrivateIpAddressCount: 10 })).body?.networkInterfaceId;
    expect(() => cloud.model.attach(large, few?.id)).toThrow(
      expect.objectContaining({ code: "InvalidOperation.Ipv4CountExceeded" }),
    );
    const types = await ecs.describeInstanceTypes(
      new Ecs.DescribeInstanceTypesRequest({ instanceTypes: ["ecs.emulated.v6few"] }),
    );
    expect(types.body?.instanceTypes?.instanceType?.[0]).toMatchObject({
      eniPrivateIpAddressQuantity: 10,
      eniIpv6AddressQuantity: 3,
    });
  });

  it.each([
    ["outside of the vSwitch", "InvalidVSwitchId.IpInvalid", ["2408:4000:0:9::1"]],
    ["twice", "InvalidIp.IpRepeated", ["2408:4000:0:1::9", "2408:4000:0:1:0:0:0:9"]],
  ])("of an ENI refuse an IPv6 address %s", async (_what, code, ipv6Address) => {
    await expect(create({ ipv6Address })).rejects.toMatchObject({ code });
  });

  it("of the account hold", async () => {
    cloud.model.quotas.enis = cloud.model.enis.size;
    await expect(create({})).rejects.toMatchObject({ code: "MaxEniCountExceeded" });
    cloud.model.quotas.enis = undefined;
  });
});

describe("the fault switches", () => {
  it("let a deletion stick until it is asked again", async () => {
    const [eni] = [...cloud.model.enis.values()].filter((e) => e.status === "Available");
    const networkInterfaceId = eni?.id ?? "";
    cloud.model.faults.stuckDelete.add(networkInterfaceId);
    const remove = () =>
      ecs.deleteNetworkInterface(new Ecs.DeleteNetworkInterfaceRequest({ ...RegionId, networkInterfaceId }));
    await remove();
    await until(() => !cloud.model.faults.stuckDelete.has(networkInterfaceId));
    expect(cloud.model.eniOf(networkInterfaceId).status).toBe("Deleting");
    await remove();
    await until(() => !cloud.model.enis.has(networkInterfaceId));
  });

  it("set the cloud's clock off", async () => {
    const call = () => ecs.describeSecurityGroups(new Ecs.DescribeSecurityGroupsRequest({ ...RegionId }));
    for (const clockSkewMs of [20 * 60_000, -20 * 60_000]) {
      cloud.api.clockSkewMs = clockSkewMs;
      await expect(call()).rejects.toMatchObject({ code: "InvalidTimeStamp.Expired" });
    }
    cloud.api.clockSkewMs = 5 * 60_000;
    await call();
    cloud.api.clockSkewMs = 0;
  });

  it("let metadata fail and lag", async () => {
    const primary = cloud.model.eniOf([...cloud.model.instances.values()][0]?.primaryEniId);
    const read = async (path: string) => {
      const headers = { "x-emulator-source": primary.primaryIp };
      const answer = await fetch(`${cloud.metadataUrl}/latest/meta-data/${path}`, { headers });
      return [answer.status, await answer.text()];
    };
    const stale = "00:16:3e:de:ad:00/";
    cloud.metadataFaults.push(
      { path: /macs\/$/, times: 1, answer: { status: 200, text: stale } },
      { path: /instance-id$/, times: 1, answer: { status: 503, text: "" } },
    );
    expect(await read("network/interfaces/macs/")).toEqual([200, stale]);
    expect(await read(`network/interfaces/macs/${stale}network-interface-id`)).toEqual([404, "not found"]);
    expect((await read("instance-id"))[0]).toBe(503);
    expect((await read("instance-id"))[0]).toBe(200);
    expect((await read("network/interfaces/macs/"))[1]).toContain(primary.mac);
  });
});

describe("the fabric", () => {
  const run = (netns: string, ...command: string[]) =>
    exec({
      path: "/bin/sh",
      args: ["-c", command.join(" ")],
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
      stdin: "",
      netns,
    });

  it("delivers between instances and to the outside, and serves metadata by source", async () => {
    const a = [...cloud.model.instances.values()][0];
    const b = cloud.addInstance({ name: "n2", type: "ecs.g7.large", vswitchId: "vsw-b" });
    const netns = cloud.fabric?.instanceNetns(a?.id ?? "").path ?? "";
    const peer = cloud.model.eniOf(b.primaryEniId);
    expect((await run(netns, "ping -c1 -W1", peer.primaryIp)).status).toBe(0);
    expect((await run(netns, "ping -c1 -W1", [...peer.ips6][0] ?? "")).status).toBe(0);
    expect((await run(netns, "ping -c1 -W1", OUTSIDE_IP)).status).toBe(0);
    const script =
      'fetch("http://100.100.100.200/latest/meta-data/instance-id").then((r) => r.text()).then((t) => process.stdout.write(t))';
    const id = await exec({ path: process.execPath, args: ["-e", script], env: {}, stdin: "", netns });
    expect(id.stderr).toBe("");
    expect(id.stdout).toBe(a?.id);
  });

  it("drops spoofed sources and unknown destinations", async () => {
    const a = [...cloud.model.instances.values()][0];
    const name = cloud.fabric?.instanceNetns(a?.id ?? "").name ?? "";
    const netns = `/run/netns/${name}`;
    const before = cloud.fabric?.spoofed() ?? 0;
    await run("/proc/self/ns/net", `ip -n ${name} addr add 10.1.0.77/32 dev lo`);
    expect((await run(netns, "ping -c1 -W1 -I 10.1.0.77", OUTSIDE_IP)).status).not.toBe(0);
    expect(cloud.fabric?.spoofed()).toBeGreaterThan(before);
    expect((await run(netns, "ping -c1 -W1 10.1.0.99")).status).not.toBe(0);
  });
});
