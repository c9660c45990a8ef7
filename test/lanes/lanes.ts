/** Runs vitest on the host and in the virtual machine. */
import { spawnSync } from "node:child_process";
import { existsSync, globSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../vm/image.ts";
import { runInVm } from "../vm/vm.ts";
import { type CaseRecord, type LaneRecord, namePattern, parseRecords } from "./cases.ts";

const VITEST = ["node_modules/vitest/vitest.mjs", "run", "--config", "test/vitest.config.ts"];
const REPORTER = "--reporter=./test/lanes/case-reporter.ts";
/** All cases together; alone on the machine they take a third of it. */
const VM_TIMEOUT_SECONDS = 2700;

function readRecords(file: string): LaneRecord[] {
  return existsSync(file) ? parseRecords(readFileSync(file, "utf8")) : [];
}

function withFolder<T>(work: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "terway-test-"));
  let result: T | undefined;
  try {
    result = work(folder);
    return result;
  } finally {
    const remove = () => rmSync(folder, { recursive: true, force: true });
    if (result instanceof Promise) result.then(remove, remove);
    else remove();
  }
}

/** @param args more arguments of vitest. */
export function runOnHost(args: readonly string[], reporter: "default" | "dot" = "default"): LaneRecord[] {
  return withFolder((folder) => {
    const file = join(folder, "cases.jsonl");
    spawnSync(
      process.execPath,
      ["--disable-warning=ExperimentalWarning", ...VITEST, `--reporter=${reporter}`, REPORTER, ...args],
      {
        cwd: ROOT,
        stdio: ["ignore", reporter === "default" ? "inherit" : "ignore", "inherit"],
        env: { ...process.env, TERWAY_TEST_CASES: file },
      },
    );
    return readRecords(file);
  });
}

/** Only asks the cases what they need; runs none. */
export function collectOnHost(filters: readonly string[]): LaneRecord[] {
  const files = globSync("{plugins,ipam,shared,test}/**/*.test.ts", { cwd: ROOT }).filter(
    (f) =>
      /\b(needs|inMode)\(/.test(readFileSync(join(ROOT, f), "utf8")) &&
      (filters.length === 0 || filters.some((filter) => f.includes(filter))),
  );
  if (files.length === 0) return [{ type: "end" }];
  // A pattern that no name matches: every case is collected and none runs.
  return runOnHost([...files, "--testNamePattern=^(?!)$"], "dot");
}

/** Runs exactly these cases in the virtual machine; what vitest says there is shown as it comes. */
export function runInVmLane(cases: readonly CaseRecord[]): Promise<LaneRecord[]> {
  return withFolder(async (exchange) => {
    const file = join(exchange, "cases.jsonl");
    const failure = await runInVm({
      command: [
        process.execPath,
        ...VITEST,
        "--reporter=verbose",
        REPORTER,
        `--testNamePattern=${namePattern(cases)}`,
        ...new Set(cases.map((c) => c.file)),
      ],
      env: { TERWAY_TEST_CASES: file },
      exchange,
      timeoutSeconds: VM_TIMEOUT_SECONDS,
      stdout: (chunk) => process.stdout.write(chunk),
      stderr: (chunk) => process.stderr.write(chunk),
    }).then(
      (result) => {
        const seconds = (ms: number) => (ms / 1000).toFixed(1);
        console.log(`vm: ${result.kernel} booted in ${seconds(result.bootMs)} s, ran ${seconds(result.ms)} s in all`);
        return undefined;
      },
      (error: unknown) => (error instanceof Error ? error.message : String(error)),
    );
    const records = readRecords(file);
    if (failure !== undefined) {
      console.error(`vm: ${failure}`);
      records.push({ type: "broken", what: failure.split("\n")[0] ?? failure });
    }
    return records;
  });
}
