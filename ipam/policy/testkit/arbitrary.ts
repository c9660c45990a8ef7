/** Random small clusters as raw manifests: few names and labels, so that everything meets everything. */
import fc from "fast-check";

export type Manifest = Record<string, unknown>;

const upTo = (max: number, make: (i: number) => fc.Arbitrary<Manifest>) =>
  fc.nat(max).chain((n) => fc.tuple(...Array.from({ length: n }, (_, i) => make(i))));

const NAMESPACES = ["a", "b", "c"];
export const PORTS = [80, 82, 8080];
/** What flows are tried with: also what lies between. */
export const FLOW_PORTS = [80, 81, 82, 8080];
const PORT_NAMES = ["web", "dns"];

const labels = fc.record({ app: fc.constantFrom("x", "y"), tier: fc.constantFrom("f", "b") }, { requiredKeys: [] });

const requirement = fc.oneof(
  fc.record({
    key: fc.constantFrom("app", "tier", "odd"),
    operator: fc.constantFrom("In", "NotIn"),
    values: fc.subarray(["x", "y", "f"], { minLength: 1 }),
  }),
  fc.record({ key: fc.constantFrom("app", "tier"), operator: fc.constantFrom("Exists", "DoesNotExist") }),
);

const selector = fc.oneof(
  { weight: 2, arbitrary: fc.constant({}) },
  { weight: 4, arbitrary: labels.map((matchLabels) => ({ matchLabels })) },
  {
    weight: 2,
    arbitrary: fc.array(requirement, { minLength: 1, maxLength: 2 }).map((matchExpressions) => ({ matchExpressions })),
  },
);

const namespaceSelector = fc.oneof(
  { weight: 4, arbitrary: selector },
  {
    weight: 2,
    arbitrary: fc.constantFrom(...NAMESPACES).map((name) => ({ matchLabels: { "kubernetes.io/metadata.name": name } })),
  },
);

/** Pods lie in 10.0.0.0/28 and fd00::/124, so that blocks cut through them. */
const ipBlock = fc.oneof(
  fc.constantFrom(
    { cidr: "0.0.0.0/0" },
    { cidr: "::/0" },
    { cidr: "10.0.0.0/29", except: ["10.0.0.2/31"] },
    { cidr: "10.0.0.0/28", except: ["10.0.0.0/30", "10.0.0.6/32"] },
    { cidr: "10.0.0.5/32" },
    { cidr: "10.0.0.4/31" },
    { cidr: "192.168.0.0/16", except: ["192.168.1.0/24", "192.168.1.128/25"] },
    { cidr: "fd00::/125", except: ["fd00::4/127"] },
    { cidr: "fd00::/16" },
  ),
);

const npPeer = fc.oneof(
  selector.map((podSelector) => ({ podSelector })),
  namespaceSelector.map((s) => ({ namespaceSelector: s })),
  fc.record({ namespaceSelector, podSelector: selector }),
  ipBlock.map((block) => ({ ipBlock: block })),
);

const protocol = fc.constantFrom("TCP", "UDP", "SCTP");

const npPort = fc.oneof(
  fc.record({ protocol, port: fc.constantFrom<string | number>(...PORTS, ...PORT_NAMES) }, { requiredKeys: ["port"] }),
  fc.record({ protocol }),
  fc.constantFrom(
    { protocol: "TCP", port: 80, endPort: 82 },
    { port: 82, endPort: 9000 },
    { protocol: "UDP", port: 1, endPort: 65535 },
  ),
);

const npRule = (side: "from" | "to") =>
  fc.record(
    { [side]: fc.array(npPeer, { maxLength: 3 }), ports: fc.array(npPort, { maxLength: 3 }) },
    { requiredKeys: [] },
  );

const networkPolicy = (i: number) =>
  fc
    .record({
      namespace: fc.constantFrom(...NAMESPACES),
      spec: fc.record(
        {
          podSelector: selector,
          policyTypes: fc.subarray(["Ingress", "Egress"]),
          ingress: fc.array(npRule("from"), { maxLength: 2 }),
          egress: fc.array(npRule("to"), { maxLength: 2 }),
        },
        { requiredKeys: ["podSelector"] },
      ),
    })
    .map(
      ({ namespace, spec }): Manifest => ({
        apiVersion: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        metadata: { name: `np-${i}`, namespace },
        spec,
      }),
    );

