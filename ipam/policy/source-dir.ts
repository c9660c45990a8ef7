/**
 * Objects from a folder of YAML files. What is faulty is told and does not count: the object's last good form stays in
 * force until the file is right again. A file that is not changed is not read again, and one that changes not before it
 * has come to rest: who writes in place truncates first.
 */
import { type FSWatcher, lstatSync, readdirSync, readFileSync, statSync, watch } from "node:fs";
import { join } from "node:path";
import { describeFinding, type Finding, type ReadText, readManifestText } from "./manifest-text.ts";
import { type ClusterObject, type ObjectEvent, objectKey } from "./objects.ts";

export interface FileFinding extends Finding {
  readonly file: string;
}

interface KnownFile {
  readonly stamp: string;
  readonly read: ReturnType<typeof readManifestText>;
  /** In force because of this file, last good forms of what is faulty now among them. */
  readonly objects: ReadonlyMap<string, { readonly object: ClusterObject; readonly line: number }>;
}

export interface Refresh {
  readonly events: readonly ObjectEvent[];
  /** All of the folder, those of unchanged files too. */
  readonly findings: readonly FileFinding[];
  /** Keys of objects that are there and faulty: their last good form is in force, if there was one. */
  readonly faulty: ReadonlySet<string>;
  /** Some text cannot be read to its end, or not yet: objects may be in it that nobody sees. */
  readonly broken: boolean;
  /** Some file is as it was before, because it is being changed: look again in `settleMs`. */
  readonly unsettled: boolean;
  /** No file has a document, not even an empty List: nothing is meant, or nothing is there yet. */
  readonly empty: boolean;
}

/** Two looks this far apart have found a file the same. Not by its times: the clocks of network file systems are their own. */
const SETTLE_MS = 300;
/** Whose writer does not let a file rest for so long is told. */
const RESTLESS_MS = 5000;
/** The stamp of a file that is not there. */
const GONE = "";

function isManifest(name: string): boolean {
  return /\.(ya?ml|json)$/.test(name) && !name.startsWith(".");
}

function stampOf(path: string): string {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  if (stat === undefined && lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink())
    throw new Error("it is a link to what is not there");
  return stat?.isFile() ? `${stat.ino} ${stat.size} ${stat.mtimeNs} ${stat.ctimeNs}` : GONE;
}

export class PolicyFolder {
  readonly settleMs: number;
  readonly #dir: string;
  #files = new Map<string, KnownFile>();
  /** Files that are not as they are known: since when, and since when they look as they do. */
  readonly #changing = new Map<
    string,
    { readonly stamp: string; readonly sinceMs: number; readonly changingSinceMs: number }
  >();
  #inForce = new Map<string, ClusterObject>();

  constructor(dir: string, settleMs = SETTLE_MS) {
    this.#dir = dir;
    this.settleMs = settleMs;
  }

