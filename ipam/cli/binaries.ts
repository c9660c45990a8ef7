/** Plugins in the CNI binary folders: whether they are there, can be run, and what they speak. */
import { spawnSync } from "node:child_process";
import { accessSync, constants, statSync } from "node:fs";
import { join } from "node:path";
import type { BinaryFact } from "../conflist/lint-finding.ts";

const ANSWER_MS = 5000;

/** Asks each plugin once. The first folder that has it counts, as for a runtime. */
export function binariesIn(folders: readonly string[]): (type: string) => BinaryFact {
  const known = new Map<string, BinaryFact>();
  return (type) => {
    const fact = known.get(type) ?? look(type, folders);
    known.set(type, fact);
    return fact;
  };
}

function look(type: string, folders: readonly string[]): BinaryFact {
  for (const folder of folders) {
    const path = join(folder, type);
    if (!statSync(path, { throwIfNoEntry: false })?.isFile()) continue;
    try {
      accessSync(path, constants.X_OK);
    } catch {
      return { kind: "not-executable", looked: path };
    }
    return { kind: "installed", versions: askVersions(path) };
  }
  return { kind: "missing", looked: folders.join(", ") };
}

/** CNI's VERSION: changes nothing. undefined: no answer that can be understood. */
function askVersions(path: string): readonly string[] | undefined {
  const asked = spawnSync(path, [], {
    input: '{"cniVersion":"1.0.0"}',
    // Reference plugins want the other variables to be there too.
    env: { CNI_COMMAND: "VERSION", CNI_CONTAINERID: "x", CNI_NETNS: "x", CNI_IFNAME: "x", CNI_PATH: "x", CNI_ARGS: "" },
    encoding: "utf8",
    timeout: ANSWER_MS,
  });
  try {
    const { supportedVersions } = JSON.parse(asked.stdout) as { supportedVersions?: unknown };
    return Array.isArray(supportedVersions) ? supportedVersions.map(String) : undefined;
  } catch {
    return undefined;
  }
}
