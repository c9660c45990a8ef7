/** The journal's lines of the interface plugins. */
import type { Attachment } from "../../ipam/store/attachments.ts";
import { appendJournal } from "../../ipam/store/journal.ts";
import { storeNow, wallClock } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import type { CniFailure } from "../../shared/cni/failure.ts";
import { asFailure } from "../../shared/cni/run-plugin.ts";
import { podOf } from "../terway-ipam/commands.ts";
import type { Work } from "./work.ts";

export interface Outcome {
  readonly op: string;
  readonly startedMs: number;
  readonly failure?: CniFailure | undefined;
  readonly detail?: string;
  /** What was there before, where the call does not name the pod. */
  readonly before?: Attachment | undefined;
}

/** Inside a transaction. */
export function journalRow(w: Work, { op, startedMs, failure, detail = "", before }: Outcome): void {
  const pod =
    podOf(w.call) ??
    (before?.podName === undefined ? undefined : { namespace: before.podNamespace ?? "", name: before.podName });
  appendJournal(w.store.db, {
    at: wallClock(w.host.sys),
    actor: w.plugin.name,
    op,
    ...w.key,
    pod: pod && `${pod.namespace}/${pod.name}`,
    outcome: failure === undefined ? "ok" : failure.message,
    code: failure?.code,
    durationMs: storeNow(w.host.sys) - startedMs,
    detail,
  });
}

/** In a transaction of its own; never the reason for a failure. */
export function journal(w: Work, outcome: Outcome): void {
  try {
    inTransaction(w.store.db, () => journalRow(w, outcome));
  } catch (error) {
    w.host.log(w.config.logDir, { level: "error", op: outcome.op, msg: `journal: ${asFailure(error).message}` });
  }
}
