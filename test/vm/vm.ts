/**
 * Runs one command in a virtual machine with Debian's cloud kernel, on this machine's file system, and returns its exit
 * status. The machine is made for that command and is gone after it; what the command writes goes with it, but for the
 * exchange folder.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { findKernel, initramfs, ROOT } from "./image.ts";
import { qemuArgs } from "./qemu.ts";

/** Debian 12 ships it with qemu-system-common, later releases by itself. */
const VIRTIOFSD = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/** It takes 5 to 10. Seldom one hangs on the way, as emulated processors may, and another one does not. */
const BOOT_SECONDS = [60, 120] as const;
const CONSOLE_LINES = 60;
/** setpriv(1): no machine outlives who asked for it, even one that is killed. */
const DIE_WITH_US = ["--pdeathsig", "KILL"];
/** For test/kernel/patience.ts: programs were seen to take 5 to 10 times as long as on the host. */
const SLOWNESS = 8;

export interface VmOptions {
  readonly command: readonly string[];
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** The machine is ended and the run fails when the command takes longer. */
  readonly timeoutSeconds: number;
  /** How long a machine may take to boot; then comes the next one. */
  readonly bootSeconds?: readonly number[];
  readonly cpus?: number;
  readonly memoryMiB?: number;
  /** Made, and removed, by the caller. The command finds its path in TERWAY_VM_EXCHANGE. */
  readonly exchange?: string;
  readonly stdout?: (chunk: Buffer) => void;
  readonly stderr?: (chunk: Buffer) => void;
  /** What the kernel and the guest's scripts say on the serial console. */
  readonly console?: (line: string) => void;
}

export interface VmResult {
  /** Exit status of the command. */
  readonly status: number;
  readonly kernel: string;
  readonly bootMs: number;
  readonly ms: number;
}

/** The machine did not come to the end of the command: no boot, a panic, a hang. */
export class VmFailure extends Error {
  /** It hung before it began with the command. */
  readonly hangsAtBoot: boolean;

  constructor(what: string, consoleLines: readonly string[], hangsAtBoot: boolean) {
    const said =
      consoleLines.length === 0
        ? "the console said nothing"
        : `last words on the console:\n  ${consoleLines.join("\n  ")}`;
    super(`the virtual machine ${what}; ${said}`);
    this.hangsAtBoot = hangsAtBoot;
  }
}

/**
 * virtiofsd in a mount namespace of its own, in which the shared tree is a read-only view of this file system; only
 * the exchange folder can be written, whatever the guest does. Mounts below / are not in the view unless they hold
 * programs or this checkout.
 */
const SHARE = `set -e
tree=$1; socket=$2; exchange=$3; virtiofsd=$4; shift 4
mount --bind / "$tree"
mount -o remount,bind,ro "$tree"
for path in /usr /etc /opt "$@"; do
  [ -d "$path" ] && [ "$(stat -c %d "$path")" != "$(stat -c %d /)" ] || continue
  mount --bind "$path" "$tree$path"
  mount -o remount,bind,ro "$tree$path"
done
mount --bind "$exchange" "$tree$exchange"
exec "$virtiofsd" --socket-path="$socket" -o source="$tree" -o cache=always -o sandbox=chroot -o log_level=warn
`;

function listen(
  path: string,
  onData: (chunk: Buffer) => void,
): { readonly server: Server; readonly ended: Promise<void> } {
  let end: () => void = () => undefined;
  const ended = new Promise<void>((resolve) => {
    end = resolve;
  });
  const server = createServer((socket: Socket) => {
    socket.on("data", onData);
    socket.on("error", () => undefined); // qemu was ended
    socket.on("close", end);
  });
  server.listen(path);
  return { server, ended };
}

/** Calls back with each whole line. */
function lines(onLine: (line: string) => void): (chunk: Buffer) => void {
  let rest = "";
  return (chunk) => {
    const parts = (rest + chunk.toString()).split("\n");
    rest = parts.pop() ?? "";
    for (const line of parts) onLine(line.replace(/\r$/, ""));
  };
}

const exitOf = (child: ChildProcess) =>
  new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(`cannot be started: ${error.message}`));
    child.once("exit", (code, signal) => resolve(signal ? `ended by ${signal}` : `ended with status ${code}`));
  });

/** @throws {VmFailure} */
export async function runInVm(options: VmOptions): Promise<VmResult> {
  const [bootSeconds = 0, ...more] = options.bootSeconds ?? BOOT_SECONDS;
  try {
    return await runOnce(options, bootSeconds);
  } catch (error) {
    if (more.length === 0 || !(error instanceof VmFailure && error.hangsAtBoot)) throw error;
    process.stderr.write(`vm: ${error.message}\nvm: trying another one\n`);
    return runInVm({ ...options, bootSeconds: more });
  }
}

