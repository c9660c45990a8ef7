/** For tests of the agent: a store and a clock of each test's own, and a cloud's refusal. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, vi } from "vitest";
import { openNodeSql, nodeSys as sys } from "../../shared/sys/node.ts";
import { classify } from "../cloud/classify.ts";
import { CloudError } from "../cloud/cloud-api.ts";
import { openStore, type Store } from "../store/open.ts";

/** Each test gets an empty store, and timers that it moves itself. @returns What gives the running test's store. */
export function storeAndClock(): () => Store {
  let dir: string;
  let store: Store;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), "terway-agent-"));
    store = openStore({ sys, openSql: openNodeSql }, join(dir, "ipam.db"));
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
    store.db.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return () => store;
}

export function refusal(
  code: string,
  tweaks: Partial<Pick<CloudError, "retryAfterMs" | "outcomeUnknown" | "requestId">> = {},
): CloudError {
  const { retryAfterMs, outcomeUnknown = false, requestId = "" } = tweaks;
  const words = { action: "X", code, class: classify(code), requestId, message: "refused" };
  return new CloudError({ ...words, retryAfterMs, outcomeUnknown });
}
