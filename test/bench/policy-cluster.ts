/** A cluster of the size that the policy figures are promised for: 20 namespaces, 200 policies, 20,000 remote pods. */
import type { AttachedPod } from "../../ipam/policy/compiler.ts";
import type { ClusterObject, ObjectEvent, Pod } from "../../ipam/policy/objects.ts";
import { readManifests } from "../../ipam/policy/read/object.ts";

export interface BenchSize {
  readonly localPods: number;
  readonly policies: number;
  readonly remotePods: number;
}

const NAMESPACES = 20;
const APPS = 25;
const nsName = (i: number) => `team-${i % NAMESPACES}`;
const remoteIp = (i: number) => `10.${64 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`;
export const localIp = (i: number) => `10.1.${i >> 8}.${i & 255}`;

export function benchPod(i: number, local: boolean, labels: Readonly<Record<string, string>> = {}): Pod {
  return {
    kind: "Pod",
    namespace: nsName(i),
    name: `${local ? "local" : "remote"}-${i}`,
    labels: {
      app: `app-${Math.floor(i / NAMESPACES) % APPS}`,
      tier: ["front", "back", "data"][i % 3] ?? "",
      "pod-template-hash": `h${i % 997}`,
      ...labels,
    },
    ips: local ? [] : [remoteIp(i)],
    ports: [{ name: "web", protocol: "tcp", port: 8000 + (i % 4) }],
    hostNetwork: false,
    finished: false,
    node: local ? "here" : `node-${i % 400}`,
  };
}

/** Default deny, same namespace, cross-namespace by labels, CIDRs, DNS and named ports, in turn. */
function policy(i: number): unknown {
  const podSelector = { matchLabels: { app: `app-${Math.floor(i / NAMESPACES) % APPS}` } };
  const other = `app-${(i * 7) % APPS}`;
  const specs = [
    { podSelector: {}, policyTypes: ["Ingress", "Egress"] },
    { podSelector, ingress: [{ from: [{ podSelector: { matchLabels: { app: other } } }], ports: [{ port: 8080 }] }] },
    {
      podSelector,
      ingress: [
        {
          from: [
            { namespaceSelector: { matchLabels: { zone: `z${i % 5}` } }, podSelector: { matchLabels: { app: other } } },
          ],
          ports: [{ port: "web" }],
        },
      ],
    },
    {
      podSelector,
      policyTypes: ["Egress"],
      egress: [
        {
          to: [{ namespaceSelector: {}, podSelector: { matchLabels: { app: other } } }],
          ports: [{ port: 80, endPort: 90 }],
        },
        { to: [{ ipBlock: { cidr: "0.0.0.0/0", except: ["10.0.0.0/8", `172.16.${i}.0/24`] } }] },
      ],
    },
    {
      podSelector,
      policyTypes: ["Egress"],
      egress: [{ to: [{ namespaceSelector: { matchLabels: { zone: `z${i % 5}` } } }], ports: [{ port: "web" }] }],
    },
  ];
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: `policy-${i}`, namespace: nsName(i) },
    spec: specs[Math.floor(i / NAMESPACES) % specs.length],
  };
}

export function benchCluster(size: BenchSize): { readonly events: ObjectEvent[]; readonly attached: AttachedPod[] } {
  const manifests = [
    ...Array.from({ length: NAMESPACES }, (_, i) => ({
      apiVersion: "v1",
      kind: "Namespace",
      metadata: { name: nsName(i), labels: { zone: `z${i % 5}` } },
    })),
    ...Array.from({ length: size.policies }, (_, i) => policy(i)),
  ];
  const objects: ClusterObject[] = manifests.flatMap(readManifests).map(({ object, faults }) => {
    if (object === undefined) throw new Error(faults.map((f) => `${f.path}: ${f.message}`).join("; "));
    return object;
  });
  for (let i = 0; i < size.localPods; i++) objects.push(benchPod(i, true));
  for (let i = 0; i < size.remotePods; i++) objects.push(benchPod(i, false));
  return {
    events: objects.map((object) => ({ type: "set", object })),
    attached: Array.from({ length: size.localPods }, (_, i) => ({
      namespace: nsName(i),
      name: `local-${i}`,
      addresses: [localIp(i)],
    })),
  };
}
