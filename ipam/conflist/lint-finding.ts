/** What the parts of lint share. */
import type { JsonObject } from "../../shared/config/json-with-comments.ts";
import type { KernelReport } from "../../shared/kernel/features.ts";
import { MODE_NAMES, type ModeName } from "./modes.ts";
import { TERWAY_ENI_MODES } from "./plugins.ts";

export interface Finding {
  /** From 1. */
  readonly line: number;
  readonly column: number;
  readonly level: "error" | "warning";
  /** JSON pointer. */
  readonly at: string;
  /** What is wrong. */
  readonly message: string;
  /** What to do. */
  readonly remedy: string;
}

/** What only the node knows. What is left out is not checked. */
export interface NodeFacts {
  /** Of a plugin in the binary folders. */
  readonly binaryOf?: (type: string) => BinaryFact;
  readonly kernel?: KernelReport;
  /** Networks of the other files in the same folder. */
  readonly siblings?: readonly { readonly file: string; readonly name: string }[];
}

export type BinaryFact =
  /** `versions`: CNI versions that it says it speaks; undefined: it was not asked, or gave no answer. */
  | { readonly kind: "installed"; readonly versions: readonly string[] | undefined }
  | { readonly kind: "missing" | "not-executable"; readonly looked: string };

/** Of one plugin in the list. */
export interface Entry {
  readonly type: string;
  readonly conf: JsonObject;
  readonly at: string;
  readonly index: number;
}

/** Tells a finding, at the name or the value of a part. */
export type Say = (level: Finding["level"], at: string, message: string, remedy: string, on?: "name" | "value") => void;

/** Of a plugin: the name of a file in the binary folders. */
export const PLUGIN_TYPE = /^[A-Za-z0-9][A-Za-z0-9_.-]*$/;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);
export const quote = (value: unknown) => (value === undefined ? "missing" : JSON.stringify(value));

/** The mode that an interface plugin of ours is in. */
export function modeOf(type: string, conf: JsonObject): ModeName | undefined {
  if (type === "terway-ipvlan") return "eniip-ipvlan";
  if (type === "terway-trunk") return "trunk";
  if (type !== "terway-eni") return MODE_NAMES.find((m) => m === `standalone-ipam-${type}`);
  const { mode = "shared" } = conf;
  return typeof mode === "string" && Object.hasOwn(TERWAY_ENI_MODES, mode)
    ? TERWAY_ENI_MODES[mode as keyof typeof TERWAY_ENI_MODES]
    : undefined;
}