  /** Reads what changed. @throws when the folder itself cannot be read. */
  refresh(): Refresh {
    // Those that are gone too: a file under a new name is in force under its old one until it has settled.
    const names = new Set([...readdirSync(this.#dir).filter(isManifest), ...this.#files.keys()]);
    for (const name of this.#changing.keys()) if (!names.has(name)) this.#changing.delete(name);
    const files = new Map<string, KnownFile>();
    const findings: FileFinding[] = [];
    let unsettled = false;
    let unknown = false;
    for (const name of [...names].sort()) {
      const before = this.#files.get(name);
      let known: KnownFile | "unsettled" | undefined;
      try {
        known = this.#read(name, before);
      } catch (error) {
        const message = `cannot be read: ${(error as Error).message}`;
        findings.push({ file: name, line: 1, level: "error", path: "", message, subject: "" });
        known = before;
        unknown ||= before === undefined;
      }
      if (known === "unsettled") {
        if (this.#isRestless(name)) findings.push(restless(name, before));
        known = before;
        unsettled = true;
        unknown ||= before === undefined;
      }
      if (known !== undefined) files.set(name, known);
    }
    this.#files = files;
    const now = new Map<string, ClusterObject>();
    const definedAt = new Map<string, string>();
    for (const [name, { objects, read }] of files) {
      for (const finding of read.findings) findings.push({ file: name, ...finding });
      for (const [key, { object, line }] of objects) {
        const first = definedAt.get(key);
        if (first === undefined) {
          definedAt.set(key, `${name}:${line}`);
          now.set(key, object);
          continue;
        }
        const message = `is already defined at ${first}: this one does not count`;
        findings.push({ file: name, line, level: "error", path: "metadata.name", message, subject: key });
      }
    }
    const read = [...files.values()].map((file) => file.read);
    return {
      events: this.#advance(now),
      findings,
      faulty: new Set(read.flatMap((r) => r.faulty)),
      broken: unknown || read.some((r) => r.broken),
      unsettled,
      empty: !unknown && read.every((r) => r.empty),
    };
  }

  /** @returns undefined: there is no such file. */
  #read(name: string, before: KnownFile | undefined): KnownFile | "unsettled" | undefined {
    const path = join(this.#dir, name);
    const stamp = stampOf(path);
    if (stamp === (before?.stamp ?? GONE)) {
      this.#changing.delete(name);
      return before;
    }
    const now = performance.now();
    const last = this.#changing.get(name);
    const sinceMs = last?.stamp === stamp ? last.sinceMs : now;
    this.#changing.set(name, { stamp, sinceMs, changingSinceMs: last?.changingSinceMs ?? now });
    if (now - sinceMs < this.settleMs) return "unsettled";
    if (stamp === GONE) {
      this.#changing.delete(name);
      return undefined;
    }
    const text = readText(path);
    if (text === undefined || stampOf(path) !== stamp) return "unsettled"; // changed while it was read
    this.#changing.delete(name);
    const read = notEmptied(readManifestText(text, before?.read.documents), text, before);
    return { stamp, read, objects: inForce(read, before) };
  }

  #isRestless(name: string): boolean {
    const { changingSinceMs = Number.POSITIVE_INFINITY } = this.#changing.get(name) ?? {};
    return performance.now() - changingSinceMs >= RESTLESS_MS;
  }

  #advance(now: Map<string, ClusterObject>): ObjectEvent[] {
    const events: ObjectEvent[] = [];
    for (const key of this.#inForce.keys()) if (!now.has(key)) events.push({ type: "delete", key });
    for (const [key, object] of now) {
      const before = this.#inForce.get(key);
      if (before !== object && JSON.stringify(before) !== JSON.stringify(object)) events.push({ type: "set", object });
    }
    this.#inForce = now;
    return events;
  }
}

/** @returns undefined: gone since it was looked at. */
function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

function restless(file: string, before: KnownFile | undefined): FileFinding {
  const message = `changes again and again before it has been the same for ${SETTLE_MS / 1000} s, so ${
    before === undefined ? "it is not taken" : "what it said before stays"
  }; write it beside the folder and rename it into place, less often`;
  return { file, line: 1, level: "error", path: "", message, subject: "" };
}

/** A file whose text is still to come, be it for seconds, does not take back what it said. */
function notEmptied(read: KnownFile["read"], text: string, before: KnownFile | undefined): KnownFile["read"] {
  if (!read.empty || (text.trim() !== "" && (before?.objects.size ?? 0) === 0)) return read;
  const message =
    "has no text, so what it said before stays; if nothing is meant, remove the file or write an empty List (apiVersion: v1, kind: List, items: [])";
  return { ...read, findings: [{ line: 1, level: "error", path: "", message, subject: "" }], broken: true };
}

function inForce(read: ReadText, before: KnownFile | undefined): KnownFile["objects"] {
  const objects = new Map<string, { readonly object: ClusterObject; readonly line: number }>();
  // Of a text that cannot be read to its end, nobody knows what has been taken out of it.
  if (read.broken) for (const [key, entry] of before?.objects ?? []) objects.set(key, entry);
  for (const key of read.faulty) {
    const last = before?.objects.get(key);
    if (last !== undefined) objects.set(key, last);
  }
  for (const entry of read.objects) {
    const key = objectKey(entry.object);
    objects.set(key, entry);
  }
  return objects;
}

const GATHER_MS = 100;
/** Also without an event: network file systems and bind mounts send none. */
const LOOK_AGAIN_MS = 30_000;

/** Calls back soon after anything in the folder changed. @returns Stops it. */
export function watchFolder(dir: string, onChange: () => void): () => void {
  let timer: NodeJS.Timeout | undefined;
  const soon = () => {
    timer ??= setTimeout(() => {
      timer = undefined;
      onChange();
    }, GATHER_MS);
  };
  let watcher: FSWatcher | undefined;
  const open = () => {
    try {
      watcher = watch(dir, soon);
      watcher.on("error", () => {
        watcher?.close();
        watcher = undefined; // the periodic look opens it again
      });
    } catch {
      watcher = undefined;
    }
  };
  open();
  const periodic = setInterval(() => {
    if (watcher === undefined) open();
    soon();
  }, LOOK_AGAIN_MS);
  return () => {
    clearTimeout(timer);
    clearInterval(periodic);
    watcher?.close();
  };
}

export function errorsOf(findings: readonly FileFinding[]): FileFinding[] {
  return findings.filter((finding) => finding.level === "error");
}

export function describeFileFinding(dir: string, finding: FileFinding): string {
  return describeFinding(join(dir, finding.file), finding);
}
