/** What the plugins of a chain must be to each other, and to the kernel. */
import { KERNEL_FEATURES, type KernelReport, lacking, remedyFor } from "../../shared/kernel/features.ts";
import { type Entry, modeOf, type Say } from "./lint-finding.ts";
import { MODES, PART_NEEDS, type Part } from "./modes.ts";
import { PLUGINS } from "./plugins.ts";

export function lintOrder(chain: readonly Entry[], say: Say): void {
  const roleOf = (e: Entry) => PLUGINS[e.type]?.role;
  const first = chain[0];
  if (first !== undefined && first.index === 0 && roleOf(first) === "chained")
    say(
      "error",
      first.at,
      `${first.type} comes first, but makes no interface for the others to work on`,
      "put terway-eni, terway-ipvlan, terway-trunk or another interface plugin before it",
    );
  const seen = new Map<string, Entry>();
  const owners = new Map<string, Entry>();
  for (const entry of chain) {
    const { type, at, index } = entry;
    if (index > 0 && roleOf(entry) === "interface")
      say(
        "error",
        at,
        `${type} makes the pod's interface and comes as number ${index + 1}`,
        "put it first, and only one of its kind",
      );
    if (seen.has(type)) say("error", at, `${type} is in the chain twice`, "keep one of the two");
    seen.set(type, seen.get(type) ?? entry);
    const claim = PLUGINS[type]?.claims;
    const owner = claim === undefined ? undefined : owners.get(claim);
    if (claim !== undefined && owner === undefined) owners.set(claim, entry);
    if (owner !== undefined && owner.type !== type)
      say(
        "error",
        at,
        claim === "shaping"
          ? `${owner.type} and ${type} both shape the pod's interface: the second undoes the first`
          : `${owner.type} and ${type} both enforce NetworkPolicy: every packet would be judged twice`,
        "keep one of the two",
      );
  }
  const [policy, portmap, shaper, cilium] = [
    seen.get("terway-policy"),
    seen.get("portmap"),
    owners.get("shaping"),
    seen.get("cilium-cni"),
  ];
  if (policy && portmap && policy.index > portmap.index)
    say(
      "warning",
      policy.at,
      "terway-policy comes after portmap: a host port leads to the pod before its policy holds",
      "put terway-policy before portmap",
    );
  if (shaper && portmap && shaper.index < portmap.index)
    say(
      "warning",
      shaper.at,
      `${shaper.type} comes before portmap`,
      "put it after portmap, as the documented chain has it",
    );
  if (cilium && cilium !== chain.at(-1))
    say(
      "warning",
      cilium.at,
      "cilium-cni is not the last of the chain",
      "put it last: it takes over the interface as the others left it",
    );
  const mode = first && modeOf(first.type, first.conf);
  if (first === undefined || mode === undefined) return;
  if (cilium && MODES[mode].path === "uplink")
    say(
      "error",
      cilium.at,
      `Cilium chains to veths only, and mode ${mode} gives pods another interface`,
      "use the conflist of mode eniip-cilium",
    );
  if (portmap && MODES[mode].path === "uplink" && portmap.conf.masqAll !== true)
    say(
      "warning",
      portmap.at,
      `in mode ${mode} a pod's answers to clients of a host port leave by its own interface and are lost`,
      "add \"masqAll\": true to portmap (1.5.0 or later): the node's address then stands for the client's",
    );
}

export function lintKernel(chain: readonly Entry[], kernel: KernelReport, say: Say): void {
  const parts: Readonly<Record<string, Part>> = { "terway-policy": "networkPolicy", "terway-bandwidth": "bandwidth" };
  for (const { type, conf, at } of chain) {
    const mode = modeOf(type, conf);
    const part = parts[type];
    const needs = mode !== undefined ? MODES[mode].needs : part !== undefined ? PART_NEEDS[part] : [];
    for (const feature of lacking(kernel, needs))
      say(
        "error",
        `${at}/type`,
        `${type} needs ${KERNEL_FEATURES[feature].what}, which this kernel lacks`,
        mode === "eniip-ipvlan" && feature === "ipvlan"
          ? `use the conflist of mode eniip-veth; or ${remedyFor(feature)}`
          : remedyFor(feature),
        "value",
      );
  }
}
