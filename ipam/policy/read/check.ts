/** Reading untyped manifests field by field: every fault is kept with the API path of what is wrong. Pure. */

export type Path = readonly (string | number)[];

export interface Fault {
  /** As the API server writes it: `spec.ingress[0].ports[1].endPort`. */
  readonly path: string;
  /** The same, for finding the line. */
  readonly keys: Path;
  readonly message: string;
}

export function pathText(path: Path): string {
  let text = "";
  for (const key of path) {
    if (typeof key === "number") text += `[${key}]`;
    else if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(key)) text += text === "" ? key : `.${key}`;
    else text += `[${key}]`;
  }
  return text;
}

export type Json = Readonly<Record<string, unknown>>;

export function isMap(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** One value of a manifest with the way to it. Readers of a wrong value note a fault and give `undefined`. */
export class Field {
  readonly value: unknown;
  readonly path: Path;
  readonly #faults: Fault[];

  constructor(value: unknown, path: Path, faults: Fault[]) {
    this.value = value;
    this.path = path;
    this.#faults = faults;
  }

  /** null is absent, as in the API. */
  get absent(): boolean {
    return this.value === undefined || this.value === null;
  }

  fault(message: string): undefined {
    this.#faults.push({ path: pathText(this.path), keys: this.path, message });
    return undefined;
  }

  /** The field of a map; absent when this is no map. */
  at(key: string): Field {
    const found = isMap(this.value) && Object.hasOwn(this.value, key) ? this.value[key] : undefined;
    return new Field(found, [...this.path, key], this.#faults);
  }

  /** @param known When given, any other key is a fault: a misspelt field would be a rule that is not there. */
  map(known?: readonly string[]): Json | undefined {
    if (this.absent) return undefined;
    if (!isMap(this.value)) return this.fault(`must be a map, is ${show(this.value)}`);
    for (const key of Object.keys(this.value))
      if (known !== undefined && !known.includes(key))
        this.at(key).fault(`unknown field; known here: ${known.join(", ")}`);
    return this.value;
  }

  /** [] when absent. */
  list(max?: number): Field[] {
    if (this.absent) return [];
    if (!Array.isArray(this.value)) {
      this.fault(`must be a list, is ${show(this.value)}`);
      return [];
    }
    if (max !== undefined && this.value.length > max)
      this.fault(`must have at most ${max} entries, has ${this.value.length}`);
    return this.value.map((value, i) => new Field(value, [...this.path, i], this.#faults));
  }

  text(): string | undefined {
    if (this.absent) return undefined;
    return typeof this.value === "string" ? this.value : this.fault(`must be a string, is ${show(this.value)}`);
  }

  boolean(): boolean | undefined {
    if (this.absent) return undefined;
    return typeof this.value === "boolean" ? this.value : this.fault(`must be true or false, is ${show(this.value)}`);
  }

  integer(min: number, max: number): number | undefined {
    if (this.absent) return undefined;
    const { value } = this;
    if (typeof value !== "number" || !Number.isInteger(value))
      return this.fault(`must be a whole number from ${min} to ${max}, is ${show(value)}`);
    return value >= min && value <= max ? value : this.fault(`must be between ${min} and ${max}, is ${value}`);
  }

  oneOf<T extends string>(words: readonly T[]): T | undefined {
    if (this.absent) return undefined;
    return words.includes(this.value as T)
      ? (this.value as T)
      : this.fault(`must be one of ${words.join(", ")}, is ${show(this.value)}`);
  }

  /** The same reader, with a fault when there is nothing. */
  required<T>(value: T | undefined): T | undefined {
    if (this.absent) return this.fault("is required");
    return value;
  }
}

/** What could be read of each. */
export function readAll<T>(fields: readonly Field[], read: (field: Field) => T | undefined): T[] {
  return fields.map(read).filter((value) => value !== undefined);
}
