/**
 * The cases that this machine's kernel cannot run, in the virtual machine alone.
 *
 *   npm run test:vm [-- part of a file's name ...]
 */
import { casesForVm, mergeLanes } from "../lanes/cases.ts";
import { collectOnHost, runInVmLane } from "../lanes/lanes.ts";
import { printReport } from "../lanes/report.ts";

const collected = collectOnHost(process.argv.slice(2));
const cases = casesForVm(collected);
const broken = collected.filter((r) => r.type === "broken");
console.log(`${cases.length} cases take what this kernel lacks`);
if (cases.length === 0 && broken.length === 0 && process.argv.length > 2) {
  console.error(`no such case in files named like ${process.argv.slice(2).join(", ")}`);
  process.exit(1);
}
const vm = cases.length === 0 ? undefined : await runInVmLane(cases);
const { passed, failed } = printReport(mergeLanes([...cases, ...broken, { type: "end" }], vm));
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
