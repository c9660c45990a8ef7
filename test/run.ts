/**
 * The whole test suite: builds the plugins, checks format, lint and types, runs every vitest file on this machine, and
 * what this kernel cannot do in a virtual machine (test/vm). Ends with one plain line, "N passed, N failed".
 *
 *   npm test [-- vitest arguments]
 */
import { spawnSync } from "node:child_process";
import { parseArgs } from "node:util";
import { casesForVm, mergeLanes } from "./lanes/cases.ts";
import { runInVmLane, runOnHost } from "./lanes/lanes.ts";
import { printReport } from "./lanes/report.ts";
import { ROOT } from "./vm/image.ts";

function node(...args: readonly string[]): number {
  return (
    spawnSync(process.execPath, ["--disable-warning=ExperimentalWarning", ...args], {
      cwd: ROOT,
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

const args = process.argv.slice(2);
const { values } = parseArgs({
  args,
  options: { testNamePattern: { type: "string", short: "t" } },
  strict: false,
});
// With a pattern of names, the cases that it leaves out are nobody's loss.
const wanted = new RegExp(typeof values.testNamePattern === "string" ? values.testNamePattern : "");
const host = runOnHost(args).filter((r) => r.type !== "case" || wanted.test(r.name));
const forVm = casesForVm(host);
if (forVm.length > 0)
  console.log(`${forVm.length} cases take what this kernel lacks: running them in the virtual machine`);
const report = printReport(mergeLanes(host, forVm.length === 0 ? undefined : await runInVmLane(forVm)));
passed += report.passed;
failed += report.failed;
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
