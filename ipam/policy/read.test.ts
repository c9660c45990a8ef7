import { describe, expect, it } from "vitest";
import { describeFinding, readManifestText } from "./manifest-text.ts";

const NP = (spec: string) =>
  `apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: p, namespace: d }\nspec:\n${spec}`;
const ADMIN = (kind: string, version: string, spec: string, name = "p") =>
  `apiVersion: policy.networking.k8s.io/${version}\nkind: ${kind}\nmetadata: { name: ${name} }\nspec:\n${spec}`;

const faults = (text: string) => readManifestText(text).findings.map((f) => `${f.line} ${f.path}: ${f.message}`);

describe("reading manifests", () => {
  it("names path and line of a port range that ends before it begins", () => {
    const text = NP(`  podSelector: {}
  ingress:
  - from:
    - podSelector: {}
    ports:
    - port: 80
    - port: 8090
      endPort: 8080
`);
    const { findings, objects } = readManifestText(text);
    expect(objects).toEqual([]);
    expect(findings.map((f) => describeFinding("x.yaml", f))).toEqual([
      "x.yaml:12: error: NetworkPolicy d/p: spec.ingress[0].ports[1].endPort: must not be less than port, is 8080 with port 8090",
    ]);
  });

  it.each([
    ["  podSelector: {}\n  ingress:\n  - form: []\n", "7 spec.ingress[0].form: unknown field"],
    ["  podSelector: {}\n  policyTypes: [ingress]\n", "6 spec.policyTypes[0]: must be one of Ingress, Egress"],
    ["  podSelector: {}\n  policyTypes: [Ingress, Egress, Ingress]\n", "6 spec.policyTypes: must have at most 2"],
    ["  podSelector: {}\n  ingress:\n  - from: [{}]\n", "7 spec.ingress[0].from[0]: must specify a peer"],
    [
      "  ingress:\n  - from: [{ ipBlock: { cidr: 10.0.0.0/8 }, podSelector: {} }]\n",
      "6 spec.ingress[0].from[0].ipBlock: may not specify both",
    ],
    [
      "  ingress:\n  - from: [{ ipBlock: { cidr: 10.0.0.300/8 } }]\n",
      '6 spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.300/8" is no CIDR',
    ],
    ["  ingress:\n  - from: [{ ipBlock: {} }]\n", "6 spec.ingress[0].from[0].ipBlock.cidr: is required"],
    [
      "  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/16\n        except: [10.1.0.0/24]\n",
      "9 spec.ingress[0].from[0].ipBlock.except[0]: must be a strict subset",
    ],
    [
      "  egress:\n  - to:\n    - ipBlock:\n        cidr: 10.0.0.0/16\n        except: [10.0.0.0/16]\n",
      "9 spec.egress[0].to[0].ipBlock.except[0]: must be a strict subset",
    ],
    ["  ingress:\n  - ports: [{ port: 0 }]\n", "6 spec.ingress[0].ports[0].port: must be between 1 and 65535"],
    ["  ingress:\n  - ports: [{ port: 65536 }]\n", "6 spec.ingress[0].ports[0].port: must be between"],
    ["  ingress:\n  - ports: [{ port: Web }]\n", '6 spec.ingress[0].ports[0].port: "Web" is no port name'],
    [
      "  ingress:\n  - ports: [{ port: web, endPort: 90 }]\n",
      "6 spec.ingress[0].ports[0].endPort: may not be set when port is a name",
    ],
    [
      "  ingress:\n  - ports: [{ endPort: 90 }]\n",
      "6 spec.ingress[0].ports[0].endPort: may not be set when port is not",
    ],
    [
      "  ingress:\n  - ports: [{ protocol: tcp }]\n",
      "6 spec.ingress[0].ports[0].protocol: must be one of TCP, UDP, SCTP",
    ],
    ["  ingress: {}\n", "5 spec.ingress: must be a list"],
    [
      "  podSelector: { matchLabels: { a/b/c: x } }\n",
      '5 spec.podSelector.matchLabels[a/b/c]: "a/b/c" is no label key',
    ],
    ["  podSelector: { matchLabels: { app: 5 } }\n", "5 spec.podSelector.matchLabels.app: must be a string, is 5"],
    ["  podSelector: { matchLabels: { app: -x } }\n", '5 spec.podSelector.matchLabels.app: "-x" is no label value'],
    [
      "  podSelector:\n    matchExpressions:\n    - { key: a, operator: In }\n",
      "7 spec.podSelector.matchExpressions[0].values: must have an entry",
    ],
    [
      "  podSelector:\n    matchExpressions:\n    - { key: a, operator: Exists, values: [x] }\n",
      "7 spec.podSelector.matchExpressions[0].values: may not be set",
    ],
    [
      "  podSelector:\n    matchExpressions:\n    - { key: a, operator: Equals }\n",
      "7 spec.podSelector.matchExpressions[0].operator: must be one of",
    ],
    ["  podSelektor: {}\n", "5 spec.podSelektor: unknown field"],
  ])("refuses %j", (spec, want) => {
    const found = faults(NP(spec));
    expect(found.length).toBeGreaterThan(0);
    expect(found[0]).toContain(want);
  });

  it.each([
    [ADMIN("AdminNetworkPolicy", "v1alpha1", "  subject: { namespaces: {} }\n"), "spec.priority: is required"],
    [
      ADMIN("AdminNetworkPolicy", "v1alpha1", "  priority: 1001\n  subject: { namespaces: {} }\n"),
      "spec.priority: must be between 0 and 1000",
    ],
    [
      ADMIN(
        "AdminNetworkPolicy",
        "v1alpha1",
        "  priority: 1\n  subject: { namespaces: {}, pods: { podSelector: {} } }\n",
      ),
      "spec.subject: must have exactly one of namespaces, pods, has namespaces, pods",
    ],
    [
      ADMIN(
        "AdminNetworkPolicy",
        "v1alpha1",
        "  priority: 1\n  subject: { namespaces: {} }\n  ingress: [{ action: Accept, from: [{ namespaces: {} }] }]\n",
      ),
      "spec.ingress[0].action: must be one of Allow, Deny, Pass",
    ],
    [
      ADMIN(
        "AdminNetworkPolicy",
        "v1alpha1",
        "  priority: 1\n  subject: { namespaces: {} }\n  egress: [{ action: Allow, to: [{ domainNames: [a.b] }] }]\n",
      ),
      "spec.egress[0].to[0].domainNames: is not supported",
    ],
    [
      ADMIN(
        "AdminNetworkPolicy",
        "v1alpha1",
        "  priority: 1\n  subject: { namespaces: {} }\n  ingress: [{ action: Deny, from: [] }]\n",
      ),
      "spec.ingress[0].from: must have an entry",
    ],
    [
      ADMIN("BaselineAdminNetworkPolicy", "v1alpha1", "  subject: { namespaces: {} }\n"),
      'metadata.name: must be "default"',
    ],
    [
      ADMIN(
        "BaselineAdminNetworkPolicy",
        "v1alpha1",
        "  subject: { namespaces: {} }\n  ingress: [{ action: Pass, from: [{ namespaces: {} }] }]\n",
        "default",
      ),
      "spec.ingress[0].action: must be one of Allow, Deny,",
    ],
    [
      ADMIN("ClusterNetworkPolicy", "v1alpha2", "  tier: Middle\n  priority: 1\n  subject: { namespaces: {} }\n"),
      "spec.tier: must be one of Admin, Baseline",
    ],
    [
      ADMIN(
        "ClusterNetworkPolicy",
        "v1alpha2",
        "  tier: Admin\n  priority: 1\n  subject: { namespaces: {} }\n  egress: [{ action: Deny, to: [{ networks: [10.0.0.0/8] }], protocols: [{ destinationNamedPort: web }] }]\n",
      ),
      "spec.egress[0].protocols: may not name a port",
    ],
    [
      ADMIN(
        "ClusterNetworkPolicy",
        "v1alpha2",
        "  tier: Admin\n  priority: 1\n  subject: { namespaces: {} }\n  ingress: [{ action: Deny, from: [{ namespaces: {} }], protocols: [{ tcp: { destinationPort: { range: { start: 9, end: 9 } } } }] }]\n",
      ),
      "spec.ingress[0].protocols[0].tcp.destinationPort.range.end: must be greater than start",
    ],
    [ADMIN("ClusterNetworkPolicy", "v1alpha1", "  {}\n"), "apiVersion: must be policy.networking.k8s.io/v1alpha2"],
    [
      "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: { name: X }\nspec: {}\n",
      'metadata.name: "X" is no object name',
    ],
    ["kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: { name: x }\n", "spec: is required"],
    [
      "kind: Pod\napiVersion: v1\nmetadata: { name: x }\nstatus: { podIP: 1.2.3 }\n",
      'status.podIP: "1.2.3" is no IP address',
    ],
    ["- a\n- b\n", "a manifest must be a map"],
    [
      'kind: ConfigMap\napiVersion: v1\nmetadata: { name: terway-network-isolation }\ndata:\n  isolation_config: \'{"network_domains":[{"name":"a","cidr":"10/8"}]}\'\n',
      'data.isolation_config: network_domains[0].cidr: "10/8" is no CIDR',
    ],
  ])("refuses a cluster's policy or object: %s", (text, want) => {
    expect(faults(text).join("\n")).toContain(want);
    expect(readManifestText(text).objects).toEqual([]);
  });

  it("reads several documents and Lists, and says what it does not use", () => {
    const { objects, findings } = readManifestText(
      `kind: Service\napiVersion: v1\nmetadata: { name: s }\n---\n# nothing\n---\nkind: List\napiVersion: v1\nitems:\n- { kind: Namespace, apiVersion: v1, metadata: { name: a } }\n- { kind: Pod, apiVersion: v1, metadata: { name: p, namespace: a }, status: { podIP: "fd00::0:1" } }\n`,
    );
    expect(objects.map(({ object, line }) => [object.kind, line])).toEqual([
      ["Namespace", 10],
      ["Pod", 11],
    ]);
    expect(objects[1]?.object).toMatchObject({ ips: ["fd00::1"] });
    expect(findings.map((f) => [f.level, f.line, f.message])).toEqual([["warning", 1, "Service is not used"]]);
  });

  it("tells the line where YAML ends to be YAML, and of an object that is there twice", () => {
    expect(faults("kind: Pod\n  bad: [\n")[0]).toMatch(/^[12] : /);
    const twice =
      "kind: Namespace\napiVersion: v1\nmetadata: { name: a }\n---\nkind: Namespace\napiVersion: v1\nmetadata: { name: a }\n";
    expect(faults(twice)).toEqual(["5 metadata.name: is already defined at line 1: this one does not count"]);
  });

  it("fills in policyTypes as the API server does", () => {
    const types = (spec: string) => {
      const [first] = readManifestText(NP(spec)).objects;
      return Object.keys(first?.object ?? {}).filter((key) => key === "ingress" || key === "egress");
    };
    expect(types("  podSelector: {}\n")).toEqual(["ingress"]);
    expect(types("  podSelector: {}\n  egress: [{}]\n")).toEqual(["ingress", "egress"]);
    expect(types("  podSelector: {}\n  policyTypes: [Egress]\n  ingress: [{}]\n")).toEqual(["egress"]);
  });
});
