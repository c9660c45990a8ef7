/** An ENI's link: how it comes, moves into a pod's namespace and back; who answers ARP and ND; IPv6 alone. */
import { createRequire } from "node:module";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { patient } from "../kernel/patience.ts";
import { exec } from "../runtime/exec.ts";
import { type Cloud, createCloud, DEFAULT_SECURITY_GROUP } from "./cloud.ts";
import { type Fabric, OUTSIDE_IP, OUTSIDE_IP6 } from "./fabric.ts";
import type { EniRecord, Instance } from "./model.ts";
import { createNetns, type Netns, runTool } from "./netns.ts";

const require = createRequire(import.meta.url);
const { Config } = require("@alicloud/openapi-client") as typeof import("@alicloud/openapi-client");
const Ecs = require("@alicloud/ecs20140526") as typeof import("@alicloud/ecs20140526");
const RegionId = { regionId: "cn-emulated" };

let cloud: Cloud;
let ecs: InstanceType<typeof Ecs.default>;
let fabric: Fabric;
let node: Instance;
let peer: EniRecord;
let peerNetns: Netns;

beforeAll(async () => {
  cloud = await createCloud({
    prefix: `li${process.pid}`,
    fabric: true,
    ipv6: true,
    latencyMs: 0,
    delays: { attachMs: 5, detachMs: 5, deleteMs: 5, routeMs: 5 },
  });
  if (cloud.fabric === undefined) throw new Error("no fabric");
  fabric = cloud.fabric;
  const zone = "cn-emulated-a";
  cloud.model.addVSwitch({ id: "vsw-a", zone, cidr: "10.1.0.0/24", cidr6: "2408:4000:0:1::/64" });
  cloud.model.addVSwitch({ id: "vsw-6", zone, cidr: "", cidr6: "2408:4000:0:6::/64" });
  node = cloud.addInstance({ name: "n1", type: "ecs.g7.4xlarge", vswitchId: "vsw-a" });
  const other = cloud.addInstance({ name: "n2", type: "ecs.g7.4xlarge", vswitchId: "vsw-a" });
  peer = cloud.model.eniOf(other.primaryEniId);
  peerNetns = fabric.instanceNetns(other.id);
  ecs = new Ecs.default(
    new Config({
      accessKeyId: "emulated-key",
      accessKeySecret: "emulated-secret",
      endpoint: cloud.apiUrl.replace("http://", ""),
      protocol: "http",
      regionId: "cn-emulated",
    }) as never,
  );
});
afterAll(() => cloud?.close());

