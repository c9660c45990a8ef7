/** The store's benchmark inside a plugin's engine. ROLE: `pairs`, `records` (COUNT of them) or `once`. */

import { openStore } from "../../ipam/store/open.ts";
import { CLOCK_MONOTONIC } from "../../shared/sys/linux.ts";
import { openQuickjsSql, setExitStatus, quickjsSys as sys } from "../../shared/sys/quickjs.ts";
import { encodeUtf8 } from "../../shared/sys/sys.ts";
import { add, del, pairs } from "./store-work.ts";

const startedMs = sys.clock(CLOCK_MONOTONIC);
const env = sys.environ();
const store = openStore({ sys, openSql: openQuickjsSql }, env.STORE ?? "");
const openedMs = sys.clock(CLOCK_MONOTONIC);

let tookMs: number;
if (env.ROLE === "once") {
  // Records as a plugin keeps them, or the address alone.
  add(sys, store, env.ID ?? "", env.RECORDS === "yes");
  const addedMs = sys.clock(CLOCK_MONOTONIC);
  store.db.close();
  tookMs = sys.clock(CLOCK_MONOTONIC) - startedMs;
  sys.writeAll(1, encodeUtf8(JSON.stringify({ openMs: openedMs - startedMs, addMs: addedMs - openedMs, tookMs })));
} else if (env.ROLE === "free") {
  del(sys, store, env.ID ?? "", true);
} else {
  tookMs = pairs(sys, store, Number(env.COUNT ?? 1000), env.ROLE === "records");
  sys.writeAll(1, encodeUtf8(JSON.stringify({ tookMs })));
}
setExitStatus(0);
