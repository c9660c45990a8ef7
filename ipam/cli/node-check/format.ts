/** The report of `node check` as text. Pure. */
import { KERNEL_FEATURES, type KernelFeature } from "../../../shared/kernel/features.ts";
import type { Part } from "../../conflist/modes.ts";
import { formatTable } from "../format.ts";
import type { NodeReport } from "./judge.ts";

const PART_NAMES: Readonly<Record<Part, string>> = {
  networkPolicy: "NetworkPolicy (terway-policy)",
  portmap: "host ports (portmap)",
  bandwidth: "bandwidth (terway-bandwidth)",
};

export function formatReport(report: NodeReport): string {
  const lines: string[] = [];
  const { kernel, modes, modeInForce } = report;
  if (kernel !== undefined) {
    const [there, not] = [true, false].map((want) =>
      (Object.keys(KERNEL_FEATURES) as KernelFeature[]).filter((name) => kernel[name].there === want),
    );
    lines.push(`Kernel ${report.kernelRelease}: has ${there?.join(", ")}`);
    if (not?.length) lines.push(`${" ".repeat(7)}has not ${not.join(", ")}`);
    lines.push("");
    const rows = modes.flatMap((m) => {
      const name = m.mode === modeInForce ? `${m.mode} *` : m.mode;
      if (m.because.length === 0) return [[name, m.possible, ""]];
      return m.because.flatMap((reason, i) => [
        [i === 0 ? name : "", i === 0 ? m.possible : "", reason.message],
        ["", "", `  remedy: ${reason.remedy}`],
      ]);
    });
    lines.push(formatTable(["MODE", "POSSIBLE", "WHY NOT"], rows));
    if (modeInForce !== undefined) lines.push("* in force on this node");
    for (const [part, reasons] of Object.entries(report.parts) as [Part, NodeReport["parts"][Part]][])
      for (const { message, remedy } of reasons)
        lines.push(`without ${PART_NAMES[part]}: ${message}`, `    remedy: ${remedy}`);
  }
  if (report.findings.length > 0) lines.push("");
  for (const f of report.findings) lines.push(`${f.level}: ${f.subject}: ${f.message}`, `    remedy: ${f.remedy}`);
  lines.push("", report.notGood.length === 0 ? "good" : `not good: ${report.notGood.join(", ")}`);
  return lines.join("\n");
}