async function until(what: string, look: () => boolean): Promise<void> {
  const end = Date.now() + patient(5000);
  while (!look()) {
    if (Date.now() > end) throw new Error(`${what} did not happen within ${patient(5000)} ms`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** A new ENI on the node. */
async function plugged(vSwitchId: string, ipv6AddressCount: number): Promise<EniRecord> {
  const request = { ...RegionId, vSwitchId, securityGroupIds: [DEFAULT_SECURITY_GROUP] };
  const made = await ecs.createNetworkInterface(
    new Ecs.CreateNetworkInterfaceRequest(ipv6AddressCount > 0 ? { ...request, ipv6AddressCount } : request),
  );
  const eni = cloud.model.eniOf(made.body?.networkInterfaceId);
  cloud.model.attach(eni.id, node.id);
  await until("attaching", () => eni.status === "InUse");
  return eni;
}

interface LinkView {
  readonly ifname: string;
  readonly mtu: number;
  readonly flags: readonly string[];
}

function linkIn(netns: Netns, eni: EniRecord): LinkView | undefined {
  const links = JSON.parse(runTool("ip", ["-n", netns.name, "-j", "link"])) as (LinkView & { address: string })[];
  return links.find((l) => l.address === eni.mac);
}
const onNode = () => fabric.instanceNetns(node.id);
const pings = async (netns: Netns, address: string, ...options: string[]) => {
  const request = { env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }, stdin: "", netns: netns.path };
  return (
    (await exec({ path: "/usr/bin/env", args: ["ping", "-c1", "-W2", ...options, address], ...request })).status === 0
  );
};

/** The ENI as the only interface of a pod, the way an ordinary host would have it: on-link prefixes and a gateway. */
function moveIntoPod(eni: EniRecord, name: string): Netns {
  const pod = createNetns(`li${process.pid}-${name}`);
  const ifname = linkIn(onNode(), eni)?.ifname ?? "";
  runTool("ip", ["-n", onNode().name, "link", "set", "dev", ifname, "netns", pod.name, "name", "eth0"]);
  const vswitch = cloud.model.vswitchOf(eni.vswitchId);
  const ip = (...args: string[]) => runTool("ip", ["-n", pod.name, ...args]);
  ip("link", "set", "eth0", "up");
  if (eni.primaryIp !== "") {
    ip("addr", "add", `${eni.primaryIp}/24`, "dev", "eth0");
    ip("route", "add", "default", "via", cloud.model.gatewayOf(vswitch));
  }
  for (const six of eni.ips6) ip("addr", "add", `${six}/64`, "dev", "eth0");
  if (eni.ips6.size > 0) ip("-6", "route", "add", "default", "via", cloud.model.gateway6Of(vswitch) ?? "");
  return pod;
}

const neighbours = (netns: Netns) =>
  JSON.parse(runTool("ip", ["-n", netns.name, "-j", "neigh"])) as { dst: string; lladdr?: string; state: string[] }[];

describe("an exclusive ENI", () => {
  it("works in a pod by ordinary ARP and ND: gateway, neighbours and the world, its own address undisputed", async () => {
    const eni = await plugged("vsw-a", 1);
    const pod = moveIntoPod(eni, "pod0");
    try {
      const [six] = [...eni.ips6];
      await until(
        "duplicate address detection",
        () => !runTool("ip", ["-n", pod.name, "-6", "addr", "show", "tentative"]).includes("inet6 2408"),
      );
      expect(runTool("ip", ["-n", pod.name, "-6", "addr", "show", "dadfailed"])).toBe("");
      for (const address of [peer.primaryIp, [...peer.ips6][0] ?? "", OUTSIDE_IP, OUTSIDE_IP6])
        expect([address, await pings(pod, address)]).toEqual([address, true]);
      for (const address of [eni.primaryIp, six ?? ""])
        expect([address, await pings(peerNetns, address)]).toEqual([address, true]);
      const seen = neighbours(pod).filter((n) => !n.dst.startsWith("fe80"));
      expect(new Set(seen.map((n) => n.lladdr))).toEqual(new Set(["ee:ff:ff:ff:ff:ff"]));
      expect(seen.map((n) => n.dst)).toEqual(expect.arrayContaining([peer.primaryIp, [...peer.ips6][0]]));
      expect(seen.flatMap((n) => n.state)).not.toContain("PERMANENT");
      // Nobody is where no ENI is.
      expect(await pings(pod, "10.1.0.200")).toBe(false);
      expect(await pings(pod, "2408:4000:0:1::beef")).toBe(false);
      // A look for a conflict (RFC 5227) finds none, an address of the neighbour is disputed.
      const probe = (address: string) =>
        exec({
          path: "/usr/bin/env",
          args: ["arping", "-D", "-c", "1", "-w", "1", "-I", "eth0", address],
          env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
          stdin: "",
          netns: pod.path,
        });
      const own = await probe(eni.primaryIp);
      if (own.status !== 127) expect([own.status, (await probe(peer.primaryIp)).status]).toEqual([0, 1]);
      expect(fabric.spoofed()).toBe(0);
      // Back to the node, as DEL does it.
      runTool("ip", ["-n", pod.name, "link", "set", "dev", "eth0", "down"]);
      runTool("ip", ["-n", pod.name, "link", "set", "dev", "eth0", "netns", onNode().name, "name", "eth7"]);
      expect(linkIn(onNode(), eni)?.ifname).toBe("eth7");
    } finally {
      pod.close();
    }
  });

  it("comes back to its instance when the pod's namespace dies, down and without addresses", async () => {
    const eni = await plugged("vsw-a", 1);
    const first = moveIntoPod(eni, "pod1");
    expect(await pings(first, peer.primaryIp)).toBe(true);
    first.close();
    await until("the return", () => linkIn(onNode(), eni) !== undefined);
    const back = linkIn(onNode(), eni);
    expect(back?.flags).not.toContain("UP");
    expect(runTool("ip", ["-n", onNode().name, "addr", "show", "dev", back?.ifname ?? ""])).not.toContain("inet");
    const second = moveIntoPod(eni, "pod2");
    try {
      for (const address of [peer.primaryIp, [...peer.ips6][0] ?? ""]) {
        await until(
          "duplicate address detection",
          () => !runTool("ip", ["-n", second.name, "-6", "addr", "show", "tentative"]).includes("inet6 2408"),
        );
        expect([address, await pings(second, address)]).toEqual([address, true]);
      }
      // Detached in the cloud while a pod has it: it goes, and does not come back.
      cloud.model.detach(eni.id, node.id);
      await until("detaching", () => eni.status === "Available");
      expect(linkIn(second, eni)).toBeUndefined();
      await new Promise((resolve) => setTimeout(resolve, 200));
      expect(linkIn(onNode(), eni)).toBeUndefined();
    } finally {
      second.close();
    }
  });

  it("of a vSwitch with IPv6 alone has no IPv4 at all", async () => {
    const eni = await plugged("vsw-6", 0);
    expect([eni.primaryIp, eni.ips.size, eni.ips6.size]).toEqual(["", 0, 1]);
    await expect(
      ecs.assignPrivateIpAddresses(
        new Ecs.AssignPrivateIpAddressesRequest({
          ...RegionId,
          networkInterfaceId: eni.id,
          secondaryPrivateIpAddressCount: 1,
        }),
      ),
    ).rejects.toMatchObject({ code: "InvalidVSwitchId.IpNotEnough" });
    const described = await ecs.describeNetworkInterfaces(
      new Ecs.DescribeNetworkInterfacesRequest({ ...RegionId, networkInterfaceId: [eni.id] }),
    );
    const [body] = described.body?.networkInterfaceSets?.networkInterfaceSet ?? [];
    expect([body?.privateIpAddress, body?.privateIpSets?.privateIpSet]).toEqual(["", []]);
    const metadata = async (path: string) => {
      const url = `${cloud.metadataUrl}/latest/meta-data/network/interfaces/macs/${eni.mac}/${path}`;
      const source = cloud.model.eniOf(node.primaryEniId).primaryIp;
      return (await fetch(url, { headers: { "x-emulator-source": source } })).status;
    };
    expect([await metadata("private-ipv4s"), await metadata("gateway"), await metadata("ipv6s")]).toEqual([
      404, 404, 200,
    ]);
    const pod = moveIntoPod(eni, "pod6");
    try {
      await until(
        "duplicate address detection",
        () => !runTool("ip", ["-n", pod.name, "-6", "addr", "show", "tentative"]).includes("inet6 2408"),
      );
      expect([await pings(pod, [...peer.ips6][0] ?? ""), await pings(pod, OUTSIDE_IP6)]).toEqual([true, true]);
      expect(await pings(peerNetns, [...eni.ips6][0] ?? "")).toBe(true);
    } finally {
      pod.close();
    }
  });
});

describe("the link of an ENI", () => {
  it("appears late, or never until it is plugged, and can be renamed (F-29)", async () => {
    fabric.hotplug.delayMs = 300;
    const late = await plugged("vsw-a", 0);
    expect(linkIn(onNode(), late)).toBeUndefined();
    await until("the late link", () => linkIn(onNode(), late) !== undefined);
    fabric.renameLink(late.id, "ens9");
    expect(linkIn(onNode(), late)?.ifname).toBe("ens9");
    fabric.hotplug.delayMs = "never";
    const never = await plugged("vsw-a", 0);
    const gone = await plugged("vsw-a", 0);
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect([linkIn(onNode(), never), linkIn(onNode(), gone)]).toEqual([undefined, undefined]);
    fabric.plug(never.id);
    expect(linkIn(onNode(), never)).toBeDefined();
    cloud.model.detach(gone.id, node.id);
    await until("detaching", () => gone.status === "Available");
    fabric.plug(gone.id);
    expect(linkIn(onNode(), gone)).toBeUndefined();
    fabric.hotplug.delayMs = 0;
    cloud.model.detach(late.id, node.id);
    cloud.model.detach(never.id, node.id);
    await until("detaching", () => late.status === "Available" && never.status === "Available");
  });

  it("has the MTU that the fabric says, for those to come and for this one", async () => {
    fabric.hotplug.mtuBytes = 8500;
    const jumbo = await plugged("vsw-a", 0);
    fabric.hotplug.mtuBytes = 1500;
    expect(linkIn(onNode(), jumbo)?.mtu).toBe(8500);
    fabric.setMtu(jumbo.id, 1400);
    expect(linkIn(onNode(), jumbo)?.mtu).toBe(1400);
    fabric.setMtu(node.primaryEniId, 8500);
    fabric.setMtu(peer.id, 8500);
    expect(await pings(onNode(), peer.primaryIp, "-M", "do", "-s", "8000")).toBe(true);
    fabric.setMtu(peer.id, 1500);
    expect(await pings(onNode(), peer.primaryIp, "-M", "do", "-s", "8000")).toBe(false);
    fabric.setMtu(node.primaryEniId, 1500);
  });

  it("sees another gateway MAC address from a moment on (F-39)", async () => {
    expect(await pings(peerNetns, OUTSIDE_IP)).toBe(true);
    fabric.setGatewayMac("ee:ff:ff:ff:ff:01");
    // Who remembers the old one reaches nobody, and finds the new one when it asks.
    expect(await pings(peerNetns, OUTSIDE_IP)).toBe(false);
    runTool("ip", ["-n", peerNetns.name, "neigh", "flush", "all"]);
    expect(await pings(peerNetns, OUTSIDE_IP)).toBe(true);
    const gateway = cloud.model.gatewayOf(cloud.model.vswitchOf("vsw-a"));
    expect(neighbours(peerNetns).find((n) => n.dst === gateway)?.lladdr).toBe("ee:ff:ff:ff:ff:01");
    fabric.setGatewayMac("ee:ff:ff:ff:ff:ff");
  });
});
