/**
 * Everything that the engine-neutral code may do to the machine. `createSys` makes it from a native table; the
 * tables are `quickjs.ts` (plugins) and `node.ts` (agent, CLI, tests).
 *
 * Calls throw {@link SysError} when the kernel refuses; they never retry except on EINTR.
 */
import { errnoName } from "./errno.ts";
import { POLLHUP, POLLIN, POLLOUT, SIGKILL } from "./linux.ts";
import type { RawSys } from "./raw.ts";

/** A refused syscall. Decide by `errno` (a name such as `"ENOENT"`), never by the message. */
export class SysError extends Error {
  readonly errno: string;
  readonly syscall: string;
  readonly subject: string;

  constructor(syscall: string, subject: string, errno: number) {
    super(`${syscall} ${subject}: ${errnoName(errno)}`);
    this.name = "SysError";
    this.errno = errnoName(errno);
    this.syscall = syscall;
    this.subject = subject;
  }
}

/** `error` is a SysError with this errno name. */
export function isErrno(error: unknown, ...names: readonly string[]): boolean {
  return error instanceof SysError && names.includes(error.errno);
}

export interface FileStat {
  readonly dev: number;
  readonly ino: number;
  readonly mode: number;
  readonly size: number;
}

export interface SpawnOptions {
  readonly argv: readonly string[];
  readonly env: readonly string[];
  readonly stdin: Uint8Array;
  /** Each of stdout and stderr is cut here. */
  readonly maxOutputBytes: number;
  /** The child is killed after this; `timedOut` is then true. */
  readonly timeoutMs: number;
}

export interface SpawnResult {
  /** Exit code, or 128 + signal number. */
  readonly status: number;
  readonly stdout: Uint8Array;
  readonly stderr: Uint8Array;
  readonly timedOut: boolean;
}

/** A request on its way in a child process; see `sys_send_detached` in native/sys.c. */
export interface DetachedSend {
  readonly pid: number;
  /** Becomes readable when the child has the kernel's answer: one int32, 0 or -errno. */
  readonly reportFd: number;
}

export interface DetachOptions {
  /** A descriptor that the message names: in the child it is {@link DETACHED_FD}. */
  readonly keepFd?: number;
  /** How long the child keeps the socket open after the kernel's answer. */
  readonly lingerMs?: number;
}

