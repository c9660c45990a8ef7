import { describe, expect, it } from "vitest";
import { NSFS_MAGIC } from "./linux.ts";
import { isSameNetns } from "./netns.ts";

describe("a recorded namespace", () => {
  const made = { netns: "/run/netns/a", netnsDev: 4, netnsIno: 100 };
  const found = (ino: number, dev = 4, type: number | undefined = NSFS_MAGIC) => ({
    stat: () => ({ ino, dev, mode: 0, size: 0 }),
    fsType: () => type,
  });
  it.each([
    ["is the same", found(100), true],
    ["is gone", { ...found(100), stat: () => undefined }, false],
    ["went meanwhile", { ...found(100), fsType: () => undefined }, false],
    ["is another one by now", found(101), false],
    ["is of another file system", found(100, 5), false],
    ["left an empty file", found(100, 4, 0x1234), false],
  ])("%s", (_what, sys, same) => expect(isSameNetns(sys, made)).toBe(same));

  it("that was never written down is none", () => {
    expect(isSameNetns(found(100), { ...made, netns: "" })).toBe(false);
  });
});
