/**
 * Objects from a folder of YAML files. What is faulty is told and does not count: the object's last good form stays in
 * force until the file is right again. A file that is not changed is not read again.
 */
import { type FSWatcher, readdirSync, readFileSync, statSync, watch } from "node:fs";
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
  /** Some text cannot be read to its end: objects may be in it that nobody sees. */
  readonly broken: boolean;
}

function isManifest(name: string): boolean {
  return /\.(ya?ml|json)$/.test(name) && !name.startsWith(".");
}

export class PolicyFolder {
  readonly #dir: string;
  #files = new Map<string, KnownFile>();
  #inForce = new Map<string, ClusterObject>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** Reads what changed. @throws when the folder itself cannot be read. */
  refresh(): Refresh {
    const names = readdirSync(this.#dir).filter(isManifest).sort();
    const files = new Map<string, KnownFile>();
    const findings: FileFinding[] = [];
    for (const name of names) {
      const known = this.#read(name, findings);
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
      broken: read.some((r) => r.broken),
    };
  }

  #read(name: string, findings: FileFinding[]): KnownFile | undefined {
    const path = join(this.#dir, name);
    const before = this.#files.get(name);
    try {
      const stat = statSync(path, { bigint: true });
      if (!stat.isFile()) return undefined;
      const stamp = `${stat.ino} ${stat.size} ${stat.mtimeNs} ${stat.ctimeNs}`;
      if (before?.stamp === stamp) return before;
      const read = readManifestText(readFileSync(path, "utf8"), before?.read.documents);
      return { stamp, read, objects: inForce(read, before) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined; // gone between listing and reading
      const message = `cannot be read: ${(error as Error).message}`;
      findings.push({ file: name, line: 1, level: "error", path: "", message, subject: "" });
      return before;
    }
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

const SETTLE_MS = 100;
/** Also without an event: network file systems and bind mounts send none. */
const LOOK_AGAIN_MS = 30_000;

/** Calls back soon after anything in the folder changed. @returns Stops it. */
export function watchFolder(dir: string, onChange: () => void): () => void {
  let timer: NodeJS.Timeout | undefined;
  const soon = () => {
    timer ??= setTimeout(() => {
      timer = undefined;
      onChange();
    }, SETTLE_MS);
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