export interface Sys {
  open(path: string, flags: number, mode?: number): number;
  close(fd: number): void;
  /** One read(2): 0 at end of file. */
  read(fd: number, into: Uint8Array): number;
  /** Writes all of it. */
  writeAll(fd: number, bytes: Uint8Array): void;
  /** The whole file; throws EFBIG past `maxBytes`. */
  readFile(path: string, maxBytes?: number): Uint8Array;
  /** To the end of a descriptor; throws EFBIG past `maxBytes`. */
  readToEnd(fd: number, maxBytes: number): Uint8Array;
  rename(from: string, to: string): void;
  unlink(path: string): void;
  mkdir(path: string, mode?: number): void;
  fsync(fd: number): void;
  flock(fd: number, operation: number): void;
  access(path: string, mode: number): boolean;
  /** undefined when there is nothing at the path. */
  stat(path: string): FileStat | undefined;
  /** statfs(2) f_type, e.g. NSFS_MAGIC for a network namespace handle; undefined where there is nothing. */
  fsType(path: string): number | undefined;
  /** Who holds a POSIX lock on the byte at `offset`: a pid; 0 when nobody does or the file cannot be asked. */
  lockHolder(path: string, offset: number): number;
  /**
   * Locks the byte at `offset` against everybody else's POSIX locks until `fd` is closed, without waiting.
   *
   * NB: closing `fd` also drops the locks that SQLite has on the same file in this process: close its handle first.
   *
   * @returns false when somebody else has it.
   */
  tryLockByte(fd: number, offset: number): boolean;
  getpid(): number;
  kill(pid: number, signal: number): void;
  /** Moves the calling thread. */
  setns(fd: number, nstype: number): void;
  /** Moves the calling thread into new namespaces, CLONE_NEW…; they end with their last thread and descriptor. */
  unshare(flags: number): void;
  randomBytes(count: number): Uint8Array;
  /** The environment at this moment. */
  environ(): Readonly<Record<string, string>>;
  /** Of the running kernel, as uname(2) says it: `6.1.0-56-cloud-amd64`. */
  kernelRelease(): string;
  /** Milliseconds, with fraction. */
  clock(id: number): number;
  /** Runs a program to its end. Throws if it cannot be started. */
  spawn(path: string, options: SpawnOptions): SpawnResult;
  socket(domain: number, type: number, protocol: number): number;
  setsockopt(fd: number, level: number, name: number, value: number): void;
  send(fd: number, bytes: Uint8Array, flags?: number): number;
  /** With MSG_TRUNC the result may exceed the buffer. */
  recv(fd: number, into: Uint8Array, flags?: number): number;
  bindNetlink(fd: number, groups: number): void;
  /** `""`: the kernel picks an abstract name. A leading `@` is the abstract name space. */
  bindUnix(fd: number, name: string): void;
  connectUnix(fd: number, name: string): void;
  /** One datagram, never blocking. */
  sendToUnix(fd: number, name: string, bytes: Uint8Array): void;
  unixName(fd: number): string;
  /** Waits until one of the descriptors is readable (or closed by its peer); the indices that are. `[]` on timeout. */
  pollIn(fds: readonly number[], timeoutMs: number): number[];
  /** Without bytes the child only keeps the descriptor open. */
  sendDetached(fd: number, bytes: Uint8Array, options?: DetachOptions): DetachedSend;
  /** An eBPF array map with one zeroed value. @returns A descriptor. */
  bpfArray(valueBytes: number): number;
  /** Loads an eBPF program of type BPF_PROG_TYPE_…; the kernel's verifier may refuse it. @returns A descriptor. */
  bpfLoad(programType: number, instructions: Uint8Array): number;
  /** Reaps a child; throws ECHILD if there is none. undefined when `options` has WNOHANG and it still runs. */
  waitpid(pid: number, options?: number): number | undefined;
}

/** Number of the descriptor that a detached child keeps. */
export const DETACHED_FD = 2;

