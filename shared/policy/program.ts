/** Brings the kernel's policy table to what is wanted, by difference; says what differs; removes it. */
import type { NftSocket } from "../netlink/nft/socket.ts";
import { delTable } from "../netlink/nft/table.ts";
import type { Request } from "../netlink/request.ts";
import { NetlinkError } from "../netlink/socket.ts";
import type { SetContent, TableContent } from "./content.ts";
import { difference, needsRebuild, rebuild } from "./difference.ts";
import { kernelLacks } from "./kernel-lacks.ts";
import { dropChain, LINK_MAP, POLICY_TABLE, podMap, selfSet } from "./names.ts";
import { hasTable, readChains, readSet, readSets, readTable, readTableAtOnce } from "./read.ts";
import { type DesiredPolicy, renderNode } from "./render.ts";

/** What was programmed last. Hand it to the next call: it then reads from the kernel only what others change too. */
export interface Programmed {
  readonly content: TableContent;
  /** Of the network namespace right after: while it is the same, nobody has changed any table. */
  readonly generation: number;
}

export interface ProgramReport {
  readonly programmed: Programmed;
  /** What differed, one line each; empty: nothing was changed. */
  readonly changed: readonly string[];
  /** nfnetlink messages sent, and their retries: zero, one or two batches if nobody else was at work. */
  readonly batches: number;
}

type Nft = Pick<NftSocket, "commit" | "generation" | "dump">;

/** Somebody else changes tables at this very moment; each try starts from a fresh picture. */
const TRIES = 64;

/**
 * Programs the node's table: the difference, in one instant.
 *
 * @param desired Read anew for each try, and after the kernel has been looked at: a pod that an ADD put into the kernel
 *   is then in the store as well.
 * @param known Result of the last call in this network namespace.
 * @throws {NetlinkError} When the kernel refuses.
 */
export function programPolicy(nft: Nft, desired: () => DesiredPolicy, known?: Programmed): ProgramReport {
  return program(nft, (have) => renderNode(keepLog(desired(), have)), known);
}

/** The same for any content: the table of a pod's own namespace, that nobody but we writes while `known` is handed on. */
export function programContent(nft: Nft, want: TableContent, known?: Programmed): ProgramReport {
  // Whoever else changed anything there may have changed everything.
  return program(nft, () => want, known, readTable);
}

/** Logging stays as it is found unless the caller says. */
function keepLog(desired: DesiredPolicy, have: TableContent | undefined): DesiredPolicy {
  if (desired.logDrops !== undefined) return desired;
  const logs = (have?.chains.get(dropChain("ingress"))?.rules.length ?? 0) > 1;
  return logs ? { ...desired, logDrops: true } : desired;
}

function program(
  nft: Nft,
  want: (have: TableContent | undefined) => TableContent,
  known: Programmed | undefined,
  refresh: (nft: Nft, known: TableContent) => TableContent | undefined = withFreshMaps,
): ProgramReport {
  let batches = 0;
  let remembered = known;
  let mustRebuild = false;
  let last: unknown;
  for (let i = 0; i < TRIES; i++) {
    const generation = nft.generation();
    let have: TableContent | undefined;
    try {
      if (remembered === undefined) have = readTable(nft);
      else have = remembered.generation === generation ? remembered.content : refresh(nft, remembered.content);
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error;
      last = kernelLacks(error);
      // What was listed was gone before it was read: somebody else is at work.
      if (error.errno === "ENOENT" && nft.generation() !== generation) continue;
      throw last;
    }
    const content = want(have);
    const whole = mustRebuild || (have !== undefined && needsRebuild(have, content));
    const parts = whole
      ? { prepare: [], change: rebuild(content), words: ["the table could not be mended: it was built anew"] }
      : difference(have, content);
    try {
      const sent = commitParts(nft, parts.prepare, parts.change, generation);
      batches += sent;
      return { programmed: { content, generation: later(generation, sent) }, changed: parts.words, batches };
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error;
      last = error;
      batches += 1;
      if (error.errno === "ERESTART") continue;
      // What is remembered is not what is there: look again. What is there cannot be mended: build it anew.
      if (remembered !== undefined) remembered = undefined;
      else if (!mustRebuild && ["ENOENT", "EEXIST", "EBUSY", "EINVAL"].includes(error.errno)) mustRebuild = true;
      else throw kernelLacks(error);
    }
  }
  throw last;
}

