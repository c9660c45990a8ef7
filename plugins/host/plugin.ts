/** What a plugin is to the program around it. */
import type { StoreDeps } from "../../ipam/store/open.ts";
import type { Result } from "../../shared/cni/result.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";

/** What a plugin is given besides the call. */
export interface PluginHost extends StoreDeps {
  readonly env: Readonly<Record<string, string>>;
  /** One line into the plugin's log. */
  log(logDir: string, fields: Readonly<Record<string, unknown>>): void;
}

/** The exports of a plugin's main.ts. */
export interface Plugin {
  add(call: CniCall, host: PluginHost): Result;
  del(call: CniCall, host: PluginHost): void;
  check(call: CniCall, host: PluginHost): void;
  gc(call: CniCall, host: PluginHost): void;
  status(call: CniCall, host: PluginHost): void;
}
