import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Eni } from "../../ipam/store/enis.ts";
import {
  hostIfnameOf,
  joinResults,
  planPodLink,
  resultOf,
  routedAddresses,
  sharedAddresses,
  uplinkAddresses,
} from "./plan.ts";

const ENI = {
  id: "eni-1",
  mac: "00:16:3e:00:00:01",
  routeSlot: 4,
  cidr4: "10.0.0.0/20",
  gateway4: "10.0.15.253",
  cidr6: undefined,
  gateway6: undefined,
} as Eni;
const LEASE = { address: "10.0.0.5", family: 4, eniId: "eni-1" } as const;
const key = (ifname: string) => ({ network: "net", containerId: "c1", ifname });
const linkOf = (ifname: string, withUplink: boolean) =>
  planPodLink({
    key: key(ifname),
    hostIfname: "calix",
    podMac: undefined,
    mtuBytes: 1500,
    addresses: withUplink ? uplinkAddresses([LEASE], ENI) : sharedAddresses([LEASE], () => ENI),
    nodeIps: [],
    uplink: withUplink ? { kind: "vlan", mac: ENI.mac, parentMac: "00:16:3e:00:00:ff", viaNode: [] } : undefined,
  });

describe("names of host interfaces", () => {
  const id = fc.stringMatching(/^[a-z0-9][a-z0-9_.-]{0,63}$/);
  it("fit the kernel, repeat for the same key, and differ by salt and by kind", () =>
    fc.assert(
      fc.property(id, id, (containerId, ifname) => {
        const k = { network: "net", containerId, ifname };
        const names = [hostIfnameOf(k, 0), hostIfnameOf(k, 1), hostIfnameOf(k, 0, true)];
        expect(new Set(names).size).toBe(3);
        expect(names.every((n) => n.length === 15)).toBe(true);
        expect(hostIfnameOf({ ...k }, 0)).toBe(names[0]);
      }),
    ));
});

describe("addresses", () => {
  it("of a shared ENI are single ones, led by the ENI's table", () =>
    expect(sharedAddresses([LEASE], () => ENI)).toEqual([
      { address: "10.0.0.5", prefixLength: 32, gateway: "169.254.1.1", table: 17004 },
    ]));
  it("behind an uplink have the vSwitch's mask and gateway", () =>
    expect(uplinkAddresses([LEASE], ENI)).toEqual([{ address: "10.0.0.5", prefixLength: 20, gateway: "10.0.15.253" }]));
  it("behind an uplink need a range of their family", () =>
    expect(() => uplinkAddresses([{ address: "2001:db8::1", family: 6, eniId: "eni-1" }], ENI)).toThrow(
      "a vSwitch without an IPv6 range",
    ));
  it("of another IPAM plugin keep their mask and gateway", () =>
    expect(routedAddresses([{ address: "10.9.0.2/24", gateway: "10.9.0.1" }, { address: "fd00::2/64" }])).toEqual([
      { address: "10.9.0.2", prefixLength: 24, gateway: "10.9.0.1" },
      { address: "fd00::2", prefixLength: 64, gateway: "fe80::1" },
    ]));
});

describe("the result of ADD", () => {
  it("without an uplink has both ends of the veth, the addresses on the pod's", () => {
    const result = resultOf(linkOf("eth0", false), "/run/netns/c", {});
    expect(result.interfaces?.map((i) => [i.name, i.sandbox])).toEqual([
      ["calix", undefined],
      ["eth0", "/run/netns/c"],
    ]);
    expect(result.ips).toEqual([{ address: "10.0.0.5/32", gateway: "169.254.1.1", interface: 1 }]);
    expect(result.routes).toEqual([{ dst: "0.0.0.0/0", gw: "169.254.1.1" }]);
  });
  it("with an uplink has that before the veth's end, with the member's MAC address", () => {
    const result = resultOf(linkOf("eth0", true), "/run/netns/c", {});
    expect(result.interfaces?.map((i) => [i.name, i.mac])).toEqual([
      ["calix", expect.any(String)],
      ["eth0", ENI.mac],
      ["veth1", expect.any(String)],
    ]);
    expect(result.ips?.[0]?.interface).toBe(1);
  });
  it("of another interface names its veth after it, and has no default route when it is not the first", () => {
    const link = { ...linkOf("net1", true), podTable: 100 };
    const result = resultOf(link, "/run/netns/c", {});
    expect([result.interfaces?.[2]?.name, result.routes]).toEqual(["host-net1", []]);
  });
  it("of several interfaces is one, the first's first", () => {
    const second = { ...linkOf("eth1", true), podTable: 100, routes: ["10.8.0.0/16", "2001:db8::/32"] };
    const [one, two] = [linkOf("eth0", true), second].map((link) => resultOf(link, "/run/netns/c", {}));
    const joined = joinResults([one ?? {}, two ?? {}]);
    expect(joined.ips?.map((ip) => joined.interfaces?.[ip.interface ?? -1]?.name)).toEqual(["eth0", "eth1"]);
    expect(joined.routes?.map((r) => r.dst)).toEqual(["0.0.0.0/0", "10.8.0.0/16"]);
    expect(joined.interfaces?.map((i) => i.name)).toEqual(["calix", "eth0", "veth1", "calix", "eth1", "host-eth1"]);
  });
});
