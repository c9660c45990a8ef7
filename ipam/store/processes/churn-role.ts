/** A runtime that starts and deletes pods, and one that fights over a single address. */
import { decodeUtf8, isErrno } from "../../../shared/sys/sys.ts";
import { markReleasing, unmarkReleasing } from "../addresses.ts";
import { storeNow } from "../open.ts";
import { inTransaction } from "../transaction.ts";
import type { Store } from "../types.ts";
import { add, addIn, del, delIn, withStore } from "./plugin.ts";
import { makeRandom, type Role } from "./role.ts";

const MAX_LIVE = 2;

/**
 * Logs `adding ID`, `got ID ADDRESS TIME`, `freeing ID TIME` (before), `freed ID` (after) and `empty`. Begins with a DEL
 * of what a predecessor that was killed may have left half-way, as a kubelet does.
 */
export function churn(role: Role): { readonly adds: number; readonly empty: number } {
  const counts = { adds: 0, empty: 0 };
  const { live, unsettled, next } = readLog(role);
  const random = makeRandom(Number(role.id) * 7919 + next);
  const remove = (id: string) => {
    role.log(`freeing ${id} ${storeNow(role.sys)}`);
    del(role, id);
    role.log(`freed ${id}`);
  };
  for (const id of unsettled) remove(id);
  for (let n = next; !role.isOver(); n++) {
    if (live.length >= MAX_LIVE || (live.length > 0 && random(3) === 0)) {
      const id = live.shift();
      if (id !== undefined) remove(id);
      continue;
    }
    const id = `${role.id}-${n}`;
    role.log(`adding ${id}`);
    const allocation = add(role, id);
    if (allocation.kind === "assigned") {
      role.log(`got ${id} ${allocation.leases[0]?.address} ${storeNow(role.sys)}`);
      live.push(id);
      counts.adds += 1;
    } else {
      counts.empty += 1;
      remove(id);
      const oldest = live.shift();
      if (oldest !== undefined) remove(oldest);
      role.sys.pollIn([], 1 + random(5));
    }
  }
  return counts;
}

function readLog(role: Role) {
  const states = new Map<string, string>();
  let text = "";
  try {
    text = decodeUtf8(role.sys.readFile(role.logPath));
  } catch (error) {
    if (!isErrno(error, "ENOENT")) throw error;
  }
  for (const line of text.split("\n")) {
    const [event, id] = line.split(" ");
    if (event !== undefined && id !== undefined) states.set(id, event);
  }
  const inState = (...wanted: string[]) => [...states].filter(([, s]) => wanted.includes(s)).map(([id]) => id);
  return { live: inState("got"), unsettled: inState("adding", "freeing"), next: states.size };
}

/**
 * ID `pod`: asks for ADDRESS by name, has it for a moment, gives it back. ID `agent`: marks ADDRESS as releasing, has it
 * for a moment, takes the mark back. Each tries TRIES times, and logs `has TIME` and `had TIME` around the moment. (F-53)
 */
export function contend(role: Role): { readonly won: number } {
  const { ADDRESS = "", TRIES } = role.sys.environ();
  let won = 0;
  const hold = () => {
    won += 1;
    role.log(`has ${storeNow(role.sys)}`);
    role.log(`had ${storeNow(role.sys)}`);
  };
  const attempt = role.id === "pod" ? podAttempt : agentAttempt;
  withStore(role, (store) => {
    for (let n = 0; n < Number(TRIES); n++) {
      attempt(role, store, ADDRESS, hold);
      if (n % 4 === 0) role.sys.pollIn([], 1); // let the other one have a turn
    }
  });
  return { won };
}

function podAttempt(role: Role, store: Store, address: string, hold: () => void): void {
  if (addIn(role, store, role.id, [address]).kind !== "assigned") return;
  hold();
  delIn(role, store, role.id, 0);
}

function agentAttempt(role: Role, store: Store, address: string, hold: () => void): void {
  const marked = inTransaction(store.db, () => markReleasing(store.db, [address], storeNow(role.sys)));
  if (marked.length === 0) return;
  hold();
  inTransaction(store.db, () => unmarkReleasing(store.db, marked));
}
