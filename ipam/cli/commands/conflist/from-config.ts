import { existsSync, readFileSync } from "node:fs";
import { Args, Flags } from "@oclif/core";
import { redact } from "../../../../shared/log/log.ts";
import { type Conversion, convertConfig, type LegacyDocuments } from "../../../conflist/from-config.ts";
import { formatConflist } from "../../../conflist/render.ts";
import { BaseCommand } from "../../base-command.ts";
import { readConfigMap } from "../../config-map.ts";
import { formatTable } from "../../format.ts";
import { tryKernel } from "../../node-check/gather.ts";
import { OUT_FLAGS, putFile, putOut } from "../../put-out.ts";

type Converted = Extract<Conversion, { readonly kind: "converted" }>;

export default class ConflistFromConfig extends BaseCommand {
  static override description =
    "Turn the former configuration (10-terway.conf as one plugin or as a list, and eni_conf) into a conflist. Every key that it has is accounted for, on stderr. Exit 0: done; 2: refused, and nothing was written. IPvlan falls back to veth where this node's kernel has none.";
  static override examples = [
    "<%= config.bin %> conflist from-config /etc/cni/net.d/10-terway.conf --eni-conf /etc/eni/eni_conf --out /etc/cni/net.d/10-terway.conflist",
    "<%= config.bin %> conflist from-config --config-map eni-config.yaml",
  ];
  static override args = { file: Args.string({ description: "10-terway.conf or 10-terway.conflist" }) };
  static override flags = {
    "eni-conf": Flags.string({ description: "the file eni_conf (or eni.conf)" }),
    "config-map": Flags.string({
      description: "YAML or JSON of the ConfigMap eni-config, which has both, and disable_network_policy",
      exclusive: ["eni-conf"],
    }),
    "addon-options": Flags.string({
      description: 'options of the add-on, \'{"IPVlan":"true","NetworkPolicy":"true"}\'',
    }),
    ipvlan: Flags.boolean({
      description: "whether the nodes' kernels have IPvlan; unless given, this node's is tried (as root)",
      allowNo: true,
    }),
    "eni-conf-out": Flags.string({ description: "write eni_conf to this file, with the keys that move there" }),
    ...OUT_FLAGS,
  };

  async run(): Promise<Converted> {
    const { args, flags } = await this.parse(ConflistFromConfig);
    const outcome = convertConfig(this.documents(args.file, flags), flags.ipvlan ?? this.hasIpvlan());
    if (outcome.kind === "refused") this.error(outcome.faults.join("\n"), { exit: 2 });
    const { accounts, warnings, eniConf, conflist } = outcome;
    const rows = accounts.map((a) => [a.source, a.key, a.verdict, a.note]);
    this.logToStderr(formatTable(["FROM", "KEY", "NOW", "NOTE"], rows));
    for (const warning of warnings) this.logToStderr(`warning: ${warning}`);
    const eniConfOut = flags["eni-conf-out"];
    if (eniConf !== undefined && eniConfOut === undefined)
      this.logToStderr("warning: keys move into eni_conf, and it was not written: name a file with --eni-conf-out");
    if (eniConf === undefined && eniConfOut !== undefined)
      this.logToStderr(`${eniConfOut}: not written, no key moves into eni_conf`);
    // eni_conf first: with the conflist alone a node would go on with half of its settings.
    if (eniConf !== undefined && eniConfOut !== undefined)
      putFile(this, eniConfOut, `${JSON.stringify(eniConf, null, 2)}\n`, flags.force, 0o600);
    putOut(this, formatConflist(conflist), flags);
    // The file has it whole: what --json prints need not have its secrets.
    return eniConf === undefined || eniConfOut === undefined
      ? outcome
      : { ...outcome, eniConf: redact(eniConf) as typeof eniConf };
  }

  private documents(
    file: string | undefined,
    flags: { "eni-conf"?: string | undefined; "config-map"?: string | undefined; "addon-options"?: string | undefined },
  ): LegacyDocuments {
    const map = flags["config-map"];
    const fromMap = map === undefined ? {} : this.orRefuse(() => readConfigMap(this.read(map), map));
    const terwayConf = file === undefined ? fromMap.terwayConf : this.read(file);
    if (terwayConf === undefined)
      this.error(
        map === undefined
          ? "name 10-terway.conf, or a ConfigMap with --config-map"
          : `${map} has no key 10-terway.conf: name the file too`,
        { exit: 2 },
      );
    const eniConf = flags["eni-conf"];
    const addonOptions = flags["addon-options"];
    return {
      ...fromMap,
      terwayConf,
      ...(eniConf === undefined ? {} : { eniConf: this.read(eniConf) }),
      ...(addonOptions === undefined ? {} : { addonOptions }),
    };
  }

  private read(path: string): string {
    if (!existsSync(path)) this.error(`${path}: there is no such file`, { exit: 2 });
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      this.error(`${path} cannot be read: ${(error as Error).message}`, { exit: 2 });
    }
  }

  private orRefuse<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      this.error((error as Error).message, { exit: 2 });
    }
  }

  private hasIpvlan(): boolean | undefined {
    const kernel = tryKernel();
    return "problem" in kernel ? undefined : kernel.ipvlan.there;
  }
}
