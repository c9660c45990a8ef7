import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { cpio } from "./cpio.ts";
import { jobScripts } from "./image.ts";
import { qemuArgs } from "./qemu.ts";

describe("cpio archive", () => {
  it("has 110 bytes of header, and everything on 4-byte boundaries", () => {
    const archive = cpio([{ path: "abc", kind: "file", data: Buffer.from("hello"), executable: true }]);
    expect(archive.subarray(0, 6).toString()).toBe("070701");
    expect(archive.subarray(14, 22).toString()).toBe("000081ED"); // S_IFREG 0755
    expect(archive.subarray(54, 62).toString()).toBe("00000005");
    expect(archive.subarray(110, 114).toString()).toBe("abc\0");
    expect(archive.subarray(116, 121).toString()).toBe("hello"); // 114 + 2 of padding
    expect(archive.subarray(124, 130).toString()).toBe("070701");
    expect(archive.toString()).toContain("TRAILER!!!");
    expect(archive.length % 4).toBe(0);
  });

  it("is read by busybox as it was written", () => {
    const done = spawnSync("busybox", ["cpio", "-tv"], {
      input: cpio([
        { path: "job", kind: "folder" },
        { path: "job/command", kind: "file", data: Buffer.from("exit 0") },
        { path: "console", kind: "device", major: 5, minor: 1 },
      ]),
      encoding: "utf8",
    });
    expect(done.stdout.split("\n").map((l) => `${l.slice(0, 10)} ${l.split(" ").at(-1)}`)).toEqual([
      "drwxr-xr-x job",
      "-rw-r--r-- job/command",
      "crw------- console",
      " ",
    ]);
  });
});

describe("the guest's job", () => {
  it("passes words through the shell as they are", () => {
    const words = ["a b", "it's", "$HOME", "`id`", "", "new\nline", "\\"];
    const { command } = jobScripts(
      { command: ["printf", "%s|", ...words], cwd: "/", env: { X: "'q' $Y" }, exchange: "/x" },
      "/m",
    );
    const done = spawnSync("/bin/sh", ["-c", command], { encoding: "utf8" });
    expect([done.stderr, done.stdout]).toEqual(["", words.map((w) => `${w}|`).join("")]);
  });
});

describe("qemu's command line", () => {
  const args = qemuArgs({
    vmlinuz: "/k",
    initramfs: "/i",
    cpus: 2,
    memoryMiB: 2048,
    sockets: { fileSystem: "/fs", events: "/ev", out: "/out", err: "/err" },
  });

  it("never asks for hardware virtualisation nor a network", () => {
    expect(args.join(" ")).toContain("-accel tcg,thread=multi -cpu max,la57=off -smp 2");
    expect(args.join(" ")).not.toContain("kvm");
    expect(args.join(" ")).toContain("-nic none");
  });

  it("ends on a panic", () => {
    expect(args).toContain("-no-reboot");
    expect(args[args.indexOf("-append") + 1]).toContain("panic=-1");
  });
});
