/** `eni_conf`: from text (or an object) and inline overrides to one checked configuration, or to all of its faults at once. */
import { entriesOf } from "./config-value.ts";
import { type EniConfig, KEY_SPECS, type KeySpec } from "./eni-conf-keys.ts";
import { checkRules } from "./eni-conf-rules.ts";
import { parseJsonWithComments } from "./json-with-comments.ts";

/** One thing wrong with a document. The configuration cannot be used. */
export interface ConfigFault {
  /** As the document spells it. */
  readonly key: string;
  /** What was found there, as JSON, shortened; never the value of a secret. Absent: nothing was found. */
  readonly value: string | undefined;
  readonly accepted: string;
  readonly message: string;
}

/** One thing to tell the operator. The configuration works without it. */
export interface ConfigWarning {
  readonly key: string;
  readonly message: string;
}

export interface EniConfOutcome {
  /** Absent when there is any fault. */
  readonly config: EniConfig | undefined;
  readonly warnings: readonly ConfigWarning[];
  readonly faults: readonly ConfigFault[];
  /** Canonical paths of the keys that the document or the inline form sets. */
  readonly given: readonly string[];
}

export interface EniConfOptions {
  /** Keys of the plugin's own configuration: they win over the document (CON-6). Keys that are not ours are left alone. */
  readonly inline?: Readonly<Record<string, unknown>>;
  /** What the node knows of itself, used where the document says nothing (the short "core" form, CFG-7), with a warning. */
  readonly discovered?: Readonly<Record<string, unknown>>;
  /** The VPC's ranges, to check that the Service range does not overlap them. Absent: not checked. */
  readonly vpcCidrs?: readonly string[];
}

interface Found {
  /** As spelled where it was found. */
  readonly spelled: string;
  readonly value: unknown;
}

const bySpelling = new Map<string, KeySpec<unknown>>();
const sections = new Set<string>();
const SECRETS = /secret|access_?key|password|token/i;

function index(): void {
  if (bySpelling.size > 0) return;
  for (const [, spec] of KEY_SPECS) {
    for (const spelling of [spec.path, ...spec.aliases]) bySpelling.set(spelling, spec);
    const dot = spec.path.indexOf(".");
    if (dot > 0) sections.add(spec.path.slice(0, dot));
  }
}

/**
 * Reads `eni_conf`. Precedence: inline, document, discovered, default.
 *
 * @param document JSON with comments, or the object that somebody else parsed.
 */
export function parseEniConf(document: string | object, options: EniConfOptions = {}): EniConfOutcome {
  index();
  const faults: ConfigFault[] = [];
  const warnings: ConfigWarning[] = [];
  const parsed = typeof document === "string" ? parseDocument(document, faults) : document;
  const fromDocument = collect(parsed, "eni_conf", true, faults, warnings);
  const fromInline = collect(options.inline ?? {}, "the plugin's configuration", false, faults, warnings);
  const given = [...new Set([...fromDocument.keys(), ...fromInline.keys()])];
  const fromNode = collect(options.discovered ?? {}, "the node", false, faults, warnings);

  const values: Record<string, unknown> = {};
  for (const [name, spec] of KEY_SPECS) {
    const found = fromInline.get(spec.path) ?? fromDocument.get(spec.path);
    const known = found ?? fromNode.get(spec.path);
    if (known === undefined) {
      if (spec.required && faults.every((f) => f.key !== "eni_conf"))
        faults.push(faultOf(spec, { spelled: spec.path, value: undefined }));
      const section = spec.path.split(".")[0] ?? "";
      values[name] = given.some((path) => path.startsWith(`${section}.`)) ? spec.inSection : spec.fallback;
      continue;
    }
    if (found === undefined)
      warnings.push({
        key: spec.path,
        message: `eni_conf sets no ${spec.path}: using the node's own, ${show(spec, known.value)}`,
      });
    const value = spec.kind.read(known.value);
    if (value === undefined) faults.push(faultOf(spec, known));
    values[name] = value ?? spec.fallback;
  }
  const config = values as unknown as EniConfig;
  // Rules compare values: only worth while when each of them is right by itself.
  if (faults.length === 0) checkRules(config, given, options.vpcCidrs ?? [], faults, warnings);
  return { config: faults.length === 0 ? config : undefined, warnings, faults, given };
}

