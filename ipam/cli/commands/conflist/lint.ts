import { existsSync, readFileSync } from "node:fs";
import { Args, Flags } from "@oclif/core";
import { BaseCommand } from "../../base-command.ts";
import { type Finding, lintConflist } from "../../lint-conflist.ts";

export default class ConflistLint extends BaseCommand {
  static override description =
    "Check a conflist: form, order, unknown keys, capabilities, missing binaries. Exit 1 when there is an error.";
  static override args = { file: Args.string({ required: true, description: "the conflist" }) };
  static override flags = {
    "cni-path": Flags.string({ description: "folders with the plugins", env: "CNI_PATH", default: "/opt/cni/bin" }),
  };

  async run(): Promise<{ readonly file: string; readonly findings: readonly Finding[] }> {
    const { args, flags } = await this.parse(ConflistLint);
    let text: string;
    try {
      text = readFileSync(args.file, "utf8");
    } catch (error) {
      this.error(`${args.file} cannot be read: ${(error as Error).message}`, { exit: 2 });
    }
    const folders = flags["cni-path"].split(":");
    const findings = lintConflist(text, (type) => folders.some((folder) => existsSync(`${folder}/${type}`)));
    for (const f of findings) this.log(`${args.file}:${f.line}: ${f.level}: ${f.message}`);
    if (findings.length === 0) this.log(`${args.file}: good`);
    if (findings.some((f) => f.level === "error")) process.exitCode = 1;
    return { file: args.file, findings };
  }
}
