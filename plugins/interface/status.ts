/** STATUS: an interface plugin is as ready as its IPAM plugin. */
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import type { PluginHost } from "../host/plugin.ts";
import { status as ipamStatus } from "../terway-ipam/commands.ts";
import { parseInterfaceConfig } from "./config.ts";
import { type InterfacePlugin, runIpam } from "./work.ts";

export function report(plugin: InterfacePlugin, call: CniCall, host: PluginHost): void {
  const config = parseInterfaceConfig(call, host.env, plugin.name, plugin.modes);
  if (config.ipamInProcess) ipamStatus(call, host, config.eniKind);
  else runIpam(host, call, config, "STATUS");
}
