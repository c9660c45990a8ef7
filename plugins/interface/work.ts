/** What one call of an interface plugin works with. */
import type { AttachmentKey } from "../../ipam/store/key.ts";
import type { Store } from "../../ipam/store/open.ts";
import { delegate } from "../../shared/cni/delegate.ts";
import type { Verb } from "../../shared/cni/environment.ts";
import type { Result } from "../../shared/cni/result.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { type NetlinkSocket, openNetlink } from "../../shared/netlink/socket.ts";
import type { PluginHost } from "../host/plugin.ts";
import { keyOf, withStore } from "../terway-ipam/commands.ts";
import { type InterfaceConfig, type Mode, parseInterfaceConfig } from "./config.ts";

/** What tells the interface plugins apart. */
export interface InterfacePlugin {
  /** As store and journal name it. */
  readonly name: string;
  /** The first is the default. */
  readonly modes: Readonly<Record<string, Mode>>;
}

export interface Work {
  readonly plugin: InterfacePlugin;
  readonly host: PluginHost;
  readonly call: CniCall;
  readonly config: InterfaceConfig;
  readonly store: Store;
  readonly key: AttachmentKey;
  readonly nl: NetlinkSocket;
}

export function withWork<T>(plugin: InterfacePlugin, call: CniCall, host: PluginHost, work: (w: Work) => T): T {
  const config = parseInterfaceConfig(call, host.env, plugin.name, plugin.modes);
  return withStore(host, config, (store) =>
    work({ plugin, host, call, config, store, key: keyOf(call), nl: openNetlink(host.sys) }),
  );
}

/** Runs the IPAM plugin as a program of its own; it is told of which ENIs the addresses must be. */
export function runIpam(host: PluginHost, call: CniCall, config: InterfaceConfig, verb: Verb): Result | undefined {
  const { eniKind } = config;
  const { raw } = call.conf;
  return delegate(host.sys, {
    verb,
    type: config.ipamType,
    path: call.env.path,
    env: host.env,
    stdin:
      eniKind === undefined || eniKind === "shared"
        ? call.stdin
        : JSON.stringify({ ...raw, ipam: { ...(raw.ipam as object), eniKind } }),
    cniVersion: call.conf.cniVersion,
  });
}
