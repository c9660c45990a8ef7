import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { readFolder } from "./policy-view.ts";

it("waits for a file that is being written", async () => {
  const dir = mkdtempSync(join(tmpdir(), "folder-"));
  try {
    const ns = (name: string) => `---\n{ kind: Namespace, apiVersion: v1, metadata: { name: ${name} } }\n`;
    writeFileSync(join(dir, "a.yaml"), "");
    setTimeout(() => writeFileSync(join(dir, "a.yaml"), ns("x")), 100);
    setTimeout(() => writeFileSync(join(dir, "a.yaml"), ns("x") + ns("y")), 200);
    expect(await readFolder(dir)).toMatchObject({ events: [{ type: "set" }, { type: "set" }], errors: [] });
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
