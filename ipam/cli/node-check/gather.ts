/** Looks at the node. Changes nothing on it; the kernel is tried in a namespace of its own. */
import { readdirSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { join } from "node:path";
import type { KernelReport } from "../../../shared/kernel/features.ts";
import { probeKernel } from "../../../shared/kernel/probe.ts";
import { openNft } from "../../../shared/netlink/nft/socket.ts";
import { getChains, parseChain } from "../../../shared/netlink/nft/table.ts";
import { getLink, parseLink } from "../../../shared/netlink/rtnl/link.ts";
import { NetlinkError, openNetlink } from "../../../shared/netlink/socket.ts";
import { readSysctl } from "../../../shared/netlink/sysctl.ts";
import { MalformedNetlink } from "../../../shared/netlink/wire/reader.ts";
import { AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK } from "../../../shared/sys/linux.ts";
import { nodeSys as sys } from "../../../shared/sys/node.ts";
import { encodeUtf8, isErrno, SysError } from "../../../shared/sys/sys.ts";
import { type PoolStatistics, poolStatistics } from "../../store/counts.ts";
import { type Store, storeNow } from "../../store/open.ts";
import { binariesIn } from "../binaries.ts";
import { openForLooking, readNodeView } from "../node-view.ts";
import type { AddressCounts, ConfFile, NodeCheckFacts, StoreFact } from "./facts.ts";

export interface Places {
  readonly confDir: string;
  readonly binDirs: readonly string[];
  readonly store: string;
}

const SYSCTLS = [
  "net/ipv4/ip_forward",
  "net/ipv6/conf/all/forwarding",
  "net/ipv6/conf/default/disable_ipv6",
  "net/ipv4/conf/all/rp_filter",
  "net/ipv4/conf/default/rp_filter",
] as const;

export function gatherFacts(places: Places): NodeCheckFacts {
  return {
    release: release(),
    kernel: tryKernel(),
    sysctls: Object.fromEntries(SYSCTLS.map((name) => [name, sysctl(name)])),
    confDir: places.confDir,
    confFiles: readConfFolder(places.confDir),
    binDirs: places.binDirs,
    binaryOf: binariesIn(places.binDirs),
    store: lookAtStore(places.store),
    links: linkNames(),
    chains: chainNames(),
  };
}

export function tryKernel(): KernelReport | { readonly problem: string } {
  try {
    return probeKernel(sys);
  } catch (error) {
    if (error instanceof SysError) return { problem: error.message };
    throw error;
  }
}

function sysctl(name: string): string | undefined {
  try {
    return readSysctl(sys, name);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
}

/** The files that libcni takes, in its order. @returns undefined: there is no such folder. */
export function readConfFolder(folder: string): ConfFile[] | undefined {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch {
    return undefined;
  }
  return names
    .filter((name) => /\.(conflist|conf|json)$/.test(name))
    .sort((a, b) => (a < b ? -1 : 1))
    .map((file) => readConf(folder, file));
}

interface Entry {
  readonly type?: unknown;
  readonly mode?: unknown;
}

function readConf(folder: string, file: string): ConfFile {
  let text = "";
  try {
    text = readFileSync(join(folder, file), "utf8");
    const conf = JSON.parse(text) as Entry & { name?: unknown; plugins?: readonly Entry[] };
    const plugins = conf.plugins ?? [conf];
    const { mode } = plugins[0] ?? {};
    return {
      file,
      text,
      network: typeof conf.name === "string" ? conf.name : "",
      types: plugins.map((p) => p.type).filter((t) => typeof t === "string"),
      ...(typeof mode === "string" ? { pluginMode: mode } : {}),
    };
  } catch {
    return { file, text, types: [] };
  }
}

function lookAtStore(path: string): StoreFact {
  if (sys.stat(path) === undefined) return { kind: "missing", path };
  try {
    const store = openForLooking(path);
    try {
      const view = readNodeView(store);
      return {
        kind: "there",
        path,
        agentRuns: agentAnswers(view.facts.agent_socket),
        addresses: countAddresses(store, view.facts.ip_stack === "ipv6" ? 6 : 4),
        pods: view.pods.length,
        enis: view.enis.length,
        instanceType: view.facts.instance_type,
        ipStack: view.facts.ip_stack,
        hasIpv6Address: (view.facts.node_ip6 ?? "") !== "",
      };
    } finally {
      store.db.close();
    }
  } catch (error) {
    return { kind: "broken", path, problem: (error as Error).message };
  }
}

function countAddresses(store: Store, family: 4 | 6): AddressCounts {
  const counts = poolStatistics(store.db, storeNow(sys)).filter((c) => c.pool === "eni" && c.family === family);
  const inService = counts.filter((c) => c.eniState === "ready");
  const sum = (of: readonly PoolStatistics[], pick: (c: PoolStatistics) => number) =>
    of.reduce((n, c) => n + pick(c), 0);
  const idle = sum(inService, (c) => c.idle);
  const cooling = sum(inService, (c) => c.cooling);
  return {
    idle,
    cooling,
    reserved: sum(counts, (c) => c.reserved),
    releasing: sum(counts, (c) => c.releasing),
    outOfService: sum(counts, (c) => c.idle + c.cooling) - idle - cooling,
  };
}

/** By a word to its socket; the lock that it holds is not tried, for that could keep it from starting. */
function agentAnswers(socket: string | undefined): boolean {
  if (socket === undefined || socket === "") return false;
  const fd = sys.socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  try {
    sys.sendToUnix(fd, socket, encodeUtf8("ping"));
    return true;
  } catch (error) {
    // EAGAIN: it has a lot to read, so it is there.
    if (error instanceof SysError) return error.errno === "EAGAIN";
    throw error;
  } finally {
    sys.close(fd);
  }
}

function linkNames(): string[] {
  const nl = openNetlink(sys);
  try {
    return nl.dump(getLink()).map((payload) => parseLink(payload).name);
  } finally {
    nl.close();
  }
}

function chainNames(): string[] {
  const nft = openNft(sys);
  try {
    return (["inet", "ip", "ip6"] as const).flatMap((family) =>
      nft.dump(getChains(family)).flatMap((payload) => {
        try {
          return [parseChain(payload).name];
        } catch (error) {
          // A kind of chain that we do not speak of.
          if (error instanceof MalformedNetlink) return [];
          throw error;
        }
      }),
    );
  } catch (error) {
    // No nftables, or not allowed to look: the kernel's report says so.
    if (error instanceof NetlinkError || error instanceof SysError) return [];
    throw error;
  } finally {
    nft.close();
  }
}
