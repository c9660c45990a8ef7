/** Where a rendered configuration goes: stdout, or a file that a runtime may be watching. */
import { extname } from "node:path";
import { type Command, Flags } from "@oclif/core";
import { WriteConfError, writeConf } from "./write-conf.ts";

export const OUT_FLAGS = {
  out: Flags.string({ description: "write to this file, at once as a whole; stdout unless given" }),
  force: Flags.boolean({ description: "replace what is there; it is kept as FILE.previous" }),
};

export function putOut(
  command: Command,
  text: string,
  flags: { readonly out?: string | undefined; readonly force: boolean },
): void {
  const { out, force } = flags;
  if (out === undefined) {
    command.log(text.trimEnd());
    return;
  }
  putFile(command, out, text, force);
  if (extname(out) !== ".conflist")
    command.logToStderr(
      `warning: runtimes take lists of plugins from files that end in .conflist only, not "${extname(out)}"`,
    );
}

/** @param newMode Of a file that was not there. */
export function putFile(command: Command, path: string, text: string, force: boolean, newMode?: number): void {
  try {
    command.logToStderr(`${path}: ${writeConf(path, text, force, newMode)}`);
  } catch (error) {
    if (!(error instanceof WriteConfError)) throw error;
    command.error(error.message, { exit: 2, suggestions: [error.remedy] });
  }
}
