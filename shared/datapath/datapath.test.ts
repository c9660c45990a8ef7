/** Plans of a pod's interface and the checks against them, without a kernel: what is planned passes, what lacks is named. */
import { describe, expect, it } from "vitest";
import { parseIp } from "../net/ip.ts";
import { parseMac } from "../net/mac.ts";
import type { Link } from "../netlink/rtnl/link.ts";
import type { RouteEntry } from "../netlink/rtnl/route.ts";
import { IFF_UP } from "../netlink/uapi/if-link.ts";
import { NUD_PERMANENT } from "../netlink/uapi/neighbour.ts";
import { RT_TABLE_MAIN } from "../netlink/uapi/rtnetlink.ts";
import { NODE_TABLE, PODS_TABLE } from "./constants.ts";
import {
  type EniLinkSpec,
  eniRequests,
  eniRoutes,
  eniRules,
  findEniLink,
  macRequests,
  routeTableOf,
} from "./eni-link.ts";
import {
  hostRoutes,
  hostRules,
  type PodLink,
  podNeighbours,
  podRoutes,
  podRules,
  podsRule,
  sweepRequests,
  type Uplink,
  uplinkMac,
  vethEndOf,
} from "./pod-link.ts";
import { childIndex, isChildIndex, uplinkRequests } from "./uplink.ts";
import { hostProblems, type KernelView, podProblems } from "./verify.ts";

const SHARED: PodLink = {
  version: 1,
  hostIfname: "cali0",
  hostMac: "02:00:00:00:00:01",
  podIfname: "eth0",
  podMac: "02:00:00:00:00:02",
  mtuBytes: 1500,
  addresses: [
    { address: "10.0.0.5", prefixLength: 32, gateway: "169.254.1.1", table: 17001 },
    { address: "2001:db8::5", prefixLength: 128, gateway: "fe80::1", table: 17001 },
  ],
  nodeIps: ["10.0.0.1", "2001:db8::1"],
};
const uplink = (kind: Uplink["kind"], more: Partial<Uplink> = {}): Uplink => ({
  kind,
  mac: "00:16:3e:00:00:01",
  parentMac: kind === "vlan" ? "00:16:3e:00:00:ff" : "00:16:3e:00:00:01",
  vethIfname: "veth1",
  viaNode: ["172.16.0.0/16", "fd00::/108"],
  ...more,
});
const withUplink = (up: Uplink): PodLink => ({
  ...SHARED,
  hostIfname: "calu0",
  addresses: [
    { address: "10.0.0.5", prefixLength: 20, gateway: "10.0.15.253" },
    { address: "2001:db8::5", prefixLength: 64, gateway: "2001:db8::ffff" },
  ],
  uplink: up,
});
const LINKS: Readonly<Record<string, PodLink>> = {
  "a veth of a shared ENI": SHARED,
  "a veth routed by the node": { ...SHARED, addresses: SHARED.addresses.map(({ table: _table, ...a }) => a) },
  "a second interface": { ...SHARED, podIfname: "net1", podTable: 100 },
  "an ENI": withUplink(uplink("eni")),
  "an IPvlan child": withUplink(uplink("ipvlan")),
  "a VLAN": withUplink(uplink("vlan", { vlanId: 7 })),
};

function linkOf(index: number, name: string, mac: string, more: Partial<Link> = {}): Link {
  return {
    index,
    name,
    flags: IFF_UP,
    mtuBytes: 1500,
    mac: parseMac(mac),
    permanentMac: undefined,
    kind: "veth",
    parentIndex: undefined,
    masterIndex: undefined,
    linkNetnsId: undefined,
    vlanId: undefined,
    ...more,
  };
}

const entries = (routes: readonly { readonly dst: unknown; readonly table?: number }[]) =>
  routes.map((r) => ({ ...r, table: r.table ?? RT_TABLE_MAIN })) as unknown as RouteEntry[];
const HOST = 4;
const VETH = 2;
const UP = 3;

