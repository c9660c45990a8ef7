/** The modes that lab and demo take, and whether this kernel can do them. */
import { MODES } from "../../ipam/conflist/modes.ts";
import { IP_STACKS, type IpStack } from "../../shared/config/ip-stack.ts";
import { tryFeature } from "../kernel/features.ts";
import type { LabMode } from "./world.ts";

export const LAB_MODES: readonly LabMode[] = ["eniip-veth", "eniip-ipvlan", "eni-exclusive", "trunk", "vpc"];

/** @throws when there is no such stack. */
export function labStack(name: string): IpStack {
  const stack = IP_STACKS.find((s) => s === name);
  if (stack === undefined) throw new Error(`--ip-stack ${name} is not known: use ${IP_STACKS.join(", ")}`);
  return stack;
}

/** @throws when there is no such mode, or this kernel cannot do it: with the reason and the way out. */
export function labMode(name: string): LabMode {
  const mode = LAB_MODES.find((m) => m === name);
  if (mode === undefined) throw new Error(`--mode ${name} is not known: use ${LAB_MODES.join(", ")}`);
  const lacks = MODES[mode].needs.filter((feature) => !tryFeature(feature).there);
  if (lacks.length > 0)
    throw new Error(
      `--mode ${mode} needs ${lacks.join(" and ")}, which this kernel lacks: run it in the virtual machine, as in npm run vm -- node test/demo/main.ts --mode ${mode}`,
    );
  return mode;
}
