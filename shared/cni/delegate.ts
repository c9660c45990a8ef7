/** Calling another plugin, as an interface plugin calls its IPAM plugin (SPEC.md section 4, "Delegated plugins"). */
import { X_OK } from "../sys/linux.ts";
import { decodeUtf8, encodeUtf8, type Sys } from "../sys/sys.ts";
import { parseJsonObject } from "./conf.ts";
import type { Verb } from "./environment.ts";
import { CniFailure, CODE } from "./failure.ts";
import { parseResult, type Result } from "./result.ts";
import type { CniVersion } from "./version.ts";

const MAX_OUTPUT_BYTES = 1 << 20;
const TIMEOUT_MS = 110_000; // a runtime gives up after two minutes

export interface DelegateCall {
  readonly verb: Verb;
  readonly type: string;
  readonly path: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: string;
  readonly cniVersion: CniVersion;
}

/** The first executable of that name in CNI_PATH. @throws {CniFailure} invalidConfig, invalidEnvironment. */
export function findPlugin(sys: Pick<Sys, "access">, type: string, path: readonly string[]): string {
  if (type === "" || type.includes("/") || type === "." || type === "..") {
    throw new CniFailure(
      CODE.invalidConfig,
      `plugin type ${JSON.stringify(type)} is not a file name`,
      "name the executable without its folder",
    );
  }
  const folder = path.find((p) => sys.access(`${p}/${type}`, X_OK));
  if (folder === undefined) {
    throw new CniFailure(
      CODE.invalidEnvironment,
      `plugin "${type}" is not in CNI_PATH ${path.join(":")}`,
      "install it there, or extend the runtime's CNI binary folder",
    );
  }
  return `${folder}/${type}`;
}

/**
 * Runs a delegate with our environment and the verb given.
 *
 * @returns Its result for ADD, undefined for other verbs.
 * @throws {CniFailure} The delegate's own error, code kept; or io when it said nothing usable.
 */
export function delegate(sys: Sys, call: DelegateCall): Result | undefined {
  const path = findPlugin(sys, call.type, call.path);
  const env = Object.entries({ ...call.env, CNI_COMMAND: call.verb }).map(([k, v]) => `${k}=${v}`);
  const done = sys.spawn(path, {
    argv: [path],
    env,
    stdin: encodeUtf8(call.stdin),
    maxOutputBytes: MAX_OUTPUT_BYTES,
    timeoutMs: TIMEOUT_MS,
  });
  const stdout = decodeUtf8(done.stdout);
  if (done.status !== 0 || done.timedOut)
    throw delegateFailure(call.type, call.verb, done.status, done.timedOut, stdout, decodeUtf8(done.stderr));
  if (call.verb !== "ADD") return undefined;
  return parseResult(parseJsonObject(stdout, `the result of ${call.type}`), call.cniVersion);
}

function delegateFailure(
  type: string,
  verb: Verb,
  status: number,
  timedOut: boolean,
  stdout: string,
  stderr: string,
): CniFailure {
  if (timedOut)
    return new CniFailure(
      CODE.io,
      `${type} ${verb} did not end within ${TIMEOUT_MS / 1000} s and was killed`,
      stderr.slice(0, 300),
    );
  try {
    const error = parseJsonObject(stdout, "error");
    if (typeof error.code === "number" && typeof error.msg === "string") {
      return new CniFailure(error.code, error.msg, typeof error.details === "string" ? error.details : "");
    }
  } catch {
    // Not CNI error JSON: said below with what there is.
  }
  return new CniFailure(
    CODE.io,
    `${type} ${verb} ended with status ${status} and printed no CNI error`,
    (stdout + stderr).slice(0, 300),
  );
}
