/**
 * Every feature of the policies, each flow between nine pods of three namespaces tried with real packets, both
 * families, and held against the oracle.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createPolicyNode, type Manifest, type PodTraits, type PolicyNode } from "../lab/policy-node.ts";

let world: PolicyNode;
beforeAll(async () => {
  world = await createPolicyNode(`pm${process.pid % 10000}`);
});
afterAll(() => world?.close());

let serial = 0;
const np = (namespace: string, spec: Manifest): Manifest => {
  serial += 1;
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: `p${serial}`, namespace },
    spec,
  };
};
const cluster = (kind: string, version: string, name: string, spec: Manifest): Manifest => ({
  apiVersion: `policy.networking.k8s.io/${version}`,
  kind,
  metadata: { name },
  spec,
});
const anp = (name: string, spec: Manifest) => cluster("AdminNetworkPolicy", "v1alpha1", name, spec);
const cnp = (name: string, spec: Manifest) => cluster("ClusterNetworkPolicy", "v1alpha2", name, spec);
const pods = (matchLabels: Readonly<Record<string, string>>) => ({ podSelector: { matchLabels } });
const spaces = (...values: string[]) => ({
  namespaceSelector: { matchExpressions: [{ key: "ns", operator: "In", values }] },
});
const all = { podSelector: {} };
const ns = (name: string, labels: Manifest): Manifest => ({
  apiVersion: "v1",
  kind: "Namespace",
  metadata: { name, labels },
});
/** Pod xa is 10.88.0.10 and fd88::a; they count on from there. */
const BLOCK = { cidr: "10.88.0.8/29", except: ["10.88.0.12/31"] };

interface Case {
  readonly what: string;
  readonly manifests: readonly Manifest[];
  readonly traits?: PodTraits;
  readonly icmp?: boolean;
}

