/** One JSON line per operation in `<logDir>/<plugin>.log`. A log that cannot be written never fails an operation. */
import { O_APPEND, O_CREAT, O_WRONLY } from "../sys/linux.ts";
import { encodeUtf8, isErrno, type Sys } from "../sys/sys.ts";

export const DEFAULT_LOG_DIR = "/var/log/terway";
const ROTATE_BYTES = 10 << 20;
const SECRET = /secret|access_?key|token|password|pre_shared_key|authorization|signature/i;

export type LogFields = Readonly<Record<string, unknown>>;

/** The fields with the values of secrets replaced, at any depth. */
export function redact(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(redact);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, v]) => [key, SECRET.test(key) && v !== "" ? "***" : redact(v)]),
  );
}

/** ISO 8601 in UTC, from wall clock milliseconds. Without Date: the plugins' engine starts without it. */
export function formatTime(ms: number): string {
  const pad = (n: number, width = 2) => String(n).padStart(width, "0");
  const days = Math.floor(ms / 86_400_000);
  const rest = ms - days * 86_400_000;
  // Civil date from days since 1970-01-01, with eras of 400 years that begin in March.
  const z = days + 719_468;
  const era = Math.floor(z / 146_097);
  const dayOfEra = z - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const m = Math.floor((5 * dayOfYear + 2) / 153);
  const month = m < 10 ? m + 3 : m - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  const day = dayOfYear - Math.floor((153 * m + 2) / 5) + 1;
  const [h, min, s] = [Math.floor(rest / 3_600_000), Math.floor(rest / 60_000) % 60, Math.floor(rest / 1000) % 60];
  return `${year}-${pad(month)}-${pad(day)}T${pad(h)}:${pad(min)}:${pad(s)}.${pad(Math.floor(rest % 1000), 3)}Z`;
}

/** Appends one line. Returns false when it could not, e.g. on a full or read-only disk. */
export function appendLog(sys: Sys, folder: string, plugin: string, atMs: number, fields: LogFields): boolean {
  const path = `${folder}/${plugin}.log`;
  const line = encodeUtf8(`${JSON.stringify({ time: formatTime(atMs), ...(redact(fields) as object) })}\n`);
  try {
    write(sys, path, line);
  } catch (error) {
    if (!isErrno(error, "ENOENT")) return false;
    try {
      makeFolders(sys, folder);
      write(sys, path, line);
    } catch {
      return false;
    }
  }
  return true;
}

function write(sys: Sys, path: string, line: Uint8Array): void {
  const fd = sys.open(path, O_WRONLY | O_APPEND | O_CREAT, 0o640);
  try {
    sys.writeAll(fd, line); // one write(2) with O_APPEND: lines of concurrent plugins do not mix
  } finally {
    sys.close(fd);
  }
  if ((sys.stat(path)?.size ?? 0) > ROTATE_BYTES) sys.rename(path, `${path}.1`);
}

function makeFolders(sys: Sys, folder: string): void {
  let path = "";
  for (const part of folder.split("/").slice(1)) {
    path += `/${part}`;
    try {
      sys.mkdir(path, 0o755);
    } catch (error) {
      if (!isErrno(error, "EEXIST")) throw error;
    }
  }
}
