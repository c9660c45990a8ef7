/** GC: removes what the runtime no longer knows. */
import { planGc } from "../../ipam/store/gc.ts";
import { storeNow } from "../../ipam/store/open.ts";
import { remove } from "./remove.ts";
import { runIpam, type Work } from "./work.ts";

/** What is younger stays: the runtime made its list before it called us. */
const GC_GRACE_MS = 30_000;

export function collect(w: Work): void {
  const valid = w.call.conf.validAttachments;
  if (valid === undefined) return;
  let failure: unknown;
  for (const key of planGc(w.store.db, w.call.conf.name, valid, storeNow(w.host.sys) - GC_GRACE_MS)) {
    try {
      remove({ ...w, key, config: { ...w.config, ipamInProcess: true } }, "GC");
    } catch (error) {
      failure ??= error;
    }
  }
  if (!w.config.ipamInProcess) runIpam(w.host, w.call, w.config, "GC");
  if (failure !== undefined) throw failure;
}
