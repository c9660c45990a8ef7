/** Finds the selectors that may select an object by one label each must have, instead of trying all of them. */
import type { Labels, Selector } from "./objects.ts";

export interface Indexed {
  readonly selector: Selector;
  /** Selects in this namespace only. */
  readonly namespace: string | undefined;
}

export class LabelIndex<T extends Indexed> {
  /** By label key and value. */
  readonly #byLabel = new Map<string, Map<string, Set<T>>>();
  readonly #byKey = new Map<string, Set<T>>();
  readonly #byNamespace = new Map<string, Set<T>>();
  readonly #others = new Set<T>();

  add(entry: T): void {
    for (const bucket of this.#buckets(entry)) bucket.add(entry);
  }

  remove(entry: T): void {
    for (const bucket of this.#buckets(entry)) bucket.delete(entry);
  }

  /** An object is in at most one of an entry's buckets. */
  #buckets({ selector, namespace }: Indexed): Set<T>[] {
    const required = selector.requirements.find((r) => r.operator === "In");
    if (required !== undefined) {
      const values = bucketIn(this.#byLabel, required.key, () => new Map<string, Set<T>>());
      return [...new Set(required.values)].map((value) => bucketIn(values, value, () => new Set()));
    }
    if (namespace !== undefined) return [bucketIn(this.#byNamespace, namespace, () => new Set())];
    const exists = selector.requirements.find((r) => r.operator === "Exists");
    return [exists === undefined ? this.#others : bucketIn(this.#byKey, exists.key, () => new Set())];
  }

  /** A superset of the entries that select it; each once. */
  candidates(namespace: string, labels: Labels): T[] {
    const out: T[] = [...this.#others];
    const take = (entries: ReadonlySet<T> | undefined) => {
      if (entries !== undefined) for (const entry of entries) out.push(entry);
    };
    take(this.#byNamespace.get(namespace));
    for (const [key, values] of this.#byLabel) {
      const value = labels[key];
      if (value !== undefined) take(values.get(value));
    }
    for (const [key, entries] of this.#byKey) if (labels[key] !== undefined) take(entries);
    return out;
  }
}

function bucketIn<V>(map: Map<string, V>, key: string, make: () => V): V {
  let found = map.get(key);
  if (found === undefined) {
    found = make();
    map.set(key, found);
  }
  return found;
}
