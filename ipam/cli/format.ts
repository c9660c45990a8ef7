/** Text forms of what the CLI shows. Pure. */
import type { JournalRow } from "../store/journal.ts";
import type { AddressView, EniView, NodeView, PodView } from "./node-view.ts";

function describe(a: AddressView): string {
  return `${a.address} (${a.pod === undefined ? (a.state === "idle" ? "available" : a.state) : `allocated to ${a.pod}`})`;
}

/** The plain form of `show`; scripts look for the words Node, Pool and Utilization at line starts. */
export function formatShow(view: NodeView): string {
  const { pool } = view;
  return [
    `Node: ${view.facts.node_name ?? "unknown"}`,
    ...view.enis.flatMap((e) => [
      `ENI: ${e.id} (${e.ifname})${e.state === "ready" ? "" : ` ${e.state}`}${e.dedicated ? " dedicated" : ""}`,
      `  Primary IP: ${e.primary}`,
      "  Secondary IPs:",
      ...e.addresses.map((a) => `    - ${describe(a)}`),
    ]),
    `IP Pool: ${pool.total} total, ${pool.allocated} allocated, ${pool.available} available`,
    `Utilization: ${pool.utilization}%`,
    ...(view.waiting > 0 ? [`Waiting: ${view.waiting} pods wait for an address`] : []),
  ].join("\n");
}

function eniLine(e: EniView): string {
  return `  ${e.id} (${e.ifname}): Primary=${e.primary}, Secondary=${e.addresses.filter((a) => a.family === 4).length} IPs`;
}

/** The framed form. */
export function formatFramed(view: NodeView): string {
  const { pool } = view;
  const parts = [
    [`Node: ${view.facts.node_name ?? "unknown"}`],
    [
      `ENI Count: ${view.enis.length}`,
      `IP Pool: Total=${pool.total}, Allocated=${pool.allocated}, Available=${pool.available}`,
      `Utilization: ${pool.utilization}%`,
    ],
    ["ENI Details:", ...view.enis.map(eniLine)],
  ];
  const width = Math.max(60, ...parts.flat().map((line) => line.length));
  const rule = (left: string, right: string) => `${left}${"─".repeat(width + 2)}${right}`;
  const body = parts.map((lines) => lines.map((line) => `│ ${line.padEnd(width)} │`).join("\n"));
  return [rule("┌", "┐"), body.join(`\n${rule("├", "┤")}\n`), rule("└", "┘")].join("\n");
}

/** Columns under their titles. */
export function formatTable(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = titles.map((title, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? "").length)));
  return [titles, ...rows]
    .map((row) =>
      row
        .map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

export function formatAge(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 120) return `${s}s`;
  if (s < 7200) return `${Math.floor(s / 60)}m`;
  return s < 172_800 ? `${Math.floor(s / 3600)}h` : `${Math.floor(s / 86_400)}d`;
}

export function formatPods(pods: readonly PodView[]): string {
  return formatTable(
    ["POD", "INTERFACE", "ADDRESSES", "ENI", "HOST INTERFACE", "MODE", "STATE", "AGE", "CONTAINER"],
    pods.map((p) => [
      p.pod,
      p.ifname,
      p.addresses.join(","),
      p.eniId ?? "-",
      p.hostIfname ?? "-",
      p.mode,
      p.state,
      formatAge(p.ageMs),
      p.containerId.slice(0, 13),
    ]),
  );
}

export function formatJournal(rows: readonly JournalRow[]): string {
  return rows
    .map((r) =>
      [
        new Date(r.at).toISOString(),
        r.actor,
        r.op,
        r.pod ?? r.containerId ?? "-",
        r.outcome === "ok" ? "ok" : `FAILED${r.code === undefined ? "" : ` ${r.code}`}: ${r.outcome}`,
        r.durationMs === undefined ? "" : `${r.durationMs.toFixed(1)} ms`,
        r.detail ?? "",
      ]
        .filter((part) => part !== "")
        .join("  "),
    )
    .join("\n");
}
