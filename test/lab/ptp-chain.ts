/** Debian's ptp with terway-ipam's local ranges, both families, and the plugins behind it: no cloud and no agent. */
import { type CniRuntime, createRuntime, type PluginConf } from "../runtime/cni-runtime.ts";
import { CNI_PATH } from "./world.ts";

/** @param places `store` and `logDir` of our plugins. */
export function createPtpRuntime(
  netns: string,
  places: { readonly store: string; readonly logDir: string },
  behind: readonly PluginConf[],
): CniRuntime {
  const ipam = {
    type: "terway-ipam",
    ...places,
    cooldownSeconds: 0,
    ranges: [[{ subnet: "10.77.0.0/24" }], [{ subnet: "fd77::/64" }]],
    routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
  };
  const plugins = [{ type: "ptp", ipam }, ...behind.map((plugin) => ({ ...plugin, ...places }))];
  return createRuntime({ netns, cniPath: CNI_PATH, conflist: { cniVersion: "1.0.0", name: "net", plugins } });
}
