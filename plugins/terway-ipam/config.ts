/** The `ipam` section of the network configuration. Accepts what host-local accepts. */

import type { EniKind } from "../../ipam/store/enis.ts";
import { DEFAULT_STORE } from "../../ipam/store/open.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { Dns, Route } from "../../shared/cni/result.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { DEFAULT_LOG_DIR } from "../../shared/log/log.ts";
import {
  type Cidr,
  cidrContains,
  cidrsOverlap,
  formatCidr,
  lastOf,
  networkOf,
  tryParseCidr,
} from "../../shared/net/cidr.ts";
import { addToIp, compareIp, formatIp, type Ip, tryParseIp } from "../../shared/net/ip.ts";

/** One range of a set, complete. */
export interface ConfiguredRange {
  readonly subnet: Cidr;
  readonly first: Ip;
  readonly last: Ip;
  readonly gateway: Ip;
}

/** Where addresses come from. */
export type Source =
  /** The node's ENIs, filled by the agent. */
  | { readonly kind: "eni" }
  /** The pod ranges of this node (VPC mode), which the agent writes into the store. */
  | { readonly kind: "pod-cidr" }
  | { readonly kind: "ranges"; readonly sets: readonly (readonly ConfiguredRange[])[] };

export interface IpamConfig {
  readonly store: string;
  readonly logDir: string;
  readonly source: Source;
  readonly routes: readonly Route[];
  readonly resolvConf: string | undefined;
  /** How long ADD waits for the agent when no address is idle. */
  readonly waitMs: number;
  /** Overrides the node's. */
  readonly cooldownMs: number | undefined;
  /** Asked for by runtimeConfig.ips, args.cni.ips or CNI_ARGS IP=; canonical text. */
  readonly requested: readonly string[];
  /** Of which ENIs the addresses must be; undefined: shared ones. */
  readonly eniKind: EniKind | undefined;
  /** Keys that mean nothing here, to be logged. */
  readonly ignored: readonly string[];
}

const DEFAULT_WAIT_SECONDS = 30;
const KNOWN = new Set([
  "type",
  "store",
  "logDir",
  "pool",
  "ranges",
  "subnet",
  "rangeStart",
  "rangeEnd",
  "gateway",
  "routes",
  "resolvConf",
  "waitSeconds",
  "cooldownSeconds",
  "exec",
  "addresses",
  "eniKind",
]);
const ENI_KINDS: readonly EniKind[] = ["shared", "exclusive", "member"];

type Json = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Collects every fault, so that an operator sees all at once. */
class Faults {
  readonly list: string[] = [];
  add(text: string): void {
    this.list.push(text);
  }
}

/** Where the store and the logs are: conf key, then environment, then the default. Shared by all plugins. */
export function placesOf(
  call: CniCall,
  environment: Readonly<Record<string, string>>,
): { readonly store: string; readonly logDir: string } {
  const ipam = isObject(call.conf.raw.ipam) ? call.conf.raw.ipam : {};
  const text = (key: string, variable: string, fallback: string): string => {
    for (const value of [ipam[key], call.conf.raw[key], environment[variable]])
      if (typeof value === "string" && value !== "") return value;
    return fallback;
  };
  return {
    store: text("store", "TERWAY_STORE", DEFAULT_STORE),
    logDir: text("logDir", "TERWAY_LOG_DIR", DEFAULT_LOG_DIR),
  };
}

/** @throws {CniFailure} invalidConfig, naming every fault. */
export function parseIpamConfig(call: CniCall, environment: Readonly<Record<string, string>>): IpamConfig {
  const faults = new Faults();
  const ipam = isObject(call.conf.raw.ipam) ? call.conf.raw.ipam : {};
  if (call.conf.raw.ipam !== undefined && !isObject(call.conf.raw.ipam)) faults.add("ipam is not an object");
  const config: IpamConfig = {
    ...placesOf(call, environment),
    source: parseSource(ipam, call, faults),
    routes: parseRoutes(ipam.routes, faults),
    resolvConf: typeof ipam.resolvConf === "string" && ipam.resolvConf !== "" ? ipam.resolvConf : undefined,
    waitMs: 1000 * seconds(ipam, "waitSeconds", faults, DEFAULT_WAIT_SECONDS),
    cooldownMs: ipam.cooldownSeconds === undefined ? undefined : 1000 * seconds(ipam, "cooldownSeconds", faults, 0),
    requested: parseRequested(call, faults),
    eniKind: parseEniKind(ipam.eniKind, faults),
    ignored: Object.keys(ipam).filter((key) => !KNOWN.has(key)),
  };
  if (faults.list.length > 0) {
    throw new CniFailure(
      CODE.invalidConfig,
      `network "${call.conf.name}": ${faults.list.join("; ")}`,
      "correct the ipam section of the conflist",
    );
  }
  return config;
}

