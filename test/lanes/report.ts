/** What a person reads at the end of the tests. */
import { type Merged, modeTable, totals, whyNowhere } from "./cases.ts";

/** @returns how many cases passed and how many things failed. */
export function printReport(merged: Merged): { readonly passed: number; readonly failed: number } {
  const { passed, failed, nowhere, skipped } = totals(merged);
  console.log(`\ncases by mode and where they ran:\n${modeTable(merged)}`);
  for (const c of merged.cases) {
    if (c.lane === "vm") console.log(`vm: ${c.state} ${c.file}: ${c.name} (takes ${c.placement?.needs.join(", ")})`);
  }
  for (const c of skipped) console.log(`skipped: ${c.file}: ${c.name}`);
  for (const c of merged.cases)
    if (c.state === "failed" && c.lane !== undefined)
      console.log(`FAILED (${c.lane}): ${c.file}: ${c.name}: ${c.errors[0]?.split("\n")[0] ?? ""}`);
  for (const c of nowhere) console.log(`FAILED, ran nowhere: ${c.file}: ${c.name}: ${whyNowhere(c)}`);
  for (const what of merged.broken) console.log(`FAILED: ${what}`);
  return { passed, failed: failed + nowhere.length + merged.broken.length };
}