/** @returns How many batches it took. */
function commitParts(nft: Nft, prepare: readonly Request[], change: readonly Request[], generation: number): number {
  if (prepare.length > 0) nft.commit(prepare, generation);
  const prepared = Number(prepare.length > 0);
  if (change.length > 0) nft.commit(change, later(generation, prepared));
  return prepared + Number(change.length > 0);
}

/** So many batches after a generation. The kernel leaves 0 out. */
function later(generation: number, batches: number): number {
  const next = (generation + batches) >>> 0;
  return next >= batches ? next : next + 1;
}

function guarded<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof NetlinkError ? kernelLacks(error) : error;
  }
}

/** What ADD and DEL change too. */
const POD_SETS = [
  LINK_MAP,
  ...([4, 6] as const).flatMap((f) => [podMap("ingress", f), podMap("egress", f), selfSet(f)]),
];

/** undefined: the table or a map is gone. */
function withFreshMaps(nft: Nft, known: TableContent): TableContent | undefined {
  try {
    const fresh = POD_SETS.flatMap((name): [string, SetContent][] => {
      const before = known.sets.get(name);
      return before === undefined ? [] : [[name, { ...before, elements: readSet(nft, name, before.kind) }]];
    });
    return { ...known, sets: new Map([...known.sets, ...fresh]) };
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === "ENOENT") return readTable(nft);
    throw error;
  }
}

/** What of the node's table is not as wanted, one line each. Reads everything. */
export function policyProblems(nft: Nft, desired: DesiredPolicy): string[] {
  const have = guarded(() => readTableAtOnce(nft));
  const want = renderNode(keepLog(desired, have));
  if (have !== undefined && needsRebuild(have, want)) return ["a set or base chain is of another form than ours"];
  return [...difference(have, want).words];
}

/** Mends whatever differs, foreign rules in our table included. @returns What was put right, one line each. */
export function repairPolicy(nft: Nft, desired: () => DesiredPolicy): readonly string[] {
  return programPolicy(nft, desired).changed;
}

/** Removes the table and everything in it. @returns Whether there was one. */
export function removePolicy(nft: Nft): boolean {
  if (!hasTable(nft)) return false;
  try {
    nft.commit([delTable(POLICY_TABLE)]);
    return true;
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === "ENOENT") return false;
    throw error;
  }
}

export interface RuleCounter {
  readonly chain: string;
  /** The rule's origin as far as it fits into a comment. */
  readonly origin: string;
  readonly packets: number;
  readonly bytes: number;
}

/** Counters by chain and origin: the rules that one policy rule became are summed. */
export function readCounters(nft: Pick<NftSocket, "dump">): RuleCounter[] {
  const counters = new Map<string, RuleCounter>();
  for (const [chain, { rules }] of readChains(nft)) {
    for (const { expressions, comment = "" } of rules) {
      for (const e of expressions) {
        if (e.kind !== "counter") continue;
        const key = `${chain} ${comment}`;
        const { packets = 0, bytes = 0 } = counters.get(key) ?? {};
        counters.set(key, { chain, origin: comment, packets: packets + e.packets, bytes: bytes + e.bytes });
      }
    }
  }
  return [...counters.values()];
}

/** Names of what is there, without the elements of sets: enough to add what a pod needs. */
export function readNames(nft: Pick<NftSocket, "dump">): TableContent | undefined {
  return hasTable(nft) ? { chains: readChains(nft), sets: readSets(nft, () => false) } : undefined;
}
