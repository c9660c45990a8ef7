/** GC: removes what the runtime no longer knows. */
import { listAttachments } from "../../ipam/store/attachments.ts";
import { planGc } from "../../ipam/store/gc.ts";
import { storeNow } from "../../ipam/store/open.ts";
import type { AttachmentId } from "../../shared/cni/conf.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { remove } from "./remove.ts";
import { runIpam, type Work } from "./work.ts";

/** What is younger stays: the runtime made its list before it called us. */
const GC_GRACE_MS = 30_000;

export function collect(w: Work): void {
  const listed = w.call.conf.validAttachments;
  if (listed === undefined) return;
  const valid = withOthers(w, listed);
  let failure: unknown;
  for (const key of planGc(w.store.db, w.call.conf.name, valid, storeNow(w.host.sys) - GC_GRACE_MS)) {
    try {
      remove({ ...w, key, config: { ...w.config, ipamInProcess: true } }, "GC");
    } catch (error) {
      failure ??= error;
    }
  }
  if (!w.config.ipamInProcess) runIpam(w.host, listing(w.call, valid), w.config, "GC");
  if (failure !== undefined) throw failure;
}

/** Runtimes know only the interface that they asked for; what was made with it is as valid. */
function withOthers(w: Work, listed: readonly AttachmentId[]): AttachmentId[] {
  const known = new Set(listed.map((a) => `${a.containerId}/${a.ifname}`));
  const more = listAttachments(w.store.db, w.call.conf.name).flatMap(({ containerId, ifname, datapath = "{}" }) =>
    known.has(`${containerId}/${ifname}`)
      ? ((JSON.parse(datapath) as Partial<PodLink>).others ?? []).map((other) => ({ containerId, ifname: other }))
      : [],
  );
  return [...listed, ...more];
}

function listing(call: CniCall, valid: readonly AttachmentId[]): CniCall {
  const attachments = valid.map((a) => ({ containerID: a.containerId, ifname: a.ifname }));
  const raw = { ...call.conf.raw, "cni.dev/valid-attachments": attachments };
  return { ...call, conf: { ...call.conf, raw }, stdin: JSON.stringify(raw) };
}
