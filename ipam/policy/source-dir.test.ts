import { mkdtempSync, renameSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { objectKey } from "./objects.ts";
import { describeFileFinding, errorsOf, PolicyFolder, watchFolder } from "./source-dir.ts";

const ns = (name: string, label = "a") =>
  `---\nkind: Namespace\napiVersion: v1\nmetadata: { name: ${name}, labels: { l: ${label} } }\n`;
const faulty = (name: string) =>
  `---\nkind: Namespace\napiVersion: v1\nmetadata: { name: ${name}, labels: { l: [] } }\n`;

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "policies-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const write = (name: string, text: string) => {
  writeFileSync(join(dir, `.${name}.new`), text);
  renameSync(join(dir, `.${name}.new`), join(dir, name));
};

function refresh(folder: PolicyFolder) {
  const { events, findings } = folder.refresh();
  const said = events.map((e) => (e.type === "set" ? `set ${objectKey(e.object)}` : `delete ${e.key}`));
  return { said, errors: errorsOf(findings) };
}

describe("a folder of manifests", () => {
  it("tells what is new, changed and gone, once", () => {
    const folder = new PolicyFolder(dir);
    write("a.yaml", ns("x") + ns("y"));
    write("notes.txt", "not read");
    expect(refresh(folder)).toEqual({ said: ["set Namespace/x", "set Namespace/y"], errors: [] });
    expect(refresh(folder).said).toEqual([]);
    write("a.yaml", ns("x", "b") + ns("z"));
    expect(refresh(folder).said).toEqual(["delete Namespace/y", "set Namespace/x", "set Namespace/z"]);
    unlinkSync(join(dir, "a.yaml"));
    expect(refresh(folder).said).toEqual(["delete Namespace/x", "delete Namespace/z"]);
  });

  it("keeps the last good form of an object that became faulty, and applies what else the file says", () => {
    const folder = new PolicyFolder(dir);
    write("a.yaml", ns("x") + ns("y"));
    refresh(folder);
    write("a.yaml", faulty("x") + ns("y", "b") + ns("z"));
    const { said, errors } = refresh(folder);
    expect(said).toEqual(["set Namespace/y", "set Namespace/z"]);
    expect(errors.map((f) => describeFileFinding("DIR", f))).toEqual([
      "DIR/a.yaml:4: error: Namespace x: metadata.labels.l: must be a string, is []",
    ]);
    write("a.yaml", faulty("x"));
    expect(refresh(folder).said).toEqual(["delete Namespace/y", "delete Namespace/z"]);
    write("a.yaml", ns("x", "c"));
    expect(refresh(folder)).toEqual({ said: ["set Namespace/x"], errors: [] });
  });

  it("takes nothing back because of a text that is no YAML", () => {
    const folder = new PolicyFolder(dir);
    write("a.yaml", ns("x") + ns("y"));
    refresh(folder);
    write("a.yaml", `${ns("x")}---\nkind: [\n`);
    const { said, errors } = refresh(folder);
    expect(said).toEqual([]);
    expect(errors.length).toBeGreaterThan(0);
  });

  it("takes the first of two that define the same, and says where it is", () => {
    const folder = new PolicyFolder(dir);
    write("a.yaml", ns("x", "first"));
    write("b.yaml", ns("x", "second"));
    const { said, errors } = refresh(folder);
    expect(said).toEqual(["set Namespace/x"]);
    expect(errors.map((e) => [e.file, e.message])).toEqual([
      ["b.yaml", "is already defined at a.yaml:2: this one does not count"],
    ]);
  });

  it("is watched", async () => {
    await new Promise<void>((resolve) => {
      const stop = watchFolder(dir, () => {
        stop();
        resolve();
      });
      write("a.yaml", ns("x"));
    });
  });
});
