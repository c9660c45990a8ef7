/** What is measured of the store, the same on both engines. */
import { allocateFromEnis } from "../../ipam/store/allocate.ts";
import { putAttachment, releaseAttachment } from "../../ipam/store/attachments.ts";
import { makeAttachment, makeKey } from "../../ipam/store/contract/kit.ts";
import { appendJournal } from "../../ipam/store/journal.ts";
import { storeNow, wallClock } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import type { Store } from "../../ipam/store/types.ts";
import { CLOCK_MONOTONIC } from "../../shared/sys/linux.ts";
import type { Sys } from "../../shared/sys/sys.ts";

/** As long as the datapath of an ordinary pod (shared/datapath/pod-link.ts). */
const DATAPATH = JSON.stringify({ like: "x".repeat(360) });

/** As long as a real container id. */
function keyOf(containerId: string) {
  return makeKey(containerId.padStart(64, "0"), { network: "terway-shared" });
}

/** One transaction: an address, and with `records` the attachment and the journal row too. */
export function add(sys: Sys, store: Store, containerId: string, records: boolean): void {
  const key = keyOf(containerId);
  inTransaction(store.db, () => {
    const nowMs = storeNow(sys);
    const allocation = allocateFromEnis(store.db, key, { families: [4] }, nowMs);
    if (allocation.kind !== "assigned") throw new Error(`no address: ${JSON.stringify(allocation)}`);
    if (!records) return;
    putAttachment(
      store.db,
      makeAttachment(key, { createdMs: nowMs, datapath: DATAPATH, hostIfname: `cali${containerId}` }),
    );
    appendJournal(store.db, { at: wallClock(sys), actor: "bench", op: "ADD", ...key, outcome: "ok" });
  });
}

export function del(sys: Sys, store: Store, containerId: string, records: boolean): void {
  const key = keyOf(containerId);
  inTransaction(store.db, () => {
    releaseAttachment(store.db, key, storeNow(sys), 0);
    if (records) appendJournal(store.db, { at: wallClock(sys), actor: "bench", op: "DEL", ...key, outcome: "ok" });
  });
}

/** @returns Milliseconds for `count` pairs. */
export function pairs(sys: Sys, store: Store, count: number, records: boolean): number {
  const startedMs = sys.clock(CLOCK_MONOTONIC);
  for (let i = 0; i < count; i++) {
    add(sys, store, `c${i}`, records);
    del(sys, store, `c${i}`, records);
  }
  return sys.clock(CLOCK_MONOTONIC) - startedMs;
}
