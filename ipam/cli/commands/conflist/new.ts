import { Flags } from "@oclif/core";
import { MODE_NAMES, MODES, type ModeName } from "../../../conflist/modes.ts";
import { type Conflist, formatConflist, renderConflist } from "../../../conflist/render.ts";
import { BaseCommand } from "../../base-command.ts";
import { OUT_FLAGS, putOut } from "../../put-out.ts";

export default class ConflistNew extends BaseCommand {
  static override description = `Render the conflist of a mode, to stdout or into a file. Modes:\n${MODE_NAMES.map(
    (mode) => `${mode}: ${MODES[mode].title}; ${MODES[mode].choose}`,
  ).join("\n")}`;
  static override examples = [
    "<%= config.bin %> conflist new --mode eniip-veth --out /etc/cni/net.d/10-terway.conflist",
    "<%= config.bin %> conflist new --mode trunk --mtu 8500 --bandwidth",
  ];
  static override flags = {
    mode: Flags.option({ options: MODE_NAMES, required: true })({ description: "the network mode" }),
    mtu: Flags.integer({ description: "of pods' interfaces, bytes; the ENI's unless given" }),
    "network-policy": Flags.boolean({ description: "enforce NetworkPolicy with terway-policy", allowNo: true }),
    bandwidth: Flags.boolean({ description: "shape with terway-bandwidth", allowNo: true }),
    portmap: Flags.boolean({ description: "host ports with portmap", allowNo: true }),
    name: Flags.string({ description: "name of the network" }),
    "cni-version": Flags.string({ description: "of the file; 1.1.0 brings GC and STATUS" }),
    "service-cidr": Flags.string({ description: "uplink modes: Services, where no agent tells", multiple: true }),
    "host-stack-cidr": Flags.string({
      description: "uplink modes: what else pods reach through the node",
      multiple: true,
    }),
    subnet: Flags.string({ description: "standalone modes: the range of a family", multiple: true }),
    master: Flags.string({ description: "macvlan: the node's interface" }),
    ...OUT_FLAGS,
  };

  async run(): Promise<Conflist> {
    const { flags } = await this.parse(ConflistNew);
    const { mtu, bandwidth, portmap, name, master } = flags;
    const outcome = renderConflist({
      mode: flags.mode as ModeName,
      ...(mtu === undefined ? {} : { mtu }),
      ...(flags["network-policy"] === undefined ? {} : { networkPolicy: flags["network-policy"] }),
      ...(bandwidth === undefined ? {} : { bandwidth }),
      ...(portmap === undefined ? {} : { portmap }),
      ...(name === undefined ? {} : { name }),
      ...(flags["cni-version"] === undefined ? {} : { cniVersion: flags["cni-version"] }),
      serviceCidrs: flags["service-cidr"] ?? [],
      hostStackCidrs: flags["host-stack-cidr"] ?? [],
      subnets: flags.subnet ?? [],
      ...(master === undefined ? {} : { master }),
    });
    if (outcome.kind === "refused") this.error(outcome.faults.join("\n"), { exit: 2 });
    putOut(this, formatConflist(outcome.conflist), flags);
    return outcome.conflist;
  }
}
