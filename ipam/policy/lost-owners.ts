/**
 * Whose the addresses are that the kernel judges and the store knows nothing of, because it was lost. The runtime's CNI
 * library keeps a file of each attachment until its DEL (libcni/api.go in containernetworking/cni: cachedInfo).
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Result } from "../../shared/cni/result.ts";
import { formatIp, tryParseIp } from "../../shared/net/ip.ts";
import type { NftSocket } from "../../shared/netlink/nft/socket.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import type { SetKind } from "../../shared/policy/content.ts";
import { LINK_MAP, selfSet } from "../../shared/policy/names.ts";
import { nodeLinks } from "../../shared/policy/pod-links.ts";
import { readSet } from "../../shared/policy/read.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { type Store, storeNow } from "../store/open.ts";
import { listPolicyAddresses, type PolicyAddress, putPolicyAddress } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";

export const RUNTIME_CACHE = "/var/lib/cni/results";

export interface LostOwners {
  /** Addresses whose pod is known again. */
  readonly restored: readonly string[];
  /** Those of pods that nobody can name: they are under no policy from now on. */
  readonly unknown: readonly string[];
}

export function describeUnknown(addresses: readonly string[]): string {
  return `nobody knows whose ${addresses.join(" ")} are: no policy holds for these pods until they are created again`;
}

/** Writes into the store what it lacks. To be called before policy is brought into the kernel. */
export function restoreOwners(store: Store, nft: Pick<NftSocket, "dump">, folder = RUNTIME_CACHE): LostOwners {
  const known = new Set(listPolicyAddresses(store.db).map(({ address }) => address));
  const lost = judged(nft).filter((address) => !known.has(address));
  if (lost.length === 0) return { restored: [], unknown: [] };
  const owners = readOwners(folder);
  const found = lost.flatMap((address) => owners.get(address) ?? []);
  inTransaction(store.db, () => {
    for (const owner of found) putPolicyAddress(store.db, owner);
  });
  return { restored: found.map(({ address }) => address), unknown: lost.filter((address) => !owners.has(address)) };
}

/** Every pod's addresses are in these sets, whatever its policy, and its links in the map. */
function judged(nft: Pick<NftSocket, "dump">): string[] {
  const links = read(nft, LINK_MAP, "links").map((element) => element.slice(0, element.indexOf(" ")));
  return [...([4, 6] as const).flatMap((family) => read(nft, selfSet(family), "pairs")), ...links];
}

function read(nft: Pick<NftSocket, "dump">, name: string, kind: SetKind): string[] {
  try {
    return readSet(nft, name, kind);
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === "ENOENT") return [];
    throw error;
  }
}

interface CachedInfo {
  readonly kind?: string;
  readonly containerId?: string;
  readonly ifName?: string;
  readonly networkName?: string;
  readonly netns?: string;
  /** The network configuration, base64. */
  readonly config?: string;
  readonly cniArgs?: readonly (readonly [string, string])[];
  readonly result?: Pick<Result, "interfaces"> & { readonly ips?: readonly { readonly address?: string }[] };
}

function readOwners(folder: string): Map<string, PolicyAddress> {
  const owners = new Map<string, PolicyAddress>();
  for (const name of existsSync(folder) ? readdirSync(folder) : []) {
    let owned: readonly PolicyAddress[];
    try {
      owned = ownedBy(JSON.parse(readFileSync(join(folder, name), "utf8")) as CachedInfo);
    } catch {
      continue; // another's file, or one that the runtime is writing
    }
    for (const owner of owned) owners.set(owner.address, owner);
  }
  return owners;
}

function ownedBy(info: CachedInfo): PolicyAddress[] {
  const { containerId = "", ifName = "", networkName = "", netns, cniArgs, result } = info;
  // The file of a container that is gone was left behind: another pod may have its address.
  if (info.kind !== "cniCacheV1" || (netns !== undefined && netns !== "" && !existsSync(netns))) return [];
  const conf = JSON.parse(Buffer.from(info.config ?? "", "base64").toString()) as {
    readonly plugins?: readonly { readonly type?: string; readonly default?: string }[];
  };
  const entry = conf.plugins?.find(({ type }) => type === "terway-policy");
  if (entry === undefined) return [];
  const args = new Map(cniArgs);
  const [namespace, name] = [args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME")];
  const addresses = (result?.ips ?? []).flatMap(({ address = "" }) => {
    const ip = tryParseIp(address.split("/")[0] ?? "");
    return ip === undefined ? [] : [formatIp(ip)];
  });
  return [...addresses, ...nodeLinks(result)].map((address) => ({
    address,
    network: networkName,
    containerId,
    ifname: ifName,
    // As terway-policy names a container that is no pod.
    ...(namespace === undefined || name === undefined ? { namespace: "", name: containerId } : { namespace, name }),
    posture: (entry.default ?? "allow") === "allow" ? "allow" : "deny",
    sinceMs: storeNow(nodeSys),
  }));
}
