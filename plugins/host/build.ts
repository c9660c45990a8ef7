/**
 * Builds the six executables: TypeScript → one bundle (esbuild) → QuickJS bytecode → a snapshot of the engine that has
 * read it → one static ELF file each.
 *
 *   node plugins/host/build.ts [--arch x64|arm64] [--only terway-ipam]
 *   node plugins/host/build.ts --entry FILE.ts --out FILE     one executable of another program (tests)
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { buildSync } from "esbuild";
import { migrate } from "../../ipam/store/migrate.ts";
import { openNodeSql } from "../../shared/sys/node.ts";

export const PLUGINS = [
  "terway-ipam",
  "terway-eni",
  "terway-ipvlan",
  "terway-trunk",
  "terway-bandwidth",
  "terway-policy",
];

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const quickjs = join(root, "node_modules/@suchipi/quickjs/build");
const sqlite = join(root, "node_modules/better-sqlite3/deps/sqlite3");
const native = join(root, "shared/sys/native");

interface Target {
  readonly compiler: string;
  readonly strip: string;
  /** Debian package that has the compiler. */
  readonly aptPackage: string;
  readonly engine: string;
  readonly flags: readonly string[];
  /** What runs its executables here; nothing: the kernel does. */
  readonly runWith: readonly string[];
}

const TARGETS: Readonly<Record<string, Target>> = {
  x64: {
    compiler: "musl-gcc",
    strip: "strip",
    aptPackage: "musl-tools",
    engine: join(quickjs, "x86_64-unknown-linux-musl"),
    flags: [],
    runWith: [],
  },
  // Debian has no musl cross compiler: glibc, linked statically, some 0.7 MB larger.
  arm64: {
    compiler: "aarch64-linux-gnu-gcc",
    strip: "aarch64-linux-gnu-strip",
    aptPackage: "gcc-aarch64-linux-gnu",
    engine: join(quickjs, "aarch64-unknown-linux-gnu"),
    flags: [],
    runWith: process.arch === "arm64" ? [] : ["qemu-aarch64-static"],
  },
};

/** What the store does not use, and what a single-threaded process that lives for milliseconds does not need. */
const SQLITE_OPTIONS = [
  "SQLITE_THREADSAFE=0",
  "SQLITE_DQS=0",
  // Memory handed out in advance is memory touched for nothing.
  "SQLITE_DEFAULT_LOOKASIDE=0,0",
  "SQLITE_DEFAULT_PCACHE_INITSZ=0",
  "SQLITE_DEFAULT_MEMSTATUS=0",
  "SQLITE_DEFAULT_WAL_SYNCHRONOUS=1",
  "SQLITE_LIKE_DOESNT_MATCH_BLOBS",
  "SQLITE_MAX_EXPR_DEPTH=0",
  "SQLITE_USE_ALLOCA",
  "SQLITE_OMIT_AUTHORIZATION",
  "SQLITE_OMIT_COMPILEOPTION_DIAGS",
  "SQLITE_OMIT_DECLTYPE",
  "SQLITE_OMIT_DEPRECATED",
  "SQLITE_OMIT_DESERIALIZE",
  "SQLITE_OMIT_EXPLAIN",
  "SQLITE_OMIT_GET_TABLE",
  "SQLITE_OMIT_JSON",
  "SQLITE_OMIT_LOAD_EXTENSION",
  "SQLITE_OMIT_PROGRESS_CALLBACK",
  "SQLITE_OMIT_SHARED_CACHE",
  "SQLITE_OMIT_TCL_VARIABLE",
  "SQLITE_OMIT_TRACE",
  "SQLITE_OMIT_UTF16",
];