function parseEniKind(value: unknown, faults: Faults): EniKind | undefined {
  if (value === undefined) return undefined;
  const kind = ENI_KINDS.find((k) => k === value);
  if (kind === undefined)
    faults.add(`ipam.eniKind is ${JSON.stringify(value)}, want ${ENI_KINDS.map((k) => `"${k}"`).join(" or ")}`);
  return kind;
}

function seconds(ipam: Json, key: string, faults: Faults, fallback: number): number {
  const value = ipam[key];
  if (value === undefined) return fallback;
  if (typeof value === "number" && Number.isFinite(value) && value >= 0 && value <= 3600) return value;
  faults.add(`ipam.${key} is ${JSON.stringify(value)}, want seconds from 0 to 3600`);
  return fallback;
}

function parseSource(ipam: Json, call: CniCall, faults: Faults): Source {
  const sets = parseSets(ipam, call, faults);
  const { pool } = ipam;
  if (pool !== undefined && pool !== "eni" && pool !== "pod-cidr")
    faults.add(`ipam.pool is ${JSON.stringify(pool)}, want "eni" or "pod-cidr"`);
  if (sets.length === 0) return { kind: pool === "pod-cidr" ? "pod-cidr" : "eni" };
  if (pool !== undefined) faults.add("ipam has both pool and ranges: choose one");
  for (const [i, a] of sets.entries()) {
    for (const b of sets.slice(i + 1)) {
      for (const x of a)
        for (const y of b)
          if (cidrsOverlap(x.subnet, y.subnet))
            faults.add(`ranges ${formatCidr(x.subnet)} and ${formatCidr(y.subnet)} overlap`);
    }
  }
  return { kind: "ranges", sets };
}

function parseSets(ipam: Json, call: CniCall, faults: Faults): ConfiguredRange[][] {
  const sets: unknown[] = [];
  // host-local's older form: one range, in the section itself.
  if (ipam.subnet !== undefined) sets.push([ipam]);
  const more = [ipam.ranges, call.conf.runtimeConfig.ipRanges].filter((r) => r !== undefined);
  for (const list of more) {
    if (Array.isArray(list)) sets.push(...list);
    else faults.add('ranges is not a list of range sets, want [[{"subnet": "10.0.0.0/24"}]]');
  }
  return sets.flatMap((set) => {
    if (!Array.isArray(set) || set.length === 0) {
      faults.add('a range set is not a list of ranges, want [{"subnet": "10.0.0.0/24"}]');
      return [];
    }
    const ranges = set.flatMap((range) => parseRange(range, faults) ?? []);
    if (ranges.some((r) => r.subnet.ip.family !== ranges[0]?.subnet.ip.family))
      faults.add("a range set mixes IPv4 and IPv6");
    for (const [i, a] of ranges.entries()) {
      for (const b of ranges.slice(i + 1)) {
        if (
          a.subnet.ip.family === b.subnet.ip.family &&
          compareIp(a.first, b.last) <= 0 &&
          compareIp(b.first, a.last) <= 0
        ) {
          faults.add(
            `ranges ${formatIp(a.first)}-${formatIp(a.last)} and ${formatIp(b.first)}-${formatIp(b.last)} of one set overlap`,
          );
        }
      }
    }
    return ranges.length > 0 ? [ranges] : [];
  });
}

function parseRange(value: unknown, faults: Faults): ConfiguredRange | undefined {
  const subnet = isObject(value) && typeof value.subnet === "string" ? tryParseCidr(value.subnet) : undefined;
  if (!isObject(value) || subnet === undefined) {
    faults.add(`range ${JSON.stringify(isObject(value) ? value.subnet : value)} has no subnet in CIDR form`);
    return undefined;
  }
  return completeRange(subnet, value, faults);
}

