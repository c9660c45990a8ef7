import { describe, expect, it } from "vitest";
import {
  isNodeEniRule,
  type NodeEni,
  type NodeEnis,
  nodeEniRoutes,
  nodeEniRules,
} from "../../shared/datapath/node-enis.ts";
import { parseCidr } from "../../shared/net/cidr.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { readManifestText } from "../policy/manifest-text.ts";
import type { MultiEniConfig } from "../policy/objects.ts";
import { entriesHere, planNodeEnis } from "./node-enis.ts";

const manifest = (enis: readonly object[], routingPolicy: object) =>
  JSON.stringify({
    apiVersion: "terway.aliyun.com/v1beta1",
    kind: "MultiENIConfig",
    metadata: { name: "terway-multi-eni", namespace: "kube-system" },
    spec: { eniConfigs: enis, routingPolicy },
  });
// As the requirements have it: one entry a zone.
const ENIS = [
  {
    eniID: "eni-primary",
    subnetID: "vsw-p",
    securityGroupID: "sg-p",
    primary: true,
    zone: "z-a",
    tags: { Tier: "frontend" },
  },
  { eniID: "eni-secondary", subnetID: "vsw-s", securityGroupID: "sg-s", primary: false, zone: "z-a", tags: {} },
  { eniID: "eni-tertiary", subnetID: "vsw-t", securityGroupID: "sg-t", primary: false, zone: "z-b", tags: {} },
];
const route = (destination: string, eni: string, priority: number) => ({ destination, eni, priority });
const read = (text: string) => {
  const { objects, findings } = readManifestText(text);
  return {
    config: objects[0]?.object as MultiEniConfig,
    said: findings.map((f) => `${f.path}: ${f.message}`).join("\n"),
  };
};
const secondary: NodeEni = {
  id: "eni-1",
  name: "eni-secondary",
  mac: "00:16:3e:00:00:01",
  address: "10.40.0.5",
  gateway: "10.40.0.253",
  spec: "",
};
const plan = (policyRoutes: readonly object[], defaultENI = "eni-primary") =>
  planNodeEnis({
    config: read(manifest(ENIS, { defaultENI, policyRoutes })).config,
    nodeIp: "10.0.0.7",
    serviceCidrs: ["172.16.0.0/16"],
    enis: [secondary],
  });

describe("a MultiENIConfig", () => {
  it("is read as the requirements show it", () => {
    const { config, said } = read(
      manifest(ENIS, { defaultENI: "eni-primary", policyRoutes: [route("10.0.0.1/8", "eni-secondary", 100)] }),
    );
    expect(said).toBe("");
    expect(config.routes).toEqual([{ destination: "10.0.0.0/8", eni: "eni-secondary", priority: 100 }]);
    expect(entriesHere(config, "z-a").map((e) => e.name)).toEqual(["eni-secondary"]);
    expect(entriesHere(config, "z-b").map((e) => e.name)).toEqual(["eni-tertiary"]);
  });

  it("is refused with the path of each fault", () => {
    const wrong = [{ eniID: "a" }, { eniID: "a", primary: "yes" }, { subnetID: "vsw" }];
    const { said } = read(
      manifest(wrong, { defaultENI: "b", policyRoutes: [route("10/8", "c", -1), route("::/0", "a", 1)] }),
    );
    for (const path of [
      "spec.eniConfigs: exactly one entry must have primary: true, 0 have",
      "spec.eniConfigs[1].eniID: a is named twice",
      "spec.eniConfigs[2].eniID: is required",
      'spec.routingPolicy.defaultENI: "b" is the eniID of no entry',
      "spec.routingPolicy.policyRoutes[0].destination: ",
      "spec.routingPolicy.policyRoutes[0].eni: ",
      "spec.routingPolicy.policyRoutes[0].priority: ",
      "spec.routingPolicy.policyRoutes[1].destination: policy routes are IPv4 only",
    ])
      expect(said).toContain(path);
  });

  it("has of equal destinations that of the lowest priority number, and tells of equal clashes (CON-33)", () => {
    const { plan: first, warnings } = plan([
      route("192.168.0.0/16", "eni-primary", 300),
      route("192.168.0.0/16", "eni-secondary", 200),
      route("192.168.0.0/16", "eni-primary", 200),
      route("10.9.0.0/16", "eni-tertiary", 1),
    ]);
    expect(first.routes).toEqual([{ destination: "192.168.0.0/16", via: "eni-1" }]);
    expect(warnings).toEqual([
      "192.168.0.0/16 is routed to eni-secondary and eni-primary with priority 200: eni-secondary has it",
    ]);
    expect(plan([], "eni-secondary").plan.routes).toEqual([{ destination: "0.0.0.0/0", via: "eni-1" }]);
    expect(plan([], "eni-tertiary").plan.routes).toEqual([]);
  });
});

describe("routes by destination", () => {
  const indexOf = (mac: string) => (mac === secondary.mac ? 7 : undefined);
  const main = [
    { dst: parseCidr("10.0.0.0/24"), table: 254, linkIndex: 2 },
    { dst: parseCidr("0.0.0.0/0"), table: 254 },
  ];
  const text = (p: NodeEnis, enis = indexOf) =>
    nodeEniRoutes(p, enis, { routes: main as never }).map(
      (r) =>
        `${r.table} ${r.dst.ip.bytes.join(".")}/${r.dst.prefixLength} ${r.type === 9 ? "throw" : `dev ${r.linkIndex}`}`,
    );

  it("leave to main Services, the node's own network, and the cloud's services, whatever they say", () => {
    const { plan: p } = plan([
      route("172.16.0.0/12", "eni-secondary", 1),
      route("172.16.4.0/24", "eni-secondary", 1),
      route("10.0.0.0/25", "eni-secondary", 1),
      route("10.8.0.0/16", "eni-primary", 1),
    ]);
    expect(text(p)).toEqual([
      "16900 0.0.0.0/0 dev 7",
      "16998 172.16.0.0/16 throw",
      "16998 169.254.0.0/16 throw",
      "16998 100.64.0.0/10 throw",
      "16998 10.0.0.0/24 throw",
      "16998 172.16.0.0/12 dev 7",
      "16998 10.8.0.0/16 throw",
    ]);
  });

  it("are not made without the link, and are none without an ENI", () => {
    const { plan: p } = plan([route("10.8.0.0/16", "eni-secondary", 1)]);
    expect(text(p, () => undefined).filter((t) => !t.endsWith("throw"))).toEqual([]);
    expect([nodeEniRules({ ...p, enis: [] }), text({ ...p, enis: [] })]).toEqual([[], []]);
    expect(nodeEniRules(p).every(isNodeEniRule)).toBe(true);
    expect(nodeEniRules(p).map((r) => r.from?.ip.bytes.join("."))).toEqual(["10.40.0.5", "10.0.0.7", undefined]);
    expect(parseIp("10.40.0.5").family).toBe(4);
  });
});
