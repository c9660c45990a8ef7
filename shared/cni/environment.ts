/** The CNI_* variables (SPEC.md section 2, "Parameters"). */
import { CniFailure, CODE } from "./failure.ts";

export const VERBS = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] as const;
export type Verb = (typeof VERBS)[number];

export interface CniEnvironment {
  readonly verb: Verb;
  /** Empty for GC, STATUS and VERSION. */
  readonly containerId: string;
  /** Path of the network namespace; may be empty for DEL. */
  readonly netns: string;
  readonly ifname: string;
  /** CNI_ARGS, e.g. K8S_POD_NAME. */
  readonly args: Readonly<Record<string, string>>;
  /** Folders of CNI_PATH. */
  readonly path: readonly string[];
}

const NEEDED: Readonly<Record<Verb, readonly string[]>> = {
  ADD: ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
  // NB: no CNI_NETNS: a runtime that lost the namespace still wants the address back.
  DEL: ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
  CHECK: ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
  GC: ["CNI_PATH"],
  STATUS: ["CNI_PATH"],
  VERSION: [],
};

function invalid(variable: string, value: string, rule: string): CniFailure {
  return new CniFailure(CODE.invalidEnvironment, `${variable}=${JSON.stringify(value)} is not valid`, rule);
}

/** @throws {CniFailure} invalidEnvironment. */
export function parseEnvironment(env: Readonly<Record<string, string>>): CniEnvironment {
  const command = env.CNI_COMMAND ?? "";
  const verb = VERBS.find((v) => v === command);
  if (verb === undefined) {
    throw command === ""
      ? new CniFailure(
          CODE.invalidEnvironment,
          "CNI_COMMAND is not set",
          "this is a CNI plugin: a container runtime calls it; to try it by hand set CNI_COMMAND=VERSION",
        )
      : invalid("CNI_COMMAND", command, `use one of ${VERBS.join(", ")}`);
  }
  const missing = NEEDED[verb].filter((name) => (env[name] ?? "") === "");
  if (missing.length > 0) {
    throw new CniFailure(
      CODE.invalidEnvironment,
      `${missing.join(", ")} not set`,
      `${verb} needs ${NEEDED[verb].join(", ")}`,
    );
  }
  const containerId = env.CNI_CONTAINERID ?? "";
  const ifname = env.CNI_IFNAME ?? "";
  if (verb === "ADD" || verb === "DEL" || verb === "CHECK") {
    if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(containerId)) {
      throw invalid(
        "CNI_CONTAINERID",
        containerId,
        "start with a letter or digit, go on with letters, digits, '.', '_' or '-'",
      );
    }
    if (!isInterfaceName(ifname))
      throw invalid("CNI_IFNAME", ifname, "1 to 15 characters, not '.' or '..', without '/', ':' or white space");
  }
  return {
    verb,
    containerId,
    netns: env.CNI_NETNS ?? "",
    ifname,
    args: parseArgs(env.CNI_ARGS ?? ""),
    path: (env.CNI_PATH ?? "").split(":").filter((folder) => folder !== ""),
  };
}

/** The kernel's rule (dev_valid_name() in net/core/dev.c). */
export function isInterfaceName(name: string): boolean {
  return name.length > 0 && name.length <= 15 && name !== "." && name !== ".." && !/[/:\s]/.test(name);
}

/** `K=V;K=V`. @throws {CniFailure} invalidEnvironment */
function parseArgs(text: string): Record<string, string> {
  const args: Record<string, string> = {};
  for (const pair of text.split(";")) {
    if (pair === "") continue;
    const at = pair.indexOf("=");
    if (at <= 0) throw invalid("CNI_ARGS", text, "use KEY=VALUE pairs with ';' between them");
    args[pair.slice(0, at)] = pair.slice(at + 1);
  }
  return args;
}
