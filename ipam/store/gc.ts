/** Which attachments nobody answers for any more (CNI 1.1.0, GC). */
import type { AttachmentId } from "../../shared/cni/conf.ts";
import type { SqlHandle } from "../../shared/sys/sql.ts";
import { addressOwners, listAttachments } from "./attachments.ts";
import type { AttachmentKey } from "./key.ts";

/**
 * Attachments and address owners of `network` that are not in the runtime's list.
 *
 * @param madeBeforeMs CLOCK_BOOTTIME. What is younger stays: the runtime may have made its list before that ADD.
 */
export function planGc(
  db: SqlHandle,
  network: string,
  valid: readonly AttachmentId[],
  madeBeforeMs: number,
): AttachmentKey[] {
  const alive = new Set(valid.map((a) => `${a.containerId}/${a.ifname}`));
  const dead = new Map<string, AttachmentKey>();
  const known = [
    ...listAttachments(db, network).map((a) => ({
      network,
      containerId: a.containerId,
      ifname: a.ifname,
      sinceMs: a.createdMs,
    })),
    ...addressOwners(db, network),
  ];
  for (const { sinceMs: _since, ...key } of known) {
    const id = `${key.containerId}/${key.ifname}`;
    if (!alive.has(id)) dead.set(id, key);
  }
  // Young by either of its rows, the attachment's or the address's, is young.
  for (const { sinceMs, ...key } of known) if (sinceMs >= madeBeforeMs) dead.delete(`${key.containerId}/${key.ifname}`);
  return [...dead.values()];
}
