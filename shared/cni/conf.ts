/** The network configuration on stdin (SPEC.md section 1, and section 4 for what GC adds). */
import { CniFailure, CODE } from "./failure.ts";
import { type CniVersion, isSupportedVersion, VERSIONS } from "./version.ts";

export interface AttachmentId {
  readonly containerId: string;
  readonly ifname: string;
}

/** What every plugin reads; plugin-specific keys are in `raw`. */
export interface NetConf {
  readonly cniVersion: CniVersion;
  readonly name: string;
  readonly type: string;
  /** The whole document. */
  readonly raw: Readonly<Record<string, unknown>>;
  readonly runtimeConfig: Readonly<Record<string, unknown>>;
  /** `args.cni` */
  readonly cniArgs: Readonly<Record<string, unknown>>;
  readonly prevResult: unknown;
  /** GC only; undefined when the runtime did not say. */
  readonly validAttachments: readonly AttachmentId[] | undefined;
}

function object(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

/** @throws {CniFailure} decode: not JSON or not an object. */
export function parseJsonObject(text: string, what: string): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CniFailure(
      CODE.decode,
      `${what} is not JSON: ${(error as Error).message}`,
      "check the conflist with a JSON parser",
      error,
    );
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CniFailure(CODE.decode, `${what} is not a JSON object`, "");
  }
  return value as Record<string, unknown>;
}

/** The version that the caller speaks; 0.1.0 when it does not say (section 1). Never throws: errors need it too. */
export function versionOf(raw: Readonly<Record<string, unknown>>): string {
  return typeof raw.cniVersion === "string" ? raw.cniVersion : "0.1.0";
}

/** @throws {CniFailure} incompatibleVersion, invalidConfig. */
export function parseNetConf(raw: Readonly<Record<string, unknown>>): NetConf {
  const cniVersion = versionOf(raw);
  if (!isSupportedVersion(cniVersion)) {
    throw new CniFailure(
      CODE.incompatibleVersion,
      `CNI version "${cniVersion}" is not supported`,
      `set cniVersion to one of ${VERSIONS.join(", ")}`,
    );
  }
  const { name, type } = raw;
  // Section 1: alphanumeric first, then also _ . and -
  if (typeof name !== "string" || !/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(name)) {
    throw new CniFailure(
      CODE.invalidConfig,
      `network name ${JSON.stringify(name)} is not valid`,
      "start with a letter or digit, go on with letters, digits, '.', '_' or '-'",
    );
  }
  return {
    cniVersion,
    name,
    type: typeof type === "string" ? type : "",
    raw,
    runtimeConfig: object(raw.runtimeConfig),
    cniArgs: object(object(raw.args).cni),
    prevResult: raw.prevResult,
    validAttachments: parseValidAttachments(raw),
  };
}

function parseValidAttachments(raw: Readonly<Record<string, unknown>>): readonly AttachmentId[] | undefined {
  // 1.1.0 names the key cni.dev/valid-attachments; libcni still sends the draft's name, cni.dev/attachments, beside it.
  const value = raw["cni.dev/valid-attachments"] ?? raw["cni.dev/attachments"];
  if (value === undefined || value === null) return undefined;
  const entries = Array.isArray(value) ? value.map(object) : undefined;
  if (!entries?.every((e) => typeof e.containerID === "string" && typeof e.ifname === "string")) {
    throw new CniFailure(
      CODE.invalidConfig,
      "cni.dev/valid-attachments is not a list of {containerID, ifname}",
      "nothing was collected: a list that cannot be read must not free anything",
    );
  }
  return entries.map((e) => ({ containerId: String(e.containerID), ifname: String(e.ifname) }));
}
