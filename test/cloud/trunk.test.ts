/** Trunk and member ENIs: their API through the unmodified SDK, and their frames where the kernel has 802.1Q. */
import { createRequire } from "node:module";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { needs } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { exec } from "../runtime/exec.ts";
import { type Cloud, createCloud, DEFAULT_SECURITY_GROUP } from "./cloud.ts";
import type { Instance } from "./model.ts";
import { createNetns, type Netns, runTool } from "./netns.ts";

const require = createRequire(import.meta.url);
const { Config } = require("@alicloud/openapi-client") as typeof import("@alicloud/openapi-client");
const Ecs = require("@alicloud/ecs20140526") as typeof import("@alicloud/ecs20140526");
const RegionId = { regionId: "cn-emulated" };
const TRUNKING = "ecs.g7ne.24xlarge";

async function until(look: () => boolean): Promise<void> {
  for (const end = Date.now() + patient(10_000); Date.now() < end; ) {
    if (look()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`it did not happen within ${patient(10_000)} ms`);
}

function client(cloud: Cloud) {
  const ecs = new Ecs.default(
    new Config({
      accessKeyId: "emulated-key",
      accessKeySecret: "emulated-secret",
      endpoint: cloud.apiUrl.replace("http://", ""),
      protocol: "http",
      regionId: "cn-emulated",
    }) as never,
  );
  return {
    ecs,
    async create(vSwitchId: string, instanceType: string | undefined, ...securityGroupIds: string[]): Promise<string> {
      const groups = securityGroupIds.length > 0 ? securityGroupIds : [DEFAULT_SECURITY_GROUP];
      const request = { ...RegionId, vSwitchId, securityGroupIds: groups };
      const made = await ecs.createNetworkInterface(
        new Ecs.CreateNetworkInterfaceRequest(instanceType ? { ...request, instanceType } : request),
      );
      return made.body?.networkInterfaceId ?? "";
    },
    async attach(networkInterfaceId: string, instanceId: string, trunkNetworkInstanceId?: string): Promise<void> {
      const request = { ...RegionId, networkInterfaceId, instanceId };
      await ecs.attachNetworkInterface(
        new Ecs.AttachNetworkInterfaceRequest(
          trunkNetworkInstanceId ? { ...request, trunkNetworkInstanceId } : request,
        ),
      );
      await until(() => cloud.model.eniOf(networkInterfaceId).status === "InUse");
    },
    async detach(networkInterfaceId: string, instanceId: string, trunkNetworkInstanceId: string): Promise<void> {
      await ecs.detachNetworkInterface(
        new Ecs.DetachNetworkInterfaceRequest({ ...RegionId, networkInterfaceId, instanceId, trunkNetworkInstanceId }),
      );
      await until(() => cloud.model.eniOf(networkInterfaceId).status === "Available");
    },
    async describe(filter: object) {
      const request = new Ecs.DescribeNetworkInterfacesRequest({ ...RegionId, maxResults: 500, ...filter });
      return (await ecs.describeNetworkInterfaces(request)).body?.networkInterfaceSets?.networkInterfaceSet ?? [];
    },
  };
}

const QUICK = { attachMs: 5, detachMs: 5, deleteMs: 5, routeMs: 5 };

async function trunkCloud(fabric: boolean): Promise<Cloud> {
  const cloud = await createCloud({
    prefix: `tr${process.pid}`,
    fabric,
    ipv6: true,
    latencyMs: 0,
    delays: QUICK,
  });
  cloud.model.addVSwitch({ id: "vsw-a", zone: "cn-emulated-a", cidr: "10.1.0.0/23", cidr6: "2408:4000:0:1::/64" });
  cloud.model.addVSwitch({ id: "vsw-c", zone: "cn-emulated-a", cidr: "10.3.0.0/24", cidr6: "2408:4000:0:3::/64" });
  cloud.model.addVSwitch({ id: "vsw-b", zone: "cn-emulated-b", cidr: "10.2.0.0/24" });
  return cloud;
}

describe("the API of trunks", () => {
  let cloud: Cloud;
  let api: ReturnType<typeof client>;
  let instance: Instance;
  let trunk: string;

  beforeAll(async () => {
    cloud = await trunkCloud(false);
    api = client(cloud);
    instance = cloud.addInstance({ name: "n1", type: TRUNKING, vswitchId: "vsw-a" });
    trunk = await api.create("vsw-a", "Trunk");
    await api.attach(trunk, instance.id);
  });
  afterAll(() => cloud?.close());

  it("turns a Secondary ENI into a Member with a VLAN id, and back", async () => {
    const member = await api.create("vsw-c", undefined);
    await api.attach(member, instance.id, trunk);
    const [seen] = await api.describe({ networkInterfaceId: [member] });
    expect(seen).toMatchObject({ type: "Member", status: "InUse", instanceId: "", vSwitchId: "vsw-c" });
    expect(seen?.attachment).toMatchObject({
      instanceId: instance.id,
      trunkNetworkInterfaceId: trunk,
      deviceIndex: 101,
    });
    const attribute = await api.ecs.describeNetworkInterfaceAttribute(
      new Ecs.DescribeNetworkInterfaceAttributeRequest({
        ...RegionId,
        networkInterfaceId: trunk,
        attribute: "attachment",
      }),
    );
    expect(attribute.body?.type).toBe("Trunk");
    expect(attribute.body?.attachment?.memberNetworkInterfaceIds?.memberNetworkInterfaceId).toEqual([member]);
    expect((await api.describe({ instanceId: instance.id, type: "Member" })).map((e) => e.networkInterfaceId)).toEqual([
      member,
    ]);
    cloud.model.faults.membersHidden = true;
    expect(await api.describe({ instanceId: instance.id, type: "Member" })).toEqual([]);
    cloud.model.faults.membersHidden = false;
    const macs = await fetch(`${cloud.metadataUrl}/latest/meta-data/network/interfaces/macs/`, {
      headers: { "x-emulator-source": cloud.model.eniOf(instance.primaryEniId).primaryIp },
    });
    expect((await macs.text()).split("\n").sort()).toEqual(
      [instance.primaryEniId, trunk].map((id) => `${cloud.model.eniOf(id).mac}/`).sort(),
    );
    const detachTrunk = new Ecs.DetachNetworkInterfaceRequest({
      ...RegionId,
      networkInterfaceId: trunk,
      instanceId: instance.id,
    });
    await expect(api.ecs.detachNetworkInterface(detachTrunk)).rejects.toMatchObject({
      code: "InvalidOperation.InvalidEniState",
    });
    await api.detach(member, instance.id, trunk);
    expect((await api.describe({ networkInterfaceId: [member] }))[0]).toMatchObject({
      type: "Secondary",
      attachment: {},
    });
    // The tag is free at once (F-47).
    const next = await api.create("vsw-a", undefined);
    await api.attach(next, instance.id, trunk);
    expect(cloud.model.eniOf(next).trunk?.vlanId).toBe(101);
    await api.detach(next, instance.id, trunk);
    expect(cloud.model.violations()).toEqual([]);
  });

  it("tells by type what can be a trunk", async () => {
    const types = (
      await api.ecs.describeInstanceTypes(
        new Ecs.DescribeInstanceTypesRequest({ instanceTypes: [TRUNKING, "ecs.g7.xlarge", "ecs.c7.16xlarge"] }),
      )
    ).body?.instanceTypes?.instanceType;
    expect(
      types
        ?.map((t) => [t.instanceTypeId, t.eniTrunkSupported, (t.eniTotalQuantity ?? 0) - (t.eniQuantity ?? 0)])
        .sort(),
    ).toEqual([
      ["ecs.c7.16xlarge", true, 128],
      ["ecs.g7.xlarge", false, 0],
      [TRUNKING, true, 200],
    ]);
  });

  it("takes 200 members and no more", async () => {
    const ids: string[] = [];
    for (let i = 0; i < 200; i++) {
      const member = await api.create(i % 2 ? "vsw-c" : "vsw-a", undefined);
      await api.ecs.attachNetworkInterface(
        new Ecs.AttachNetworkInterfaceRequest({
          ...RegionId,
          networkInterfaceId: member,
          instanceId: instance.id,
          trunkNetworkInstanceId: trunk,
        }),
      );
      ids.push(member);
    }
    await until(() => ids.every((id) => cloud.model.eniOf(id).status === "InUse"));
    const vlans = ids.map((id) => cloud.model.eniOf(id).trunk?.vlanId);
    expect([new Set(vlans).size, Math.min(...vlans.map(Number)), Math.max(...vlans.map(Number))]).toEqual([
      200, 101, 300,
    ]);
    const more = await api.create("vsw-a", undefined);
    await expect(api.attach(more, instance.id, trunk)).rejects.toMatchObject({ code: "EniPerInstanceLimitExceeded" });
    await api.attach(more, instance.id); // an ordinary place is still free
    cloud.terminateInstance(instance.id);
    expect(ids.map((id) => cloud.model.enis.get(id)?.status ?? "gone")).not.toContain("InUse");
    expect(cloud.model.violations()).toEqual([]);
    instance = cloud.addInstance({ name: "n2", type: TRUNKING, vswitchId: "vsw-a" });
    trunk = await api.create("vsw-a", "Trunk");
    await api.attach(trunk, instance.id);
  });

  it("refuses what does not fit, with a code", async () => {
    const plain = cloud.addInstance({ name: "n3", type: "ecs.g7.xlarge", vswitchId: "vsw-a" });
    const code = (code: string) => expect.objectContaining({ code });
    await expect(api.create("vsw-a", "Member")).rejects.toEqual(code("InvalidParameter"));
    const second = await api.create("vsw-a", "Trunk");
    await expect(api.attach(second, plain.id)).rejects.toEqual(code("InvalidOperation.InvalidEniType"));
    await expect(api.attach(second, instance.id)).rejects.toEqual(code("EniPerInstanceLimitExceeded"));
    const member = await api.create("vsw-a", undefined);
    await expect(api.attach(member, plain.id, trunk)).rejects.toEqual(code("InvalidOperation.InvalidEniState"));
    await expect(api.attach(member, instance.id, second)).rejects.toEqual(code("InvalidOperation.InvalidEniState"));
    await expect(api.attach(second, instance.id, trunk)).rejects.toEqual(code("InvalidOperation.InvalidEniType"));
    await expect(api.attach(member, instance.id, "eni-none")).rejects.toEqual(code("InvalidEniId.NotFound"));
    const elsewhere = await api.create("vsw-b", undefined);
    await expect(api.attach(elsewhere, instance.id, trunk)).rejects.toEqual(
      code("InvalidOperation.AvailabilityZoneMismatch"),
    );
    await api.attach(member, instance.id, trunk);
    await expect(api.detach(member, instance.id, second)).rejects.toEqual(code("InvalidOperation.InvalidEniType"));
  });
});

describe("members on the wire", () => {
  let cloud: Cloud;
  let api: ReturnType<typeof client>;
  let instance: Instance;
  let peer: Instance;
  let trunk: string;
  const pods: Netns[] = [];
  let carries = false;

  beforeAll(async () => {
    cloud = await trunkCloud(true);
    carries = cloud.fabric?.noMembers() === undefined;
    api = client(cloud);
    instance = cloud.addInstance({ name: "n1", type: TRUNKING, vswitchId: "vsw-a" });
    peer = cloud.addInstance({ name: "n2", type: "ecs.g7.large", vswitchId: "vsw-a" });
    trunk = await api.create("vsw-a", "Trunk");
    if (cloud.fabric) cloud.fabric.hotplug.delayMs = "never";
    await api.attach(trunk, instance.id);
  });
  afterAll(async () => {
    for (const pod of pods) pod.close();
    await cloud?.close();
  });

  const run = (netns: string, command: string) =>
    exec({ path: "/bin/sh", args: ["-c", command], env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }, stdin: "", netns });
  const pings = async (netns: string, address: string) => (await run(netns, `ping -c1 -W2 ${address}`)).status === 0;
  const node = () => cloud.fabric?.instanceNetns(instance.id) as Netns;

  /** A pod's namespace with a VLAN link on the trunk's, as the datapath makes it. */
  function newPod(vlanId: number, mac: string): Netns {
    const pod = createNetns(`tr${process.pid}-pod${pods.length}`);
    pods.push(pod);
    const parent = "eth1";
    runTool("ip", ["-n", node().name, "link", "set", parent, "up"]);
    const made = ["link", "add", "link", parent, "name", `v${pods.length}`, "type", "vlan", "id", String(vlanId)];
    runTool("ip", ["-n", node().name, ...made]);
    runTool("ip", [
      "-n",
      node().name,
      "link",
      "set",
      `v${pods.length}`,
      "netns",
      pod.name,
      "name",
      "eth0",
      "address",
      mac,
    ]);
    return pod;
  }

  function address(pod: Netns, eniId: string): void {
    const eni = cloud.model.eniOf(eniId);
    const vswitch = cloud.model.vswitchOf(eni.vswitchId);
    const ip = (...args: string[]) => runTool("ip", ["-n", pod.name, ...args]);
    ip("link", "set", "eth0", "up");
    ip("addr", "add", `${eni.primaryIp}/32`, "dev", "eth0");
    ip("route", "add", "default", "via", cloud.model.gatewayOf(vswitch), "dev", "eth0", "onlink");
    for (const six of eni.ips6) ip("addr", "add", `${six}/128`, "dev", "eth0", "nodad");
    ip("-6", "route", "add", "default", "via", cloud.model.gateway6Of(vswitch) ?? "", "dev", "eth0", "onlink");
  }

  async function member(vswitchId: string, ...groups: string[]): Promise<string> {
    const id = await api.create(vswitchId, undefined, ...groups);
    await api.ecs.assignIpv6Addresses(
      new Ecs.AssignIpv6AddressesRequest({ ...RegionId, networkInterfaceId: id, ipv6AddressCount: 1 }),
    );
    await api.attach(id, instance.id, trunk);
    return id;
  }

  it("are refused with a reason where the kernel cannot carry them", async () => {
    if (carries) return;
    const id = await api.create("vsw-a", undefined);
    await expect(api.attach(id, instance.id, trunk)).rejects.toMatchObject({
      code: "EmulatorUnsupported",
      message: expect.stringContaining("802.1Q"),
    });
    expect(cloud.model.eniOf(id)).toMatchObject({ status: "Available", type: "Secondary", trunk: undefined });
  });

  it("have their own vSwitch, addresses and security groups; other tags reach nobody", {
    ...needs("vlan"),
    timeout: patient(60_000),
  }, async () => {
    const closed = cloud.model.addSecurityGroup("sg-closed", []).id;
    const [a, b] = [await member("vsw-a"), await member("vsw-c", closed)]; // before the guest sees the trunk
    cloud.fabric?.plug(trunk);
    const vlan = (id: string) => cloud.model.eniOf(id).trunk?.vlanId ?? 0;
    const [podA, podB] = [a, b].map((id) => newPod(vlan(id), cloud.model.eniOf(id).mac)) as [Netns, Netns];
    address(podA, a);
    address(podB, b);
    const far = cloud.model.eniOf(peer.primaryEniId);
    const farNetns = cloud.fabric?.instanceNetns(peer.id).path ?? "";
    for (const pod of [podA, podB])
      for (const ip of [far.primaryIp, [...far.ips6][0] ?? ""])
        expect([ip, await pings(pod.path, ip)]).toEqual([ip, true]);
    const [ownA, ownB] = [a, b].map((id) => [...cloud.model.eniOf(id).ips, ...cloud.model.eniOf(id).ips6]) as [
      string[],
      string[],
    ];
    for (const ip of ownA) expect([ip, await pings(farNetns, ip)]).toEqual([ip, true]);
    for (const ip of ownB) expect([ip, await pings(farNetns, ip)]).toEqual([ip, false]);
    await api.ecs.modifyNetworkInterfaceAttribute(
      new Ecs.ModifyNetworkInterfaceAttributeRequest({
        ...RegionId,
        networkInterfaceId: b,
        securityGroupId: [DEFAULT_SECURITY_GROUP],
      }),
    );
    for (const ip of ownB) expect([ip, await pings(farNetns, ip)]).toEqual([ip, true]);
    for (const ip of ownB) expect([ip, await pings(podA.path, ip)]).toEqual([ip, true]);

    // Another MAC address, another member's tag, no member's tag.
    const ip = (pod: Netns, ...args: string[]) => runTool("ip", ["-n", pod.name, ...args]);
    const before = cloud.fabric?.spoofed() ?? 0;
    ip(podA, "link", "set", "eth0", "address", "00:16:3e:99:99:99");
    expect(await pings(podA.path, far.primaryIp)).toBe(false);
    expect(cloud.fabric?.spoofed()).toBeGreaterThan(before);
    ip(podA, "link", "set", "eth0", "address", cloud.model.eniOf(a).mac);
    expect(await pings(podA.path, far.primaryIp)).toBe(true);
    const stranger = newPod(4000, cloud.model.eniOf(a).mac);
    address(stranger, a);
    expect(await pings(stranger.path, far.primaryIp)).toBe(false);

    // The tag passes to another member, in another vSwitch; the old one's frames are not its own any more.
    await api.detach(a, instance.id, trunk);
    const c = await member("vsw-c");
    expect(vlan(c)).toBe(101);
    expect(await pings(podA.path, far.primaryIp)).toBe(false);
    ip(podA, "link", "del", "eth0");
    const podC = newPod(vlan(c), cloud.model.eniOf(c).mac);
    address(podC, c);
    expect(await pings(podC.path, far.primaryIp)).toBe(true);
    expect(await pings(farNetns, cloud.model.eniOf(c).primaryIp)).toBe(true);
    expect(cloud.model.violations()).toEqual([]);
  });
});
