/** YAML (or JSON) text of any number of documents to objects, each fault with its line. Pure. */
import { isNode, LineCounter, parseAllDocuments } from "yaml";
import { type ClusterObject, objectKey } from "./objects.ts";
import { isMap, type Path } from "./read/check.ts";
import { type ReadManifest, readManifests } from "./read/object.ts";

export interface Finding {
  /** From 1. */
  readonly line: number;
  readonly level: "error" | "warning";
  /** API path of the fault; "" where the text is no YAML. */
  readonly path: string;
  readonly message: string;
  /** "NetworkPolicy production/db", as far as the manifest says. */
  readonly subject: string;
}

export interface ReadObject {
  readonly object: ClusterObject;
  readonly line: number;
}

export interface ReadText {
  /** Those without a fault. */
  readonly objects: readonly ReadObject[];
  readonly findings: readonly Finding[];
  /** Keys of objects that are there and faulty, as far as they can be told. */
  readonly faulty: readonly string[];
  /** The text itself could not be read, so that not everything in it is known. */
  readonly broken: boolean;
  /** No document is in it, not even one that says that there is nothing (an empty List). */
  readonly empty: boolean;
}

type YamlDocument = ReturnType<typeof parseAllDocuments>[number];

/** Offset of the deepest part of the path that is in the document. */
function offsetOf(document: YamlDocument, path: Path): number {
  for (let length = path.length; length >= 0; length--) {
    const way = path.slice(0, length);
    const parent = document.getIn(way.slice(0, -1), true);
    // The key tells better than the value where a map's entry stands.
    const key = way.at(-1);
    if (isNode(parent) && "items" in parent && typeof key === "string") {
      const pair = (parent.items as { key?: unknown }[]).find((item) => String(item.key) === key);
      if (pair !== undefined && isNode(pair.key) && pair.key.range) return pair.key.range[0];
    }
    const node = way.length === 0 ? document.contents : document.getIn(way, true);
    if (isNode(node) && node.range) return node.range[0];
  }
  return document.range?.[0] ?? 0;
}

function subjectOf(value: unknown): string {
  if (!isMap(value)) return "";
  const metadata = isMap(value.metadata) ? value.metadata : {};
  const name = [metadata.namespace, metadata.name].filter((part) => typeof part === "string").join("/");
  return `${typeof value.kind === "string" ? value.kind : ""} ${name}`.trim();
}

/** The key under which the object would have been known. */
function faultyKey(value: unknown): string | undefined {
  if (!isMap(value) || !isMap(value.metadata)) return undefined;
  const { name, namespace } = value.metadata;
  if (typeof value.kind !== "string" || typeof name !== "string") return undefined;
  if (value.kind === "ConfigMap") return "IsolationDomains";
  if (["Namespace", "Node", "PodNetworking"].includes(value.kind)) return `${value.kind}/${name}`;
  const ofCluster = !["Pod", "NetworkPolicy", "MultiENIConfig"].includes(value.kind);
  return `${value.kind}/${ofCluster ? "" : (namespace ?? "default")}/${name}`;
}

function valueAt(value: unknown, path: Path): unknown {
  return path.reduce<unknown>((at, key) => (at as Record<string | number, unknown> | undefined)?.[key], value);
}

/** What one document of a text says; lines count from the document's first. */
interface ReadDocument {
  readonly objects: readonly ReadObject[];
  readonly findings: readonly Finding[];
  readonly faulty: readonly string[];
  readonly broken: boolean;
  readonly empty: boolean;
}

/** Documents by their text, so that those that come again need not be read again. */
export type KnownDocuments = ReadonlyMap<string, ReadDocument>;

