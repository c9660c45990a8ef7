import { mkdtempSync, renameSync, rmSync, symlinkSync, unlinkSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { objectKey } from "./objects.ts";
import { describeFileFinding, errorsOf, PolicyFolder, type Refresh, watchFolder } from "./source-dir.ts";

const ns = (name: string, label = "a") =>
  `---\nkind: Namespace\napiVersion: v1\nmetadata: { name: ${name}, labels: { l: ${label} } }\n`;
const faulty = (name: string) =>
  `---\nkind: Namespace\napiVersion: v1\nmetadata: { name: ${name}, labels: { l: [] } }\n`;

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "policies-"));
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(dir, { recursive: true, force: true });
});

const write = (name: string, text: string) => {
  writeFileSync(join(dir, `.${name}.new`), text);
  renameSync(join(dir, `.${name}.new`), join(dir, name));
};

const inPlace = (name: string, text: string) => writeFileSync(join(dir, name), text);

function saidBy({ events }: Refresh): string[] {
  return events.map((e) => (e.type === "set" ? `set ${objectKey(e.object)}` : `delete ${e.key}`));
}
function refresh(folder: PolicyFolder) {
  const look = folder.refresh();
  return { said: saidBy(look), errors: errorsOf(look.findings) };
}

describe("a folder of manifests", () => {
  it("tells what is new, changed and gone, once", () => {
    const folder = new PolicyFolder(dir, 0);
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
    const folder = new PolicyFolder(dir, 0);
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
    const folder = new PolicyFolder(dir, 0);
    write("a.yaml", ns("x") + ns("y"));
    refresh(folder);
    write("a.yaml", `${ns("x")}---\nkind: [\n`);
    const { said, errors } = refresh(folder);
    expect(said).toEqual([]);
    expect(errors.length).toBeGreaterThan(0);
  });

  it("takes the first of two that define the same, and says where it is", () => {
    const folder = new PolicyFolder(dir, 0);
    write("a.yaml", ns("x", "first"));
    write("b.yaml", ns("x", "second"));
    const { said, errors } = refresh(folder);
    expect(said).toEqual(["set Namespace/x"]);
    expect(errors.map((e) => [e.file, e.message])).toEqual([
      ["b.yaml", "is already defined at a.yaml:2: this one does not count"],
    ]);
  });

  it.each(["", "\n", "---\n# nothing\n"])("takes nothing back because of a text without a document: %j", (text) => {
    const folder = new PolicyFolder(dir, 0);
    inPlace("a.yaml", ns("x") + ns("y"));
    refresh(folder);
    inPlace("a.yaml", text);
    for (const look of [folder.refresh(), folder.refresh()]) {
      expect([saidBy(look), look.broken]).toEqual([[], true]);
      expect(errorsOf(look.findings)).toMatchObject([
        { file: "a.yaml", message: expect.stringContaining("empty List") },
      ]);
    }
    inPlace("a.yaml", ns("x", "b"));
    expect(refresh(folder)).toEqual({ said: ["delete Namespace/y", "set Namespace/x"], errors: [] });
    inPlace("a.yaml", "{ apiVersion: v1, kind: List, items: [] }\n");
    expect(refresh(folder)).toEqual({ said: ["delete Namespace/x"], errors: [] });
  });

  it("says of a file that has no text yet that nobody knows what will be in it, not of one that holds comments only", () => {
    inPlace("a.yaml", "");
    expect(new PolicyFolder(dir, 0).refresh()).toMatchObject({ events: [], broken: true });
    inPlace("a.yaml", "# later\n");
    expect(new PolicyFolder(dir, 0).refresh()).toMatchObject({ events: [], findings: [], broken: false });
  });

  it("says of a file that it never could read that nobody knows what is in it", () => {
    const folder = new PolicyFolder(dir, 0);
    symlinkSync("a.yaml", join(dir, "a.yaml"));
    symlinkSync("/nowhere/b.yaml", join(dir, "b.yaml"));
    const look = folder.refresh();
    expect([look.broken, look.unsettled]).toEqual([true, false]);
    expect(errorsOf(look.findings).map((f) => describeFileFinding("DIR", f))).toEqual([
      expect.stringMatching(/^DIR\/a.yaml:1: error: cannot be read: ELOOP/),
      expect.stringMatching(/^DIR\/b.yaml:1: error: cannot be read: .*link/),
    ]);
    unlinkSync(join(dir, "b.yaml"));
    write("a.yaml", ns("x"));
    expect(folder.refresh()).toMatchObject({ broken: false, findings: [] });
    unlinkSync(join(dir, "a.yaml"));
    symlinkSync("a.yaml", join(dir, "a.yaml"));
    expect(refresh(folder).said).toEqual([]);
  });

  it("tells a folder without a document from one that says that there is nothing", () => {
    write("notes.txt", "");
    expect(new PolicyFolder(dir, 0).refresh().empty).toBe(true);
    write("a.yaml", "# nothing\n");
    expect(new PolicyFolder(dir, 0).refresh().empty).toBe(true);
    write("b.yaml", "kind: List\napiVersion: v1\nitems: []\n");
    expect(new PolicyFolder(dir, 0).refresh().empty).toBe(false);
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

describe("a file that is being written", () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ["performance"] }));
  const later = (ms: number) => void vi.advanceTimersByTime(ms);
  const settled = (folder: PolicyFolder) => {
    folder.refresh();
    later(300);
    return folder.refresh();
  };

  it("is not taken before it has been the same for a while, and nobody knows what is in it until then", () => {
    const folder = new PolicyFolder(dir);
    inPlace("a.yaml", ns("x"));
    expect(folder.refresh()).toMatchObject({ events: [], unsettled: true, broken: true, findings: [] });
    later(200);
    inPlace("a.yaml", ns("x") + ns("y"));
    expect(folder.refresh()).toMatchObject({ events: [], unsettled: true, broken: true });
    later(200);
    expect(folder.refresh()).toMatchObject({ events: [], unsettled: true, broken: true });
    later(100);
    const look = folder.refresh();
    expect(saidBy(look)).toEqual(["set Namespace/x", "set Namespace/y"]);
    expect(look).toMatchObject({ unsettled: false, broken: false });
  });

  it("says what it said before", () => {
    const folder = new PolicyFolder(dir);
    inPlace("a.yaml", ns("x") + ns("y"));
    settled(folder);
    for (const text of ["", ns("x", "b")]) {
      inPlace("a.yaml", text);
      expect(folder.refresh()).toMatchObject({ events: [], unsettled: true, broken: false, findings: [] });
      later(200);
    }
    inPlace("a.yaml", ns("x", "b") + ns("y"));
    expect(saidBy(settled(folder))).toEqual(["set Namespace/x"]);
  });

  it("is named when it has not come to rest for seconds, until it does", () => {
    const folder = new PolicyFolder(dir);
    const saw: (readonly unknown[])[] = [];
    const look = () => {
      const { findings, broken, unsettled } = folder.refresh();
      saw.push([broken, unsettled, ...errorsOf(findings).map((f) => describeFileFinding("DIR", f))]);
    };
    for (let i = 0; i <= 25; i++) {
      inPlace("a.yaml", ns("x", `v${i}`));
      look();
      later(200);
    }
    const said = expect.stringMatching(/^DIR\/a.yaml:1: error: .*changes.*rename/);
    expect(saw.slice(-2)).toEqual([
      [true, true],
      [true, true, said],
    ]);
    later(100);
    look();
    expect(saw.at(-1)).toEqual([false, false]);
    // From then on it is as new.
    inPlace("a.yaml", ns("x", "last"));
    look();
    expect(saw.at(-1)).toEqual([false, true]);
  });

  it("is settled whatever its clock says", () => {
    const folder = new PolicyFolder(dir);
    inPlace("a.yaml", ns("x"));
    utimesSync(join(dir, "a.yaml"), 2 ** 32, 2 ** 32);
    expect(saidBy(settled(folder))).toEqual(["set Namespace/x"]);
  });

  it("is gone when it has been for a while: one under a new name takes over in the same look", () => {
    const folder = new PolicyFolder(dir);
    write("a.yaml", ns("x"));
    settled(folder);
    renameSync(join(dir, "a.yaml"), join(dir, "b.yaml"));
    expect(folder.refresh()).toMatchObject({ events: [], unsettled: true });
    later(300);
    expect(folder.refresh()).toMatchObject({ events: [], unsettled: false, findings: [] });
    unlinkSync(join(dir, "b.yaml"));
    expect(saidBy(settled(folder))).toEqual(["delete Namespace/x"]);
  });

  it("does not hold up the others", () => {
    const folder = new PolicyFolder(dir);
    write("a.yaml", ns("x"));
    folder.refresh();
    later(300);
    inPlace("b.yaml", ns("y"));
    const look = folder.refresh();
    expect(saidBy(look)).toEqual(["set Namespace/x"]);
    expect(look.unsettled).toBe(true);
  });
});
