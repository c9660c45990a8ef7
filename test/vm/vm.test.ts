/** The virtual machine itself: it does what it is told, and says loudly when it cannot. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { runInVm, VmFailure } from "./vm.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-vm-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const TIMEOUT = 240_000;

describe("the virtual machine", () => {
  it(
    "runs a command on this file system, which stays as it is, and returns what it says and its status",
    async () => {
      const mine = join(folder, "mine");
      writeFileSync(mine, "as it was");
      const exchange = join(folder, "exchange");
      const heard = { out: "", err: "" };
      const script = `
      echo "$GREETING"; echo oops >&2
      echo changed >${mine}; cat ${mine}
      echo left behind >"$TERWAY_VM_EXCHANGE/file"
      ip -o link | wc -l
      exit 42`;
      const result = await runInVm({
        command: ["sh", "-c", script],
        env: { GREETING: "it's me" },
        exchange,
        timeoutSeconds: 200,
        stdout: (chunk) => {
          heard.out += chunk;
        },
        stderr: (chunk) => {
          heard.err += chunk;
        },
      });
      // Its only link is lo: no way out.
      expect(heard).toEqual({ out: "it's me\nchanged\n1\n", err: "oops\n" });
      expect(result.status).toBe(42);
      expect(result.kernel).toMatch(/^\d+\.\d+.*-cloud-amd64$/);
      expect(readFileSync(mine, "utf8")).toBe("as it was");
      expect(readFileSync(join(exchange, "file"), "utf8")).toBe("left behind\n");
    },
    TIMEOUT,
  );

  it(
    "fails with the kernel's last words when that panics",
    async () => {
      const failure = await runInVm({
        command: ["sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 60"],
        timeoutSeconds: 200,
      }).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(VmFailure);
      expect(String(failure)).toMatch(/the virtual machine died[\s\S]*sysrq/i);
    },
    TIMEOUT,
  );

  it(
    "is another one when the first hangs while it boots, and the command runs once",
    async () => {
      const exchange = mkdtempSync(join(folder, "boots-"));
      const command = ["sh", "-c", 'echo ran >>"$TERWAY_VM_EXCHANGE/log"'];
      const result = await runInVm({ command, exchange, bootSeconds: [1, 120], timeoutSeconds: 200 });
      expect([result.status, readFileSync(join(exchange, "log"), "utf8")]).toEqual([0, "ran\n"]);
      await expect(runInVm({ command, bootSeconds: [1, 1], timeoutSeconds: 200 })).rejects.toThrow(
        "did not boot within 1 s",
      );
    },
    TIMEOUT,
  );

  it(
    "ends a machine that takes too long",
    async () => {
      await expect(runInVm({ command: ["sleep", "600"], timeoutSeconds: 1 })).rejects.toThrow(
        "was ended: the command took longer than 1 s",
      );
    },
    TIMEOUT,
  );
});