/** @param known Of the text before. */
export function readManifestText(
  text: string,
  known?: KnownDocuments,
): ReadText & { readonly documents: KnownDocuments } {
  const objects: ReadObject[] = [];
  const findings: Finding[] = [];
  const faulty: string[] = [];
  const documents = new Map<string, ReadDocument>();
  const definedAt = new Map<string, number>();
  let broken = false;
  let empty = true;
  for (const part of split(text)) {
    const read = documents.get(part.text) ?? known?.get(part.text) ?? readDocument(part.text);
    documents.set(part.text, read);
    for (const finding of read.findings) findings.push({ ...finding, line: finding.line + part.line });
    for (const { object, line } of read.objects) {
      const key = objectKey(object);
      const first = definedAt.get(key);
      if (first === undefined) {
        definedAt.set(key, line + part.line);
        objects.push({ object, line: line + part.line });
        continue;
      }
      const message = `is already defined at line ${first}: this one does not count`;
      findings.push({ line: line + part.line, level: "error", path: "metadata.name", message, subject: key });
    }
    faulty.push(...read.faulty);
    broken ||= read.broken;
    empty &&= read.empty;
  }
  return { objects, findings: findings.sort((a, b) => a.line - b.line), faulty, broken, empty, documents };
}

/** Documents with the number of lines before each. Directives and end markers are left to the YAML parser. */
function split(text: string): { readonly text: string; readonly line: number }[] {
  if (/^(%|\.\.\.)/m.test(text)) return [{ text, line: 0 }];
  const parts: { readonly text: string; readonly line: number }[] = [];
  let line = 0;
  for (const part of text.split(/^(?=---(?:\s|$))/m)) {
    parts.push({ text: part, line });
    for (let at = part.indexOf("\n"); at >= 0; at = part.indexOf("\n", at + 1)) line += 1;
  }
  return parts;
}

function readDocument(text: string): ReadDocument {
  return readJson(text) ?? readYaml(text);
}

/** JSON that is in order needs no lines, and is read a hundred times faster. undefined: not JSON, or with a fault. */
function readJson(text: string): ReadDocument | undefined {
  if (!/^\s*[{[]/.test(text)) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  const manifests = readManifests(value);
  if (manifests.some((m) => m.faults.length > 0 || m.asks.length > 0 || m.ignored !== undefined)) return undefined;
  const objects = manifests.flatMap(({ object }) => (object === undefined ? [] : [{ object, line: 1 }]));
  return { objects, findings: [], faulty: [], broken: false, empty: false };
}

function readYaml(text: string): ReadDocument {
  const lines = new LineCounter();
  const objects: ReadObject[] = [];
  const findings: Finding[] = [];
  const faulty: string[] = [];
  let broken = false;
  let empty = true;
  const lineAt = (offset: number) => lines.linePos(offset).line;
  const parsed = parseAllDocuments(text, { lineCounter: lines, uniqueKeys: true });
  for (const document of Array.isArray(parsed) ? parsed : []) {
    for (const error of document.errors) {
      broken = true;
      empty = false;
      const message = (error.message.split("\n")[0] ?? "").replace(/ at line \d+, column \d+:?$/, "");
      findings.push({ line: lineAt(error.pos[0]), level: "error", path: "", message, subject: "" });
    }
    if (document.errors.length > 0) continue;
    const value: unknown = document.toJS({ maxAliasCount: 100 });
    if (value === null || value === undefined) continue;
    empty = false;
    for (const manifest of readManifests(value)) collect(document, value, manifest);
  }

  function collect(document: YamlDocument, value: unknown, manifest: ReadManifest): void {
    const { object, faults, asks, ignored, base } = manifest;
    const raw = valueAt(value, base);
    const subject = subjectOf(raw);
    const line = lineAt(offsetOf(document, base));
    if (ignored !== undefined)
      findings.push({ line, level: "warning", path: "kind", message: `${ignored} is not used`, subject });
    for (const { path, keys, message } of [...faults, ...asks])
      findings.push({ line: lineAt(offsetOf(document, [...base, ...keys])), level: "error", path, message, subject });
    if (faults.length > 0) {
      const key = faultyKey(raw);
      if (key === undefined) broken = true;
      else faulty.push(key);
    } else if (object !== undefined) objects.push({ object, line });
  }
  return { objects, findings, faulty, broken, empty };
}

/** "FILE:12: error: NetworkPolicy a/b: spec.ingress[0].ports[1].endPort: must not …" */
export function describeFinding(file: string, f: Finding): string {
  return [`${file}:${f.line}`, f.level, f.subject, f.path, f.message].filter((part) => part !== "").join(": ");
}
