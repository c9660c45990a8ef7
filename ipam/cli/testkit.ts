/** For tests of the CLI: a store with something of everything, and the program itself. */
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { putAttachment } from "../store/attachments.ts";
import { makeAttachment, makeEni, makeKey, putEni, take } from "../store/contract/kit.ts";
import { putDemand } from "../store/demand.ts";
import { setFacts } from "../store/facts.ts";
import { appendJournal } from "../store/journal.ts";
import { openStore } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";

const HOUR_MS = 3_600_000;

/** One ENI in use, one that is going; two pods and a container without a name; a pod that waits; three entries in the journal. */
export function makeStore(path: string): void {
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, path);
  const { db } = store;
  const now = nodeSys.clock(CLOCK_BOOTTIME);
  setFacts(db, { node_name: "node-1", instance_type: "ecs.g7.large" });
  putEni(store, makeEni(1), ["10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5"]);
  putEni(store, makeEni(2, { state: "draining" }), ["10.0.2.2"]);
  inTransaction(db, () => db.run("UPDATE eni SET ifname = 'eth1' WHERE id = 'eni-1'"));
  const pods = [
    { id: "c0ffee00000000000001", name: "web-0", hostIfname: "cali00000000001" },
    { id: "c0ffee00000000000002", name: undefined, hostIfname: "cali00000000002" },
  ];
  for (const pod of pods) {
    const key = makeKey(pod.id);
    inTransaction(db, () =>
      putAttachment(
        db,
        makeAttachment(key, {
          podNamespace: pod.name === undefined ? undefined : "shop",
          podName: pod.name,
          hostIfname: pod.hostIfname,
          eniId: "eni-1",
          // Well within the hour, so that the text is the same however long the test takes.
          createdMs: now - 3.5 * HOUR_MS,
        }),
      ),
    );
    take(store, key, {}, now);
  }
  inTransaction(db, () =>
    db.run("UPDATE address SET cool_until_ms = ? WHERE address = '10.0.1.4'", [now + 100 * HOUR_MS]),
  );
  inTransaction(db, () =>
    putDemand(db, { ...makeKey("waiting"), families: "4", waiter: "@w", sinceMs: now, deadlineMs: now + HOUR_MS }),
  );
  const at = Date.UTC(2026, 0, 2, 3, 4, 5, 678);
  inTransaction(db, () => {
    appendJournal(db, { at, actor: "terway-eni", op: "ADD", pod: "shop/web-0", outcome: "ok", durationMs: 4.56 });
    appendJournal(db, {
      at: at + 1000,
      actor: "terway-eni",
      op: "ADD",
      containerId: "c0ffee00000000000003",
      outcome: "no free address",
      code: 11,
      durationMs: 500,
    });
    appendJournal(db, { at: at + 2000, actor: "terway-agent", op: "repair", outcome: "ok", detail: "rule is missing" });
  });
  db.close();
}

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs terway-cli to its end. */
export function runCli(...argv: readonly string[]): Ran {
  const main = fileURLToPath(new URL("main.ts", import.meta.url));
  const { TERWAY_STORE: _store, CNI_PATH: _path, ...env } = process.env;
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...argv], {
    encoding: "utf8",
    env: { ...env, COLUMNS: "500", NO_COLOR: "1" },
  });
  // Errors come broken into lines of 80 characters.
  return { status, stdout, stderr: stderr.replace(/\n ›\s+/g, " ") };
}
