/** ADD and DEL as a plugin does them: open, one transaction, close. */
import { type Allocation, allocateFromEnis } from "../allocate.ts";
import { putAttachment, releaseAttachment } from "../attachments.ts";
import { withBallast } from "../ballast.ts";
import { makeAttachment, makeKey, said } from "../contract/kit.ts";
import { appendJournal } from "../journal.ts";
import { openStore, storeNow, wallClock } from "../open.ts";
import { inTransaction } from "../transaction.ts";
import type { Store } from "../types.ts";
import type { Role } from "./role.ts";

/** Short, so that addresses come round often in a test. */
export const COOLDOWN_MS = 20;

export function withStore<T>(role: Role, work: (store: Store) => T): T {
  const store = openStore(role.deps, role.path);
  try {
    return work(store);
  } finally {
    store.db.close();
  }
}

export function addIn(role: Role, store: Store, containerId: string, requested?: readonly string[]): Allocation {
  const key = makeKey(containerId);
  return inTransaction(store.db, () => {
    const nowMs = storeNow(role.sys);
    const want = { families: [4], ...(requested === undefined ? {} : { requested }) } as const;
    const allocation = allocateFromEnis(store.db, key, want, nowMs);
    if (allocation.kind === "assigned") {
      putAttachment(store.db, makeAttachment(key, { createdMs: nowMs }));
      appendJournal(store.db, { at: wallClock(role.sys), actor: "test", op: "ADD", ...key, outcome: "ok" });
    }
    return allocation;
  });
}

export function delIn(role: Role, store: Store, containerId: string, cooldownMs: number): readonly string[] {
  const key = makeKey(containerId);
  return inTransaction(store.db, () => {
    const freed = releaseAttachment(store.db, key, storeNow(role.sys), cooldownMs).map((l) => l.address);
    appendJournal(store.db, { at: wallClock(role.sys), actor: "test", op: "DEL", ...key, outcome: "ok" });
    return freed;
  });
}

export function add(role: Role, containerId: string): Allocation {
  return withStore(role, (store) => addIn(role, store, containerId));
}

/** As a plugin's DEL, on a full disk too. */
export function del(role: Role, containerId: string): readonly string[] {
  const store = openStore(role.deps, role.path, { spendBallast: true });
  try {
    return withBallast(role.sys, role.path, () => delIn(role, store, containerId, COOLDOWN_MS));
  } finally {
    store.db.close();
  }
}

export function addOnce(role: Role): string {
  return said(add(role, role.id));
}
