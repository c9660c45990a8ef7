/**
 * From what is programmed to what should be: the requests that make the difference, and nothing else. Pure.
 *
 * Two batches. `prepare` makes new chains and sets, which nothing leads to yet; `change` is the one instant at which
 * old becomes new. A packet that the kernel is working on at that instant looks at the old rules and the new maps: were
 * the new chains made in the same batch, it would find them empty and pass.
 */

import { delRules, newRule } from "../netlink/nft/rule.ts";
import { addElements, delElements, delSet, newSet, type SetElement } from "../netlink/nft/set.ts";
import { delChain, delTable, newChain, newTable } from "../netlink/nft/table.ts";
import type { Request } from "../netlink/request.ts";
import {
  type ChainContent,
  encodeElement,
  leads,
  ruleKey,
  type SetContent,
  setForm,
  type TableContent,
} from "./content.ts";
import { POLICY_TABLE } from "./names.ts";

export interface Difference {
  readonly prepare: readonly Request[];
  readonly change: readonly Request[];
  /** One line each, for people. */
  readonly words: readonly string[];
}

/** @param have undefined: there is no table. */
export function difference(have: TableContent | undefined, want: TableContent): Difference {
  const known = have ?? { sets: new Map(), chains: new Map() };
  const words = have === undefined ? [`table inet ${POLICY_TABLE.table} is missing`] : [];
  const prepare = have === undefined ? [newTable(POLICY_TABLE)] : [];
  const change: Request[] = [];
  addMissing(known, want, prepare, change, words, have !== undefined);
  changeSets(known, want, change, words);
  changeChains(known, want, change, words);
  removeStale(known, want, change, words);
  return { prepare, change, words };
}

/** The whole table anew, at one instant: for one in a state that cannot be mended. */
export function rebuild(want: TableContent): Request[] {
  const { prepare, change } = difference(undefined, want);
  return [newTable(POLICY_TABLE), delTable(POLICY_TABLE), ...prepare, ...change];
}

function addMissing(
  have: TableContent,
  want: TableContent,
  prepare: Request[],
  change: Request[],
  words: string[],
  known: boolean,
): void {
  const chains = [...want.chains].filter(([name]) => !have.chains.has(name));
  const sets = [...want.sets].filter(([name]) => !have.sets.has(name));
  for (const [name, { hook }] of chains) {
    if (hook !== undefined) continue;
    prepare.push(newChain({ ...POLICY_TABLE, name }));
    // An ADD may have made it, and its rules, since `have` was read: they are not to be there twice.
    if (known) prepare.push(delRules({ ...POLICY_TABLE, chain: name }));
  }
  for (const [i, [name, content]] of sets.entries()) {
    prepare.push(newSet(setForm(name, content), i + 1));
    // The maps lead packets to the chains: those come last.
    (leads(content) ? change : prepare).push(...adding(name, content, content.elements));
  }
  for (const [name, { hook, rules }] of chains) {
    // A chain with a hook works as soon as it is there.
    const requests = hook === undefined ? prepare : change;
    if (hook !== undefined) requests.push(newChain({ ...POLICY_TABLE, name, hook }));
    for (const rule of rules) requests.push(newRule({ ...POLICY_TABLE, chain: name, ...rule }));
  }
  if (!known) return;
  words.push(
    ...chains.map(([name]) => `chain ${name} is missing`),
    ...sets.map(([name, { kind }]) => `${kind === "verdicts" || kind === "links" ? "map" : "set"} ${name} is missing`),
  );
}

function encoded(content: SetContent, elements: readonly string[]): SetElement[] {
  return elements.flatMap((text) => encodeElement(content.kind, text));
}

function adding(name: string, content: SetContent, elements: readonly string[]): Request[] {
  return addElements({ ...POLICY_TABLE, name }, encoded(content, elements));
}

function changeSets(have: TableContent, want: TableContent, change: Request[], words: string[]): void {
  for (const [name, content] of want.sets) {
    const before = have.sets.get(name);
    if (before === undefined || sameElements(before.elements, content.elements)) continue;
    const { gone, added } = changedElements(before.elements, content.elements);
    if (gone.length === 0 && added.length === 0) continue; // only in another order
    change.push(...delElements({ ...POLICY_TABLE, name }, encoded(content, gone)), ...adding(name, content, added));
    words.push(
      ...(added.length > 0 ? [`${name} lacks ${some(added)}`] : []),
      ...(gone.length > 0 ? [`${name} has ${some(gone)} that is not wanted`] : []),
    );
  }
}

function sameElements(a: readonly string[], b: readonly string[]): boolean {
  if (a === b) return true;
  return a.length === b.length && a.every((text, i) => text === b[i]);
}

/** Both come in the same order: what they have in common at both ends, mostly nearly all, is not looked up. */
function changedElements(
  before: readonly string[],
  after: readonly string[],
): { readonly gone: readonly string[]; readonly added: readonly string[] } {
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) start += 1;
  let [end, afterEnd] = [before.length, after.length];
  while (end > start && afterEnd > start && before[end - 1] === after[afterEnd - 1]) {
    end -= 1;
    afterEnd -= 1;
  }
  const [was, is] = [before.slice(start, end), after.slice(start, afterEnd)];
  const [old, now] = [new Set(was), new Set(is)];
  return { gone: was.filter((text) => !now.has(text)), added: is.filter((text) => !old.has(text)) };
}

function some(texts: readonly string[]): string {
  return texts.length <= 3 ? texts.join(", ") : `${texts.slice(0, 2).join(", ")} and ${texts.length - 2} more`;
}

function sameRules(a: ChainContent, b: ChainContent): boolean {
  if (a === b || (a.basis !== undefined && a.basis === b.basis)) return true;
  return a.rules.length === b.rules.length && a.rules.every((rule, i) => ruleKey(rule) === ruleKey(b.rules[i] ?? rule));
}

function changeChains(have: TableContent, want: TableContent, change: Request[], words: string[]): void {
  for (const [name, content] of want.chains) {
    const before = have.chains.get(name);
    if (before === undefined || sameRules(before, content)) continue;
    change.push(delRules({ ...POLICY_TABLE, chain: name }));
    for (const rule of content.rules) change.push(newRule({ ...POLICY_TABLE, chain: name, ...rule }));
    words.push(`chain ${name} was changed: it has ${before.rules.length} rules, want ${content.rules.length}`);
  }
}

function removeStale(have: TableContent, want: TableContent, change: Request[], words: string[]): void {
  const chains = [...have.chains.keys()].filter((name) => !want.chains.has(name));
  const sets = [...have.sets.keys()].filter((name) => !want.sets.has(name));
  // Rules first: chains lead to chains and use sets.
  for (const name of chains) change.push(delRules({ ...POLICY_TABLE, chain: name }));
  for (const name of chains) change.push(delChain({ ...POLICY_TABLE, name }));
  for (const name of sets) change.push(delSet({ ...POLICY_TABLE, name }));
  words.push(
    ...chains.map((name) => `chain ${name} is not wanted`),
    ...sets.map((name) => `set ${name} is not wanted`),
  );
}

/** A set or chain that is of another kind than wanted cannot be changed in place. */
export function needsRebuild(have: TableContent, want: TableContent): boolean {
  for (const [name, { kind, family }] of want.sets) {
    const before = have.sets.get(name);
    if (before !== undefined && (before.kind !== kind || before.family !== family)) return true;
  }
  for (const [name, { hook }] of want.chains) {
    const before = have.chains.get(name);
    if (before !== undefined && JSON.stringify(before.hook) !== JSON.stringify(hook)) return true;
  }
  return false;
}
