/**
 * JSON with line comments (two slashes) and block comments outside of strings (CFG-4). Everything else is strict JSON (RFC 8259), with one rule
 * more: a name that comes twice in one object is an error, because which one wins would be a guess.
 *
 * A parser of our own, because neither engine's JSON.parse says the line and column in a form that can be relied on.
 */

export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [name: string]: JsonValue;
}

export type JsonOutcome =
  | { readonly kind: "value"; readonly value: JsonValue }
  /** `line` and `column` count from 1; the column in UTF-16 units, as editors show it for plain text. */
  | { readonly kind: "syntax"; readonly line: number; readonly column: number; readonly message: string };

/** From 1; the column in UTF-16 units. */
export interface Place {
  readonly line: number;
  readonly column: number;
}

/** Where the parts of a document are, by JSON pointer (RFC 6901) such as `/plugins/0/type`. */
export interface Places {
  /** Of a member's name; of an item or the whole, as `value`. undefined: there is no such part. */
  name(pointer: string): Place | undefined;
  /** Of the first character of the value. */
  value(pointer: string): Place | undefined;
  /** Of the first comment. */
  readonly comment: Place | undefined;
}

const MAX_DEPTH = 64;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const HEX4 = /[0-9a-fA-F]{4}/y;
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

class SyntaxFault {
  readonly at: number;
  readonly message: string;
  constructor(at: number, message: string) {
    this.at = at;
    this.message = message;
  }
}

/** Reads one document. Never throws; a document that is wrong comes back as `syntax` with the first fault. */
export function parseJsonWithComments(text: string): JsonOutcome {
  return read(text, new Reader(text));
}

function read(text: string, reader: Reader): JsonOutcome {
  try {
    return { kind: "value", value: reader.document() };
  } catch (fault) {
    if (!(fault instanceof SyntaxFault)) throw fault;
    return { kind: "syntax", ...placeOf(text, fault.at), message: fault.message };
  }
}

/** The same, and where each part of the document is. Of a document that is wrong, as far as it was read. */
export function locateJson(text: string): { readonly outcome: JsonOutcome; readonly places: Places } {
  const names = new Map<string, number>();
  const values = new Map<string, number>();
  const found: { comment?: number } = {};
  const outcome = read(
    text,
    new Reader(text, {
      name: (pointer, at) => names.set(pointer, at),
      value: (pointer, at) => values.set(pointer, at),
      comment(at) {
        found.comment ??= at;
      },
    }),
  );
  const place = (at: number | undefined) => (at === undefined ? undefined : placeOf(text, at));
  return {
    outcome,
    places: {
      name: (pointer) => place(names.get(pointer) ?? values.get(pointer)),
      value: (pointer) => place(values.get(pointer)),
      comment: place(found.comment),
    },
  };
}

/** `~` and `/` of a member's name, as a JSON pointer has them. */
export function pointerPart(name: string): string {
  return name.replaceAll("~", "~0").replaceAll("/", "~1");
}

function placeOf(text: string, at: number): Place {
  const before = text.slice(0, at);
  return { line: before.split("\n").length, column: at - (before.lastIndexOf("\n") + 1) + 1 };
}

/** Is told what is where while a document is read. */
interface Listener {
  name(pointer: string, at: number): void;
  value(pointer: string, at: number): void;
  comment(at: number): void;
}

class Reader {
  private readonly text: string;
  private readonly listener: Listener | undefined;
  private at = 0;
  /** JSON pointer of what is being read; kept only for a listener. */
  private pointer = "";

  constructor(text: string, listener?: Listener) {
    this.text = text;
    this.listener = listener;
  }

  document(): JsonValue {
    const value = this.value(0);
    this.space();
    if (this.at < this.text.length) this.fail(`expected the end of the document, got ${this.here()}`);
    return value;
  }

  private fail(message: string, at = this.at): never {
    throw new SyntaxFault(at, message);
  }

  private here(): string {
    const point = this.text.codePointAt(this.at);
    if (point === undefined) return "the end of the document";
    return point < 0x20 || point > 0x7e
      ? `character U+${point.toString(16).padStart(4, "0")}`
      : `"${this.text[this.at]}"`;
  }

