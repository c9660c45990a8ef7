import { describe, expect, it } from "vitest";
import type { Pod, PodNetworking, PodRequest } from "../policy/objects.ts";
import { type NodeMeans, type Resolved, resolveRequest } from "./resolve.ts";

const node = (mode: NodeMeans["mode"], more: Partial<NodeMeans> = {}): NodeMeans => ({
  mode,
  zone: "z1",
  kinds: { shared: ["shared", "exclusive"], vpc: ["exclusive"], exclusive: ["exclusive"], trunk: ["member", "shared"] }[
    mode
  ] as NodeMeans["kinds"],
  own: mode === "trunk" ? "member" : "exclusive",
  securityGroups: ["sg-node"],
  ...more,
});
const NETWORKINGS: readonly PodNetworking[] = [
  { kind: "PodNetworking", name: "db", eniType: "Default", vswitches: [{ id: "vsw-1" }], securityGroups: ["sg-db"] },
  { kind: "PodNetworking", name: "trunked", eniType: "Trunk" },
  { kind: "PodNetworking", name: "far", eniType: "ENI", vswitches: [{ id: "vsw-2", zone: "z2" }] },
  { kind: "PodNetworking", name: "nowhere", eniType: "ENI", vswitches: [{ id: "vsw-9" }] },
  {
    kind: "PodNetworking",
    name: "front",
    eniType: "Default",
    securityGroups: ["sg-front"],
    pods: { requirements: [{ key: "app", operator: "In", values: ["front"] }] },
    namespaces: { requirements: [{ key: "env", operator: "Exists", values: [] }] },
  },
];

function resolve(
  request: PodRequest | undefined,
  means: NodeMeans,
  labels = {},
  zone: string | null | undefined = "z1",
) {
  const pod: Pod = {
    kind: "Pod",
    namespace: "d",
    name: "p",
    labels,
    ips: [],
    ports: [],
    hostNetwork: false,
    finished: false,
    ...(request ? { request } : {}),
  };
  return resolveRequest(pod, means, {
    networkings: new Map(NETWORKINGS.map((n) => [n.name, n])),
    namespaceLabels: () => ({ env: "prod" }),
    zoneOf: () => (zone === "unknown" ? undefined : zone),
  });
}
const byName = (network: string) => ({ networks: [{ ifname: "eth1", network }] });

describe("a pod's request on this node", () => {
  it.each<[string, PodRequest | undefined, NodeMeans, Resolved]>([
    ["of nobody", undefined, node("shared"), {}],
    [
      "for an ENI beside shared ones",
      { ownEni: true },
      node("shared"),
      { interfaces: [{ ifname: "eth0", kind: "exclusive" }] },
    ],
    [
      "for an ENI where members are preferred",
      { ownEni: true },
      node("shared", { own: "member", kinds: ["shared", "exclusive", "member"] }),
      { interfaces: [{ ifname: "eth0", kind: "member" }] },
    ],
    ["for an ENI where every pod has one", { ownEni: true }, node("exclusive"), {}],
    ["for the groups that all have", { securityGroups: ["sg-node"] }, node("shared"), {}],
    [
      "for groups on a shared ENI",
      { securityGroups: ["sg-x"] },
      node("shared"),
      { interfaces: [{ ifname: "eth0", kind: "shared", securityGroups: ["sg-x"] }] },
    ],
    [
      "for groups on a member",
      { securityGroups: ["sg-x"] },
      node("trunk"),
      { interfaces: [{ ifname: "eth0", kind: "member", securityGroups: ["sg-x"] }] },
    ],
    [
      "for groups and an ENI in mode VPC",
      { ownEni: true, securityGroups: ["sg-x"] },
      node("vpc"),
      { interfaces: [{ ifname: "eth0", kind: "exclusive", securityGroups: ["sg-x"] }] },
    ],
    [
      "for a second interface",
      { networks: [{ ifname: "eth1", network: "db", defaultRoute: true, routes: ["10.0.0.0/8"] }] },
      node("shared"),
      {
        interfaces: [
          {
            ifname: "eth1",
            kind: "exclusive",
            vswitchIds: ["vsw-1"],
            securityGroups: ["sg-db"],
            defaultRoute: true,
            routes: ["10.0.0.0/8"],
          },
        ],
      },
    ],
    ["with faults", { faults: "x: y" }, node("shared"), { refused: { why: "x: y" } }],
  ])("%s", (_name, request, means, want) => expect(resolve(request, means)).toEqual(want));

  it("is warned about where there are no groups", () => {
    expect(resolve({ securityGroups: ["sg-x"] }, node("vpc")).warning).toMatch(/mode VPC/);
  });

  it("is refused with the reason", () => {
    expect(resolve(byName("none"), node("shared")).refused).toEqual({
      why: "interface eth1: there is no PodNetworking none",
      again: true,
    });
    expect(resolve(byName("trunked"), node("shared")).refused?.why).toMatch(
      /keeps no member ENIs.*enable_eni_trunking/,
    );
    expect(resolve(byName("far"), node("shared")).refused?.why).toMatch(
      /no vSwitch of this node's zone z1: vsw-2 is in z2/,
    );
    expect(resolve(byName("nowhere"), node("shared"), {}, null).refused?.why).toMatch(/vsw-9 does not exist/);
    expect(resolve(byName("nowhere"), node("shared"), {}, "unknown").refused).toEqual({
      why: "PodNetworking nowhere: the zone of vsw-9 is not known yet",
      again: true,
    });
  });

  it("comes from a PodNetworking that selects the pod, unless it says something itself", () => {
    const front = { interfaces: [{ ifname: "eth0", kind: "exclusive", securityGroups: ["sg-front"] }] };
    expect(resolve(undefined, node("shared"), { app: "front" })).toEqual(front);
    expect(resolve({ securityGroups: ["sg-own"] }, node("shared"), { app: "front" })).toEqual({
      interfaces: [{ ifname: "eth0", kind: "shared", securityGroups: ["sg-own"] }],
    });
  });
});
