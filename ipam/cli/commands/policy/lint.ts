import { readFileSync } from "node:fs";
import { Args } from "@oclif/core";
import { describeFinding, type Finding, readManifestText } from "../../../policy/manifest-text.ts";
import { BaseCommand } from "../../base-command.ts";

export default class PolicyLint extends BaseCommand {
  static override description =
    "Check a file of manifests as the API server would, each fault with its line and API path. Exit 1 when there is one.";
  static override examples = ["<%= config.bin %> policy lint policies.yaml"];
  static override args = {
    file: Args.string({ required: true, description: "YAML or JSON, any number of documents" }),
  };

  async run(): Promise<{ readonly file: string; readonly objects: number; readonly findings: readonly Finding[] }> {
    const { args } = await this.parse(PolicyLint);
    let text: string;
    try {
      text = readFileSync(args.file, "utf8");
    } catch (error) {
      this.error(`${args.file} cannot be read: ${(error as Error).message}`, { exit: 2 });
    }
    const { objects, findings } = readManifestText(text);
    for (const finding of findings) this.log(describeFinding(args.file, finding));
    if (findings.length === 0) this.log(`${args.file}: good, ${objects.length} objects`);
    if (findings.some((f) => f.level === "error")) process.exitCode = 1;
    return { file: args.file, objects: objects.length, findings };
  }
}
