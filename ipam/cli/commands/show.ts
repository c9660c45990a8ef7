import { Flags } from "@oclif/core";
import { BaseCommand } from "../base-command.ts";
import { formatFramed, formatShow } from "../format.ts";
import { type NodeView, readNodeView } from "../node-view.ts";

export default class Show extends BaseCommand {
  static override description =
    "Show this node: ENIs, their addresses, the pool. Reads the store; the agent need not run.";
  static override examples = [
    "<%= config.bin %> show",
    "<%= config.bin %> show --framed",
    "<%= config.bin %> show --json",
  ];
  static override flags = { framed: Flags.boolean({ description: "summary in a frame" }) };

  async run(): Promise<NodeView> {
    const { flags } = await this.parse(Show);
    return this.withStore(flags.store, (store) => {
      const view = readNodeView(store);
      this.log(flags.framed ? formatFramed(view) : formatShow(view));
      return view;
    });
  }
}
