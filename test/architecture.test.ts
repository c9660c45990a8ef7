/** Holds the code to the layout: imports point one way, no cycles, and the engine-neutral parts stay so. */
import { globSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const files = globSync("{plugins,ipam,shared,test}/**/*.ts", { cwd: root }).map((f) => normalize(f));
const isTest = (file: string) => file.endsWith(".test.ts") || file.startsWith("test/");

interface Import {
  readonly from: string;
  readonly to: string;
  readonly typeOnly: boolean;
}

function importsOf(file: string): Import[] {
  const text = readFileSync(join(root, file), "utf8");
  const pattern =
    /(?:^|\n)\s*(?:import|export)\s+(type\s)?(?:[^"';]*?\sfrom\s+)?["']([^"']+)["']|import\(\s*["']([^"']+)["']\s*\)/g;
  return [...text.matchAll(pattern)].map((m) => {
    const target = m[2] ?? m[3] ?? "";
    const to = target.startsWith(".") ? relative(root, join(root, dirname(file), target)) : target;
    return { from: file, to, typeOnly: m[1] !== undefined };
  });
}

const imports = files.flatMap(importsOf);
const part = (path: string) => path.split("/").slice(0, 2).join("/");

/** Folders whose code also runs in the plugins' engine. The Node bindings are the exception by design. */
const neutral = (file: string) =>
  /^(shared|plugins|ipam\/store)\//.test(file) &&
  !isTest(file) &&
  !["shared/sys/node.ts", "plugins/host/build.ts"].includes(file);

describe("imports", () => {
  it("are found at all", () => expect(imports.length).toBeGreaterThan(20));

  it.each([
    ["shared/ knows no other part", (i: Import) => i.from.startsWith("shared/") && /^(plugins|ipam|test)\//.test(i.to)],
    [
      "ipam/store knows only shared/",
      (i: Import) => part(i.from) === "ipam/store" && /^(plugins|test|ipam\/(?!store))/.test(i.to),
    ],
    [
      "plugins know only the store and shared/",
      (i: Import) => i.from.startsWith("plugins/") && /^(test|ipam\/(?!store))/.test(i.to),
    ],
    ["ipam/ knows no plugin", (i: Import) => i.from.startsWith("ipam/") && /^(plugins|test)\//.test(i.to)],
  ])("%s", (_claim, breaks) => {
    expect(imports.filter((i) => !isTest(i.from) && breaks(i)).map((i) => `${i.from} imports ${i.to}`)).toEqual([]);
  });

  it("of engine-neutral code name no Node module and no npm package but ipaddr.js", () => {
    const foreign = imports.filter(
      (i) => neutral(i.from) && !/^(shared|plugins|ipam)\//.test(i.to) && i.to !== "ipaddr.js",
    );
    expect(foreign.map((i) => `${i.from} imports ${i.to}`)).toEqual([]);
  });

  it("of engine-neutral code reach the Node binding nowhere", () => {
    const bad = imports.filter((i) => neutral(i.from) && i.to === "shared/sys/node.ts");
    expect(bad.map((i) => i.from)).toEqual([]);
  });

  it("form no cycle", () => {
    const graph = new Map<string, string[]>();
    for (const i of imports) if (!i.typeOnly) graph.set(i.from, [...(graph.get(i.from) ?? []), i.to]);
    const done = new Set<string>();
    const cycles: string[] = [];
    const visit = (file: string, path: readonly string[]): void => {
      if (path.includes(file)) {
        cycles.push([...path.slice(path.indexOf(file)), file].join(" → "));
        return;
      }
      if (done.has(file)) return;
      for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
      done.add(file);
    };
    for (const file of files) visit(file, []);
    expect(cycles).toEqual([]);
  });
});

describe("engine-neutral code", () => {
  const FORBIDDEN =
    /\b(Buffer|process|setTimeout|setInterval|queueMicrotask|fetch|require|async|await|Promise|WeakRef|Proxy|Intl|Date)\b/;
  it("uses nothing that the plugins' engine lacks", () => {
    const bad = files.filter(neutral).flatMap((file) =>
      readFileSync(join(root, file), "utf8")
        .replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, " "))
        .split("\n")
        .map((line, i) => ({
          file,
          line: i + 1,
          code: line.replace(/\/\/.*$/, "").replace(/(["'`])(?:\\.|(?!\1).)*\1/g, '""'),
        }))
        .filter(({ code }) => FORBIDDEN.test(code))
        .map(({ file: f, line, code }) => `${f}:${line}: ${code.trim()}`),
    );
    expect(bad).toEqual([]);
  });
});
