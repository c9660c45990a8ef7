/** The store on a disk that is full, and on one that loses power. Needs root: it mounts file systems of its own. */
import { execFileSync, spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { listAddresses } from "./addresses.ts";
import { ballastPath, withBallast } from "./ballast.ts";
import { free, makeEni, putEni, said, take } from "./contract/kit.ts";
import { listIntents, putIntent } from "./intents.ts";
import { openStore } from "./open.ts";
import { listReservations, reserve } from "./reservations.ts";
import type { Store } from "./types.ts";

const root = process.getuid?.() === 0;
const deps = { sys: nodeSys, openSql: openNodeSql };
const folder = mkdtempSync(join(tmpdir(), "terway-store-disk-"));
const mounted = new Set<string>();

afterAll(() => {
  for (const target of mounted) spawnSync("umount", ["-l", target]);
  rmSync(folder, { recursive: true, force: true });
});

function mount(name: string, ...args: string[]): string {
  const target = join(folder, name);
  mkdirSync(target, { recursive: true });
  execFileSync("mount", [...args, target]);
  mounted.add(target);
  return target;
}

function unmount(target: string): void {
  execFileSync("umount", [target]);
  mounted.delete(target);
}

/** Writes until there is no byte left, also not in the last block. */
function fill(target: string): string {
  const path = join(target, "filler");
  const fd = openSync(path, "a");
  for (let size = 1 << 20; size > 0; size >>= 1) {
    try {
      for (;;) writeSync(fd, new Uint8Array(size));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    }
  }
  closeSync(fd);
  return path;
}

const PODS = 40;

function podsOn(path: string): Store {
  const store = openStore(deps, path);
  putEni(
    store,
    makeEni(1),
    Array.from({ length: PODS + 5 }, (_, i) => `10.0.1.${10 + i}`),
  );
  for (let i = 0; i < PODS; i++) take(store, `pod-${i}`);
  return store;
}

function deleteAll(path: string): string[] {
  return Array.from({ length: PODS }, (_, i) => {
    const store = openStore(deps, path, { spendBallast: true });
    const freed = withBallast(nodeSys, path, () => free(store, `pod-${i}`));
    store.db.close();
    return freed.join();
  });
}

describe.skipIf(!root)("a full disk (skipped unless root)", () => {
  it.each(["held open by another", "held open by nobody"])("lets every DEL pass: store %s", (who) => {
    const target = mount(`full-${who.length}`, "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs");
    const path = join(target, "ipam.db");
    const store = podsOn(path);
    expect(statSync(ballastPath(path)).blocks * 512, "really allocated").toBeGreaterThanOrEqual(512 << 10);
    if (who === "held open by nobody") store.db.close();
    const filler = fill(target);

    const freed = deleteAll(path);
    expect(freed).toHaveLength(PODS);
    expect(freed.every((text) => /^10\.0\.1\.\d+$/.test(text))).toBe(true);
    expect(existsSync(ballastPath(path)), "the ballast was needed").toBe(false);

    rmSync(filler);
    const after = openStore(deps, path);
    expect(existsSync(ballastPath(path)), "there is room again").toBe(true);
    expect(listAddresses(after.db).map((a) => a.state)).toEqual(Array(PODS + 5).fill("idle"));
    expect(after.db.get("PRAGMA integrity_check")).toEqual({ integrity_check: "ok" });
    after.db.close();
    if (who !== "held open by nobody") store.db.close();
    unmount(target);
  });

  it("makes an ADD that finds no room fail as a whole, saying why", () => {
    const target = mount("full-add", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs");
    const path = join(target, "ipam.db");
    const store = podsOn(path);
    store.db.get("PRAGMA wal_checkpoint(TRUNCATE)");
    fill(target);
    const failures: unknown[] = [];
    for (let i = 0; i < 5; i++) {
      try {
        take(store, `late-${i}`);
      } catch (error) {
        failures.push(error);
      }
    }
    expect(failures.length).toBeGreaterThan(0);
    expect(String(failures[0])).toMatch(/SqlError: (database or disk is full|disk I\/O error)/);
    const held = listAddresses(store.db).filter((a) => a.state === "allocated").length;
    expect(held).toBe(PODS + 5 - failures.length);
    store.db.close();
    unmount(target);
  });
});

/** EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h): what is not on the disk by now never gets there. */
const POWER_CUT = `
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
int main(int argc, char **argv) { uint32_t flags = 2; return argc < 2 || ioctl(open(argv[1], O_RDONLY), _IOR('X', 125, uint32_t), &flags); }
`;

describe.skipIf(!root || !existsSync("/dev/loop-control"))(
  "a power cut (skipped unless root with loop devices)",
  () => {
    const cutter = join(folder, "power-cut");
    let images = 0;

    /** Runs `before` on a fresh disk, cuts the power the moment it is done, and hands what is left to `after`. */
    function throughPowerCut(before: (store: Store) => void, after: (store: Store) => void): void {
      if (!existsSync(cutter)) {
        writeFileSync(`${cutter}.c`, POWER_CUT);
        execFileSync(process.env.CC ?? "cc", ["-o", cutter, `${cutter}.c`]);
      }
      const image = join(folder, `image-${images++}`);
      writeFileSync(image, new Uint8Array(16 << 20));
      execFileSync("mkfs.ext4", ["-q", "-F", image]);
      // One commit of the file system's own journal an hour: nothing gets to the disk by luck.
      const options = ["-t", "ext4", "-o", "loop,commit=3600"];
      let target = mount(`power-${images}`, ...options, image);
      const path = join(target, "ipam.db");
      const store = openStore(deps, path);
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      execFileSync("sync", ["-f", target]);
      before(store);
      execFileSync(cutter, [target]);
      try {
        store.db.close();
      } catch {
        // Its disk is gone.
      }
      unmount(target);
      target = mount(`power-${images}`, ...options, image);
      const left = openStore(deps, path);
      expect(left.notice).toBeUndefined();
      expect(left.db.get("PRAGMA integrity_check")).toEqual({ integrity_check: "ok" });
      after(left);
      left.db.close();
      unmount(target);
    }

    it("right after it was committed takes neither a reservation nor an intent (F-23)", () => {
      throughPowerCut(
        (store) => {
          reserve(store.db, {
            podNamespace: "d",
            podName: "p",
            address: "10.0.1.5",
            expiresMs: undefined,
            reason: "sts",
          });
          const intent = {
            id: "1",
            kind: "assign" as const,
            eniId: "eni-1",
            clientToken: "t",
            payload: "{}",
            sinceMs: 1,
          };
          putIntent(store.db, { ...intent, step: "asked" }, 1);
        },
        (store) => {
          expect(listReservations(store.db).map((r) => r.address)).toEqual(["10.0.1.5"]);
          expect(listIntents(store.db).map((i) => [i.id, i.step])).toEqual([["1", "asked"]]);
          expect(listAddresses(store.db).map((a) => `${a.address} ${a.state}`)).toEqual([
            "10.0.1.5 reserved",
            "10.0.1.6 idle",
          ]);
        },
      );
    });

    it("may take the last ordinary commits, and nothing but those", () => {
      throughPowerCut(
        (store) => {
          take(store, "synced");
          execFileSync("sync", ["-f", store.path]);
          take(store, "lost");
        },
        (store) => {
          expect(said(take(store, "synced"))).toBe("already-held 10.0.1.5");
          // If it were still there, this harness would not cut the power at all.
          expect(said(take(store, "lost"))).toBe("assigned 10.0.1.6");
        },
      );
    });
  },
);
