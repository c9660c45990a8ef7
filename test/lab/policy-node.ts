/** Three namespaces of three pods on a veth node, under whatever manifests say: predicted by the oracle, tried with packets. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PolicyCompiler } from "../../ipam/policy/compiler.ts";
import { createEnforcer, type Enforcer } from "../../ipam/policy/enforcer.ts";
import { objectKey } from "../../ipam/policy/objects.ts";
import { readManifests } from "../../ipam/policy/read/object.ts";
import { type OracleEnd, oracleAllows } from "../../ipam/policy/testkit/oracle.ts";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { putPolicyAddress } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { inNetns } from "../runtime/exec.ts";
import { ALLOWED_MS, DENIED_MS } from "./pod-process.ts";
import { type SctpProcess, startSctp } from "./sctp.ts";
import { ping } from "./traffic.ts";
import { createVethNode, type VethNode, type VethPod } from "./veth-node.ts";

export type Manifest = Readonly<Record<string, unknown>>;

export type MatrixProtocol = "tcp" | "udp" | "sctp" | "icmp";
export const MATRIX_PORTS = [80, 81] as const;
const NAMESPACES = ["x", "y", "z"];
const NAMES = ["a", "b", "c"];

/** Pod `xa` is pod a of namespace x: labels pod=a; namespaces have ns=x. Each serves TCP, UDP and SCTP 80 and 81. */
export interface PolicyNode {
  readonly node: VethNode;
  readonly store: Store;
  readonly enforcer: Enforcer;
  /** Brings the kernel to these manifests, beside those of the pods and namespaces. */
  apply(manifests: readonly Manifest[], pods?: PodTraits): void;
  /** Flows that do not do what the oracle says; each of them was tried. */
  wrong(
    protocols?: readonly MatrixProtocol[],
  ): Promise<{ readonly tried: number; readonly allowed: number; readonly wrong: string[] }>;
  close(): Promise<void>;
}

/** More labels and named ports of some pods, by `xa`. */
export type PodTraits = Readonly<
  Record<string, { readonly labels?: Readonly<Record<string, string>>; readonly ports?: readonly Manifest[] }>
>;

function podManifests(node: VethNode, traits: PodTraits): Manifest[] {
  return node.pods.map((p) => ({
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: p.name.charAt(1),
      namespace: p.name.charAt(0),
      labels: { pod: p.name.charAt(1), ...traits[p.name]?.labels },
    },
    spec: { containers: [{ name: "main", ports: traits[p.name]?.ports ?? [] }] },
    status: { phase: "Running", podIPs: [{ ip: p.ip4 }, { ip: p.ip6 }] },
  }));
}

/** As terway-policy leaves it: the addresses of the node's pods are known, what holds for them is not. */
export function attachAll(
  { db }: Store,
  { pods }: VethNode,
  nameOf: (pod: VethPod) => { readonly namespace: string; readonly name: string },
): void {
  const rest = { network: "net", ifname: "eth0", posture: "deny", sinceMs: 0 } as const;
  inTransaction(db, () => {
    for (const pod of pods)
      for (const address of [pod.ip4, pod.ip6])
        putPolicyAddress(db, { ...rest, ...nameOf(pod), containerId: pod.name, address });
  });
}

/** TCP port 80 of pod default/web, and nothing else of it. */
export const ONLY_80: CompiledPolicy = {
  revision: 1,
  sets: [],
  endpointSets: [],
  profiles: [
    {
      id: "only-80",
      direction: "ingress",
      admin: [],
      policies: [
        {
          verdict: "accept",
          ports: [{ protocol: "tcp", first: 80, last: 80 }],
          origin: "NetworkPolicy default/web ingress[0]",
        },
      ],
      baseline: [],
    },
  ],
  pods: [{ namespace: "default", name: "web", ingress: "only-80" }],
};