function run(command: string, args: readonly string[], hint = ""): void {
  const done = spawnSync(command, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
  if (done.error) throw new Error(`${command} cannot be started (${done.error.message})${hint}`);
  if (done.status !== 0) throw new Error(`${command} ended with status ${done.status}: see its message above`);
}

function isNewer(target: string, sources: readonly string[]): boolean {
  return existsSync(target) && sources.every((s) => statSync(s).mtimeMs <= statSync(target).mtimeMs);
}

/** musl's own include path has no kernel headers: a folder of links to them, so that glibc's stay out of sight. */
function kernelHeaders(work: string): string {
  const folder = join(work, "include");
  mkdirSync(folder, { recursive: true });
  const links: readonly (readonly [string, string])[] = [
    ["/usr/include/linux", "linux"],
    ["/usr/include/asm-generic", "asm-generic"],
    ["/usr/include/x86_64-linux-gnu/asm", "asm"],
  ];
  for (const [from, name] of links) run("ln", ["-sfn", from, join(folder, name)]);
  return folder;
}

/** Objects shared by the six: SQLite, the bindings and the host. */
function compileCommon(target: Target, work: string, includes: readonly string[]): string[] {
  const hint = `: install the Debian package ${target.aptPackage}`;
  const sources: readonly (readonly [string, readonly string[]])[] = [
    [join(native, "sqlite.c"), ["-O2", "-w", ...SQLITE_OPTIONS.map((o) => `-D${o}`)]],
    [join(native, "sys.c"), ["-O2", "-Wall", "-Wextra", "-Werror", "-DTERWAY_LENDS_MEMORY"]],
    [join(native, "quickjs.c"), ["-O2", "-Wall"]],
    [join(native, "quickjs_sql.c"), ["-O2", "-Wall"]],
    [join(root, "plugins/host/main.c"), ["-O2", "-Wall"]],
  ];
  const headers = ["sys.h", "quickjs_binding.h", "sqlite_schema.h"].map((name) => join(native, name));
  headers.push(fileURLToPath(import.meta.url));
  return sources.map(([source, flags]) => {
    const object = join(work, `${source.split("/").pop()}.o`);
    if (!isNewer(object, [source, ...headers])) {
      const sections = ["-ffunction-sections", "-fdata-sections", "-fno-pie", "-fomit-frame-pointer"];
      run(target.compiler, [...target.flags, ...flags, ...sections, ...includes, "-c", source, "-o", object], hint);
    }
    return object;
  });
}

/** The source of a plugin's bundle, as if it stood in this folder. */
function sourceOf(plugin: string): string {
  return `import * as plugin from "../${plugin}/main.ts"; import { runMain } from "./run-main.ts"; runMain("${plugin}", plugin);`;
}

function bundle(source: string, out: string): void {
  buildSync({
    stdin: { contents: source, resolveDir: dirname(fileURLToPath(import.meta.url)), loader: "ts" },
    outfile: out,
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2023",
    platform: "neutral",
    mainFields: ["module", "main"],
    legalComments: "none",
    logLevel: "warning",
  });
}

/*
 * The two sections that main.c knows, at addresses of their own behind everything else: what they hold must not move
 * the code, for the snapshot is full of its addresses.
 */
const SECTIONS = `SECTIONS {
  .snapshot 0x10000000 : { *(.snapshot) }
  .program 0x60000000 : { *(.program) }
} INSERT AFTER .comment;
`;
const SNAPSHOT_ROOM_BYTES = 4 << 20;

/** @param snapshot Assembler that puts it there. @param program The same for the bytecode. */
function sectionsSource(snapshot: string, program: string): string {
  const section = (name: string, flags: string, content: string) =>
    `.section .${name},"${flags}",@progbits\n.balign 4096\n.globl ${name}_start, ${name}_end\n${name}_start:\n${content}\n${name}_end:\n`;
  return `${section("snapshot", "aw", snapshot)}${section("program", "a", program)}.section .note.GNU-stack,"",@progbits\n`;
}

/** Where code and data lie, without the two sections that may differ. */
function layoutOf(executable: string): string {
  const done = spawnSync("readelf", ["-SW", executable], { encoding: "utf8" });
  const moving = /\.(text|init|fini|rodata|data|bss)\b/;
  return done.stdout
    .split("\n")
    .filter((line) => moving.test(line))
    .map((line) =>
      line
        .replace(/^\s*\[\s*\d+\]\s*/, "")
        .split(/\s+/)
        .slice(0, 4)
        .join(" "),
    )
    .join("\n");
}

interface Toolchain {
  readonly target: Target;
  readonly work: string;
  readonly includes: readonly string[];
  readonly objects: readonly string[];
}

/**
 * Turns one program into one executable.
 *
 * @param frozen The program calls `runMain`: the executable starts from a snapshot of the engine with the program in it.
 * @returns Whether it does.
 */
function buildProgram(source: string, name: string, tools: Toolchain, frozen: boolean, executable: string): boolean {
  const { target, work, includes, objects } = tools;
  const file = (suffix: string) => join(work, `${name}.${suffix}`);
  bundle(source, file("js"));
  // The compiler of bytecode runs here; bytecode is the same for every little-endian 64-bit target.
  const qjsc = join(
    quickjs,
    process.arch === "arm64" ? "aarch64-unknown-linux-static" : "x86_64-unknown-linux-static",
    "bin/qjsc",
  );
  run(qjsc, ["-c", "-s", "-N", "bytecode", "-o", file("c"), file("js")]);
  const text = readFileSync(file("c"), "utf8");
  const bytes = text.slice(text.indexOf("= {")).match(/0x[0-9a-f]{2}/g) ?? [];
  writeFileSync(file("bytecode"), Uint8Array.from(bytes, Number));
  writeFileSync(file("ld"), SECTIONS);
  const link = (out: string, snapshot: string, program: string) => {
    writeFileSync(file("S"), sectionsSource(snapshot, program));
    const options = ["-Os", "-static", "-no-pie", "-w", `-Wl,-T,${file("ld")}`];
    const linker = ["--gc-sections", "--build-id=none", "-z,norelro"].map((o) => `-Wl,${o}`);
    const parts = [file("S"), ...objects, join(target.engine, "lib/quickjs-core.a"), "-lm"];
    run(
      target.compiler,
      [...target.flags, ...options, ...linker, ...includes, ...parts, "-o", out],
      `: install the Debian package ${target.aptPackage}`,
    );
  };
  const bytecode = `.incbin "${file("bytecode")}"`;
  const next = `${executable}.new`;
  const frozenNow = frozen && freeze(name, file, link, bytecode, target, next);
  if (!frozenNow) link(next, ".zero 4096", bytecode);
  run(target.strip, ["-s", "-R", ".comment", next]);
  // In one piece, as an installation does: what was written bit by bit lies in small folios, which are mapped one by one.
  writeFileSync(next, readFileSync(next));
  // A new file under the old name: a runtime may be executing the old one right now.
  renameSync(next, executable);
  return frozenNow;
}

/** A store as a plugin would make it. */
function emptyStore(path: string): string {
  for (const suffix of ["", "-wal", "-shm"]) rmSync(path + suffix, { force: true });
  const db = openNodeSql(path);
  migrate(db);
  db.close();
  return path;
}

/** In main.c's struct Header. */
const TOUCHED_AT = 8;
const TOUCHED_BYTES = 128;
/** The memory of a process under an emulator is not that of the program. */
const EVERY_PAGE = new Uint8Array(TOUCHED_BYTES).fill(0xff);

/**
 * Calls that need no privilege and change nothing: an ADD that finds no network namespace, a DEL that finds no container.
 * What real ones write to besides comes one page fault at a time.
 *
 * @returns A bit for each page of the snapshot that any of them wrote to.
 */
function rehearse(executable: string, plugin: string, folder: string): Uint8Array {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  const touched = new Uint8Array(TOUCHED_BYTES);
  const conf = {
    cniVersion: "1.1.0",
    name: "rehearsal",
    type: plugin,
    store: emptyStore(join(folder, "ipam.db")),
    logDir: folder,
    ipam: { type: "terway-ipam", ranges: [[{ subnet: "192.0.2.0/24" }]] },
    runtimeConfig: { bandwidth: { ingressRate: 10_000_000, ingressBurst: 1_000_000 } },
    prevResult: { cniVersion: "1.1.0", interfaces: [{ name: "eth0", sandbox: folder }], ips: [] },
  };
  for (const verb of ["ADD", "DEL"]) {
    const env = {
      CNI_COMMAND: verb,
      CNI_CONTAINERID: "rehearsal",
      CNI_NETNS: join(folder, "no-netns"),
      CNI_IFNAME: "eth0",
      CNI_PATH: folder,
      CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=rehearsal",
    };
    const done = spawnSync(executable, ["--touched"], {
      env,
      input: JSON.stringify(conf),
      stdio: ["pipe", "ignore", "inherit", "pipe"],
    });
    const pages = done.output[3] as Buffer | null | undefined;
    if (done.status !== 0 || pages?.length !== TOUCHED_BYTES)
      throw new Error(`${executable} --touched ended with status ${done.status}: see its message above`);
    for (const [i, bits] of pages.entries()) touched[i] = (touched[i] ?? 0) | bits;
  }
  return touched;
}

/** Links, lets the program stop before its main, and links again around what its memory then holds. */
function freeze(
  name: string,
  file: (suffix: string) => string,
  link: (out: string, snapshot: string, program: string) => void,
  bytecode: string,
  target: Target,
  out: string,
): boolean {
  const first = file("first");
  link(first, `.zero ${SNAPSHOT_ROOM_BYTES}`, bytecode);
  const [command = first, ...args] = [...target.runWith, first, "--freeze", emptyStore(file("store"))];
  const done = spawnSync(command, args, { maxBuffer: 2 * SNAPSHOT_ROOM_BYTES });
  if (done.error !== undefined && target.runWith.length > 0) return false; // no emulator: it starts from bytecode
  if (done.status !== 0 || done.stdout.length === 0)
    throw new Error(`${first} --freeze ended with status ${done.status}: ${done.stderr}`);
  const relink = () => {
    writeFileSync(file("snapshot"), done.stdout);
    link(out, `.incbin "${file("snapshot")}"`, ".byte 0");
  };
  relink();
  done.stdout.set(target.runWith.length > 0 ? EVERY_PAGE : rehearse(out, name, file("rehearsal")), TOUCHED_AT);
  relink();
  if (layoutOf(first) !== layoutOf(out))
    throw new Error(`the code of ${out} lies elsewhere than that of ${first}: its snapshot would lead astray`);
  return true;
}

function main(): void {
  const { values } = parseArgs({
    options: {
      arch: { type: "string", default: "x64" },
      only: { type: "string" },
      entry: { type: "string" },
      out: { type: "string" },
    },
  });
  const target = TARGETS[values.arch];
  if (!target) throw new Error(`--arch ${values.arch} is not known: use ${Object.keys(TARGETS).join(" or ")}`);
  const out = join(root, "dist", values.arch === "x64" ? "cni" : `cni-${values.arch}`);
  const work = join(root, "dist/build", values.arch);
  mkdirSync(out, { recursive: true });
  mkdirSync(work, { recursive: true });
  const includes = [`-I${native}`, `-I${join(target.engine, "include")}`, `-I${sqlite}`];
  if (values.arch === "x64") includes.push("-isystem", kernelHeaders(work));
  const tools: Toolchain = { target, work, includes, objects: compileCommon(target, work, includes) };
  if (values.entry !== undefined && values.out !== undefined) {
    const source = `import ${JSON.stringify(resolve(values.entry))};`;
    buildProgram(source, basename(values.out), tools, false, resolve(values.out));
    return;
  }
  for (const plugin of PLUGINS.filter((p) => values.only === undefined || p === values.only)) {
    const executable = join(out, plugin);
    const frozen = buildProgram(sourceOf(plugin), plugin, tools, true, executable);
    const start = frozen ? "" : `, starts from bytecode: ${target.runWith[0]} is not here to make a snapshot`;
    console.log(`${plugin} ${(statSync(executable).size / 1e6).toFixed(2)} MB${start}`);
  }
}

main();
