/**
 * A vitest reporter: writes one JSON line to the file TERWAY_TEST_CASES for each case when it has ended, so that a
 * machine that dies leaves behind what had been done by then.
 */
import { appendFileSync, writeFileSync } from "node:fs";
import { relative } from "node:path";
import type { Reporter, TestCase, TestModule } from "vitest/node";
import type { LaneRecord } from "./cases.ts";

export default class CaseReporter implements Reporter {
  readonly #file: string;
  readonly #root = process.cwd();
  readonly #written = new Set<string>();

  constructor() {
    const file = process.env.TERWAY_TEST_CASES;
    if (file === undefined) throw new Error("TERWAY_TEST_CASES names no file: this reporter is for test/run.ts");
    this.#file = file;
    writeFileSync(file, "");
  }

  #write(record: LaneRecord): void {
    appendFileSync(this.#file, `${JSON.stringify(record)}\n`);
  }

  onTestCaseResult(test: TestCase): void {
    if (this.#written.has(test.id)) return;
    const result = test.result();
    this.#written.add(test.id);
    const { placement } = test.meta();
    this.#write({
      type: "case",
      file: relative(this.#root, test.module.moduleId),
      name: test.fullName,
      state: result.state,
      ms: Math.round(test.diagnostic()?.duration ?? 0),
      errors: (result.errors ?? []).map((e) => e.message),
      ...(placement === undefined ? {} : { placement }),
    });
  }

  onTestModuleEnd(module: TestModule): void {
    const file = relative(this.#root, module.moduleId);
    for (const error of module.errors()) this.#write({ type: "broken", what: `${file}: ${error.message}` });
    // A hook of a describe that fails is an error of the describe.
    for (const suite of module.children.allSuites())
      for (const error of suite.errors())
        this.#write({ type: "broken", what: `${file}: ${suite.fullName}: ${error.message}` });
  }

  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly { readonly message: string }[]): void {
    // Cases that never came up, because they are skipped or because what is around them failed.
    for (const module of modules) for (const test of module.children.allTests()) this.onTestCaseResult(test);
    for (const error of unhandled) this.#write({ type: "broken", what: `outside of every case: ${error.message}` });
    this.#write({ type: "end" });
  }
}
