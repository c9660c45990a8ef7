import { readFileSync, realpathSync } from "node:fs";
import { basename, dirname, extname } from "node:path";
import { Args, Flags } from "@oclif/core";
import { lintConflist } from "../../../conflist/lint.ts";
import type { Finding, NodeFacts } from "../../../conflist/lint-finding.ts";
import { BaseCommand } from "../../base-command.ts";
import { binariesIn } from "../../binaries.ts";
import { readConfFolder, tryKernel } from "../../node-check/gather.ts";

export default class ConflistLint extends BaseCommand {
  static override description =
    "Check a conflist: form, order, unknown keys and values, capabilities; and on a node missing binaries, versions, kernel features, names. Exit 0: good or warnings; 1: errors (with --strict warnings too); 2: it cannot be read.";
  static override examples = [
    "<%= config.bin %> conflist lint /etc/cni/net.d/10-terway.conflist",
    "<%= config.bin %> conflist lint --no-node conflist/trunk.conflist",
  ];
  static override args = { file: Args.string({ required: true, description: "the conflist" }) };
  static override flags = {
    "bin-dir": Flags.string({
      aliases: ["cni-path"],
      description: "folders with the plugins, with colons between",
      env: "CNI_PATH",
      default: "/opt/cni/bin",
    }),
    "conf-dir": Flags.string({ description: "the runtime's CNI configuration folder", default: "/etc/cni/net.d" }),
    node: Flags.boolean({
      description: "check it against this node: binaries, kernel (as root), other files",
      default: true,
      allowNo: true,
    }),
    strict: Flags.boolean({ description: "warnings are errors" }),
  };

  async run(): Promise<{ readonly file: string; readonly findings: readonly Finding[] }> {
    const { args, flags } = await this.parse(ConflistLint);
    const { file } = args;
    let text: string;
    try {
      text = readFileSync(file, "utf8");
    } catch (error) {
      this.error(`${file} cannot be read: ${(error as Error).message}`, { exit: 2 });
    }
    const findings = [...nameFindings(file), ...lintConflist(text, flags.node ? this.facts(file, flags) : {})];
    for (const f of findings) this.log(`${file}:${f.line}:${f.column}: ${f.level}: ${f.message}; ${f.remedy}`);
    if (findings.length === 0) this.log(`${file}: good`);
    if (findings.some((f) => f.level === "error" || flags.strict)) process.exitCode = 1;
    return { file, findings };
  }

  private facts(file: string, flags: { readonly "bin-dir": string; readonly "conf-dir": string }): NodeFacts {
    const kernel = tryKernel();
    if ("problem" in kernel)
      this.logToStderr(`the kernel was not tried, which needs root (${kernel.problem}); --no-node leaves the node out`);
    return {
      binaryOf: binariesIn(flags["bin-dir"].split(":")),
      ...("problem" in kernel ? {} : { kernel }),
      ...(isIn(file, flags["conf-dir"]) ? { siblings: siblingsOf(file, flags["conf-dir"]) } : {}),
    };
  }
}

function isIn(file: string, folder: string): boolean {
  try {
    return realpathSync(dirname(file)) === realpathSync(folder);
  } catch {
    return false;
  }
}

function siblingsOf(file: string, folder: string): { readonly file: string; readonly name: string }[] {
  return (readConfFolder(folder) ?? []).flatMap((other) =>
    other.network === undefined || other.file === basename(file) ? [] : [{ file: other.file, name: other.network }],
  );
}

function nameFindings(file: string): Finding[] {
  if (extname(file) === ".conflist") return [];
  const remedy = "give it a name that ends in .conflist";
  const message = `runtimes take a list of plugins from files that end in .conflist only, not "${extname(file)}"`;
  return [{ line: 1, column: 1, level: "warning", at: "", message, remedy }];
}
