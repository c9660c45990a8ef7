/**
 * What both bindings of `Sys` and both SQLite handles must do alike. Engine-neutral: the Node test runs these cases
 * directly, and once more inside a QuickJS executable built for it (contract-main.ts).
 */
import {
  AF_NETLINK,
  AF_UNIX,
  CLOCK_BOOTTIME,
  CLOCK_MONOTONIC,
  CLONE_NEWNET,
  F_OK,
  LOCK_EX,
  LOCK_NB,
  LOCK_UN,
  MSG_DONTWAIT,
  MSG_TRUNC,
  NSFS_MAGIC,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  S_IFMT,
  S_IFREG,
  SIGKILL,
  SOCK_DGRAM,
  SOCK_RAW,
  WNOHANG,
} from "./linux.ts";
import type { RawSys } from "./raw.ts";
import { SqlError, type SqlOpen } from "./sql.ts";
import { decodeUtf8, encodeUtf8, isErrno, type Sys, type SysError } from "./sys.ts";

export interface ContractContext {
  readonly raw: RawSys;
  readonly sys: Sys;
  readonly openSql: SqlOpen;
  /** An empty folder of the caller's. */
  readonly folder: string;
}

export type ContractCase = readonly [claim: string, run: (context: ContractContext) => void];

function equal(got: unknown, want: unknown, what: string): void {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${what}: got ${a}, want ${b}`);
}

function refused(errno: string, work: () => unknown): void {
  try {
    work();
  } catch (error) {
    if (isErrno(error, errno)) return;
    throw new Error(`want ${errno}, got ${error}`);
  }
  throw new Error(`want ${errno}, got success`);
}

function throws(work: () => unknown): unknown {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error("want an error, got success");
}

export const CONTRACT: readonly ContractCase[] = [
  [
    "a file is written whole, read back, and stat tells its kind and size",
    ({ sys, folder }) => {
      const path = `${folder}/file`;
      const fd = sys.open(path, O_WRONLY | O_CREAT | O_EXCL, 0o600);
      const text = "grüße, 世界 \u{1f30d}".repeat(3000);
      sys.writeAll(fd, encodeUtf8(text));
      sys.fsync(fd);
      sys.close(fd);
      equal(decodeUtf8(sys.readFile(path)), text, "content");
      const stat = sys.stat(path);
      equal((stat?.mode ?? 0) & S_IFMT, S_IFREG, "kind");
      equal((stat?.mode ?? 0) & 0o777, 0o600, "mode");
      equal(stat?.size, encodeUtf8(text).length, "size");
    },
  ],
  [
    "reading stops at the caller's limit",
    ({ sys, folder }) => refused("EFBIG", () => sys.readFile(`${folder}/file`, 100)),
  ],
  [
    "stat of nothing is undefined, also below a file",
    ({ sys, folder }) => {
      equal(sys.stat(`${folder}/nothing`), undefined, "absent");
      equal(sys.stat(`${folder}/file/below`), undefined, "below a file");
      equal(sys.fsType(`${folder}/nothing`), undefined, "type of nothing");
    },
  ],
  [
    "errors name syscall, subject and errno",
    ({ sys, folder }) => {
      const error = throws(() => sys.open(`${folder}/nothing`, O_RDONLY)) as SysError;
      equal([error.errno, error.syscall, error.subject], ["ENOENT", "open", `${folder}/nothing`], "parts");
      equal(error.message, `open ${folder}/nothing: ENOENT`, "message");
    },
  ],
  [
    "rename, unlink, mkdir and access work",
    ({ sys, folder }) => {
      sys.mkdir(`${folder}/d`);
      refused("EEXIST", () => sys.mkdir(`${folder}/d`));
      sys.rename(`${folder}/file`, `${folder}/d/file`);
      equal(sys.access(`${folder}/file`, F_OK), false, "old name");
      equal(sys.access(`${folder}/d/file`, F_OK), true, "new name");
      sys.unlink(`${folder}/d/file`);
      refused("ENOENT", () => sys.unlink(`${folder}/d/file`));
    },
  ],
  [
    "flock excludes another description of the same file",
    ({ sys, folder }) => {
      const a = sys.open(`${folder}/lock`, O_RDWR | O_CREAT);
      const b = sys.open(`${folder}/lock`, O_RDWR);
      sys.flock(a, LOCK_EX | LOCK_NB);
      refused("EAGAIN", () => sys.flock(b, LOCK_EX | LOCK_NB));
      sys.flock(a, LOCK_UN);
      sys.flock(b, LOCK_EX | LOCK_NB);
      sys.close(a);
      sys.close(b);
    },
  ],
  [
    "a string with a NUL inside is refused, not cut",
    ({ raw, folder }) => void throws(() => raw.access(`${folder}\0/etc`, F_OK)),
  ],
  ["a wrong argument type is refused", ({ raw }) => void throws(() => raw.read(0, "text" as unknown as Uint8Array))],
  [
    "a subarray names its own bytes only",
    ({ sys, folder }) => {
      const fd = sys.open(`${folder}/sub`, O_RDWR | O_CREAT);
      sys.writeAll(fd, Uint8Array.of(1, 2, 3, 4, 5).subarray(1, 4));
      sys.close(fd);
      equal([...sys.readFile(`${folder}/sub`)], [2, 3, 4], "bytes");
    },
  ],
  [
    "the environment has PATH, and malformed UTF-8 decodes to U+FFFD",
    ({ sys }) => {
      equal(typeof sys.environ().PATH, "string", "PATH");
      equal(decodeUtf8(Uint8Array.of(0x61, 0xff, 0x62)).charAt(2), "b", "after the bad byte");
    },
  ],
  [
    "the kernel's release is that of /proc",
    ({ sys }) =>
      equal(sys.kernelRelease(), decodeUtf8(sys.readFile("/proc/sys/kernel/osrelease", 256)).trim(), "release"),
  ],
  [
    "clocks advance and have fractions",
    ({ sys }) => {
      const a = sys.clock(CLOCK_MONOTONIC);
      let b = a;
      for (let i = 0; i < 1000 && b === a; i++) b = sys.clock(CLOCK_MONOTONIC);
      if (!(b > a && b - a < 1000)) throw new Error(`${a} then ${b}`);
      if (sys.clock(CLOCK_BOOTTIME) <= 0) throw new Error("no boot time");
    },
  ],
  [
    "random bytes differ",
    ({ sys }) => {
      const [a, b] = [sys.randomBytes(16), sys.randomBytes(16)];
      if (decodeUtf8(a) === decodeUtf8(b)) throw new Error("twice the same");
    },
  ],
  [
    "a child gets stdin, arguments and environment, and its streams and status come back",
    ({ sys }) => {
      const done = sys.spawn("/bin/sh", {
        argv: ["sh", "-c", 'cat; echo "$1 $NAME"; echo oops >&2; exit 3', "sh", "arg"],
        env: ["NAME=value", "PATH=/bin:/usr/bin"],
        stdin: encodeUtf8("in\n"),
        maxOutputBytes: 1000,
        timeoutMs: 5000,
      });
      equal(
        [done.status, decodeUtf8(done.stdout), decodeUtf8(done.stderr), done.timedOut],
        [3, "in\narg value\n", "oops\n", false],
        "result",
      );
    },
  ],
  [
    "input and output larger than a pipe do not block each other",
    ({ sys }) => {
      const big = new Uint8Array(1 << 20).fill(0x78);
      const done = sys.spawn("/bin/cat", {
        argv: ["cat"],
        env: [],
        stdin: big,
        maxOutputBytes: 2 << 20,
        timeoutMs: 20_000,
      });
      equal([done.status, done.stdout.length], [0, big.length], "size");
    },
  ],
  [
    "output is cut at its bound and the child still ends",
    ({ sys }) => {
      const done = sys.spawn("/bin/sh", {
        argv: ["sh", "-c", "head -c 500000 /dev/zero"],
        env: ["PATH=/bin:/usr/bin"],
        stdin: new Uint8Array(0),
        maxOutputBytes: 1000,
        timeoutMs: 5000,
      });
      equal([done.status, done.stdout.length], [0, 1000], "size");
    },
  ],
  [
    "a child that does not end is killed at the deadline",
    ({ sys }) => {
      const done = sys.spawn("/bin/sh", {
        argv: ["sh", "-c", "exec sleep 30"],
        env: ["PATH=/bin:/usr/bin"],
        stdin: new Uint8Array(0),
        maxOutputBytes: 10,
        timeoutMs: 50,
      });
      equal([done.timedOut, done.status], [true, 128 + SIGKILL], "end");
    },
  ],
  [
    "a program that is not there is an error of spawn",
    ({ sys, folder }) =>
      refused("ENOENT", () =>
        sys.spawn(`${folder}/nothing`, {
          argv: ["x"],
          env: [],
          stdin: new Uint8Array(0),
          maxOutputBytes: 1,
          timeoutMs: 100,
        }),
      ),
  ],
  [
    "unix datagrams reach a named socket, and a missing one is ECONNREFUSED or ENOENT",
    ({ sys, folder }) => {
      const server = sys.socket(AF_UNIX, SOCK_DGRAM, 0);
      const client = sys.socket(AF_UNIX, SOCK_DGRAM, 0);
      sys.bindUnix(server, `${folder}/socket`);
      sys.bindUnix(client, "");
      if (!sys.unixName(client).startsWith("@")) throw new Error(sys.unixName(client));
      equal(sys.pollIn([server], 0), [], "nothing yet");
      sys.sendToUnix(client, `${folder}/socket`, encodeUtf8("hello"));
      equal(sys.pollIn([client, server], 1000), [1], "which is readable");
      const buffer = new Uint8Array(3);
      equal(sys.recv(server, buffer, MSG_TRUNC), 5, "real length");
      equal(decodeUtf8(buffer), "hel", "what fits");
      refused("EAGAIN", () => sys.recv(server, buffer, MSG_DONTWAIT));
      sys.sendToUnix(server, sys.unixName(client), encodeUtf8("back"));
      equal(sys.recv(client, new Uint8Array(9)), 4, "reply to an abstract name");
      sys.close(server);
      refused("ECONNREFUSED", () => sys.sendToUnix(client, `${folder}/socket`, encodeUtf8("x")));
      refused("ENOENT", () => sys.sendToUnix(client, `${folder}/no-socket`, encodeUtf8("x")));
      sys.close(client);
    },
  ],
  [
    "setns refuses what is no network namespace, and takes our own",
    ({ sys, folder }) => {
      const plain = sys.open(`${folder}/lock`, O_RDONLY);
      refused("EINVAL", () => sys.setns(plain, CLONE_NEWNET));
      sys.close(plain);
      const own = sys.open("/proc/self/ns/net", O_RDONLY);
      sys.setns(own, CLONE_NEWNET);
      sys.close(own);
      equal(sys.fsType("/proc/self/ns/net"), NSFS_MAGIC, "magic");
    },
  ],
  [
    "unshare moves into a new network namespace, and setns back",
    ({ sys }) => {
      const own = sys.open("/proc/thread-self/ns/net", O_RDONLY);
      const before = sys.stat("/proc/thread-self/ns/net")?.ino;
      sys.unshare(CLONE_NEWNET);
      const inside = sys.stat("/proc/thread-self/ns/net")?.ino;
      sys.setns(own, CLONE_NEWNET);
      sys.close(own);
      equal(inside === before, false, "the same namespace");
      equal(sys.stat("/proc/thread-self/ns/net")?.ino, before, "namespace");
      refused("EINVAL", () => sys.unshare(1));
    },
  ],
  [
    "a detached send reports the kernel's answer and can be reaped",
    ({ sys }) => {
      const fd = sys.socket(AF_NETLINK, SOCK_RAW, 0);
      // nlmsghdr 32 bytes, RTM_DELLINK, REQUEST|ACK; ifinfomsg with an ifindex that nobody has.
      const request = Uint8Array.of(
        32,
        0,
        0,
        0,
        17,
        0,
        5,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0xff,
        0xff,
        0xff,
        0x7f,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
      );
      const sent = sys.sendDetached(fd, request);
      equal(sys.pollIn([sent.reportFd], 5000), [0], "report");
      const verdict = new Int32Array(1);
      sys.read(sent.reportFd, new Uint8Array(verdict.buffer));
      equal(verdict[0], -19, "ENODEV");
      sys.close(sent.reportFd);
      equal(sys.waitpid(sent.pid), 0, "status");
      refused("ECHILD", () => sys.waitpid(sent.pid, WNOHANG));
      sys.close(fd);
    },
  ],
  [
    "a detached child without a message keeps the descriptor open, and no other",
    ({ sys, folder }) => {
      const paths = [`${folder}/kept`, `${folder}/dropped`];
      const fds = paths.map((path) => sys.open(path, O_RDWR | O_CREAT));
      for (const fd of fds) sys.flock(fd, LOCK_EX | LOCK_NB);
      const child = sys.sendDetached(fds[0] ?? -1, new Uint8Array(0), { lingerMs: 300 });
      equal(sys.pollIn([child.reportFd], 5000), [0], "report");
      for (const fd of [child.reportFd, ...fds]) sys.close(fd);
      const lock = (path: string) => {
        const fd = sys.open(path, O_RDWR);
        try {
          sys.flock(fd, LOCK_EX | LOCK_NB);
        } finally {
          sys.close(fd);
        }
      };
      lock(paths[1] ?? "");
      refused("EAGAIN", () => lock(paths[0] ?? ""));
      equal(sys.waitpid(child.pid), 0, "status");
      lock(paths[0] ?? "");
    },
  ],
  [
    "an eBPF program is loaded, or refused by the verifier",
    ({ sys }) => {
      const map = sys.bpfArray(8);
      // BPF_PROG_TYPE_SCHED_CLS: mov r0, 0; exit
      const good = Uint8Array.of(0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0);
      sys.close(sys.bpfLoad(3, good));
      refused("EINVAL", () => sys.bpfLoad(3, good.subarray(0, 8))); // no exit
      refused("EINVAL", () => sys.bpfLoad(3, good.subarray(0, 12))); // half an instruction
      sys.close(map);
    },
  ],
  [
    "SQLite keeps text, numbers, blobs and null",
    ({ openSql, folder }) => {
      const db = openSql(`${folder}/a.db`);
      db.exec("CREATE TABLE t(a TEXT, b INTEGER, c REAL, d BLOB, e); CREATE UNIQUE INDEX u ON t(a)");
      equal(db.run("INSERT INTO t VALUES(?,?,?,?,?)", ["ä", 2 ** 52, 0.5, Uint8Array.of(0, 255), null]), 1, "changes");
      const row = db.get("SELECT * FROM t");
      equal(
        [row?.a, row?.b, row?.c, [...((row?.d ?? []) as Uint8Array)], row?.e],
        ["ä", 2 ** 52, 0.5, [0, 255], null],
        "row",
      );
      equal(db.get("SELECT * FROM t WHERE a = ?", ["x"]), undefined, "no row");
      equal(
        db.all("INSERT INTO t(a) VALUES('p'),('q') RETURNING a").map((r) => r.a),
        ["p", "q"],
        "returning",
      );
      const error = throws(() => db.run("INSERT INTO t(a) VALUES('p')"));
      if (!(error instanceof SqlError)) throw error;
      equal([error.code, error.primary], [2067, 19], "unique constraint");
      db.close();
    },
  ],
  [
    "a transaction is seen by another connection only after its commit",
    ({ openSql, folder }) => {
      const a = openSql(`${folder}/a.db`);
      const b = openSql(`${folder}/a.db`);
      a.exec("PRAGMA journal_mode=WAL");
      a.exec("BEGIN IMMEDIATE");
      a.run("INSERT INTO t(a) VALUES('r')");
      equal(b.get("SELECT count(*) AS n FROM t")?.n, 3, "before");
      a.exec("COMMIT");
      equal(b.get("SELECT count(*) AS n FROM t")?.n, 4, "after");
      a.close();
      b.close();
    },
  ],
  [
    "what is no database is SQLITE_NOTADB",
    ({ sys, openSql, folder }) => {
      const fd = sys.open(`${folder}/bad.db`, O_WRONLY | O_CREAT);
      sys.writeAll(fd, encodeUtf8("this is not a database ".repeat(100)));
      sys.close(fd);
      const db = openSql(`${folder}/bad.db`);
      const error = throws(() => db.all("SELECT * FROM sqlite_schema"));
      if (!(error instanceof SqlError)) throw error;
      equal(error.primary, 26, "code");
      db.close();
    },
  ],
];