/** Fills in what a range leaves out: the second address to the last but one, the first as gateway. */
export function completeRange(
  subnet: Cidr,
  given: Json,
  faults: { add(text: string): void },
): ConfiguredRange | undefined {
  const network = networkOf(subnet);
  if (compareIp(network, subnet.ip) !== 0) {
    faults.add(`subnet ${formatCidr(subnet)} has host bits set, want ${formatIp(network)}/${subnet.prefixLength}`);
    return undefined;
  }
  if (subnet.prefixLength > subnet.ip.bytes.length * 8 - 2) {
    faults.add(
      `subnet ${formatCidr(subnet)} is too small: an address, a gateway and the network's own need /${subnet.ip.bytes.length * 8 - 2} or shorter`,
    );
    return undefined;
  }
  const address = (key: string, fallback: Ip | undefined): Ip | undefined => {
    const text = given[key];
    if (text === undefined || text === "" || text === null) return fallback;
    const ip = typeof text === "string" ? tryParseIp(text) : undefined;
    if (ip === undefined || !cidrContains(subnet, ip)) {
      faults.add(`${key} ${JSON.stringify(text)} is no address of ${formatCidr(subnet)}`);
      return undefined;
    }
    return ip;
  };
  const first = address("rangeStart", addToIp(network, 1));
  const last = address("rangeEnd", addToIp(lastOf(subnet), subnet.ip.family === 4 ? -1 : 0));
  const gateway = address("gateway", addToIp(network, 1));
  if (first === undefined || last === undefined || gateway === undefined) return undefined;
  if (compareIp(first, last) > 0) {
    faults.add(`rangeStart ${formatIp(first)} comes after rangeEnd ${formatIp(last)}`);
    return undefined;
  }
  return { subnet, first, last, gateway };
}

function parseRoutes(value: unknown, faults: Faults): Route[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) {
    faults.add("ipam.routes is not a list");
    return [];
  }
  return value.flatMap((route: unknown) => {
    if (!isObject(route) || typeof route.dst !== "string" || tryParseCidr(route.dst) === undefined) {
      faults.add(`route ${JSON.stringify(route)} has no dst in CIDR form`);
      return [];
    }
    if (route.gw !== undefined && (typeof route.gw !== "string" || tryParseIp(route.gw) === undefined)) {
      faults.add(`route to ${route.dst} has gw ${JSON.stringify(route.gw)}, want an IP address`);
      return [];
    }
    return [route as unknown as Route];
  });
}

function parseRequested(call: CniCall, faults: Faults): string[] {
  const { runtimeConfig, cniArgs } = call.conf;
  const fromArgs = call.env.args.IP;
  const ipam = isObject(call.conf.raw.ipam) ? call.conf.raw.ipam : {};
  const listed =
    [runtimeConfig.ips, cniArgs.ips, ipam.addresses].find((v) => v !== undefined) ??
    (fromArgs ? fromArgs.split(",") : []);
  if (!Array.isArray(listed)) {
    faults.add(`ips is ${JSON.stringify(listed)}, want a list of addresses`);
    return [];
  }
  return listed.flatMap((text: unknown) => {
    // The ips capability allows a prefix length.
    const ip = typeof text === "string" ? tryParseIp(text.split("/")[0] ?? "") : undefined;
    if (ip === undefined) faults.add(`requested address ${JSON.stringify(text)} is no IP address`);
    return ip ? [formatIp(ip)] : [];
  });
}

/** `nameserver`, `domain`, `search`, `options` of a resolv.conf(5). */
export function parseResolvConf(text: string): Dns {
  const nameservers: string[] = [];
  const options: string[] = [];
  let search: string[] = [];
  let domain: string | undefined;
  for (const line of text.split("\n")) {
    const [word = "", ...rest] = line.trim().split(/\s+/);
    if (word === "nameserver" && rest[0] !== undefined) nameservers.push(rest[0]);
    else if (word === "domain" && rest[0] !== undefined) domain = rest[0];
    else if (word === "search") search = rest;
    else if (word === "options") options.push(...rest);
  }
  return {
    ...(nameservers.length > 0 ? { nameservers } : {}),
    ...(domain === undefined ? {} : { domain }),
    ...(search.length > 0 ? { search } : {}),
    ...(options.length > 0 ? { options } : {}),
  };
}
