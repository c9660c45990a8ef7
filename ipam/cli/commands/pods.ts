import { BaseCommand } from "../base-command.ts";
import { formatPods } from "../format.ts";
import { type PodView, readNodeView } from "../node-view.ts";

export default class Pods extends BaseCommand {
  static override description = "List the pods attached on this node, with addresses, ENI and host interface.";

  async run(): Promise<readonly PodView[]> {
    const { flags } = await this.parse(Pods);
    return this.withStore(flags.store, (store) => {
      const { pods } = readNodeView(store);
      this.log(pods.length === 0 ? "no pods are attached" : formatPods(pods));
      return pods;
    });
  }
}
