/** Why a CNI call failed, and how that is said to the runtime (SPEC.md 1.1.0, section 5 "Error"). */

/** Codes of the spec; 100 and up are ours. */
export const CODE = {
  incompatibleVersion: 1,
  unsupportedField: 2,
  unknownContainer: 3,
  invalidEnvironment: 4,
  io: 5,
  decode: 6,
  invalidConfig: 7,
  tryAgainLater: 11,
  /** STATUS: ADD would fail. */
  notAvailable: 50,
  /** STATUS: existing containers may have limited connectivity. */
  limitedConnectivity: 51,
  /** The kernel refused something. */
  kernel: 100,
  /** The IPAM store refused something. */
  store: 101,
  /** CHECK found the datapath changed. */
  changed: 102,
  /** A bug of ours. */
  internal: 199,
} as const;

/**
 * The failure of one CNI call. `msg` names the thing and the cause in one line; `details` says what to do about it.
 * Thrown by handlers and turned into JSON in one place (`runPlugin`).
 */
export class CniFailure extends Error {
  readonly code: number;
  readonly details: string;

  constructor(code: number, msg: string, details = "", cause?: unknown) {
    super(msg, cause === undefined ? undefined : { cause });
    this.name = "CniFailure";
    this.code = code;
    this.details = details;
  }
}

/** Error JSON as the spec wants it on stdout. */
export function failureJson(failure: CniFailure, cniVersion: string): string {
  const { code, message, details } = failure;
  return JSON.stringify({ cniVersion, code, msg: message, ...(details === "" ? {} : { details }) });
}
