import { Flags } from "@oclif/core";
import type { FlowEnd } from "../../../../shared/policy/evaluate.ts";
import { attachedPods } from "../../../policy/enforcer.ts";
import { explainFlow, explainOff, type FlowExplained, formatFlow } from "../../../policy/explain.ts";
import { describeFileFinding } from "../../../policy/source-dir.ts";
import { listAttachments } from "../../../store/attachments.ts";
import type { Store } from "../../../store/open.ts";
import { BaseCommand } from "../../base-command.ts";
import { openForLooking } from "../../node-view.ts";
import { endsOf, type PolicyWorld, pairsOf, readFolder, worldOfFolder, worldOfStore } from "../../policy-view.ts";
import { type ProbeOutcome, probe } from "../../probe.ts";

type Explained = FlowExplained & { readonly probe?: ProbeOutcome };

function contradicts({ outcome }: ProbeOutcome, allowed: boolean): boolean {
  return outcome === (allowed ? "not reached" : "reached");
}

export default class PolicyExplain extends BaseCommand {
  static override description =
    "Say which policy decides about a flow, in each direction, and why. By what is in force on this node, or with --dir by a folder of manifests for pods of every node. Exit 1 when it is denied, 3 when a probe contradicts.";
  static override examples = [
    "<%= config.bin %> policy explain --from shop/web-0 --to shop/db-0 --port 3306",
    "<%= config.bin %> policy explain --from shop/web-0 --to 10.0.3.7 --port 53 --protocol udp --probe",
    "<%= config.bin %> policy explain --dir new-policies/ --from a/x --to b/y --port 80",
  ];
  static override flags = {
    from: Flags.string({ required: true, description: "NAMESPACE/POD or an address" }),
    to: Flags.string({ required: true, description: "NAMESPACE/POD or an address; of a Service, one of its backends" }),
    port: Flags.integer({ description: "destination port", min: 0, max: 65_535, default: 0 }),
    protocol: Flags.string({ options: ["tcp", "udp", "sctp", "icmp"], default: "tcp" }),
    dir: Flags.string({ description: "folder of manifests instead of what is in force" }),
    probe: Flags.boolean({ description: "try it with a real packet from the pod's network namespace (root)" }),
    "probe-timeout": Flags.integer({ description: "milliseconds", default: 2000, min: 50 }),
  };

  async run(): Promise<readonly Explained[]> {
    const { flags } = await this.parse(PolicyExplain);
    const protocol = flags.protocol as FlowExplained["protocol"];
    if (protocol !== "icmp" && flags.port === 0) this.error(`--port is needed for ${protocol}`, { exit: 2 });
    const store = this.#store(flags.store, flags.dir !== undefined && !flags.probe);
    try {
      const world = await this.#world(store, flags.dir);
      let from: FlowEnd[];
      let to: FlowEnd[];
      try {
        from = endsOf(flags.from, world.pods);
        to = endsOf(flags.to, world.pods);
      } catch (error) {
        this.error((error as Error).message, {
          exit: 2,
          suggestions: world.everyNode ? [] : ["pods of other nodes are known from manifests: --dir DIR"],
        });
      }
      const pairs = pairsOf(from, to);
      if (pairs.length === 0)
        this.error(`${flags.from} and ${flags.to} have no address of the same family`, { exit: 2 });
      const explained: Explained[] = [];
      for (const pair of pairs) {
        const flow = { ...pair, protocol, port: flags.port };
        const one = world.off ? explainOff(flow) : explainFlow(world.compiled, flow);
        this.log(formatFlow(one));
        if (!flags.probe) explained.push(one);
        else explained.push({ ...one, probe: await this.#probe(store, pair, one, flags["probe-timeout"]) });
      }
      if (explained.some((e) => e.probe !== undefined && contradicts(e.probe, e.allowed))) process.exitCode = 3;
      else if (explained.some((e) => !e.allowed)) process.exitCode = 1;
      return explained;
    } finally {
      store?.db.close();
    }
  }

  /** With manifests alone no store is needed. */
  #store(path: string, optional: boolean): Store | undefined {
    try {
      return openForLooking(path);
    } catch (error) {
      if (optional) return undefined;
      this.error((error as Error).message, {
        exit: 2,
        suggestions: ["name another store with --store or TERWAY_STORE"],
      });
    }
  }

  async #world(store: Store | undefined, dir: string | undefined): Promise<PolicyWorld> {
    if (dir !== undefined) {
      const { events, findings } = await readFolder(dir);
      for (const finding of findings) if (finding.level === "error") this.warn(describeFileFinding(dir, finding));
      return worldOfFolder(events, store === undefined ? [] : attachedPods(store));
    }
    const world = store && worldOfStore(store);
    if (world === undefined)
      this.error("no policy was ever compiled on this node", {
        exit: 2,
        suggestions: ["name a folder of manifests with --dir", "run `terway-cli policy sync DIR`"],
      });
    return world;
  }

  async #probe(
    store: Store | undefined,
    { from, to }: { readonly from: FlowEnd; readonly to: FlowEnd },
    { protocol, port, allowed }: FlowExplained,
    timeoutMs: number,
  ): Promise<ProbeOutcome> {
    const netnsOf = (end: FlowEnd) =>
      end.pod === undefined || store === undefined
        ? undefined
        : listAttachments(store.db).find((a) => a.podNamespace === end.pod?.namespace && a.podName === end.pod?.name)
            ?.netns;
    const fromNetns = netnsOf(from);
    if (protocol !== "tcp" && protocol !== "udp") this.error("a probe is made with tcp or udp", { exit: 2 });
    if (fromNetns === undefined)
      this.error(`a probe starts in a pod of this node, and ${from.pod?.name ?? from.address} is none`, { exit: 2 });
    const outcome = await probe({ protocol, address: to.address, port, fromNetns, toNetns: netnsOf(to), timeoutMs });
    const decided = outcome.outcome !== "undecided";
    const agrees = !decided ? "" : contradicts(outcome, allowed) ? ": NOT as predicted" : ": as predicted";
    this.log(`  probe   ${outcome.outcome} (${outcome.seen})${agrees}`);
    return outcome;
  }
}
