/** The short form of `npm run lab -- --soak 200`, in every mode: nothing is left, though plugins are killed. */
import { describe, expect, it } from "vitest";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { LAB_MODES } from "../lab/modes.ts";
import { describeSoak, runSoak } from "../lab/soak.ts";

/** A cycle takes seconds under software emulation. */
const CYCLES = patient(1) > 1 ? 6 : 12;

for (const [i, mode] of LAB_MODES.entries())
  describe(`pods that come and go (${mode})`, inMode(mode), () => {
    it(
      "leave nothing, though plugins are killed",
      async () => {
        const prefix = `sk${i}${process.pid % 10000}`;
        const report = await runSoak({ mode, cycles: CYCLES, seed: 20 + i, atOnce: 3, hasten: true, prefix });
        expect(report, describeSoak(report)).toMatchObject({ failures: [], leaks: [], ok: true });
        expect(report.killed.ADD + report.killed.DEL).toBeGreaterThan(0);
      },
      patient(120_000),
    );
  });
