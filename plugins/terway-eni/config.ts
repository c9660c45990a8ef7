/** The configuration of terway-eni beyond what every plugin reads. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { formatMac, tryParseMac } from "../../shared/net/mac.ts";
import type { InterfaceConfig } from "../interface/work.ts";
import { placesOf } from "../terway-ipam/config.ts";

export const MODES = ["shared", "vpc"];

/** Smallest that IPv6 allows (RFC 8200), and largest that an ENI carries. */
const MTU = { least: 1280, most: 9500 };

/** @throws {CniFailure} invalidConfig, naming every fault. */
export function parseEniConfig(call: CniCall, environment: Readonly<Record<string, string>>): InterfaceConfig {
  const { raw, runtimeConfig, cniArgs } = call.conf;
  const faults: string[] = [];
  const mode = raw.mode ?? "shared";
  if (mode !== "shared" && mode !== "vpc") faults.push(`mode is ${JSON.stringify(mode)}, want "shared" or "vpc"`);
  const { mtu } = raw;
  const mtuGood =
    mtu === undefined ||
    mtu === 0 ||
    (typeof mtu === "number" && Number.isInteger(mtu) && mtu >= MTU.least && mtu <= MTU.most);
  if (!mtuGood) faults.push(`mtu is ${JSON.stringify(mtu)}, want bytes from ${MTU.least} to ${MTU.most}`);
  const ipam = (typeof raw.ipam === "object" && raw.ipam !== null ? raw.ipam : {}) as Readonly<Record<string, unknown>>;
  if (typeof ipam.type !== "string" || ipam.type === "") faults.push('ipam.type is missing, want "terway-ipam"');
  if (mode === "shared" && ipam.type !== undefined && ipam.type !== "terway-ipam") {
    faults.push(
      `ipam.type is ${JSON.stringify(ipam.type)}: in mode shared only "terway-ipam" knows which ENI an address belongs to`,
    );
  }
  const macText = runtimeConfig.mac ?? cniArgs.mac;
  const mac = typeof macText === "string" ? tryParseMac(macText) : undefined;
  if (macText !== undefined && (mac === undefined || ((mac[0] ?? 0) & 1) !== 0))
    faults.push(`mac is ${JSON.stringify(macText)}, want a unicast MAC address`);
  if (faults.length > 0)
    throw new CniFailure(
      CODE.invalidConfig,
      `network "${call.conf.name}": ${faults.join("; ")}`,
      "correct the terway-eni entry of the conflist",
    );
  return {
    ...placesOf(call, environment),
    mode: String(mode),
    eniKind: mode === "vpc" ? undefined : "shared",
    mtuBytes: typeof mtu === "number" && mtu > 0 ? mtu : undefined,
    ipamType: String(ipam.type),
    ipamInProcess: ipam.type === "terway-ipam" && ipam.exec !== true,
    podMac: mac && formatMac(mac),
  };
}
