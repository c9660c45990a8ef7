/** A member ENI of the node's trunk ENI, by its VLAN: security groups and vSwitch of the pod's own. */
import type { Plugin } from "../host/plugin.ts";
import { attach } from "../interface/attach.ts";
import { verify } from "../interface/check.ts";
import { collect } from "../interface/collect.ts";
import { lenient, remove } from "../interface/remove.ts";
import { report } from "../interface/status.ts";
import { type InterfacePlugin, withWork } from "../interface/work.ts";

const plugin: InterfacePlugin = {
  name: "terway-trunk",
  modes: { trunk: { eniKind: "member", uplink: "vlan" } },
};

export const add: Plugin["add"] = (call, host) => withWork(plugin, call, host, attach);
export const del: Plugin["del"] = (call, host) =>
  withWork(plugin, lenient(plugin, call), host, (w) => remove(w, "DEL"));
export const check: Plugin["check"] = (call, host) => withWork(plugin, call, host, verify);
export const gc: Plugin["gc"] = (call, host) => withWork(plugin, lenient(plugin, call), host, collect);
export const status: Plugin["status"] = (call, host) => report(plugin, call, host);