export async function createPolicyNode(prefix: string): Promise<PolicyNode> {
  const names = NAMESPACES.flatMap((ns) => NAMES.map((name) => `${ns}${name}`));
  const node = await createVethNode(prefix, names, [...MATRIX_PORTS]);
  const sctp = new Map<string, SctpProcess>();
  for (const p of node.pods) sctp.set(p.name, await startSctp(p.ns.path, MATRIX_PORTS));
  const dir = mkdtempSync(join(tmpdir(), "terway-matrix-"));
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(dir, "ipam.db"));
  const nft: NftSocket = inNetns(node.ns.path, () => openNft(nodeSys));
  attachAll(store, node, (p) => ({ namespace: p.name.charAt(0), name: p.name.charAt(1) }));
  const enforcer = createEnforcer(store, nft);
  const compiler = new PolicyCompiler({ nodeName: "here" });
  compiler.setAttached(
    node.pods.map((p) => ({ namespace: p.name.charAt(0), name: p.name.charAt(1), addresses: [p.ip4, p.ip6] })),
  );
  const namespaces = NAMESPACES.map((name) => ({
    apiVersion: "v1",
    kind: "Namespace",
    metadata: { name, labels: { ns: name } },
  }));
  let cluster: readonly Manifest[] = [];

  function apply(manifests: readonly Manifest[], traits: PodTraits = {}): void {
    // biome-ignore lint/suspicious/noExplicitAny: raw manifests
    const given = manifests as any[];
    const named = new Set(given.filter((m) => m.kind === "Namespace").map((m) => m.metadata.name));
    cluster = [...namespaces.filter((n) => !named.has(n.metadata.name)), ...podManifests(node, traits), ...manifests];
    const objects = cluster.flatMap(readManifests).map(({ object, faults }) => {
      if (object === undefined || faults.length > 0)
        throw new Error(faults.map((f) => `${f.path}: ${f.message}`).join("; "));
      return object;
    });
    const keys = new Set(objects.map(objectKey));
    compiler.apply([
      ...[...compiler.objects.keys()].filter((key) => !keys.has(key)).map((key) => ({ type: "delete" as const, key })),
      ...objects.map((object) => ({ type: "set" as const, object })),
    ]);
    enforcer.bring(compiler.compile());
    // A port that comes again must not find the connection of the case before.
    const addresses = node.pods.flatMap((p) => [p.ip4, p.ip6]).map(parseIp);
    nft.apply(addresses.flatMap((ip) => [deleteConntrack(ip, "orig"), deleteConntrack(ip, "reply")]));
  }

  async function wrong(protocols: readonly MatrixProtocol[] = ["tcp", "udp", "sctp"]) {
    // biome-ignore lint/suspicious/noExplicitAny: raw manifests
    const pods = cluster.filter((m) => m.kind === "Pod") as any[];
    const endOf = (p: VethPod, address: string): OracleEnd => ({
      address,
      pod: pods.find((m) => m.metadata.namespace === p.name.charAt(0) && m.metadata.name === p.name.charAt(1)),
    });
    const tries = node.pods.flatMap((from) =>
      node.pods
        .filter((to) => to !== from)
        .flatMap((to) =>
          (["ip4", "ip6"] as const).flatMap((family) =>
            protocols.flatMap((protocol) =>
              (protocol === "icmp" ? [0] : MATRIX_PORTS).map((port) => ({ from, to, family, protocol, port })),
            ),
          ),
        ),
    );
    const meant = tries.map(({ from, to, family, protocol, port }) =>
      oracleAllows(cluster, { from: endOf(from, from[family]), to: endOf(to, to[family]), protocol, port }),
    );
    const seen = await Promise.all(
      tries.map(({ from, to, family, protocol, port }, i) => {
        const waitMs = meant[i] ? ALLOWED_MS : DENIED_MS;
        if (protocol === "icmp") return ping(from.ns.path, to[family], waitMs / 1000);
        if (protocol === "sctp") return sctp.get(from.name)?.probe(to[family], port, waitMs);
        return from.process.probe(protocol, to[family], port, waitMs);
      }),
    );
    return {
      tried: tries.length,
      allowed: meant.filter(Boolean).length,
      wrong: tries.flatMap(({ from, to, family, protocol, port }, i) =>
        seen[i] === meant[i]
          ? []
          : [
              `${from.name} → ${to.name} ${family} ${protocol} ${port}: ${meant[i] ? "was not let through" : "was let through"}`,
            ],
      ),
    };
  }

  return {
    node,
    store,
    enforcer,
    apply,
    wrong,
    async close() {
      nft.close();
      store.db.close();
      for (const process of sctp.values()) await process.close();
      await node.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
