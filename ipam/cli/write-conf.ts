/**
 * Writes a file that a runtime watches (F-17): it sees the old content or the new one, whatever happens in between.
 * What is being written has a name that no runtime reads.
 */
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsyncSync,
  linkSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

export type WriteOutcome = "written" | "unchanged" | "replaced";

/** Who may read a file. */
interface Access {
  readonly uid: number;
  readonly gid: number;
  readonly mode: number;
}

/** What could not be done with which file, and the remedy. */
export class WriteConfError extends Error {
  readonly remedy: string;
  constructor(message: string, remedy: string) {
    super(message);
    this.name = "WriteConfError";
    this.remedy = remedy;
  }
}

const REMEDIES: Readonly<Record<string, string>> = {
  EACCES: "run as root, or name a folder that you may write to",
  EPERM: "run as root, or name a folder that you may write to",
  EROFS: "the file system is read-only: name another folder",
  ENOSPC: "free some space; the former file is as it was",
  EDQUOT: "free some space; the former file is as it was",
  ENOENT: "make the folder first",
  ENOTDIR: "name a file in a folder",
};

/**
 * @param replace Whether another content may be there already; it is kept as `FILE.previous`, which no runtime reads.
 * @param newMode Of a file that was not there; one that is replaced keeps its mode and owner, and so does what it held.
 * @throws {WriteConfError} The former file, if any, is as it was.
 */
export function writeConf(path: string, text: string, replace: boolean, newMode = 0o644): WriteOutcome {
  const folder = dirname(path);
  const name = basename(path);
  const temporary = join(folder, `.${name}.${process.pid}.tmp`);
  try {
    const before = fileOf(path);
    if (before?.text === text) return "unchanged";
    if (before !== undefined && !replace)
      throw new WriteConfError(
        `${path} is there already, with another content`,
        "look at it, then use --force to replace it",
      );
    sweep(folder, name);
    try {
      writeDurably(temporary, text, newMode, before?.access);
      if (before === undefined)
        linkSync(temporary, path); // unlike rename, it fails when somebody else was faster
      else {
        writeDurably(`${temporary}.previous`, before.text, newMode, before.access);
        renameSync(`${temporary}.previous`, `${path}.previous`);
        renameSync(temporary, path);
      }
    } finally {
      rmSync(temporary, { force: true });
      rmSync(`${temporary}.previous`, { force: true });
    }
    syncFolder(folder);
    return before === undefined ? "written" : "replaced";
  } catch (error) {
    if (error instanceof WriteConfError) throw error;
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (code === "EEXIST")
      throw new WriteConfError(
        `${path} was made by somebody else at this moment`,
        "look at it, then use --force to replace it",
      );
    throw new WriteConfError(`${path} cannot be written: ${code || message}`, REMEDIES[code] ?? message);
  }
}

function fileOf(path: string): { readonly text: string; readonly access: Access } | undefined {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    const { uid, gid, mode } = fstatSync(fd);
    return { text: readFileSync(fd, "utf8"), access: { uid, gid, mode: mode & 0o777 } };
  } finally {
    closeSync(fd);
  }
}

/** Nobody can read it before its mode and owner are right: it may hold a secret. */
function writeDurably(path: string, text: string, newMode: number, access: Access | undefined): void {
  rmSync(path, { force: true }); // a killed writer of this process id may have left it, with a mode of its own
  const fd = openSync(path, "wx", access === undefined ? newMode : 0o600);
  try {
    if (access !== undefined) {
      const { uid, gid } = fstatSync(fd);
      if (uid !== access.uid || gid !== access.gid) fchownSync(fd, access.uid, access.gid);
      fchmodSync(fd, access.mode);
    }
    writeFileSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function syncFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Removes what processes that were killed half-way left behind. */
function sweep(folder: string, name: string): void {
  for (const file of readdirSync(folder)) {
    if (!file.startsWith(`.${name}.`)) continue;
    const pid = /^(\d+)\.tmp(\.previous)?$/.exec(file.slice(name.length + 2))?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) rmSync(join(folder, file), { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