const DEFAULT_MAX_FILE_BYTES = 16 << 20;
const CHUNK_BYTES = 16 << 10;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Builds a {@link Sys} on an engine's native table. */
export function createSys(raw: RawSys): Sys {
  const check = (result: number, syscall: string, subject: string | number): number => {
    if (result < 0) throw new SysError(syscall, String(subject), -result);
    return result;
  };
  const statOut = new Float64Array(4);
  const pollRaw = (fds: Int32Array, timeoutMs: number): number => {
    const result = raw.poll(fds, timeoutMs);
    return result === -4 /* EINTR */ ? 0 : check(result, "poll", fds.length / 3);
  };

  const sys: Sys = {
    open: (path, flags, mode = 0o644) => check(raw.open(path, flags, mode), "open", path),
    close: (fd) => void check(raw.close(fd), "close", fd),
    read: (fd, into) => check(raw.read(fd, into), "read", fd),
    writeAll(fd, bytes) {
      let rest = bytes;
      while (rest.length > 0) rest = rest.subarray(check(raw.write(fd, rest), "write", fd));
    },
    readFile(path, maxBytes = DEFAULT_MAX_FILE_BYTES) {
      const fd = sys.open(path, 0);
      try {
        return sys.readToEnd(fd, maxBytes);
      } finally {
        sys.close(fd);
      }
    },
    readToEnd(fd, maxBytes) {
      let buffer = new Uint8Array(CHUNK_BYTES);
      let used = 0;
      for (;;) {
        if (used === buffer.length) buffer = grow(buffer);
        const n = check(raw.read(fd, buffer.subarray(used)), "read", fd);
        if (n === 0) return buffer.subarray(0, used);
        used += n;
        if (used > maxBytes) throw new SysError("read", `fd ${fd}: more than ${maxBytes} bytes`, 27);
      }
    },
    rename: (from, to) => void check(raw.rename(from, to), "rename", `${from} to ${to}`),
    unlink: (path) => void check(raw.unlink(path), "unlink", path),
    mkdir: (path, mode = 0o755) => void check(raw.mkdir(path, mode), "mkdir", path),
    fsync: (fd) => void check(raw.fsync(fd), "fsync", fd),
    flock: (fd, operation) => void check(raw.flock(fd, operation), "flock", fd),
    access: (path, mode) => raw.access(path, mode) === 0,
    stat(path) {
      const result = raw.stat(path, statOut);
      if (result === -2 || result === -20) return undefined; // ENOENT, ENOTDIR
      check(result, "stat", path);
      const [dev = 0, ino = 0, mode = 0, size = 0] = statOut;
      return { dev, ino, mode, size };
    },
    fsType(path) {
      const result = raw.fsType(path);
      return result === -2 || result === -20 ? undefined : check(result, "statfs", path); // ENOENT, ENOTDIR
    },
    lockHolder: (path, offset) => Math.max(0, raw.lockHolder(path, offset)),
    tryLockByte(fd, offset) {
      const result = raw.tryLockByte(fd, offset);
      if (result === -11 || result === -13) return false; // EAGAIN, EACCES
      check(result, "fcntl F_OFD_SETLK", fd);
      return true;
    },
    getpid: () => raw.getpid(),
    kill: (pid, signal) => void check(raw.kill(pid, signal), "kill", pid),
    setns: (fd, nstype) => void check(raw.setns(fd, nstype), "setns", fd),
    unshare: (flags) => void check(raw.unshare(flags), "unshare", `0x${flags.toString(16)}`),
    randomBytes(count) {
      const bytes = new Uint8Array(count);
      check(raw.getrandom(bytes), "getrandom", count);
      return bytes;
    },
    environ() {
      let buffer = new Uint8Array(4096);
      const needed = raw.environ(buffer);
      if (needed > buffer.length) {
        buffer = new Uint8Array(needed);
        raw.environ(buffer);
      }
      const env: Record<string, string> = {};
      for (const entry of decoder.decode(buffer.subarray(0, needed)).split("\0")) {
        const at = entry.indexOf("=");
        if (at > 0) env[entry.slice(0, at)] = entry.slice(at + 1);
      }
      return env;
    },
    kernelRelease() {
      const text = new Uint8Array(65); // __NEW_UTS_LEN
      return decoder.decode(text.subarray(0, check(raw.release(text), "uname", "")));
    },
    clock: (id) => check(raw.clock(id), "clock_gettime", id),
    spawn: (path, options) => runChild(raw, sys, pollRaw, path, options),
    socket: (domain, type, protocol) =>
      check(raw.socket(domain, type, protocol), "socket", `${domain}/${type}/${protocol}`),
    setsockopt: (fd, level, name, value) =>
      void check(raw.setsockopt(fd, level, name, value), "setsockopt", `${level}/${name}`),
    send: (fd, bytes, flags = 0) => check(raw.send(fd, bytes, flags), "send", fd),
    recv: (fd, into, flags = 0) => check(raw.recv(fd, into, flags), "recv", fd),
    bindNetlink: (fd, groups) => void check(raw.bindNetlink(fd, groups), "bind", `netlink groups ${groups}`),
    bindUnix: (fd, name) => void check(raw.bindUnix(fd, name), "bind", name),
    connectUnix: (fd, name) => void check(raw.connectUnix(fd, name), "connect", name),
    sendToUnix: (fd, name, bytes) => void check(raw.sendToUnix(fd, name, bytes), "sendto", name),
    unixName(fd) {
      const out = new Uint8Array(128);
      const n = check(raw.unixName(fd, out), "getsockname", fd);
      return decoder.decode(out.subarray(0, n)).replace(/\0+$/, "");
    },
    pollIn(fds, timeoutMs) {
      const table = new Int32Array(fds.length * 3);
      fds.forEach((fd, i) => {
        table[3 * i] = fd;
        table[3 * i + 1] = POLLIN;
      });
      if (pollRaw(table, timeoutMs) === 0) return [];
      return fds.map((_, i) => i).filter((i) => table[3 * i + 2] !== 0);
    },
    sendDetached(fd, bytes, { keepFd = -1, lingerMs = 0 } = {}) {
      const out = new Int32Array(2);
      check(raw.sendDetached(fd, bytes, out, keepFd, lingerMs), "fork", fd);
      const [pid = 0, reportFd = -1] = out;
      return { pid, reportFd };
    },
    bpfArray: (valueBytes) => check(raw.bpfArray(valueBytes), "bpf", "BPF_MAP_CREATE"),
    bpfLoad: (programType, instructions) => check(raw.bpfLoad(programType, instructions), "bpf", "BPF_PROG_LOAD"),
    waitpid(pid, options = 0) {
      const status = raw.waitpid(pid, options);
      return status === -11 /* EAGAIN */ ? undefined : check(status, "waitpid", pid);
    },
  };
  return sys;
}

