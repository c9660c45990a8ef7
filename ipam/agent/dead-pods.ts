/** Frees what containers held whose network namespace is gone and for which no DEL came. */
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { sweepAddresses } from "../../shared/datapath/sweep.ts";
import { deleteLink } from "../../shared/netlink/delete-link.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { forgetAddresses } from "../../shared/policy/forget-addresses.ts";
import { isSameNetns } from "../../shared/sys/netns.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import {
  type Attachment,
  getAttachment,
  lessOthers,
  listAttachments,
  releaseAttachment,
} from "../store/attachments.ts";
import { getFact } from "../store/facts.ts";
import { dropPolicyAddresses, policyAddressesOf } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, journal, nowMs } from "./context.ts";
import { holdsAny, readRoutedAddresses, releaseUnrouted } from "./kernel-leases.ts";

const DEFAULT_COOLDOWN_MS = 30_000;

/**
 * One look. An attachment is freed when it was dead at the look before too, and is not young: an ADD may be under way.
 *
 * @param suspects Keys that were dead at the last look.
 * @returns Keys that are dead now.
 */
export function sweepDeadPods(ctx: AgentContext, suspects: ReadonlySet<string>, minAgeMs: number): Set<string> {
  const dead = listAttachments(ctx.store.db).filter((a) => a.netns.startsWith("/") && !isSameNetns(nodeSys, a));
  const keyOf = (a: Attachment) => `${a.network}/${a.containerId}/${a.ifname}`;
  for (const a of dead) {
    if (!suspects.has(keyOf(a)) || nowMs() - a.createdMs < minAgeMs) continue;
    try {
      free(ctx, a);
    } catch (error) {
      // One of them must not keep the others waiting.
      const words = (error as Error).message;
      ctx.log(
        "error",
        `cannot free what container ${a.containerId} (${podOf(a)}) held: ${words}; the next look tries again`,
      );
    }
  }
  freeUnrouted(ctx);
  return new Set(dead.map(keyOf));
}

/** What a lost store left to the kernel alone. */
function freeUnrouted(ctx: AgentContext): void {
  const { db } = ctx.store;
  if (!holdsAny(db)) return;
  const routed = readRoutedAddresses();
  const freed = inTransaction(db, () => releaseUnrouted(db, routed, nowMs(), cooldownOf(ctx)));
  if (freed.length > 0) journal(ctx, "sweep", "ok", `${freed.join(" ")}: no pod has them any more`);
}

function podOf(a: Attachment): string {
  return `${a.podNamespace ?? ""}/${a.podName ?? ""}`;
}

function cooldownOf(ctx: AgentContext): number {
  return Number(getFact(ctx.store.db, "cooldown_ms") ?? DEFAULT_COOLDOWN_MS);
}

function free(ctx: AgentContext, a: Attachment): void {
  // The plugin writes a path by /proc/PID only for that process: another container with that path is another key.
  const { db } = ctx.store;
  if (getAttachment(db, a)?.createdMs !== a.createdMs) return;
  const link = a.datapath === undefined ? undefined : (JSON.parse(a.datapath) as PodLink);
  const addresses = link?.addresses.map((x) => x.address) ?? [];
  const nl = openNetlink(nodeSys);
  try {
    if (link) deleteLink(nodeSys, nl, link.hostIfname);
    inTransaction(db, () => {
      // Another IPAM plugin may have freed them in a DEL that was killed then.
      sweepAddresses(nl, lessOthers(db, a, addresses));
      forgetAddresses(nodeSys, policyAddressesOf(db, a));
      dropPolicyAddresses(db, a);
      releaseAttachment(db, a, nowMs(), cooldownOf(ctx));
    });
  } finally {
    nl.close();
  }
  ctx.log(
    "warn",
    `freed ${addresses.join(" ")} of container ${a.containerId} (${podOf(a)}): its network namespace is gone and no DEL came`,
  );
  journal(ctx, "sweep", "ok", `${a.containerId} ${podOf(a)}: ${addresses.join(" ")}`);
}
