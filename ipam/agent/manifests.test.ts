import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { PolicyFolder } from "../policy/source-dir.ts";
import { waitsForMount } from "./manifests.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-manifests-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe("a folder at the agent's start", () => {
  const waits = (has: boolean) => waitsForMount(new PolicyFolder(dir, 0).refresh(), dir, has);

  it("that is empty is waited for, where something is in force, until it has an empty List at least", () => {
    expect(waits(true)).toContain(`until ${dir} has a manifest: is it mounted?`);
    expect(waits(false)).toBe(undefined);
    writeFileSync(join(dir, "none.yaml"), "{ apiVersion: v1, kind: List, items: [] }\n");
    expect(waits(true)).toBe(undefined);
  });
});
