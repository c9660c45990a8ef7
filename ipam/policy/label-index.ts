/** Finds the selectors that may select an object by one label each must have, instead of trying all of them. */
import type { Labels, Selector } from "./objects.ts";

export interface Indexed {
  readonly selector: Selector;
  /** Selects in this namespace only. */
  readonly namespace: string | undefined;
}

/** Under which keys an entry is found: each object has at most one of them. */
function bucketsOf({ selector, namespace }: Indexed): string[] {
  const required = selector.requirements.find((r) => r.operator === "In");
  if (required !== undefined) return [...new Set(required.values)].map((value) => `=${required.key}=${value}`);
  if (namespace !== undefined) return [`n${namespace}`];
  const exists = selector.requirements.find((r) => r.operator === "Exists");
  return [exists === undefined ? "*" : `?${exists.key}`];
}

export class LabelIndex<T extends Indexed> {
  readonly #buckets = new Map<string, Set<T>>();

  add(entry: T): void {
    for (const bucket of bucketsOf(entry)) {
      const entries = this.#buckets.get(bucket);
      if (entries === undefined) this.#buckets.set(bucket, new Set([entry]));
      else entries.add(entry);
    }
  }

  remove(entry: T): void {
    for (const bucket of bucketsOf(entry)) {
      const entries = this.#buckets.get(bucket);
      entries?.delete(entry);
      if (entries?.size === 0) this.#buckets.delete(bucket);
    }
  }

  /** A superset of the entries that select it; each once. */
  candidates(namespace: string, labels: Labels): T[] {
    const out: T[] = [];
    const take = (bucket: string) => {
      const entries = this.#buckets.get(bucket);
      if (entries !== undefined) for (const entry of entries) out.push(entry);
    };
    take("*");
    take(`n${namespace}`);
    for (const key in labels) {
      take(`=${key}=${labels[key]}`);
      take(`?${key}`);
    }
    return out;
  }
}