/** The kernel as the plan says. */
function planned(link: PodLink): { readonly pod: KernelView; readonly node: KernelView } {
  const up = link.uplink;
  const upIndex = up ? UP : VETH;
  return {
    pod: {
      links: [
        linkOf(VETH, vethEndOf(link), link.podMac),
        ...(up
          ? [linkOf(UP, link.podIfname, uplinkMac(up), { kind: up.kind === "eni" ? "" : up.kind, vlanId: up.vlanId })]
          : []),
      ],
      addresses: link.addresses.map((a) => ({ linkIndex: upIndex, ip: parseIp(a.address) })) as never,
      routes: entries(podRoutes(link, VETH, upIndex)),
      rules: podRules(link),
      neighbours: podNeighbours(link).map((ip) => ({
        linkIndex: VETH,
        ip,
        mac: parseMac(link.hostMac),
        state: NUD_PERMANENT,
      })) as never,
    },
    node: {
      links: [linkOf(HOST, link.hostIfname, link.hostMac)],
      addresses: [],
      routes: entries(hostRoutes(link, HOST)),
      rules: [podsRule(link, 4), podsRule(link, 6), ...hostRules(link)],
      neighbours: link.addresses.map((a) => ({
        linkIndex: HOST,
        ip: parseIp(a.address),
        mac: parseMac(link.podMac),
        state: NUD_PERMANENT,
      })) as never,
    },
  };
}

/** The view without its nth thing of a kind. */
function* lacking(view: KernelView): Generator<KernelView> {
  for (const kind of ["links", "addresses", "routes", "rules", "neighbours"] as const)
    for (let i = 0; i < view[kind].length; i++)
      yield { ...view, [kind]: (view[kind] as readonly unknown[]).filter((_, n) => n !== i) };
}

describe.each(Object.entries(LINKS))("%s", (_what, link) => {
  it("passes as planned", () => {
    const { pod, node } = planned(link);
    expect([podProblems(link, pod), hostProblems(link, node)]).toEqual([[], []]);
  });

  it("is found wanting whatever is taken away", () => {
    const { pod, node } = planned(link);
    for (const view of lacking(pod)) expect(podProblems(link, view).length).toBeGreaterThan(0);
    for (const view of lacking(node)) expect(hostProblems(link, view).length).toBeGreaterThan(0);
  });

  it("is found changed: down, another size, another MAC address", () => {
    const { node } = planned(link);
    const [host] = node.links;
    if (host === undefined) throw new Error("no link");
    for (const change of [{ flags: 0 }, { mtuBytes: 1400 }, { mac: parseMac("02:00:00:00:00:99") }])
      expect(hostProblems(link, { ...node, links: [{ ...host, ...change }] })).toHaveLength(1);
  });

  it("is swept by its addresses alone", () => {
    const commands = sweepRequests(link.addresses.map((a) => a.address)).map((r) => r.describe());
    for (const a of link.addresses) expect(commands.filter((c) => c.includes(a.address)).length).toBe(5);
  });
});

describe("who asks for a pod's host route", () => {
  it("is everybody without an uplink, and the node alone with one", () => {
    expect(hostRoutes(SHARED, HOST).map((r) => r.table)).toEqual([PODS_TABLE, PODS_TABLE]);
    expect(podsRule(SHARED, 4).iifName).toBeUndefined();
    const own = withUplink(uplink("eni"));
    expect(hostRoutes(own, HOST).map((r) => r.table)).toEqual([NODE_TABLE, NODE_TABLE]);
    expect(podsRule(own, 4).iifName).toBe("lo");
    expect(hostRules(own)).toEqual([]);
  });
});

describe("what goes by the node", () => {
  it("is the node itself and Services, of the families that the pod has, from the pod's address", () => {
    const four = { ...withUplink(uplink("ipvlan")), addresses: withUplink(uplink("ipvlan")).addresses.slice(0, 1) };
    const routes = podRoutes(four, VETH, UP).filter((r) => r.linkIndex === VETH);
    expect(routes.map((r) => `${r.dst.ip.bytes.join(".")}/${r.dst.prefixLength}`)).toEqual([
      "10.0.0.1/32",
      "172.16.0.0/16",
    ]);
    expect(routes.every((r) => r.prefSrc !== undefined)).toBe(true);
  });
  it("is the same of a second interface, in its own table: answers leave by the veth that the node asked by", () => {
    const first = withUplink(uplink("eni"));
    const viaNode = (link: PodLink) => podRoutes(link, VETH, UP).filter((r) => r.linkIndex === VETH);
    expect(viaNode({ ...first, podTable: 100 })).toEqual(viaNode(first).map((r) => ({ ...r, table: 100 })));
  });
});

