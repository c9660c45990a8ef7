/**
 * A small CNI runtime that follows SPEC.md (1.1.0) sections 3 and 4: it runs a conflist's plugins in order for ADD,
 * CHECK, STATUS and GC and in reverse for DEL, hands prevResult on, fills runtimeConfig by capability, and keeps
 * results for later verbs. Its cache is a plain map that tests may damage.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { exec } from "./exec.ts";

export interface PluginConf {
  readonly type: string;
  readonly capabilities?: Readonly<Record<string, boolean>>;
  readonly [key: string]: unknown;
}

export interface Conflist {
  readonly cniVersion: string;
  readonly name: string;
  readonly plugins: readonly PluginConf[];
}

export interface Pod {
  readonly containerId: string;
  /** Path of the network namespace; `""` when the runtime no longer knows it (DEL only). */
  readonly netns: string;
  readonly ifname: string;
  readonly namespace?: string;
  readonly name?: string;
  readonly uid?: string;
  /** Offered to the plugins that declare the capability. */
  readonly runtimeConfig?: Readonly<Record<string, unknown>>;
}

/** A plugin's answer that was not success. */
export class CniCallError extends Error {
  readonly code: number;
  readonly details: string;
  readonly plugin: string;
  readonly ms: number;

  constructor(plugin: string, verb: string, code: number, msg: string, details: string, ms: number) {
    super(`${plugin} ${verb}: ${msg}${details ? ` (${details})` : ""}`);
    this.code = code;
    this.details = details;
    this.plugin = plugin;
    this.ms = ms;
  }
}

export interface CniResult {
  readonly cniVersion: string;
  readonly interfaces?: readonly { readonly name: string; readonly mac?: string; readonly sandbox?: string }[];
  readonly ips?: readonly { readonly address: string; readonly gateway?: string; readonly interface?: number }[];
  readonly routes?: readonly { readonly dst: string; readonly gw?: string }[];
  readonly dns?: unknown;
}

export interface RuntimeOptions {
  readonly conflist: Conflist;
  readonly cniPath: readonly string[];
  /** The node's network namespace; ours when absent. */
  readonly netns?: string;
  readonly env?: Readonly<Record<string, string>>;
}

export interface CallOptions {
  /** Of each plugin, or of the one that is named. */
  readonly killAfterMs?: number;
  readonly killOnly?: string;
  /** Told of each plugin that answered, with its process's time. */
  readonly timed?: (plugin: string, ms: number) => void;
}

export interface CniRuntime {
  readonly conflist: Conflist;
  /** prevResult by attachment; tests may delete or damage what is in it. */
  readonly cache: Map<string, unknown>;
  add(pod: Pod, options?: CallOptions): Promise<{ readonly result: CniResult; readonly ms: number }>;
  del(pod: Pod, options?: CallOptions): Promise<{ readonly ms: number }>;
  check(pod: Pod): Promise<{ readonly ms: number }>;
  status(): Promise<void>;
  gc(validAttachments: readonly { readonly containerID: string; readonly ifname: string }[]): Promise<void>;
}

export function cacheKey(pod: Pod): string {
  return `${pod.containerId}/${pod.ifname}`;
}

export function createRuntime(options: RuntimeOptions): CniRuntime {
  const { conflist, cniPath } = options;
  const cache = new Map<string, unknown>();

  function find(type: string): string {
    for (const folder of cniPath) {
      const path = join(folder, type);
      if (existsSync(path)) return path;
    }
    throw new Error(`plugin ${type} is not in ${cniPath.join(":")}: build it or extend the CNI path`);
  }

  async function call(verb: string, plugin: PluginConf, pod: Pod | undefined, extra: object, killAfterMs?: number) {
    const { capabilities, ...rest } = plugin;
    const runtimeConfig: Record<string, unknown> = {};
    for (const [name, on] of Object.entries(capabilities ?? {})) {
      const value = pod?.runtimeConfig?.[name];
      if (on && value !== undefined) runtimeConfig[name] = value;
    }
    const conf = {
      ...rest,
      cniVersion: conflist.cniVersion,
      name: conflist.name,
      ...(capabilities ? { capabilities } : {}),
      ...(Object.keys(runtimeConfig).length > 0 ? { runtimeConfig } : {}),
      ...extra,
    };
    const env: Record<string, string> = {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      ...options.env,
      CNI_COMMAND: verb,
      CNI_PATH: cniPath.join(":"),
    };
    if (pod) {
      env.CNI_CONTAINERID = pod.containerId;
      env.CNI_IFNAME = pod.ifname;
      env.CNI_NETNS = pod.netns;
      if (pod.name !== undefined) {
        env.CNI_ARGS =
          `IgnoreUnknown=1;K8S_POD_NAMESPACE=${pod.namespace ?? "default"};K8S_POD_NAME=${pod.name};` +
          `K8S_POD_INFRA_CONTAINER_ID=${pod.containerId}${pod.uid ? `;K8S_POD_UID=${pod.uid}` : ""}`;
      }
    }
    const done = await exec({
      path: find(plugin.type),
      env,
      stdin: JSON.stringify(conf),
      netns: options.netns,
      killAfterMs,
    });
    if (done.status !== 0) {
      let error: { code?: number; msg?: string; details?: string } = {};
      try {
        error = JSON.parse(done.stdout);
      } catch {
        error = {
          code: 999,
          msg: `no CNI error on stdout (status ${done.status})`,
          details: done.stdout + done.stderr,
        };
      }
      throw new CniCallError(plugin.type, verb, error.code ?? 999, error.msg ?? "", error.details ?? "", done.ms);
    }
    return { stdout: done.stdout, ms: done.ms };
  }

  const killTime = (plugin: PluginConf, { killAfterMs, killOnly = plugin.type }: CallOptions) =>
    killOnly === plugin.type ? killAfterMs : undefined;

  const prev = (pod: Pod) => {
    const result = cache.get(cacheKey(pod));
    return result === undefined ? {} : { prevResult: result };
  };

  return {
    conflist,
    cache,
    async add(pod, call_ = {}) {
      let result: CniResult | undefined;
      let ms = 0;
      for (const plugin of conflist.plugins) {
        const done = await call("ADD", plugin, pod, result ? { prevResult: result } : {}, killTime(plugin, call_));
        call_.timed?.(plugin.type, done.ms);
        ms += done.ms;
        result = JSON.parse(done.stdout) as CniResult;
      }
      if (!result) throw new Error(`conflist ${conflist.name} has no plugin`);
      cache.set(cacheKey(pod), result);
      return { result, ms };
    },
    async del(pod, call_ = {}) {
      let ms = 0;
      for (const plugin of [...conflist.plugins].reverse()) {
        const done = await call("DEL", plugin, pod, prev(pod), killTime(plugin, call_));
        call_.timed?.(plugin.type, done.ms);
        ms += done.ms;
      }
      cache.delete(cacheKey(pod));
      return { ms };
    },
    async check(pod) {
      let ms = 0;
      for (const plugin of conflist.plugins) ms += (await call("CHECK", plugin, pod, prev(pod))).ms;
      return { ms };
    },
    async status() {
      for (const plugin of conflist.plugins) await call("STATUS", plugin, undefined, {});
    },
    async gc(validAttachments) {
      const errors: unknown[] = [];
      for (const plugin of conflist.plugins) {
        // Every plugin gets its turn, whatever the others said (SPEC.md section 4, GC).
        await call("GC", plugin, undefined, { "cni.dev/valid-attachments": validAttachments }).catch((e) =>
          errors.push(e),
        );
      }
      if (errors.length > 0) throw errors[0];
    },
  };
}
