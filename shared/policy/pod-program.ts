/**
 * One pod's part of the node's table, for the plugin: its addresses into the maps, and whatever of the table is missing
 * for that. The usual case is one small batch; everything else is tried when the kernel says no.
 */
import { addElements, delElements, getElements, parseElements } from "../netlink/nft/set.ts";
import type { NftSocket } from "../netlink/nft/socket.ts";
import { formatVerdict } from "../netlink/nft/verdict.ts";
import type { Request } from "../netlink/request.ts";
import { NetlinkError } from "../netlink/socket.ts";
import type { CompiledPolicy } from "./compiled.ts";
import { podElement, type TableContent } from "./content.ts";
import { difference } from "./difference.ts";
import { kernelLacks } from "./kernel-lacks.ts";
import { POLICY_TABLE } from "./names.ts";
import { readNames } from "./program.ts";
import { type RenderOptions, renderNode } from "./render.ts";

/** A map's or set's name and an element's text, from `verdictsOf`. */
export interface PodVerdict {
  readonly map: string;
  readonly element: string;
}

export interface PodPlan {
  readonly verdicts: readonly PodVerdict[];
  /** The profiles that the verdicts lead to and the sets that those name; asked for only when the kernel lacks them. */
  parts(): Pick<CompiledPolicy, "sets" | "endpointSets" | "profiles">;
}

type Nft = Pick<NftSocket, "commit" | "generation" | "dump" | "transact">;

const TRIES = 32;

/**
 * Returns when the verdicts are in force.
 *
 * @param plan Made anew for each try: what is compiled may change meanwhile. undefined: nothing is wanted any more.
 * @returns The plan that is in force, if any, and what of the table had to be made for it, one line each.
 * @throws {NetlinkError}
 */
export function putPod(
  nft: Nft,
  plan: () => PodPlan | undefined,
  options: RenderOptions,
): { readonly plan: PodPlan | undefined; readonly made: readonly string[] } {
  const made: string[] = [];
  let wanted = plan();
  let last: NetlinkError | undefined;
  for (let i = 0; i < TRIES; i++) {
    if (wanted === undefined) return { plan: undefined, made };
    try {
      nft.commit(i === 0 ? adding(wanted.verdicts) : replacing(nft, wanted.verdicts));
      return { plan: wanted, made };
    } catch (error) {
      if (!(error instanceof NetlinkError)) throw error;
      last = error;
    }
    wanted = plan();
    // ENOENT: a chain, a map or the table is missing. Otherwise an element with another verdict is in the way, or
    // somebody else was at work.
    if (last.errno === "ENOENT") made.push(...(wanted === undefined ? [] : makeMissing(nft, wanted, options)));
    else if (!["EEXIST", "EBUSY", "ERESTART"].includes(last.errno)) throw kernelLacks(last);
  }
  throw last;
}

function byMap(verdicts: readonly PodVerdict[]): Map<string, PodVerdict[]> {
  const maps = new Map<string, PodVerdict[]>();
  for (const v of verdicts) {
    const list = maps.get(v.map);
    if (list === undefined) maps.set(v.map, [v]);
    else list.push(v);
  }
  return maps;
}

function adding(verdicts: readonly PodVerdict[]): Request[] {
  return [...byMap(verdicts)].flatMap(([name, list]) =>
    addElements(
      { ...POLICY_TABLE, name },
      list.map((v) => podElement(v.element)),
    ),
  );
}

function existing(nft: Pick<Nft, "transact">, verdicts: readonly PodVerdict[]): PodVerdict[] {
  return verdicts.filter(
    (v) => nft.transact([getElements({ ...POLICY_TABLE, name: v.map }, [podElement(v.element)])])[0]?.ok === true,
  );
}

/** What is there of them goes, and all of them come, at one instant. */
function replacing(nft: Pick<Nft, "transact">, verdicts: readonly PodVerdict[]): Request[] {
  return [...removing(existing(nft, verdicts)), ...adding(verdicts)];
}

