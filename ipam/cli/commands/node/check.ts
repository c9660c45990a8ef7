import { Flags } from "@oclif/core";
import { MODE_NAMES, type ModeName } from "../../../conflist/modes.ts";
import { BaseCommand } from "../../base-command.ts";
import { formatReport } from "../../node-check/format.ts";
import { gatherFacts } from "../../node-check/gather.ts";
import { judgeNode, type NodeReport } from "../../node-check/judge.ts";

export default class NodeCheck extends BaseCommand {
  static override description =
    "Find out which modes this node can do, and what stands in the way of pods. Tries the kernel in a network namespace of its own; changes nothing. Exit 0: good; 1: pods would fail; 2: it could not be found out.";
  static override examples = [
    "<%= config.bin %> node check",
    "<%= config.bin %> node check --mode eniip-ipvlan",
    "<%= config.bin %> node check --json",
  ];
  static override flags = {
    mode: Flags.option({ options: MODE_NAMES })({
      description: "the mode that the node is to do; else the one in force",
    }),
    "conf-dir": Flags.string({ description: "the runtime's CNI configuration folder", default: "/etc/cni/net.d" }),
    "bin-dir": Flags.string({
      description: "folders with the plugins, with colons between",
      env: "CNI_PATH",
      default: "/opt/cni/bin",
    }),
  };

  async run(): Promise<NodeReport> {
    const { flags } = await this.parse(NodeCheck);
    const facts = gatherFacts({
      confDir: flags["conf-dir"],
      binDirs: flags["bin-dir"].split(":"),
      store: flags.store,
    });
    const report = judgeNode(facts, flags.mode as ModeName | undefined);
    this.log(formatReport(report));
    process.exitCode = report.exitCode;
    return report;
  }
}