function grow(buffer: Uint8Array): Uint8Array<ArrayBuffer> {
  const larger = new Uint8Array(buffer.length * 2);
  larger.set(buffer);
  return larger;
}

/** Feeds stdin and drains stdout and stderr at once, so that neither side can block the other. */
function runChild(
  raw: RawSys,
  sys: Sys,
  poll: (fds: Int32Array, timeoutMs: number) => number,
  path: string,
  options: SpawnOptions,
): SpawnResult {
  const out = new Int32Array(4);
  const started = raw.spawn(path, options.argv, options.env, out);
  if (started < 0) throw new SysError("spawn", path, -started);
  const [pid = 0, stdin = -1, stdout = -1, stderr = -1] = out;
  const deadline = sys.clock(1) + options.timeoutMs;
  const outputs = [
    { fd: stdout, chunks: [] as Uint8Array[], bytes: 0 },
    { fd: stderr, chunks: [] as Uint8Array[], bytes: 0 },
  ];
  let toWrite = options.stdin;
  let inFd = stdin;
  let timedOut = false;
  try {
    for (;;) {
      if (inFd >= 0 && toWrite.length === 0) {
        raw.close(inFd);
        inFd = -1;
      }
      if (inFd < 0 && outputs.every((o) => o.fd < 0)) break;
      const left = deadline - sys.clock(1);
      if (left <= 0) {
        timedOut = true;
        raw.kill(pid, SIGKILL);
        break;
      }
      // A negative descriptor is skipped by poll(2).
      const table = Int32Array.of(inFd, POLLOUT, 0, outputs[0]?.fd ?? -1, POLLIN, 0, outputs[1]?.fd ?? -1, POLLIN, 0);
      poll(table, Math.ceil(left));
      if (table[2] !== 0 && inFd >= 0) {
        const n = raw.write(inFd, toWrite.subarray(0, 4096));
        // A child that does not read its input is its own affair (EPIPE).
        toWrite = n < 0 ? new Uint8Array(0) : toWrite.subarray(n);
      }
      outputs.forEach((output, i) => {
        const seen = table[3 * (i + 1) + 2] ?? 0;
        if (output.fd < 0 || (seen & (POLLIN | POLLHUP)) === 0) return;
        const chunk = new Uint8Array(CHUNK_BYTES);
        const n = raw.read(output.fd, chunk);
        if (n <= 0) {
          raw.close(output.fd);
          output.fd = -1;
          return;
        }
        const room = options.maxOutputBytes - output.bytes;
        if (room > 0) output.chunks.push(chunk.subarray(0, Math.min(n, room)));
        output.bytes += n;
      });
    }
  } finally {
    if (inFd >= 0) raw.close(inFd);
    for (const output of outputs) if (output.fd >= 0) raw.close(output.fd);
  }
  const status = sys.waitpid(pid) ?? 0;
  const signal = status & 0x7f;
  return {
    status: signal === 0 ? (status >> 8) & 0xff : 128 + signal,
    stdout: concat(outputs[0]?.chunks ?? []),
    stderr: concat(outputs[1]?.chunks ?? []),
    timedOut,
  };
}

function concat(chunks: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(chunks.reduce((n, c) => n + c.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}

/** UTF-8 bytes of a string. */
export function encodeUtf8(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Text of UTF-8 bytes; malformed sequences become U+FFFD. */
export function decodeUtf8(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}