/** Adds what the table lacks for this pod; what it has is left alone, right or wrong. */
function makeMissing(nft: Nft, plan: PodPlan, options: RenderOptions): readonly string[] {
  const generation = nft.generation();
  const have = readNames(nft);
  const want = contentOf(plan, options);
  const missing: TableContent = {
    sets: new Map([...want.sets].filter(([name]) => !have?.sets.has(name))),
    chains: new Map([...want.chains].filter(([name]) => !have?.chains.has(name))),
  };
  const parts = difference(have && { sets: new Map(), chains: new Map() }, missing);
  try {
    nft.commit([...parts.prepare, ...parts.change], generation);
    return parts.words;
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error;
    // Another plugin or the agent does the same: look again.
    if (["ERESTART", "ENOENT", "EEXIST", "EBUSY"].includes(error.errno)) return [];
    throw kernelLacks(error);
  }
}

/** The frame, and the plan's profiles and sets. */
function contentOf(plan: PodPlan, options: RenderOptions): TableContent {
  return renderNode({ ...options, compiled: { revision: 0, pods: [], ...plan.parts() }, pods: [] });
}

function removing(verdicts: readonly PodVerdict[]): Request[] {
  return [...byMap(verdicts)].flatMap(([name, list]) =>
    delElements(
      { ...POLICY_TABLE, name },
      list.map((v) => podElement(v.element)),
    ),
  );
}

/** Takes the pod out of the maps. What is gone already is no error. @throws {NetlinkError} */
export function removePod(nft: Pick<Nft, "commit" | "transact">, verdicts: readonly PodVerdict[]): void {
  let left = verdicts;
  for (let i = 0; i < TRIES && left.length > 0; i++) {
    try {
      nft.commit(removing(left));
      return;
    } catch (error) {
      // A kernel without nf_tables has no maps.
      if (!(error instanceof NetlinkError && ["ENOENT", "EOPNOTSUPP"].includes(error.errno))) throw error;
    }
    // All or nothing: when one is not there, nothing went.
    left = inForce(nft, left);
  }
}

/** Those whose address has a verdict, whichever. Only reads: the kernel takes milliseconds to undo a batch that fails. */
export function inForce(nft: Pick<Nft, "transact">, verdicts: readonly PodVerdict[]): PodVerdict[] {
  const found = nft.transact(
    verdicts.map((v) => getElements({ ...POLICY_TABLE, name: v.map }, [podElement(v.element)])),
  );
  return verdicts.filter((_, i) => found[i]?.ok);
}

/** What the kernel lacks for this pod, one line each. */
export function podProblems(nft: Nft, plan: PodPlan, options: RenderOptions): string[] {
  const have = readNames(nft);
  if (have === undefined) return [`table inet ${POLICY_TABLE.table} is missing`];
  const want = contentOf(plan, options);
  const chains = new Map([...want.chains].filter(([name]) => !name.startsWith("drop-")));
  const sets = new Map([...want.sets].map(([name, set]) => [name, { ...set, elements: [] }]));
  const known: TableContent = {
    sets: new Map([...have.sets].filter(([name]) => sets.has(name))),
    chains: new Map([...have.chains].filter(([name]) => chains.has(name))),
  };
  const problems = [...difference(known, { sets, chains }).words];
  for (const v of plan.verdicts) {
    const found = nft.transact([getElements({ ...POLICY_TABLE, name: v.map }, [podElement(v.element)])])[0];
    if (found?.ok !== true || !sameVerdict(found.replies[0], v)) problems.push(`${v.map} lacks ${v.element}`);
  }
  return problems;
}

function sameVerdict(payload: Uint8Array | undefined, v: PodVerdict): boolean {
  if (payload === undefined) return false;
  const [found] = parseElements(payload);
  if (!v.element.includes(" : ")) return found !== undefined;
  return found?.verdict !== undefined && v.element.endsWith(` : ${formatVerdict(found.verdict)}`);
}
