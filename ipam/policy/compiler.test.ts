import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { createEvaluator, type FlowEnd } from "../../shared/policy/evaluate.ts";
import { PolicyCompiler } from "./compiler.ts";
import { type ObjectEvent, objectKey } from "./objects.ts";
import { readManifests } from "./read/object.ts";
import { change, cluster, distinct, FLOW_PORTS, identity, type Manifest } from "./testkit/arbitrary.ts";
import { type OracleEnd, oracleAllows } from "./testkit/oracle.ts";

const RUNS = Number(process.env.PROPERTY_RUNS ?? 1500);

function events(manifests: readonly Manifest[]): ObjectEvent[] {
  return manifests.flatMap(readManifests).map(({ object, faults }) => {
    expect(faults).toEqual([]);
    if (object === undefined) throw new Error("the manifest was ignored");
    return { type: "set", object };
  });
}

function compile(manifests: readonly Manifest[]): CompiledPolicy {
  const compiler = new PolicyCompiler({ everyNode: true });
  compiler.apply(events(manifests));
  return compiler.compile();
}

interface End extends FlowEnd {
  readonly oracle: OracleEnd;
}

const OUTSIDE = ["10.0.0.7", "192.168.0.9", "192.168.1.200", "172.16.0.1", "fd00::7", "2001:db8::1"];

function ends(manifests: readonly Manifest[]): End[] {
  // biome-ignore lint/suspicious/noExplicitAny: raw manifests
  const pods = manifests.filter((m) => m.kind === "Pod") as any[];
  return [
    ...pods
      .filter((p) => !["Succeeded", "Failed"].includes(p.status.phase))
      .flatMap((p) =>
        p.status.podIPs.map(({ ip }: { ip: string }) => ({
          address: ip,
          pod: { namespace: p.metadata.namespace, name: p.metadata.name },
          oracle: { address: ip, pod: p },
        })),
      ),
    ...OUTSIDE.map((address) => ({ address, oracle: { address } })),
  ];
}

/** Every flow of a cluster whose prediction is not the oracle's. */
function disagreements(manifests: readonly Manifest[], compiled: CompiledPolicy): string[] {
  const evaluator = createEvaluator(compiled);
  const all = ends(manifests);
  const out: string[] = [];
  for (const from of all) {
    for (const to of all) {
      if (from === to || from.address.includes(":") !== to.address.includes(":")) continue;
      if (from.pod === undefined && to.pod === undefined) continue;
      for (const protocol of ["tcp", "udp", "sctp", "icmp"] as const) {
        for (const port of protocol === "icmp" ? [0] : FLOW_PORTS) {
          const predicted = evaluator.judge({ from, to, protocol, port });
          const meant = oracleAllows(manifests, { from: from.oracle, to: to.oracle, protocol, port });
          if (predicted.allowed !== meant)
            out.push(
              `${from.address} → ${to.address} ${protocol} ${port}: meant ${meant}, ${JSON.stringify(predicted)}`,
            );
        }
      }
    }
  }
  return out;
}

describe("the compiler", () => {
  it("means what the policies mean, in random clusters", { timeout: 300_000 }, () => {
    fc.assert(
      fc.property(cluster, (manifests) => {
        const compiled = compile(manifests);
        const wrong = disagreements(manifests, compiled);
        if (wrong.length > 0) throw new Error(wrong.slice(0, 3).join("\n"));
      }),
      { numRuns: RUNS },
    );
  });

  it("arrives at the same by updates as from nothing", { timeout: 300_000 }, () => {
    const step = fc.oneof(
      { weight: 4, arbitrary: change.map((manifest) => ({ set: manifest })) },
      fc.nat(30).map((n) => ({ remove: n })),
    );
    fc.assert(
      fc.property(cluster, fc.array(step, { minLength: 1, maxLength: 12 }), (start, steps) => {
        const compiler = new PolicyCompiler({ everyNode: true });
        let now = [...start];
        compiler.apply(events(now));
        compiler.compile();
        for (const s of steps) {
          if ("set" in s) {
            now = distinct([s.set, ...now]);
            compiler.apply(events([s.set]));
          } else if (now.length > 0) {
            const [gone] = now.splice(s.remove % now.length, 1);
            const { object } = readManifests(gone)[0] ?? {};
            if (object) compiler.apply([{ type: "delete", key: objectKey(object) }]);
          }
          const { revision: _, ...updated } = compiler.compile();
          const { revision: __, ...whole } = compile(now);
          expect(updated, now.map(identity).join(" ")).toEqual(whole);
        }
      }),
      { numRuns: Math.ceil(RUNS / 3) },
    );
  });
});
