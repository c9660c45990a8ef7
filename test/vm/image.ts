/** The initramfs of the virtual machine: busybox, the kernel modules in loading order, the guest's scripts and its job. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type CpioEntry, cpio } from "./cpio.ts";
import { BOOT_MODULES, GUEST_MODULES, loadOrder, parametersOf, parseModulesDep } from "./modules.ts";

const here = dirname(fileURLToPath(import.meta.url));
export const ROOT = join(here, "../..");
const KERNEL = join(ROOT, "dist/vm/kernel");
const BUSYBOX = "/bin/busybox";

export interface Kernel {
  readonly vmlinuz: string;
  readonly version: string;
  /** Holds VERSION/, as /lib/modules does. */
  readonly modules: string;
}

/** @throws when .ci/setup has not fetched it. */
export function findKernel(): Kernel {
  const modules = join(KERNEL, "lib/modules");
  const version = existsSync(modules) ? readdirSync(modules)[0] : undefined;
  if (version === undefined || !existsSync(join(KERNEL, "vmlinuz")))
    throw new Error("the kernel of the virtual machine is not here: run .ci/setup vm");
  return { vmlinuz: join(KERNEL, "vmlinuz"), version, modules };
}

export interface Job {
  /** Run in `cwd` by the guest's shell words, already split. */
  readonly command: readonly string[];
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  /** The one folder that host and guest both write; the same path on both sides. */
  readonly exchange: string;
}

/** A word that the shell takes as it is. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

/** The job as shell text: `settings` for init and stage2, `command` to be sourced by a subshell of stage2. */
export function jobScripts(job: Job, modules: string): { readonly settings: string; readonly command: string } {
  return {
    settings: `EXCHANGE=${quote(job.exchange)}\nMODULES=${quote(modules)}\n`,
    command: [
      ...Object.entries(job.env).map(([name, value]) => `export ${name}=${quote(value)}`),
      `cd ${quote(job.cwd)} || exit 127`,
      `exec ${job.command.map(quote).join(" ")}`,
      "",
    ].join("\n"),
  };
}

export function initramfs(kernel: Kernel, job: Job): Buffer {
  const modules = join(kernel.modules, kernel.version);
  const read = (name: string) => readFileSync(join(modules, name), "utf8");
  const order = loadOrder(parseModulesDep(read("modules.dep")), read("modules.builtin").split("\n"), [
    ...BOOT_MODULES,
    ...GUEST_MODULES,
  ]);
  const { settings, command } = jobScripts(job, kernel.modules);
  const file = (path: string, data: Uint8Array | string, executable = false): CpioEntry => ({
    path,
    kind: "file",
    data: typeof data === "string" ? Buffer.from(data) : data,
    executable,
  });
  const flat = (path: string) => path.replaceAll("/", "!");
  return cpio([
    ...["bin", "dev", "job", "modules"].map((path): CpioEntry => ({ path, kind: "folder" })),
    { path: "dev/console", kind: "device", major: 5, minor: 1 },
    file("bin/busybox", readFileSync(BUSYBOX), true),
    file("init", readFileSync(join(here, "guest/init")), true),
    file("job/stage2", readFileSync(join(here, "guest/stage2"))),
    file("job/settings", settings),
    file("job/command", command),
    file("modules.order", order.map((path) => `${[flat(path), ...parametersOf(path)].join(" ")}\n`).join("")),
    ...order.map((path) => file(`modules/${flat(path)}`, readFileSync(join(modules, path)))),
  ]);
}