const podsSelector = fc.oneof(
  namespaceSelector.map((namespaces) => ({ namespaces })),
  fc.record({ namespaceSelector, podSelector: selector }).map((pods) => ({ pods })),
);

const network = fc
  .subarray(["10.0.0.0/29", "0.0.0.0/0", "10.0.0.4/31", "fd00::/125", "192.168.0.0/16"], { minLength: 1 })
  .map((networks) => ({ networks }));
const node = selector.map((nodes) => ({ nodes }));

const anpPort = fc.oneof(
  fc.record({ portNumber: fc.record({ protocol, port: fc.constantFrom(...PORTS) }) }),
  fc.constant({ portRange: { protocol: "TCP", start: 80, end: 82 } }),
);
const anpNamedPort = fc.constantFrom(...PORT_NAMES).map((namedPort) => ({ namedPort }));
const cnpPort = fc.oneof(
  fc
    .record({ p: fc.constantFrom("tcp", "udp", "sctp"), number: fc.constantFrom(...PORTS) })
    .map(({ p, number }) => ({ [p]: { destinationPort: { number } } })),
  fc.constantFrom({ tcp: { destinationPort: { range: { start: 80, end: 82 } } } }, { udp: {} }),
);
const cnpNamedPort = fc.constantFrom(...PORT_NAMES).map((destinationNamedPort) => ({ destinationNamedPort }));

interface Dialect {
  readonly ports: "ports" | "protocols";
  readonly actions: readonly string[];
}

function clusterRule(direction: "ingress" | "egress", { ports, actions }: Dialect) {
  const plain = ports === "ports" ? anpPort : cnpPort;
  const named = ports === "ports" ? anpNamedPort : cnpNamedPort;
  const side = direction === "ingress" ? "from" : "to";
  const list = (peer: fc.Arbitrary<unknown>) => fc.array(peer, { minLength: 1, maxLength: 2 });
  const action = fc.constantFrom(...actions);
  const portList = (port: fc.Arbitrary<unknown>) => fc.array(port, { minLength: 1, maxLength: 2 });
  const rule = (peers: fc.Arbitrary<unknown[]>, port: fc.Arbitrary<unknown>) =>
    fc.record({ action, [side]: peers, [ports]: portList(port) }, { requiredKeys: ["action", side] });
  const ofPods = rule(list(podsSelector), fc.oneof(plain, named));
  if (direction === "ingress") return fc.array(ofPods, { maxLength: 2 });
  return fc.array(fc.oneof(ofPods, rule(list(fc.oneof(podsSelector, network, node)), plain)), { maxLength: 2 });
}

function clusterSpec(dialect: Dialect) {
  return { subject: podsSelector, ingress: clusterRule("ingress", dialect), egress: clusterRule("egress", dialect) };
}

const ANP: Dialect = { ports: "ports", actions: ["Allow", "Deny", "Pass"] };
const BANP: Dialect = { ports: "ports", actions: ["Allow", "Deny"] };
const CNP: Dialect = { ports: "protocols", actions: ["Accept", "Deny", "Pass"] };

const clusterPolicy = (i: number): fc.Arbitrary<Manifest> => {
  const manifest =
    (kind: string, version: string, name: string) =>
    (spec: unknown): Manifest => ({
      apiVersion: `policy.networking.k8s.io/${version}`,
      kind,
      metadata: { name },
      spec,
    });
  const priority = fc.nat(3);
  return fc.oneof(
    fc.record({ priority, ...clusterSpec(ANP) }).map(manifest("AdminNetworkPolicy", "v1alpha1", `anp-${i}`)),
    fc.record(clusterSpec(BANP)).map(manifest("BaselineAdminNetworkPolicy", "v1alpha1", "default")),
    fc
      .record({ tier: fc.constantFrom("Admin", "Baseline"), priority, ...clusterSpec(CNP) })
      .map(manifest("ClusterNetworkPolicy", "v1alpha2", `cnp-${i}`)),
  );
};

