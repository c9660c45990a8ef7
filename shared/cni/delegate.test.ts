import { describe, expect, it } from "vitest";
import type { SpawnOptions, SpawnResult, Sys } from "../sys/sys.ts";
import { delegate, findPlugin } from "./delegate.ts";

const bytes = (text: string) => new TextEncoder().encode(text);
function system(
  answer: Partial<SpawnResult> & { out?: string },
  seen: { path?: string; options?: SpawnOptions } = {},
): Sys {
  return {
    access: (path: string) => path === "/b/ipam",
    spawn(path: string, options: SpawnOptions): SpawnResult {
      Object.assign(seen, { path, options });
      return { status: 0, stderr: bytes(""), timedOut: false, ...answer, stdout: bytes(answer.out ?? "") };
    },
  } as unknown as Sys;
}
const call = {
  verb: "ADD",
  type: "ipam",
  path: ["/a", "/b"],
  env: { CNI_COMMAND: "CHECK", CNI_IFNAME: "eth0" },
  stdin: "{}",
  cniVersion: "1.0.0",
} as const;

describe("delegate", () => {
  it("runs the first executable of CNI_PATH with our environment and the verb given", () => {
    const seen: { path?: string; options?: SpawnOptions } = {};
    expect(delegate(system({ out: '{"ips":[{"address":"10.0.0.1/24"}]}' }, seen), call)?.ips?.[0]?.address).toBe(
      "10.0.0.1/24",
    );
    expect([seen.path, seen.options?.env]).toEqual(["/b/ipam", ["CNI_COMMAND=ADD", "CNI_IFNAME=eth0"]]);
  });

  it.each([
    [
      "its own error, code kept",
      { status: 1, out: '{"code":11,"msg":"none free","details":"wait"}' },
      { code: 11, message: "none free", details: "wait" },
    ],
    ["text that is no error", { status: 2, out: "panic" }, { code: 5, details: "panic" }],
    ["nothing within the time", { status: 137, timedOut: true }, { code: 5 }],
    ["success that is no JSON", { out: "hello" }, { code: 6 }],
  ])("tells %s", (_what, answer, want) =>
    expect(() => delegate(system(answer), call)).toThrow(expect.objectContaining(want)),
  );

  it.each(["", "../ipam", "/b/ipam", ".."])("refuses the type %j", (type) =>
    expect(() => findPlugin(system({}), type, ["/b"])).toThrow(expect.objectContaining({ code: 7 })),
  );
  it("names the plugin that is not installed and where it looked", () =>
    expect(() => findPlugin(system({}), "other", ["/a", "/b"])).toThrow('plugin "other" is not in CNI_PATH /a:/b'));
});