async function runOnce(options: VmOptions, bootSeconds: number): Promise<VmResult> {
  const kernel = findKernel();
  const virtiofsd = VIRTIOFSD.find((path) => existsSync(path));
  if (virtiofsd === undefined) throw new Error(`virtiofsd is not in ${VIRTIOFSD.join(" or ")}: run .ci/setup vm`);
  const started = performance.now();
  const work = mkdtempSync(join(tmpdir(), "terway-vm-"));
  const exchange = options.exchange ?? join(work, "exchange");
  const tree = join(work, "tree");
  for (const folder of [tree, exchange]) mkdirSync(folder, { recursive: true });
  const at = (name: string) => join(work, name);
  writeFileSync(
    at("initramfs"),
    initramfs(kernel, {
      command: options.command,
      cwd: options.cwd ?? ROOT,
      env: {
        PATH: guestPath(),
        NODE_OPTIONS: `--disable-warning=ExperimentalWarning --require=${join(ROOT, "test/vm/no-wasm-tier-up.cjs")}`,
        TERWAY_VM_EXCHANGE: exchange,
        TERWAY_TEST_SLOWNESS: String(SLOWNESS),
        ...options.env,
      },
      exchange,
    }),
  );

  const lastWords: string[] = [];
  let kernelVersion = "";
  let bootMs = 0;
  let status: number | undefined;
  const onEvent = lines((line) => {
    const { event, value } = JSON.parse(line) as { event: string; value: unknown };
    if (event === "booted") {
      kernelVersion = String(value);
      bootMs = performance.now() - started;
    }
    if (event === "exit") status = Number(value);
  });
  const ports = [
    listen(at("events"), onEvent),
    listen(at("out"), options.stdout ?? (() => undefined)),
    listen(at("err"), options.stderr ?? (() => undefined)),
  ];

  const share = spawn(
    "setpriv",
    [
      ...DIE_WITH_US,
      "unshare",
      "--mount",
      "--propagation",
      "private",
      "sh",
      "-c",
      SHARE,
      "sh",
      tree,
      at("fs"),
      exchange,
      virtiofsd,
      ROOT,
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  const shareSays: string[] = [];
  share.stderr?.on(
    "data",
    lines((line) => shareSays.push(line)),
  );
  const shareEnd = exitOf(share);
  let qemu: ChildProcess | undefined;
  let why: string | undefined;
  let hangsAtBoot = false;
  const stop = (reason: string) => {
    why ??= reason;
    qemu?.kill("SIGKILL");
  };
  const onSignal = () => stop("was interrupted");
  process.once("SIGINT", onSignal);
  process.once("SIGTERM", onSignal);
  const timers: NodeJS.Timeout[] = [];
  try {
    await waitForSocket(at("fs"), share, shareSays);
    qemu = spawn(
      "setpriv",
      [
        ...DIE_WITH_US,
        "qemu-system-x86_64",
        ...qemuArgs({
          vmlinuz: kernel.vmlinuz,
          initramfs: at("initramfs"),
          cpus: options.cpus ?? 2,
          memoryMiB: options.memoryMiB ?? 3072,
          sockets: { fileSystem: at("fs"), events: at("events"), out: at("out"), err: at("err") },
        }),
      ],
      { stdio: ["ignore", "pipe", "pipe"] },
    );
    const onConsole = lines((line) => {
      options.console?.(line);
      lastWords.push(line);
      if (lastWords.length > CONSOLE_LINES) lastWords.shift();
    });
    qemu.stdout?.on("data", onConsole);
    qemu.stderr?.on("data", onConsole);
    timers.push(
      setTimeout(() => {
        hangsAtBoot = bootMs === 0;
        if (hangsAtBoot) stop(`did not boot within ${bootSeconds} s`);
      }, bootSeconds * 1000),
      setTimeout(
        () => stop(`was ended: the command took longer than ${options.timeoutSeconds} s`),
        options.timeoutSeconds * 1000,
      ),
    );
    const end = await exitOf(qemu);
    if (end.startsWith("cannot")) throw new Error(`setpriv ${end}: run .ci/setup vm`);
    if (lastWords.some((line) => /^setpriv: .*qemu/.test(line)))
      throw new Error("qemu-system-x86_64 is not here: run .ci/setup vm");
    await Promise.all(ports.map((p) => p.ended));
    if (status === undefined)
      throw new VmFailure(why ?? (bootMs === 0 ? `did not boot (${end})` : `died (${end})`), lastWords, hangsAtBoot);
    return { status, kernel: kernelVersion, bootMs, ms: performance.now() - started };
  } finally {
    for (const timer of timers) clearTimeout(timer);
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
    share.kill("SIGTERM");
    await shareEnd;
    for (const { server } of ports) server.close();
    rmdirSync(tree); // refuses if the view of this file system were still to be seen there
    rmSync(work, { recursive: true, force: true });
  }
}

/** The project's own Node first. */
function guestPath(): string {
  return `${dirname(process.execPath)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`;
}

async function waitForSocket(path: string, share: ChildProcess, says: readonly string[]): Promise<void> {
  for (let i = 0; i < 200 && !existsSync(path); i++) {
    if (share.exitCode !== null) break;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  if (!existsSync(path))
    throw new Error(`virtiofsd does not serve this file system: ${says.join("; ") || "it says nothing"}`);
}
