/** An agent that gives idle addresses back to a cloud and gets others, and may be killed at any moment. */
import { addAddress, forgetAddresses, listAddresses, markReleasing } from "../addresses.ts";
import { makeEni } from "../contract/kit.ts";
import { beginDetach, listEnis, removeEni, upsertEni } from "../enis.ts";
import { dropIntent, type Intent, type IntentKind, listIntents, recordIntent } from "../intents.ts";
import { maintainStore } from "../maintain.ts";
import { openStore, storeNow } from "../open.ts";
import { inDurableTransaction, inTransaction } from "../transaction.ts";
import type { Store } from "../types.ts";
import { makeRandom, type Role } from "./role.ts";

const ENIS = 4;
const PER_ENI = 16;

/**
 * Logs `released ADDRESS TIME` at the moment in which a cloud would take the address away, `added ADDRESS TIME` before
 * the store may hand it out. What an intent says that it was doing, its successor ends first.
 */
export function agent(role: Role): string {
  const store = openStore(role.deps, role.path);
  const random = makeRandom(storeNow(role.sys) * 1000);
  for (const intent of listIntents(store.db)) unassign(role, store, intent);
  while (!role.isOver()) {
    const n = 1 + random(ENIS);
    if (random(3) === 0) detach(role, store, n);
    else if (random(2) === 0) fill(role, store, n);
    else shrink(role, store, n);
    maintainStore(role.sys, store, storeNow(role.sys));
    role.sys.pollIn([], random(4));
  }
  return `${listEnis(store.db).length} ENIs`;
}

function fill(role: Role, store: Store, n: number): void {
  inTransaction(store.db, () => {
    const known = new Set(listAddresses(store.db).map((a) => a.address));
    upsertEni(store.db, makeEni(n, { createdMs: storeNow(role.sys) }));
    for (let i = 0; i < PER_ENI; i++) {
      const address = `10.0.${n}.${10 + i}`;
      if (known.has(address)) continue;
      role.log(`added ${address} ${storeNow(role.sys)}`);
      addAddress(store.db, `eni-${n}`, address, storeNow(role.sys));
    }
  });
}

function shrink(role: Role, store: Store, n: number): void {
  const intent = inDurableTransaction(store.db, () => {
    const idle = listAddresses(store.db, `eni-${n}`).filter((a) => a.state === "idle");
    const some = idle.slice(0, 4).map((a) => a.address);
    const marked = markReleasing(store.db, some, storeNow(role.sys));
    return marked.length === 0 ? undefined : intend(role, store, "unassign", n, marked);
  });
  if (intent) unassign(role, store, intent);
}

function detach(role: Role, store: Store, n: number): void {
  const intent = inDurableTransaction(store.db, () => {
    const addresses = listAddresses(store.db, `eni-${n}`).map((a) => a.address);
    if (beginDetach(store.db, `eni-${n}`, storeNow(role.sys)).kind !== "detaching") return undefined;
    return intend(role, store, "detach-eni", n, addresses);
  });
  if (intent) unassign(role, store, intent);
}

function intend(role: Role, store: Store, kind: IntentKind, n: number, addresses: readonly string[]): Intent {
  const id = `${kind}-${n}`;
  const payload = JSON.stringify(addresses);
  const sinceMs = storeNow(role.sys);
  const intent = { id, kind, eniId: `eni-${n}`, clientToken: id, payload, step: "asked", sinceMs };
  recordIntent(store.db, intent, 0);
  return intent;
}

/** The call, then its outcome. */
function unassign(role: Role, store: Store, intent: Intent): void {
  const addresses = JSON.parse(intent.payload) as string[];
  for (const address of addresses) role.log(`released ${address} ${storeNow(role.sys)}`);
  inTransaction(store.db, () => {
    forgetAddresses(store.db, addresses);
    if (intent.kind === "detach-eni") removeEni(store.db, intent.eniId ?? "");
    dropIntent(store.db, intent.id);
  });
}
