/**
 * Runs a command of this checkout in the virtual machine and ends with its exit status.
 *
 *   npm run vm -- [--timeout SECONDS] [--memory MIB] [--cpus N] [--console] COMMAND...
 *
 * --console shows what the guest's kernel says, too. Status 125: the machine failed, not the command.
 */
import { parseArgs } from "node:util";
import { runInVm } from "./vm.ts";

const USAGE = "npm run vm -- [--timeout SECONDS] [--memory MIB] [--cpus N] [--console] COMMAND...";

/** Our options end where the command begins. */
function split(args: readonly string[]): { readonly own: string[]; readonly command: string[] } {
  const valued = ["--timeout", "--memory", "--cpus"];
  let i = 0;
  while (i < args.length && args[i]?.startsWith("--")) i += valued.includes(args[i] ?? "") ? 2 : 1;
  return { own: args.slice(0, i), command: args.slice(i) };
}

function positive(name: string, text: string): number {
  const n = Number(text);
  if (!Number.isInteger(n) || n < 1) throw new Error(`--${name} ${text}: a whole number from 1 on is wanted`);
  return n;
}

try {
  const { own, command } = split(process.argv.slice(2));
  const { values } = parseArgs({
    args: own,
    options: {
      timeout: { type: "string", default: "1200" },
      memory: { type: "string", default: "3072" },
      cpus: { type: "string", default: "2" },
      console: { type: "boolean", default: false },
    },
  });
  if (command.length === 0) throw new Error(`no command: ${USAGE}`);
  const result = await runInVm({
    command,
    timeoutSeconds: positive("timeout", values.timeout),
    memoryMiB: positive("memory", values.memory),
    cpus: positive("cpus", values.cpus),
    stdout: (chunk) => process.stdout.write(chunk),
    stderr: (chunk) => process.stderr.write(chunk),
    ...(values.console ? { console: (line: string) => process.stderr.write(`vm: ${line}\n`) } : {}),
  });
  process.stderr.write(
    `vm: ${result.kernel} booted in ${(result.bootMs / 1000).toFixed(1)} s; status ${result.status} after ${(result.ms / 1000).toFixed(1)} s\n`,
  );
  process.exitCode = result.status;
} catch (error) {
  process.stderr.write(`vm: ${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 125;
}
