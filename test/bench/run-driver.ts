/** Builds the benchmark's driver and has it run plans. */
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Plan, Run } from "./driver.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");

/** @returns The path of the executable. */
export function buildDriver(): string {
  const out = join(root, "dist/build/bench-driver");
  mkdirSync(dirname(out), { recursive: true });
  const entry = join(root, "test/bench/driver-main.ts");
  const args = [join(root, "plugins/host/build.ts"), "--entry", entry, "--out", out];
  if (spawnSync(process.execPath, args, { stdio: ["ignore", 2, 2] }).status !== 0)
    throw new Error("the benchmark's driver could not be built: see above");
  return out;
}

/** @throws {Error} When a call fails: figures of failures say nothing. */
export function runPlan(program: string, plan: Plan): Run {
  const done = spawnSync(program, [], { input: JSON.stringify(plan), encoding: "utf8", maxBuffer: 1 << 28 });
  if (done.status !== 0) throw new Error(`the driver failed: ${done.stderr}`);
  const run = JSON.parse(done.stdout) as Run;
  const bad = run.samples.find((s) => s.status !== 0);
  if (bad) throw new Error(`a call failed: ${bad.output}`);
  return run;
}