describe("several interfaces in a pod", () => {
  const text = (r: { dst: { ip: { bytes: Uint8Array }; prefixLength: number }; table?: number }) =>
    `${r.dst.ip.bytes.join(".")}/${r.dst.prefixLength} ${r.table ?? "main"}`;
  const addresses = withUplink(uplink("eni")).addresses.slice(0, 1);
  const link = { ...withUplink(uplink("eni")), addresses, nodeIps: [], routes: ["192.168.0.0/16", "2001:db8::/32"] };
  const noNode = { ...link, uplink: { ...uplink("eni"), viaNode: [] } };

  it("have extra routes in main, whichever has the default route", () => {
    expect(podRoutes(noNode, VETH, UP).map(text)).toEqual(["0.0.0.0/0 main", "192.168.0.0/16 main"]);
    const second = podRoutes({ ...noNode, podTable: 100 }, VETH, UP).map(text);
    expect(second.filter((t) => !t.endsWith("main"))).toHaveLength(2);
    expect(second).toEqual([expect.stringMatching(/ 100$/), "0.0.0.0/0 100", "192.168.0.0/16 main"]);
  });
});

describe("making an uplink", () => {
  it.each([
    ["eni", /if9 down.*if9/s],
    ["ipvlan", /add eth0 type ipvlan/],
    ["vlan", /add eth0 type vlan/],
  ] as const)("%s", (kind, expected) => {
    const link = withUplink(uplink(kind));
    const commands = uplinkRequests(link, link.uplink as Uplink, 9, 5, 7).map((r) => r.describe());
    expect(commands.join("\n")).toMatch(expected);
  });
});

describe("an ENI's own link", () => {
  const MAC = "00:16:3e:00:00:01";
  const OTHER_MAC = "02:00:00:00:00:77";
  const hardware = (index: number, mac: string, permanent?: string, more: Partial<Link> = {}) =>
    linkOf(index, `eth${index}`, mac, { kind: "", permanentMac: permanent ? parseMac(permanent) : undefined, ...more });

  it("is told by its MAC, and from the ENI's children", () => {
    const links = [hardware(1, OTHER_MAC), hardware(2, MAC, undefined, { kind: "ipvlan" }), hardware(3, MAC)];
    expect(findEniLink(links, MAC)?.index).toBe(3);
    expect(findEniLink(links.slice(0, 2), MAC)).toBe(undefined);
  });
  it("is told by the MAC that the hardware has, where a pod gave it another one and died", () => {
    expect(findEniLink([hardware(1, OTHER_MAC), hardware(2, OTHER_MAC, MAC)], MAC)?.index).toBe(2);
    expect(findEniLink([hardware(1, OTHER_MAC, MAC), hardware(2, MAC)], MAC)?.index).toBe(2);
    expect(findEniLink([hardware(1, OTHER_MAC, MAC, { kind: "macvlan" })], MAC)).toBe(undefined);
  });
  it("gets its MAC back, down, and is left alone where it has it", () => {
    expect(macRequests(hardware(2, MAC, MAC), MAC)).toEqual([]);
    expect(macRequests(hardware(2, OTHER_MAC, MAC), MAC).map((r) => r.describe())).toEqual([
      expect.stringMatching(/if2 down$/),
      expect.stringContaining(`address ${MAC}`),
    ]);
  });
});

describe("the ifindex of an ENI's child", () => {
  const [mine, another] = [{ hostIfname: "calu0123456789a" }, { hostIfname: "calu0123456789b" }];
  it.each([0, 1, 2 ** 15 - 1, 2 ** 15, 2 ** 32 - 1])("tells its attachment, and is an int (life %i)", (random) => {
    for (const hostIfname of ["calu00000000000", "calu0123456789a", "califffffffffff"]) {
      const index = childIndex({ hostIfname }, random);
      expect([Number.isInteger(index), index >= 2 ** 30, index < 2 ** 31]).toEqual([true, true, true]);
      expect(isChildIndex({ hostIfname }, index)).toBe(true);
    }
    expect(isChildIndex(another, childIndex(mine, random))).toBe(false);
  });
  it("is another one in another life, and not what a namespace counts to", () => {
    expect(childIndex(mine, 1)).not.toBe(childIndex(mine, 2));
    expect([1, 2, 65_536, 2 ** 30 - 1].some((index) => isChildIndex(mine, index))).toBe(false);
  });
});

describe("a shared ENI", () => {
  const eni: EniLinkSpec = {
    routeSlot: 3,
    mtu: 1500,
    primary4: "10.0.0.9",
    gateway4: "10.0.15.253",
    primary6: undefined,
    gateway6: "2001:db8::ffff",
  };
  it("has a table of its own, whatever its link's index", () => {
    expect(routeTableOf(eni)).toBe(17003);
    expect(eniRoutes(eni, 254).map((r) => r.table)).toEqual([17003, 17003]);
    expect(eniRules(eni).map((r) => r.table)).toEqual([17003]);
    expect(eniRequests(eni, 254).length).toBe(5);
  });
});
