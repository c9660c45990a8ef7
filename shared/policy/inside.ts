/**
 * Policy in a pod's own namespace, where its packets pass no hook of the node: pods with an uplink. The same profile chains
 * as on the node, under the namespace's input and output; what goes by the node's stack is judged there.
 */
import type { PodLink } from "../datapath/pod-link.ts";
import type { CompiledPolicy, PodPolicy, Profile } from "./compiled.ts";
import type { TableContent } from "./content.ts";
import type { Posture } from "./pod-verdicts.ts";
import { renderInside } from "./render.ts";

/** What a pod may do whose policy is not known, where unknown pods may do nothing. */
const DENY: readonly Profile[] = (["ingress", "egress"] as const).map((direction) => ({
  id: `unknown-${direction}`,
  direction,
  admin: [],
  policies: [],
  baseline: [],
}));

export interface InsideInputs {
  readonly compiled: Pick<CompiledPolicy, "sets" | "endpointSets" | "profiles">;
  /** undefined: not known. */
  readonly policy: Pick<PodPolicy, "ingress" | "egress"> | undefined;
  readonly posture: Posture;
  readonly link: PodLink;
}

/** The table of the pod's namespace. */
export function insideContent({ compiled, policy, posture, link }: InsideInputs): TableContent {
  const places = {
    nodes: link.nodeIps.map((ip) => `${ip}/${ip.includes(":") ? 128 : 32}`),
    services: link.uplink?.viaNode ?? [],
  };
  if (policy === undefined && posture === "deny") {
    const [ingress, egress] = DENY.map((p) => p.id) as [string, string];
    return renderInside({
      ...places,
      compiled: { sets: [], endpointSets: [], profiles: DENY },
      pod: { ingress, egress },
    });
  }
  return renderInside({ ...places, compiled, pod: policy ?? {} });
}