/** The keys that the document sets and nothing acts on yet, to be listed once at start. */
export function keysNotActedOn(outcome: Pick<EniConfOutcome, "given">): string[] {
  index();
  return outcome.given.filter((path) => bySpelling.get(path)?.actedOn === false);
}

/** The configuration with its secrets replaced: for logs, metrics, `terway-cli`. */
export function redactedConfig(config: EniConfig): EniConfig {
  const secret = KEY_SPECS.filter(([name, spec]) => spec.secret && config[name] !== "").map(([name]) => [name, "***"]);
  return { ...config, ...Object.fromEntries(secret) };
}

function parseDocument(text: string, faults: ConfigFault[]): unknown {
  const read = parseJsonWithComments(text);
  if (read.kind === "value" && entriesOf(read.value) !== undefined) return read.value;
  const where =
    read.kind === "value" ? "the document is no object" : `line ${read.line}, column ${read.column}: ${read.message}`;
  faults.push({
    key: "eni_conf",
    value: undefined,
    accepted: "one JSON object; // and /* */ comments are allowed",
    message: `Cannot read eni_conf: ${where}`,
  });
  return {};
}

/** Canonical path → where it was found. Other names of one key may come together only with equal values (CON-1, CON-2). */
function collect(
  source: unknown,
  origin: string,
  warnUnknown: boolean,
  faults: ConfigFault[],
  warnings: ConfigWarning[],
): Map<string, Found> {
  const out = new Map<string, Found>();
  const take = (spelled: string, value: unknown) => {
    const spec = bySpelling.get(spelled);
    if (spec === undefined) {
      if (warnUnknown)
        warnings.push({
          key: spelled,
          message: `${origin} has a key "${spelled}" that means nothing here; it is ignored`,
        });
      return;
    }
    const other = out.get(spec.path);
    if (other === undefined) {
      out.set(spec.path, { spelled, value });
    } else if (!sameValue(spec, other.value, value)) {
      faults.push({
        key: spelled,
        value: show(spec, value),
        accepted: `the same value as "${other.spelled}", or only one of the two`,
        message: `${origin} sets "${other.spelled}" and "${spelled}" to different values: they name one setting, remove one`,
      });
    }
  };
  for (const [name, value] of entriesOf(source) ?? []) {
    if (!sections.has(name)) {
      take(name, value);
      continue;
    }
    const members = entriesOf(value);
    if (members === undefined)
      faults.push({
        key: name,
        value: short(value),
        accepted: "an object",
        message: `${origin}: "${name}" is ${short(value)}, want an object`,
      });
    // An empty sub-object still turns its feature on.
    for (const [member, inner] of members ?? []) take(`${name}.${member}`, inner);
    if (members?.length === 0 && bySpelling.has(`${name}.enable`)) take(`${name}.enable`, true);
  }
  return out;
}

/** Equal in what they mean: "Trunking" and "Trunk" agree, and so do lists and maps member by member. */
function sameValue(spec: KeySpec<unknown>, a: unknown, b: unknown): boolean {
  const stable = (value: unknown) => JSON.stringify(spec.kind.read(value) ?? value, sortedMembers);
  return stable(a) === stable(b);
}

function sortedMembers(_name: string, value: unknown): unknown {
  const entries = entriesOf(value);
  return entries === undefined ? value : Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function faultOf(spec: KeySpec<unknown>, found: Found): ConfigFault {
  const value = found.value === undefined ? undefined : show(spec, found.value);
  return {
    key: found.spelled,
    value,
    accepted: spec.kind.accepted,
    message: `"${found.spelled}" is ${value ?? "missing"}: want ${spec.kind.accepted}`,
  };
}

function show(spec: KeySpec<unknown>, value: unknown): string {
  return spec.secret || SECRETS.test(spec.path) ? '"***"' : short(value);
}

function short(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
