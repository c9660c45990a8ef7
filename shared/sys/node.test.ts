import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { patient } from "../../test/kernel/patience.ts";
import { AF_NETLINK, SOCK_RAW } from "./linux.ts";
import { nodeSys } from "./node.ts";

/** Children of this process that ended and still have their pid. */
function zombies(): number {
  return readdirSync("/proc").filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      const [, state, parent] =
        readFileSync(`/proc/${pid}/stat`, "utf8")
          .split(") ")[1]
          ?.match(/^(\S) (\d+)/) ?? [];
      return state === "Z" && Number(parent) === process.pid;
    } catch {
      return false; // gone meanwhile
    }
  }).length;
}

it("leaves no zombies of what it sends detached", async () => {
  for (let i = 0; i < 10; i++) {
    const fd = nodeSys.socket(AF_NETLINK, SOCK_RAW, 0);
    nodeSys.close(nodeSys.sendDetached(fd, new Uint8Array(0)).reportFd);
    nodeSys.close(fd);
  }
  const deadline = performance.now() + patient(10_000);
  await sleep(200);
  while (zombies() > 0 && performance.now() < deadline) await sleep(100);
  expect(zombies()).toBe(0);
});
