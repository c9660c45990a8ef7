/**
 * Results. Inside, a result always has the shape of 1.1.0; it is converted when read and when printed.
 * Fields that we do not know are kept: a chained plugin must pass on what others wrote.
 */
import { CniFailure, CODE } from "./failure.ts";
import { type CniVersion, isAtLeast, isSupportedVersion } from "./version.ts";

export interface Interface {
  readonly name: string;
  readonly mac?: string;
  readonly mtu?: number;
  /** Path of the network namespace; absent or empty for an interface of the host. */
  readonly sandbox?: string;
  readonly [other: string]: unknown;
}

export interface IpConfig {
  /** CIDR. */
  readonly address: string;
  readonly gateway?: string;
  /** Index into `interfaces`. */
  readonly interface?: number;
  readonly [other: string]: unknown;
}

export interface Route {
  readonly dst: string;
  readonly gw?: string;
  readonly mtu?: number;
  readonly advmss?: number;
  readonly priority?: number;
  readonly table?: number;
  readonly scope?: number;
  readonly [other: string]: unknown;
}

export interface Dns {
  readonly nameservers?: readonly string[];
  readonly domain?: string;
  readonly search?: readonly string[];
  readonly options?: readonly string[];
}

export interface Result {
  readonly interfaces?: readonly Interface[];
  readonly ips?: readonly IpConfig[];
  readonly routes?: readonly Route[];
  readonly dns?: Dns;
  readonly [other: string]: unknown;
}

type Json = Record<string, unknown>;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function list(value: unknown, field: string): Json[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value) || !value.every(isObject)) {
    throw new CniFailure(
      CODE.decode,
      `prevResult.${field} is not a list of objects`,
      "pass on the result that the previous plugin printed",
    );
  }
  return value;
}

/**
 * Reads a result of any supported version.
 *
 * @throws {CniFailure} decode, when its shape is wrong; incompatibleVersion, when its version is not ours.
 */
export function parseResult(value: unknown, versionIfAbsent: CniVersion): Result {
  if (!isObject(value))
    throw new CniFailure(
      CODE.decode,
      "prevResult is not an object",
      "pass on the result that the previous plugin printed",
    );
  const { cniVersion = versionIfAbsent, interfaces, ips, routes, dns, ...rest } = value;
  if (!isSupportedVersion(cniVersion)) {
    throw new CniFailure(
      CODE.incompatibleVersion,
      `prevResult has CNI version ${JSON.stringify(cniVersion)}, which is not supported`,
      "use 0.3.0 to 1.1.0",
    );
  }
  const parsedIps = list(ips, "ips").map(({ version: _family, ...ip }) => {
    if (typeof ip.address !== "string")
      throw new CniFailure(CODE.decode, "prevResult.ips has an entry without address", "");
    return ip as unknown as IpConfig;
  });
  const parsedInterfaces = list(interfaces, "interfaces").map((i) => {
    if (typeof i.name !== "string")
      throw new CniFailure(CODE.decode, "prevResult.interfaces has an entry without name", "");
    return i as Interface;
  });
  const parsedRoutes = list(routes, "routes").map((r) => {
    if (typeof r.dst !== "string") throw new CniFailure(CODE.decode, "prevResult.routes has an entry without dst", "");
    return r as unknown as Route;
  });
  return {
    ...rest,
    interfaces: parsedInterfaces,
    ips: parsedIps,
    routes: parsedRoutes,
    ...(isObject(dns) ? { dns: dns as Dns } : {}),
  };
}

/** The result as `version` writes it. An IPAM plugin's result has no `interfaces`. */
export function resultJson(result: Result, version: CniVersion): string {
  const { interfaces, ips, routes, dns, ...rest } = result;
  const is11 = isAtLeast(version, "1.1.0");
  const is1 = isAtLeast(version, "1.0.0");
  const out: Json = { cniVersion: version, ...rest };
  if (interfaces && interfaces.length > 0) {
    out.interfaces = interfaces.map(({ mtu, socketPath, pciID, ...i }) => ({
      ...i,
      ...(is11 && mtu !== undefined ? { mtu } : {}),
      ...(is11 && socketPath !== undefined ? { socketPath } : {}),
      ...(is11 && pciID !== undefined ? { pciID } : {}),
    }));
  }
  // 1.0.0 dropped ips[].version; before it, consumers need it.
  out.ips = (ips ?? []).map((ip) => (is1 ? ip : { version: ip.address.includes(":") ? "6" : "4", ...ip }));
  if (routes && routes.length > 0) {
    out.routes = routes.map((r) => (is11 ? r : r.gw === undefined ? { dst: r.dst } : { dst: r.dst, gw: r.gw }));
  }
  out.dns = dns ?? {};
  return JSON.stringify(out);
}
