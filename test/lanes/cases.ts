/** Which case ran where, and how it ended. Pure. */
import type { Placement } from "../kernel/features.ts";

/** One case as one run of vitest saw it. */
export interface CaseRecord {
  readonly type: "case";
  readonly file: string;
  /** With the names of what it is in, " > " between them. */
  readonly name: string;
  readonly state: "passed" | "failed" | "skipped" | "pending";
  readonly ms: number;
  readonly errors: readonly string[];
  readonly placement?: Placement;
}

/** Something failed that is no case: a file that cannot be loaded, an error outside of every case. */
export interface BrokenRecord {
  readonly type: "broken";
  readonly what: string;
}

/** The last line of a run that came to its end. */
export interface EndRecord {
  readonly type: "end";
}

export type LaneRecord = CaseRecord | BrokenRecord | EndRecord;

/** The lines that the reporter wrote; a last line that was cut short is left out. */
export function parseRecords(text: string): LaneRecord[] {
  const lines = text.split("\n");
  lines.pop();
  return lines.filter((l) => l !== "").map((line) => JSON.parse(line) as LaneRecord);
}

const keyOf = (c: CaseRecord) => `${c.file}\n${c.name}`;
const isCase = (r: LaneRecord): r is CaseRecord => r.type === "case";

/** The cases that the host's kernel cannot run. */
export function casesForVm(host: readonly LaneRecord[]): CaseRecord[] {
  return host.filter(isCase).filter((c) => (c.placement?.lacks.length ?? 0) > 0);
}

/** vitest's --testNamePattern for exactly these cases. */
export function namePattern(cases: readonly CaseRecord[]): string {
  const names = [...new Set(cases.map((c) => c.name))];
  return `^(?:${names.map((n) => n.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|")})$`;
}

export type Lane = "host" | "vm";

export interface PlacedCase extends CaseRecord {
  /** undefined: it ran nowhere. */
  readonly lane: Lane | undefined;
}

export interface Merged {
  readonly cases: readonly PlacedCase[];
  /** What is wrong beyond failed cases, a line each. */
  readonly broken: readonly string[];
}

/**
 * Both runs as one. A case that takes what the host's kernel lacks counts where the virtual machine ran it; every
 * other one counts where the host ran it.
 *
 * @param vm undefined: the virtual machine was not asked for anything.
 */
export function mergeLanes(host: readonly LaneRecord[], vm: readonly LaneRecord[] | undefined): Merged {
  const inVm = new Map((vm ?? []).filter(isCase).map((c) => [keyOf(c), c]));
  const ran = (c: CaseRecord | undefined) => c?.state === "passed" || c?.state === "failed";
  const cases = host.filter(isCase).map((c): PlacedCase => {
    if ((c.placement?.lacks.length ?? 0) === 0) return { ...c, lane: ran(c) ? "host" : undefined };
    const there = inVm.get(keyOf(c));
    return there === undefined || !ran(there) ? { ...(there ?? c), lane: undefined } : { ...there, lane: "vm" };
  });
  const brokenOf = (lane: Lane, records: readonly LaneRecord[]) => [
    ...records.flatMap((r) => (r.type === "broken" ? [`${lane}: ${r.what}`] : [])),
    ...(records.some((r) => r.type === "end") ? [] : [`${lane}: the run did not come to its end`]),
  ];
  return { cases, broken: [...brokenOf("host", host), ...(vm === undefined ? [] : brokenOf("vm", vm))] };
}

export interface Totals {
  readonly passed: number;
  readonly failed: number;
  /** Cases that must run and ran in no lane: each is a failure. */
  readonly nowhere: readonly PlacedCase[];
  /** Cases beside the code that skip themselves for a reason of their own. */
  readonly skipped: readonly PlacedCase[];
}

/** End-to-end cases, and all that say what they take of the kernel. */
const mustRun = (c: CaseRecord) => c.placement !== undefined || c.file.startsWith("test/e2e/");

export function totals(merged: Merged): Totals {
  const count = (state: string) => merged.cases.filter((c) => c.lane !== undefined && c.state === state).length;
  const idle = merged.cases.filter((c) => c.lane === undefined);
  return {
    passed: count("passed"),
    failed: count("failed"),
    nowhere: idle.filter(mustRun),
    skipped: idle.filter((c) => !mustRun(c)),
  };
}

/** Why a case ran nowhere, as far as it is known. */
export function whyNowhere(c: CaseRecord): string {
  const lacks = c.placement?.lacks ?? [];
  if (lacks.length === 0) return "it was skipped, and names no feature of the kernel that it takes";
  return lacks.map((l) => `${l.feature} is missing (${l.refusal})`).join("; ");
}

/** How many cases of each mode ran where. */
export function modeTable(merged: Merged): string {
  const modes = [...new Set(merged.cases.map((c) => c.placement?.mode ?? ""))].sort();
  const rows = modes.map((mode) => {
    const cases = merged.cases.filter((c) => (c.placement?.mode ?? "") === mode);
    const n = (f: (c: PlacedCase) => boolean) => String(cases.filter(f).length);
    return [
      mode === "" ? "(no mode)" : mode,
      n((c) => c.lane === "host"),
      n((c) => c.lane === "vm"),
      n((c) => c.lane !== undefined && c.state === "failed"),
      n((c) => c.lane === undefined),
    ];
  });
  const all = [["mode", "host", "vm", "failed", "nowhere"], ...rows];
  const widths = (all[0] ?? []).map((_, i) => Math.max(...all.map((row) => row[i]?.length ?? 0)));
  return all
    .map((row) =>
      row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  "),
    )
    .join("\n");
}
