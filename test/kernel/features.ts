/**
 * What a test asks of the kernel. The runner (test/run.ts) puts each case where the kernel can do it: on the host, or
 * else in the virtual machine.
 *
 *   describe("terway-ipvlan", inMode("eniip-ipvlan"), () => …)
 *   it("shapes with fq", { ...needs("fq", "netem"), timeout: patient(60_000) }, () => …)
 */
import { spawnSync } from "node:child_process";
import { MODES, type ModeName } from "../../ipam/conflist/modes.ts";
import { KERNEL_FEATURES, type KernelFeature, type KernelReport, type Verdict } from "../../shared/kernel/features.ts";
import { probeKernel } from "../../shared/kernel/probe.ts";
import { nodeSys } from "../../shared/sys/node.ts";

/** Features that only tests use: what makes one in an empty network namespace. */
const TRIALS = {
  dummy: "ip link add t0 type dummy",
  vrf: "ip link add t0 type vrf table 10",
  netem: "ip link add t0 type veth peer name t1 && tc qdisc add dev t0 root netem delay 1ms",
  flower:
    "ip link add t0 type veth peer name t1 && tc qdisc add dev t0 clsact && " +
    "tc filter add dev t0 ingress protocol ip flower dst_ip 192.0.2.1 action drop",
  sctp: "test -e /proc/net/sctp",
} as const;

export type Feature = KernelFeature | keyof typeof TRIALS;

/** Goes with a case to the reporter. */
export interface Placement {
  readonly mode?: ModeName;
  readonly needs: readonly Feature[];
  /** Those of `needs` that the kernel at hand has not, with its words. */
  readonly lacks: readonly { readonly feature: Feature; readonly refusal: string }[];
}

declare module "vitest" {
  interface TaskMeta {
    placement?: Placement;
  }
}

export interface PlacementOptions {
  readonly skip: boolean;
  readonly meta: { readonly placement: Placement };
}

let report: KernelReport | undefined;
const tried = new Map<keyof typeof TRIALS, Verdict>();

function tryOut(feature: keyof typeof TRIALS): Verdict {
  const known = tried.get(feature);
  if (known !== undefined) return known;
  const done = spawnSync("unshare", ["--net", "sh", "-ec", TRIALS[feature]], { encoding: "utf8" });
  if (done.error) throw new Error(`unshare cannot be started: ${done.error.message}: run .ci/setup net`);
  const refusal = `${TRIALS[feature]}: ${done.stderr.trim() || `status ${done.status}`}`;
  const verdict: Verdict = done.status === 0 ? { there: true } : { there: false, refusal };
  tried.set(feature, verdict);
  return verdict;
}

/** By doing it, in a network namespace of its own. */
export function tryFeature(feature: Feature): Verdict {
  if (!(feature in KERNEL_FEATURES)) return tryOut(feature as keyof typeof TRIALS);
  report ??= probeKernel(nodeSys);
  return report[feature as KernelFeature];
}

function place(mode: ModeName | undefined, features: readonly Feature[]): PlacementOptions {
  const lacks = features.flatMap((feature) => {
    const verdict = tryFeature(feature);
    return verdict.there ? [] : [{ feature, refusal: verdict.refusal }];
  });
  const placement = { ...(mode === undefined ? {} : { mode }), needs: features, lacks };
  return { skip: lacks.length > 0, meta: { placement } };
}

/** Options of a case, or of a describe, that takes these features. */
export function needs(...features: readonly Feature[]): PlacementOptions {
  return place(undefined, features);
}

/** Options of a case, or of a describe, about a mode: with the features that the mode takes, and more. */
export function inMode(mode: ModeName, ...more: readonly Feature[]): PlacementOptions {
  return place(mode, [...MODES[mode].needs, ...more]);
}
