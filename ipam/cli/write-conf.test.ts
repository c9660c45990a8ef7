/** F-17: whoever reads the CNI folder finds whole files only, whatever becomes of the writer. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  watch,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { formatConflist, mustRender } from "../conflist/render.ts";
import { WriteConfError, writeConf } from "./write-conf.ts";

const root = process.getuid?.() === 0;
const base = mkdtempSync(join(tmpdir(), "terway-write-conf-"));
const mounted: string[] = [];
afterAll(() => {
  for (const path of mounted) spawnSync("umount", [path]);
  rmSync(base, { recursive: true, force: true });
});
let folder = "";
let count = 0;
beforeEach(() => {
  folder = join(base, String(count++));
  mkdirSync(folder);
});

/** What a runtime reads (libcni's ConfFiles). */
const confFiles = (path: string) => readdirSync(path).filter((f) => /\.(conflist|conf|json)$/.test(f));
const tenth = () => join(folder, "10-terway.conflist");
const [veth, vpc] = [mustRender({ mode: "eniip-veth" }), mustRender({ mode: "vpc" })].map(formatConflist) as [
  string,
  string,
];

function refused(work: () => unknown): WriteConfError {
  try {
    work();
  } catch (error) {
    if (error instanceof WriteConfError) return error;
    throw error;
  }
  throw new Error("want a refusal");
}

describe("writeConf", () => {
  it("writes a new file, and nothing else stays in the folder", () => {
    expect(writeConf(tenth(), veth, false)).toBe("written");
    expect([readFileSync(tenth(), "utf8"), readdirSync(folder)]).toEqual([veth, ["10-terway.conflist"]]);
  });

  it("leaves another content alone unless it may replace it, and then keeps it under a name that nobody reads", () => {
    writeConf(tenth(), veth, false);
    expect(refused(() => writeConf(tenth(), vpc, false)).message).toContain("there already");
    expect(readFileSync(tenth(), "utf8")).toBe(veth);
    expect(writeConf(tenth(), vpc, true)).toBe("replaced");
    expect([readFileSync(tenth(), "utf8"), readFileSync(`${tenth()}.previous`, "utf8")]).toEqual([vpc, veth]);
    expect(confFiles(folder)).toEqual(["10-terway.conflist"]);
  });

  const modeOf = (path: string) => statSync(path).mode & 0o7777;

  it("opens to nobody what was closed to them: mode and owner stay, those of the former content too", () => {
    writeFileSync(tenth(), veth);
    chmodSync(tenth(), 0o640);
    if (root) chownSync(tenth(), 12, 34);
    const { uid, gid } = statSync(tenth());
    // What a killed writer of the same process id left.
    writeFileSync(join(folder, `.10-terway.conflist.${process.pid}.tmp`), "half", { mode: 0o666 });
    expect(writeConf(tenth(), vpc, true)).toBe("replaced");
    for (const path of [tenth(), `${tenth()}.previous`])
      expect([modeOf(path), statSync(path)]).toEqual([0o640, expect.objectContaining({ uid, gid })]);
  });

  it("gives a new file the mode that is asked for, 0644 unless told", () => {
    writeConf(tenth(), veth, false);
    writeConf(join(folder, "eni_conf"), veth, false, 0o600);
    expect([modeOf(tenth()), modeOf(join(folder, "eni_conf"))]).toEqual([0o644, 0o600]);
  });

  it("does nothing where the same is there", () => {
    writeConf(tenth(), veth, false);
    expect(writeConf(tenth(), veth, false)).toBe("unchanged");
  });

  it("clears away what killed writers left, and no more", () => {
    const gone = spawnSync("true").pid;
    for (const f of [`.10-terway.conflist.${gone}.tmp`, `.10-terway.conflist.${process.ppid}.tmp`, ".other.1.tmp"])
      writeFileSync(join(folder, f), "half");
    writeConf(tenth(), veth, false);
    expect(readdirSync(folder).sort()).toEqual([
      `.10-terway.conflist.${process.ppid}.tmp`,
      ".other.1.tmp",
      "10-terway.conflist",
    ]);
  });

  it("replaces a link to a file without writing through it", () => {
    writeFileSync(join(folder, "elsewhere"), veth);
    symlinkSync(join(folder, "elsewhere"), tenth());
    writeConf(tenth(), vpc, true);
    expect([readFileSync(tenth(), "utf8"), readFileSync(join(folder, "elsewhere"), "utf8")]).toEqual([vpc, veth]);
  });

  it("names the folder's absence and its remedy", () => {
    expect(refused(() => writeConf(join(folder, "no/10.conflist"), veth, false))).toMatchObject({
      message: expect.stringContaining("ENOENT"),
      remedy: "make the folder first",
    });
  });

  it.skipIf(!root)("keeps the former file where the disk is full", () => {
    const small = join(folder, "small");
    mkdirSync(small);
    expect(spawnSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", small]).status).toBe(0);
    mounted.push(small);
    const path = join(small, "10-terway.conflist");
    writeConf(path, veth, false);
    const fill = () => writeFileSync(join(small, "fill"), "x".repeat(1 << 20));
    expect(fill).toThrow("ENOSPC");
    const error = refused(() => writeConf(path, vpc.padEnd(8192), true));
    expect([error.message.includes("ENOSPC"), error.remedy]).toEqual([
      true,
      "free some space; the former file is as it was",
    ]);
    expect([readFileSync(path, "utf8"), confFiles(small), readdirSync(small).sort()]).toEqual([
      veth,
      ["10-terway.conflist"],
      ["10-terway.conflist", "fill"],
    ]);
  });

  it("shows a watching reader whole files only, through 200 writes and writers that are killed", async () => {
    const whole = new Set([veth, vpc]);
    writeConf(tenth(), veth, false);
    const seen = { events: 0, reads: 0, changes: 0, wrong: [] as string[] };
    let last = veth;
    const look = () => {
      const files = confFiles(folder);
      if (files.join() !== "10-terway.conflist") seen.wrong.push(`files: ${files.join()}`);
      const text = readFileSync(tenth(), "utf8");
      seen.reads++;
      if (text !== last) seen.changes++;
      last = text;
      if (!whole.has(text)) seen.wrong.push(text);
    };
    const watcher = watch(folder, () => {
      seen.events++;
      look();
    });
    const main = fileURLToPath(new URL("write-conf-main.ts", import.meta.url));
    for (let round = 0; round < 6; round++) {
      const writer = spawn(process.execPath, [main, tenth(), veth, vpc], { stdio: ["ignore", "pipe", "inherit"] });
      const exit = once(writer, "exit");
      await once(writer.stdout, "data");
      // By events and not by time: so that the writer is killed at some point of some write, on any machine.
      const until = seen.events + 40 + round;
      while (seen.events < until) {
        look();
        await new Promise((resolve) => setImmediate(resolve));
      }
      writer.kill("SIGKILL");
      await exit;
      look();
    }
    watcher.close();
    expect(seen.wrong).toEqual([]);
    expect(seen.changes).toBeGreaterThan(5);
    expect(seen.events).toBeGreaterThan(200);
    // The next writer finds its way, and clears up.
    writeConf(tenth(), last === veth ? vpc : veth, true);
    expect(readdirSync(folder).sort()).toEqual(["10-terway.conflist", "10-terway.conflist.previous"]);
  });
});
