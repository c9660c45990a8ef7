/**
 * Builds the six executables: TypeScript → one bundle (esbuild) → QuickJS bytecode → one static ELF file each.
 *
 *   node plugins/host/build.ts [--arch x64|arm64] [--only terway-ipam]
 *   node plugins/host/build.ts --entry FILE.ts --out FILE     one executable of another program (tests)
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, renameSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { buildSync } from "esbuild";

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
}

const TARGETS: Readonly<Record<string, Target>> = {
  x64: {
    compiler: "musl-gcc",
    strip: "strip",
    aptPackage: "musl-tools",
    engine: join(quickjs, "x86_64-unknown-linux-musl"),
    flags: [],
  },
  // Debian has no musl cross compiler: glibc, linked statically, some 0.7 MB larger.
  arm64: {
    compiler: "aarch64-linux-gnu-gcc",
    strip: "aarch64-linux-gnu-strip",
    aptPackage: "gcc-aarch64-linux-gnu",
    engine: join(quickjs, "aarch64-unknown-linux-gnu"),
    flags: [],
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
    [join(sqlite, "sqlite3.c"), ["-O2", "-w", ...SQLITE_OPTIONS.map((o) => `-D${o}`)]],
    [join(native, "sys.c"), ["-O2", "-Wall", "-Wextra", "-Werror"]],
    [join(native, "quickjs.c"), ["-O2", "-Wall"]],
    [join(native, "quickjs_sql.c"), ["-O2", "-Wall"]],
    [join(root, "plugins/host/main.c"), ["-O2", "-Wall"]],
  ];
  const headers = [join(native, "sys.h"), join(native, "quickjs_binding.h"), fileURLToPath(import.meta.url)];
  return sources.map(([source, flags]) => {
    const object = join(work, `${source.split("/").pop()}.o`);
    if (!isNewer(object, [source, ...headers])) {
      const sections = ["-ffunction-sections", "-fdata-sections", "-fno-pie", "-fomit-frame-pointer"];
      run(target.compiler, [...target.flags, ...flags, ...sections, ...includes, "-c", source, "-o", object], hint);
    }
    return object;
  });
}

function bundle(entry: string, out: string): void {
  buildSync({
    entryPoints: [entry],
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

/** Turns one program into one executable. */
function buildProgram(
  entry: string,
  name: string,
  target: Target,
  work: string,
  includes: readonly string[],
  objects: readonly string[],
  executable: string,
): void {
  const script = join(work, `${name}.js`);
  const c = join(work, `${name}.c`);
  bundle(entry, script);
  // The compiler of bytecode runs here; bytecode is the same for every little-endian 64-bit target.
  const qjsc = join(
    quickjs,
    process.arch === "arm64" ? "aarch64-unknown-linux-static" : "x86_64-unknown-linux-static",
    "bin/qjsc",
  );
  run(qjsc, ["-c", "-s", "-N", "plugin_bytecode", "-o", c, script]);
  const link = [
    ...target.flags,
    "-Os",
    "-static",
    "-no-pie",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-w",
    ...includes,
    c,
    ...objects,
    join(target.engine, "lib/quickjs-core.a"),
    "-lm",
    "-o",
    `${executable}.new`,
  ];
  run(target.compiler, link, `: install the Debian package ${target.aptPackage}`);
  run(target.strip, ["-s", "-R", ".comment", `${executable}.new`]);
  // A new file under the old name: a runtime may be executing the old one right now.
  renameSync(`${executable}.new`, executable);
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
  const objects = compileCommon(target, work, includes);
  if (values.entry !== undefined && values.out !== undefined) {
    buildProgram(resolve(values.entry), basename(values.out), target, work, includes, objects, resolve(values.out));
    return;
  }
  for (const plugin of PLUGINS.filter((p) => values.only === undefined || p === values.only)) {
    const executable = join(out, plugin);
    buildProgram(join(root, "plugins", plugin, "main.ts"), plugin, target, work, includes, objects, executable);
    console.log(`${plugin} ${(statSync(executable).size / 1e6).toFixed(2)} MB`);
  }
}

main();