export const namespace = fc
  .record({ name: fc.constantFrom(...NAMESPACES), labels })
  .map(({ name, labels: l }): Manifest => ({ apiVersion: "v1", kind: "Namespace", metadata: { name, labels: l } }));

const containerPort = fc.record(
  { name: fc.constantFrom(...PORT_NAMES), containerPort: fc.constantFrom(...PORTS), protocol },
  { requiredKeys: ["name", "containerPort"] },
);

export const POD_COUNT = 6;

/** The i-th pod; its addresses are its own. */
export const pod = (i: number): fc.Arbitrary<Manifest> =>
  fc
    .record({
      namespace: fc.constantFrom(...NAMESPACES),
      labels,
      ports: fc.array(containerPort, { maxLength: 2 }),
      families: fc.constantFrom([4], [6], [4, 6], [4, 6]),
      hostNetwork: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, fc.constant(true)),
      phase: fc.oneof(
        { weight: 9, arbitrary: fc.constant("Running") },
        fc.constantFrom("Succeeded", "Failed", "Pending"),
      ),
    })
    .map(
      (p): Manifest => ({
        apiVersion: "v1",
        kind: "Pod",
        metadata: { name: `pod-${i}`, namespace: p.namespace, labels: p.labels },
        spec: { hostNetwork: p.hostNetwork, containers: [{ name: "main", ports: p.ports }] },
        status: {
          phase: p.phase,
          podIPs: p.families.map((family) => ({ ip: family === 4 ? `10.0.0.${i + 1}` : `fd00::${i + 1}` })),
        },
      }),
    );

export const clusterNode = labels.map(
  (l): Manifest => ({
    apiVersion: "v1",
    kind: "Node",
    metadata: { name: "node-1", labels: l },
    status: {
      addresses: [
        { type: "InternalIP", address: "172.16.0.1" },
        { type: "Hostname", address: "node-1" },
      ],
    },
  }),
);

const domains = fc
  .record({
    left: fc.subarray(["10.0.0.4/31", "10.0.0.6/32"]),
    right: fc.subarray(["10.0.0.0/31", "10.0.0.0/30"]),
  })
  .map(
    ({ left, right }): Manifest => ({
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: { name: "terway-network-isolation", namespace: "kube-system" },
      data: {
        isolation_config: JSON.stringify({
          network_domains: [
            { name: "left", cidr: "10.0.0.0/30", allowed_destinations: left },
            { name: "right", cidr: "10.0.0.4/30", allowed_destinations: right },
            { name: "around", cidr: "10.0.0.0/28", allowed_destinations: [] },
          ],
        }),
      },
    }),
  );

export const policy = (i: number): fc.Arbitrary<Manifest> => fc.oneof(networkPolicy(i), clusterPolicy(i));

/** Now of one sort, now mixed: several of a sort must meet at one pod. */
const policies = fc.oneof(upTo(5, policy), upTo(5, networkPolicy), upTo(5, clusterPolicy));

/** One manifest under each identity; later ones are left out. */
export function distinct(manifests: readonly Manifest[]): Manifest[] {
  const seen = new Map<string, Manifest>();
  for (const m of manifests) {
    const key = identity(m);
    if (!seen.has(key)) seen.set(key, m);
  }
  return [...seen.values()];
}

export function identity(m: Manifest): string {
  const metadata = m.metadata as { readonly name: string; readonly namespace?: string };
  return `${m.kind}/${metadata.namespace ?? ""}/${metadata.name}`;
}

export const cluster: fc.Arbitrary<Manifest[]> = fc
  .tuple(
    fc.array(namespace, { maxLength: 3 }),
    upTo(POD_COUNT, pod),
    policies,
    fc.array(clusterNode, { maxLength: 1 }),
    fc.oneof(
      { weight: 5, arbitrary: fc.constant([]) },
      domains.map((d) => [d]),
    ),
  )
  .map((parts) => distinct(parts.flat()));

/** One object of a cluster, as an update would bring it. */
export const change: fc.Arbitrary<Manifest> = fc.oneof(
  { weight: 4, arbitrary: fc.nat(POD_COUNT - 1).chain(pod) },
  { weight: 2, arbitrary: namespace },
  { weight: 4, arbitrary: fc.nat(4).chain(policy) },
  clusterNode,
  domains,
);
