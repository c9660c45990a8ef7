import { Args, Flags } from "@oclif/core";
import { openNft } from "../../../../shared/netlink/nft/socket.ts";
import { nodeSys, openNodeSql } from "../../../../shared/sys/node.ts";
import { PolicyCompiler } from "../../../policy/compiler.ts";
import { attachedPods, createEnforcer } from "../../../policy/enforcer.ts";
import { throwAll } from "../../../policy/inside.ts";
import { describeUnknown, restoreOwners } from "../../../policy/lost-owners.ts";
import { describeFileFinding } from "../../../policy/source-dir.ts";
import { getFacts } from "../../../store/facts.ts";
import { openStore, type Store } from "../../../store/open.ts";
import { getPolicyRevision, setPolicyOff } from "../../../store/policy.ts";
import { BaseCommand } from "../../base-command.ts";
import { type ReadFolder, readFolder } from "../../policy-view.ts";

interface Synced {
  readonly revision: number;
  readonly pods: number;
  readonly profiles: number;
  readonly sets: number;
  readonly rows: number;
  /** What was changed in the kernel, one line each. */
  readonly changed: readonly string[];
  readonly findings: readonly string[];
}

export default class PolicySync extends BaseCommand {
  static override description =
    "Compile a folder of NetworkPolicy, Namespace and Pod manifests into the store and the kernel, once; no agent is needed. A folder with a fault changes nothing (exit 1).";
  static override examples = ["<%= config.bin %> policy sync /etc/terway/policies --node-name node-1"];
  static override args = { dir: Args.string({ required: true, description: "folder with *.yaml, *.yml, *.json" }) };
  static override flags = {
    "node-name": Flags.string({
      description: "name of this node, as the Pod objects have it; else as the store has it",
    }),
    "log-drops": Flags.boolean({ description: "tell dropped packets to nflog group 84", allowNo: true }),
    "cut-established": Flags.boolean({ description: "end connections that the policies no longer allow" }),
    "no-kernel": Flags.boolean({ description: "write the store only" }),
  };

  async run(): Promise<Synced> {
    const { args, flags } = await this.parse(PolicySync);
    let read: ReadFolder;
    try {
      read = await readFolder(args.dir);
    } catch (error) {
      this.error(`${args.dir} cannot be read: ${(error as Error).message}`, { exit: 2 });
    }
    const findings = read.findings.map((finding) => describeFileFinding(args.dir, finding));
    for (const finding of findings) this.warn(finding);
    if (read.errors.length > 0)
      this.error(`${read.errors.length} faults in ${args.dir}: nothing was changed, the last policies stay in force`, {
        exit: 1,
      });
    // Here there may be no store yet: no agent and no plugin has run.
    let store: Store;
    try {
      store = openStore({ sys: nodeSys, openSql: openNodeSql }, flags.store);
    } catch (error) {
      this.error((error as Error).message, {
        exit: 2,
        suggestions: ["name another store with --store or TERWAY_STORE"],
      });
    }
    try {
      return this.#sync(store, read.events, findings, flags);
    } finally {
      store.db.close();
    }
  }

  #sync(
    store: Store,
    events: ReadFolder["events"],
    findings: readonly string[],
    flags: {
      readonly "node-name"?: string | undefined;
      readonly "log-drops"?: boolean;
      readonly "cut-established": boolean;
      readonly "no-kernel": boolean;
    },
  ): Synced {
    const nodeName = flags["node-name"] ?? getFacts(store.db).node_name;
    const compiler = new PolicyCompiler({
      revision: getPolicyRevision(store.db) ?? 0,
      ...(nodeName === undefined ? {} : { nodeName }),
    });
    setPolicyOff(store.db, false);
    const nft = flags["no-kernel"] ? undefined : openNft(nodeSys);
    try {
      const { unknown } = nft ? restoreOwners(store, nft) : { unknown: [] };
      if (unknown.length > 0) this.warn(describeUnknown(unknown));
      compiler.setAttached(attachedPods(store));
      compiler.apply(events);
      const compiled = compiler.compile();
      const enforcer = createEnforcer(store, nft, {
        logDrops: flags["log-drops"],
        cutEstablished: flags["cut-established"],
      });
      const { rows, changed, failures } = enforcer.bring(compiled, compiler.objects.size > 0);
      this.log(
        `revision ${compiled.revision}: ${compiled.pods.length} pods, ${compiled.profiles.length} profiles, ${compiled.sets.length + compiled.endpointSets.length} sets; ${rows} rows written, ${changed.length} changes in the kernel`,
      );
      throwAll(failures);
      return {
        revision: compiled.revision,
        pods: compiled.pods.length,
        profiles: compiled.profiles.length,
        sets: compiled.sets.length + compiled.endpointSets.length,
        rows,
        changed,
        findings,
      };
    } catch (error) {
      return this.error(`the store has the policies, the kernel has not: ${(error as Error).message}`, { exit: 2 });
    } finally {
      nft?.close();
    }
  }
}
