/** What a MultiENIConfig means on one node. Pure. */
import type { NodeEni, NodeEnis } from "../../shared/datapath/node-enis.ts";
import type { EniEntry, MultiEniConfig } from "../policy/objects.ts";

/** Entries that this node makes or finds an ENI for: those of its zone, and not its primary one. */
export function entriesHere(config: MultiEniConfig | undefined, zone: string): EniEntry[] {
  return (config?.enis ?? []).filter((e) => !e.primary && (e.zone === undefined || e.zone === zone));
}

/** Addresses that only the primary ENI reaches: link-local ones, and the cloud's own services. */
const ALWAYS_MAIN = ["169.254.0.0/16", "100.64.0.0/10"];

export interface NodeInputs {
  readonly config: MultiEniConfig | undefined;
  readonly nodeIp: string;
  readonly serviceCidrs: readonly string[];
  /** Those that are attached, by entry. */
  readonly enis: readonly NodeEni[];
}

/** @returns The plan, and what of the configuration cannot be followed here, one line each. */
export function planNodeEnis({ config, nodeIp, serviceCidrs, enis }: NodeInputs): {
  readonly plan: NodeEnis;
  readonly warnings: readonly string[];
} {
  const warnings: string[] = [];
  /** undefined: of another zone, or not attached. */
  const viaOf = (name: string): string | null | undefined =>
    config?.enis.find((e) => e.name === name)?.primary ? null : enis.find((e) => e.name === name)?.id;
  const chosen = new Map<string, { readonly eni: string; readonly priority: number }>();
  for (const { destination, eni, priority } of config?.routes ?? []) {
    const before = chosen.get(destination);
    if (before?.priority === priority && before.eni !== eni)
      warnings.push(
        `${destination} is routed to ${before.eni} and ${eni} with priority ${priority}: ${before.eni} has it`,
      );
    if (before === undefined || priority < before.priority) chosen.set(destination, { eni, priority });
  }
  const fallback = config?.defaultEni === undefined ? null : viaOf(config.defaultEni);
  if (fallback !== null && !chosen.has("0.0.0.0/0") && config?.defaultEni !== undefined)
    chosen.set("0.0.0.0/0", { eni: config.defaultEni, priority: 0 });
  const routes = [...chosen].flatMap(([destination, { eni }]) => {
    const via = viaOf(eni);
    return via === undefined ? [] : [{ destination, via }];
  });
  return { plan: { nodeIp, enis, routes, excluded: [...serviceCidrs, ...ALWAYS_MAIN] }, warnings };
}
