/** What one call of an interface plugin works with. */
import type { EniKind } from "../../ipam/store/enis.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import type { Store } from "../../ipam/store/open.ts";
import { delegate } from "../../shared/cni/delegate.ts";
import type { Verb } from "../../shared/cni/environment.ts";
import type { Result } from "../../shared/cni/result.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { type NetlinkSocket, openNetlink } from "../../shared/netlink/socket.ts";
import type { PluginHost } from "../host/plugin.ts";
import { keyOf, withStore } from "../terway-ipam/commands.ts";

/** An interface plugin's part of the network configuration, understood. */
export interface InterfaceConfig {
  readonly store: string;
  readonly logDir: string;
  /** As the store and the journal name it. */
  readonly mode: string;
  /** Which ENIs own the pod's addresses; undefined: none, the node's routes serve them. */
  readonly eniKind: EniKind | undefined;
  /** Absent: the MTU of the ENI, or of the node's. */
  readonly mtuBytes: number | undefined;
  /** Name of the IPAM plugin. */
  readonly ipamType: string;
  /** terway-ipam is not run as a program of its own: the same code runs in this process. */
  readonly ipamInProcess: boolean;
  /** Asked for by runtimeConfig.mac or args.cni.mac. */
  readonly podMac: string | undefined;
}

/** What tells the interface plugins apart. */
export interface InterfacePlugin {
  /** As store and journal name it. */
  readonly name: string;
  /** @throws {CniFailure} invalidConfig, naming every fault. */
  readonly parse: (call: CniCall, environment: Readonly<Record<string, string>>) => InterfaceConfig;
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
  const config = plugin.parse(call, host.env);
  return withStore(host, config, (store) =>
    work({ plugin, host, call, config, store, key: keyOf(call), nl: openNetlink(host.sys) }),
  );
}

/** Runs the IPAM plugin as a program of its own. */
export function runIpam(
  host: PluginHost,
  call: CniCall,
  config: Pick<InterfaceConfig, "ipamType">,
  verb: Verb,
): Result | undefined {
  return delegate(host.sys, {
    verb,
    type: config.ipamType,
    path: call.env.path,
    env: host.env,
    stdin: call.stdin,
    cniVersion: call.conf.cniVersion,
  });
}