const cases: readonly Case[] = [
  { what: "no policy", manifests: [], icmp: true },
  { what: "default deny ingress", manifests: [np("x", { ...all })] },
  { what: "default deny egress", manifests: [np("x", { ...all, policyTypes: ["Egress"] })] },
  { what: "default deny both", manifests: [np("x", { ...all, policyTypes: ["Ingress", "Egress"] })], icmp: true },
  {
    what: "default deny everywhere, everything allowed to one pod",
    manifests: ["x", "y", "z"].flatMap((n) => [
      np(n, { ...all, policyTypes: ["Ingress"] }),
      ...(n === "x" ? [np(n, { ...pods({ pod: "a" }), ingress: [{}] })] : []),
    ]),
    icmp: true,
  },
  { what: "same namespace only", manifests: [np("x", { ...all, ingress: [{ from: [all] }] })] },
  {
    what: "same namespace both ways",
    manifests: [
      np("y", { ...all, policyTypes: ["Ingress", "Egress"], ingress: [{ from: [all] }], egress: [{ to: [all] }] }),
    ],
  },
  { what: "podSelector", manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ from: [pods({ pod: "b" })] }] })] },
  { what: "namespaceSelector", manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ from: [spaces("y")] }] })] },
  { what: "every namespace", manifests: [np("x", { ...all, ingress: [{ from: [{ namespaceSelector: {} }] }] })] },
  {
    what: "namespace by its name",
    manifests: [
      np("x", {
        ...all,
        ingress: [{ from: [{ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "z" } } }] }],
      }),
    ],
  },
  {
    what: "namespace and pod in one entry",
    manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ from: [{ ...spaces("y"), ...pods({ pod: "b" }) }] }] })],
  },
  {
    what: "namespace or pod in two entries",
    manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ from: [spaces("y"), pods({ pod: "b" })] }] })],
  },
  {
    what: "matchExpressions",
    manifests: [
      np("x", {
        podSelector: { matchExpressions: [{ key: "pod", operator: "In", values: ["a", "b"] }] },
        ingress: [
          {
            from: [
              {
                namespaceSelector: { matchExpressions: [{ key: "ns", operator: "NotIn", values: ["y"] }] },
                podSelector: { matchExpressions: [{ key: "role", operator: "Exists" }] },
              },
            ],
          },
        ],
      }),
      np("z", {
        ...all,
        policyTypes: ["Egress"],
        egress: [
          {
            to: [
              { namespaceSelector: {}, podSelector: { matchExpressions: [{ key: "role", operator: "DoesNotExist" }] } },
            ],
          },
        ],
      }),
    ],
    traits: { xc: { labels: { role: "r" } }, ya: { labels: { role: "r" } }, zb: { labels: { role: "r" } } },
  },
  {
    what: "one TCP port",
    manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ ports: [{ port: 80 }] }] })],
    icmp: true,
  },
  {
    what: "one SCTP port, and the same by name",
    manifests: [
      np("x", { ...all, ingress: [{ ports: [{ protocol: "SCTP", port: 81 }] }] }),
      np("y", { ...all, ingress: [{ ports: [{ protocol: "SCTP", port: "signal" }] }] }),
    ],
    traits: { ya: { ports: [{ name: "signal", containerPort: 80, protocol: "SCTP" }] } },
  },
  {
    what: "one UDP port",
    manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ ports: [{ port: 81, protocol: "UDP" }] }] })],
  },
  {
    what: "a whole protocol",
    manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ ports: [{ protocol: "UDP" }] }] })],
  },
  {
    what: "several ports and protocols",
    manifests: [
      np("x", {
        ...pods({ pod: "a" }),
        ingress: [{ from: [spaces("y")], ports: [{ port: 80 }, { port: 81, protocol: "UDP" }] }],
      }),
    ],
  },
  {
    what: "a port range",
    manifests: [np("x", { ...pods({ pod: "a" }), ingress: [{ ports: [{ port: 81, endPort: 90 }] }] })],
  },
  {
    what: "ports by peers",
    manifests: [
      np("x", {
        ...pods({ pod: "a" }),
        ingress: [
          { from: [spaces("y")], ports: [{ port: 80 }] },
          { from: [spaces("z")], ports: [{ port: 81 }] },
        ],
      }),
    ],
  },
  {
    what: "named ports at ingress, differing by pod",
    manifests: [np("x", { ...all, ingress: [{ ports: [{ port: "web" }, { port: "dns", protocol: "UDP" }] }] })],
    traits: {
      xa: { ports: [{ name: "web", containerPort: 80 }] },
      xb: {
        ports: [
          { name: "web", containerPort: 81 },
          { name: "dns", containerPort: 80, protocol: "UDP" },
        ],
      },
    },
  },
  {
    what: "named ports at egress, differing by peer",
    manifests: [
      np("x", {
        ...pods({ pod: "a" }),
        policyTypes: ["Egress"],
        egress: [{ to: [spaces("y", "z")], ports: [{ port: "web" }] }],
      }),
    ],
    traits: {
      ya: { ports: [{ name: "web", containerPort: 80 }] },
      yb: { ports: [{ name: "web", containerPort: 81 }] },
      za: { ports: [{ name: "web", containerPort: 81, protocol: "UDP" }] },
    },
  },
  { what: "ipBlock with except, ingress", manifests: [np("z", { ...all, ingress: [{ from: [{ ipBlock: BLOCK }] }] })] },
  {
    what: "ipBlock with except, egress",
    manifests: [
      np("x", {
        ...all,
        policyTypes: ["Egress"],
        egress: [{ to: [{ ipBlock: { cidr: "0.0.0.0/0", except: ["10.88.0.12/30"] } }], ports: [{ port: 80 }] }],
      }),
    ],
  },
  {
    what: "ipBlock of IPv6",
    manifests: [
      np("z", { ...all, ingress: [{ from: [{ ipBlock: { cidr: "fd88::/124", except: ["fd88::b/128"] } }] }] }),
    ],
  },
  {
    what: "10,000 blocks",
    manifests: [
      np("z", {
        ...all,
        ingress: [
          {
            from: [
              ...Array.from({ length: 10_000 }, (_, i) => ({
                ipBlock: { cidr: `172.${16 + (i >> 12)}.${(i >> 4) & 255}.${(i & 15) * 16}/29` },
              })),
              { ipBlock: { cidr: "10.88.0.11/32" } },
            ],
          },
        ],
      }),
    ],
  },
  {
    what: "policies that add up",
    manifests: [
      np("x", { ...pods({ pod: "a" }), ingress: [{ from: [pods({ pod: "b" })], ports: [{ port: 80 }] }] }),
      np("x", { ...pods({ pod: "a" }), ingress: [{ from: [spaces("y")], ports: [{ port: 81, protocol: "UDP" }] }] }),
      np("x", { ...all, policyTypes: ["Ingress"] }),
    ],
  },
  {
    what: "egress at one end and ingress at the other",
    manifests: [
      np("x", { ...pods({ pod: "a" }), policyTypes: ["Egress"], egress: [{ to: [spaces("y")] }] }),
      np("y", { ...pods({ pod: "a" }), ingress: [{ from: [spaces("x")], ports: [{ port: 80 }] }] }),
    ],
  },
  {
    what: "admin policies above NetworkPolicies: allow, deny, pass by priority",
    manifests: [
      np("x", { ...all, policyTypes: ["Ingress"] }),
      anp("allow", {
        priority: 10,
        subject: { namespaces: { matchLabels: { ns: "x" } } },
        ingress: [
          {
            action: "Allow",
            from: [{ namespaces: { matchLabels: { ns: "y" } } }],
            ports: [{ portNumber: { protocol: "TCP", port: 80 } }],
          },
        ],
      }),
      anp("pass", {
        priority: 5,
        subject: {
          pods: { namespaceSelector: { matchLabels: { ns: "x" } }, podSelector: { matchLabels: { pod: "c" } } },
        },
        ingress: [{ action: "Pass", from: [{ namespaces: {} }] }],
      }),
      anp("deny", {
        priority: 20,
        subject: { namespaces: {} },
        ingress: [
          { action: "Deny", from: [{ pods: { namespaceSelector: {}, podSelector: { matchLabels: { pod: "b" } } } }] },
        ],
      }),
    ],
    icmp: true,
  },
  {
    what: "admin egress by networks and port ranges",
    manifests: [
      anp("nets", {
        priority: 1,
        subject: { namespaces: { matchLabels: { ns: "z" } } },
        egress: [
          {
            action: "Allow",
            to: [{ networks: ["10.88.0.10/32", "fd88::/124"] }],
            ports: [{ portRange: { protocol: "TCP", start: 80, end: 81 } }],
          },
          { action: "Deny", to: [{ networks: ["0.0.0.0/0", "::/0"] }] },
        ],
      }),
    ],
  },
  {
    what: "a baseline where no NetworkPolicy isolates",
    manifests: [
      cluster("BaselineAdminNetworkPolicy", "v1alpha1", "default", {
        subject: { namespaces: {} },
        ingress: [
          { action: "Allow", from: [{ namespaces: { matchLabels: { ns: "x" } } }] },
          { action: "Deny", from: [{ namespaces: {} }] },
        ],
      }),
      np("y", { ...pods({ pod: "a" }), ingress: [{ from: [spaces("z")] }] }),
    ],
  },
  {
    what: "cluster policies of both tiers, with protocols and named ports",
    manifests: [
      cnp("admin", {
        tier: "Admin",
        priority: 1,
        subject: { namespaces: {} },
        ingress: [
          { action: "Accept", from: [{ namespaces: {} }], protocols: [{ destinationNamedPort: "web" }] },
          { action: "Pass", from: [{ namespaces: { matchLabels: { ns: "x" } } }] },
          {
            action: "Deny",
            from: [{ namespaces: {} }],
            protocols: [{ tcp: { destinationPort: { range: { start: 80, end: 81 } } } }],
          },
        ],
      }),
      cnp("base", {
        tier: "Baseline",
        priority: 1,
        subject: { namespaces: { matchLabels: { ns: "y" } } },
        ingress: [{ action: "Deny", from: [{ namespaces: {} }], protocols: [{ udp: {} }] }],
      }),
    ],
    traits: { za: { ports: [{ name: "web", containerPort: 81 }] } },
  },
  {
    what: "isolation domains",
    manifests: [
      {
        apiVersion: "v1",
        kind: "ConfigMap",
        metadata: { name: "terway-network-isolation", namespace: "kube-system" },
        data: {
          isolation_config: JSON.stringify({
            network_domains: [
              { name: "front", cidr: "10.88.0.8/30", allowed_destinations: ["10.88.0.12/31"] },
              { name: "back", cidr: "10.88.0.12/30", allowed_destinations: [] },
            ],
          }),
        },
      },
    ],
  },
  {
    what: "labels of a namespace that changed",
    manifests: [ns("y", { ns: "other" }), np("x", { ...all, ingress: [{ from: [spaces("other")] }] })],
  },
];

describe("reachability between nine pods", () => {
  it.each(cases.map((c) => [c.what, c] as const))("%s", async (_what, { manifests, traits, icmp }) => {
    world.apply(manifests, traits);
    const { tried, allowed, wrong } = await world.wrong(icmp ? ["tcp", "udp", "sctp", "icmp"] : undefined);
    expect(tried).toBe(9 * 8 * 2 * (icmp ? 7 : 6));
    expect(allowed, "a case that allows nothing proves little").toBeGreaterThan(0);
    expect(wrong).toEqual([]);
  });

  it("leaves nothing behind of what was taken back", async () => {
    world.apply([]);
    const { wrong, allowed, tried } = await world.wrong();
    expect(wrong).toEqual([]);
    expect(allowed).toBe(tried);
    expect(world.enforcer.mend().changed).toEqual([]);
    expect(world.enforcer.compiled?.sets).toEqual([]);
  });
});
