/**
 * The whole test suite: builds the plugins, checks format, lint and types, then runs every vitest file.
 * Ends with one plain line, "N passed, N failed".
 *
 *   npm test [-- vitest arguments]
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

interface Report {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
  readonly success: boolean;
}

function node(...args: readonly string[]): number {
  return (
    spawnSync(process.execPath, ["--disable-warning=ExperimentalWarning", ...args], {
      cwd: root,
      stdio: ["ignore", "inherit", "inherit"],
    }).status ?? 1
  );
}

let failed = 0;
let passed = 0;
const step = (name: string, status: number) => {
  if (status === 0) passed += 1;
  else failed += 1;
  console.log(`${status === 0 ? "ok" : "FAILED"}: ${name}`);
};

step("build of the six plugins", node("plugins/host/build.ts"));
step("format and lint", node("node_modules/@biomejs/biome/bin/biome", "check", "--diagnostic-level=warn", "."));
step("types", node("node_modules/typescript/bin/tsc", "-p", "."));

const folder = mkdtempSync(join(tmpdir(), "terway-test-"));
const reportFile = join(folder, "report.json");
try {
  const status = node(
    "node_modules/vitest/vitest.mjs",
    "run",
    "--config",
    "test/vitest.config.ts",
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${reportFile}`,
    ...process.argv.slice(2),
  );
  const report = JSON.parse(readFileSync(reportFile, "utf8")) as Report;
  passed += report.numPassedTests;
  failed += report.numFailedTests;
  // A file that cannot even be loaded fails the run without a failed test.
  if ((status !== 0 || !report.success) && report.numFailedTests === 0) failed += 1;
  console.log(`${passed} passed, ${failed} failed, ${report.numPendingTests} skipped`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failed === 0 ? 0 : 1);