  private space(): void {
    for (;;) {
      const c = this.text[this.at];
      if (c === " " || c === "\t" || c === "\n" || c === "\r") {
        this.at += 1;
      } else if (c === "/" && this.text[this.at + 1] === "/") {
        this.listener?.comment(this.at);
        const end = this.text.indexOf("\n", this.at);
        this.at = end < 0 ? this.text.length : end;
      } else if (c === "/" && this.text[this.at + 1] === "*") {
        const end = this.text.indexOf("*/", this.at + 2);
        if (end < 0) this.fail("this comment does not end: add */");
        this.listener?.comment(this.at);
        this.at = end + 2;
      } else {
        return;
      }
    }
  }

  private value(depth: number): JsonValue {
    this.space();
    if (depth > MAX_DEPTH) this.fail(`nested deeper than ${MAX_DEPTH} levels`);
    this.listener?.value(this.pointer, this.at);
    const c = this.text[this.at];
    if (c === "{") return this.object(depth);
    if (c === "[") return this.array(depth);
    if (c === '"') return this.string();
    for (const [word, value] of [
      ["true", true],
      ["false", false],
      ["null", null],
    ] as const) {
      if (!this.text.startsWith(word, this.at)) continue;
      this.at += word.length;
      return value;
    }
    NUMBER.lastIndex = this.at;
    const digits = NUMBER.exec(this.text)?.[0];
    if (digits === undefined) this.fail(`expected a value, got ${this.here()}`);
    this.at += digits.length;
    return Number(digits);
  }

  private object(depth: number): JsonObject {
    const entries: [string, JsonValue][] = [];
    const names = new Set<string>();
    this.at += 1;
    this.space();
    if (this.text[this.at] === "}") {
      this.at += 1;
      return {};
    }
    for (;;) {
      this.space();
      const nameAt = this.at;
      if (this.text[this.at] !== '"') this.fail(`expected a name in double quotes, got ${this.here()}`);
      const name = this.string();
      if (names.has(name)) this.fail(`the name "${name}" comes twice in this object: remove one`, nameAt);
      names.add(name);
      this.space();
      if (this.text[this.at] !== ":") this.fail(`expected ":" after the name "${name}", got ${this.here()}`);
      this.at += 1;
      const within = this.pointer;
      if (this.listener) {
        this.pointer = `${within}/${pointerPart(name)}`;
        this.listener.name(this.pointer, nameAt);
      }
      entries.push([name, this.value(depth + 1)]);
      this.pointer = within;
      if (this.more("}")) continue;
      // fromEntries makes "__proto__" a plain member too.
      return Object.fromEntries(entries);
    }
  }

  private array(depth: number): readonly JsonValue[] {
    const items: JsonValue[] = [];
    this.at += 1;
    this.space();
    if (this.text[this.at] === "]") {
      this.at += 1;
      return items;
    }
    const within = this.pointer;
    do {
      if (this.listener) this.pointer = `${within}/${items.length}`;
      items.push(this.value(depth + 1));
      this.pointer = within;
    } while (this.more("]"));
    return items;
  }

  /** After a member: true at a comma that another one follows, false at the end. */
  private more(end: "}" | "]"): boolean {
    this.space();
    const c = this.text[this.at];
    if (c === end) {
      this.at += 1;
      return false;
    }
    if (c !== ",") this.fail(`expected "," or "${end}", got ${this.here()}`);
    const commaAt = this.at;
    this.at += 1;
    this.space();
    if (this.text[this.at] === end) this.fail(`a comma before "${end}" is not JSON: remove it`, commaAt);
    return true;
  }

  private string(): string {
    const start = this.at;
    let out = "";
    for (let from = ++this.at; ; ) {
      const c = this.text[this.at];
      if (c === undefined || c === "\n") this.fail("this string does not end: add a double quote", start);
      if (c === '"') {
        out += this.text.slice(from, this.at);
        this.at += 1;
        return out;
      }
      if (c < " ") this.fail(`${this.here()} in a string must be escaped`);
      if (c !== "\\") {
        this.at += 1;
        continue;
      }
      out += this.text.slice(from, this.at) + this.escape();
      from = this.at;
    }
  }

  private escape(): string {
    const c = this.text[this.at + 1] ?? "";
    const plain = ESCAPES[c];
    if (plain !== undefined) {
      this.at += 2;
      return plain;
    }
    HEX4.lastIndex = this.at + 2;
    const hex = c === "u" ? HEX4.exec(this.text)?.[0] : undefined;
    if (hex === undefined) this.fail(`"\\${c}" is no JSON escape`);
    this.at += 6;
    return String.fromCharCode(Number.parseInt(hex, 16));
  }
}
