/** From environment and stdin to a typed call, and from its outcome to stdout: what every plugin's main does. */
import { type NetConf, parseJsonObject, parseNetConf, versionOf } from "./conf.ts";
import { type CniEnvironment, parseEnvironment, type Verb } from "./environment.ts";
import { CniFailure, CODE, failureJson } from "./failure.ts";
import { parseResult, type Result, resultJson } from "./result.ts";
import { type CniVersion, isAtLeast, VERSIONS } from "./version.ts";

export interface CniCall {
  readonly env: CniEnvironment;
  readonly conf: NetConf;
  /** The text of stdin, for a delegate. */
  readonly stdin: string;
  /** Parsed `prevResult`. DEL and GC get undefined for one that cannot be read: they must work without. */
  readonly prevResult: Result | undefined;
}

export interface Handlers {
  add(call: CniCall): Result;
  del(call: CniCall): void;
  check(call: CniCall): void;
  gc(call: CniCall): void;
  status(call: CniCall): void;
}

export interface PluginIo {
  readonly env: Readonly<Record<string, string>>;
  /** All of stdin. @throws when it is longer than the plugin accepts. */
  readStdin(): string;
  writeStdout(text: string): void;
}

/** Verbs that older versions of the spec do not have. */
const SINCE: Readonly<Partial<Record<Verb, CniVersion>>> = { CHECK: "0.4.0", GC: "1.1.0", STATUS: "1.1.0" };

/**
 * Runs one call. Handlers throw {@link CniFailure} for what the world can do to them.
 *
 * @returns The exit status: 0, or 1 after printing an error.
 */
export function runPlugin(io: PluginIo, handlers: Handlers): number {
  let cniVersion: string = VERSIONS[VERSIONS.length - 1] ?? "1.1.0";
  try {
    const env = parseEnvironment(io.env);
    const stdin = io.readStdin();
    const raw = parseJsonObject(
      stdin === "" && env.verb === "VERSION" ? "{}" : stdin,
      "the network configuration on stdin",
    );
    cniVersion = versionOf(raw);
    if (env.verb === "VERSION") {
      io.writeStdout(JSON.stringify({ cniVersion: VERSIONS[VERSIONS.length - 1], supportedVersions: VERSIONS }));
      return 0;
    }
    const conf = parseNetConf(raw);
    const since = SINCE[env.verb];
    if (since !== undefined && !isAtLeast(conf.cniVersion, since)) {
      throw new CniFailure(
        CODE.incompatibleVersion,
        `${env.verb} does not exist in CNI ${conf.cniVersion}`,
        `set cniVersion to ${since} or later`,
      );
    }
    const output = dispatch({ env, conf, stdin, prevResult: prevResultFor(env.verb, conf) }, handlers);
    if (output !== undefined) io.writeStdout(output);
    return 0;
  } catch (error) {
    io.writeStdout(failureJson(asFailure(error), cniVersion));
    return 1;
  }
}

/** An error that nobody expected is a bug of ours: it is said, not hidden. */
export function asFailure(error: unknown): CniFailure {
  if (error instanceof CniFailure) return error;
  const message = error instanceof Error ? error.message : String(error);
  const at =
    error instanceof Error ? ((error.stack ?? "").split("\n").find((line) => line.includes("at ")) ?? "").trim() : "";
  return new CniFailure(
    CODE.internal,
    `unexpected error: ${message}`,
    `please report it with the plugin's log ${at}`.trim(),
    error,
  );
}

function prevResultFor(verb: Verb, conf: NetConf): Result | undefined {
  if (conf.prevResult === undefined || conf.prevResult === null) return undefined;
  try {
    return parseResult(conf.prevResult, conf.cniVersion);
  } catch (error) {
    if (verb === "DEL" || verb === "GC") return undefined;
    throw error;
  }
}

function dispatch(call: CniCall, handlers: Handlers): string | undefined {
  switch (call.env.verb) {
    case "ADD":
      return resultJson(handlers.add(call), call.conf.cniVersion);
    case "DEL":
      handlers.del(call);
      return undefined;
    case "CHECK":
      handlers.check(call);
      return undefined;
    case "GC":
      handlers.gc(call);
      return undefined;
    case "STATUS":
      handlers.status(call);
      return undefined;
    case "VERSION":
      return undefined;
    default:
      return call.env.verb satisfies never;
  }
}
