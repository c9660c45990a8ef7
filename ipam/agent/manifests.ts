/** The folder of manifests: read when it changes, told to whoever lives by it. */
import { describeFileFinding, errorsOf, PolicyFolder, type Refresh, watchFolder } from "../policy/source-dir.ts";
import type { AgentContext } from "./context.ts";

export interface Manifests {
  readonly dir: string;
  /** Calls back with every look that found a change, the first one among them; it carries everything. */
  subscribe(onRefresh: (refresh: Refresh) => void): void;
  /** The first look, and watching from then on. */
  start(): void;
  stop(): void;
}

const RETRY_MS = 5000;

/** Beyond the settling: timers may fire a little early. */
const MARGIN_MS = 50;

/** @param settleMs Other than that of {@link PolicyFolder}. */
export function openManifests({ log }: Pick<AgentContext, "log">, dir: string, settleMs?: number): Manifests {
  const folder = new PolicyFolder(dir, settleMs);
  const listeners: ((refresh: Refresh) => void)[] = [];
  const told = new Set<string>();
  let again: NodeJS.Timeout | undefined;
  let stopWatching: () => void = () => undefined;

  /** Each fault once, while it lasts. */
  function tell({ findings }: Refresh): void {
    const errors = errorsOf(findings).map((finding) => describeFileFinding(dir, finding));
    for (const text of errors) if (!told.has(text)) log("error", `policy refused: ${text}`);
    told.clear();
    for (const text of errors) told.add(text);
  }

  function look(): void {
    clearTimeout(again);
    let refresh: Refresh;
    try {
      refresh = folder.refresh();
    } catch (error) {
      log("error", `policy: ${(error as Error).message}`);
      again = setTimeout(look, RETRY_MS);
      return;
    }
    if (refresh.unsettled) again = setTimeout(look, folder.settleMs + MARGIN_MS);
    tell(refresh);
    for (const listener of listeners) listener(refresh);
  }

  return {
    dir,
    subscribe: (listener) => void listeners.push(listener),
    start() {
      // Watching begins before the first look: what changes during it is seen again.
      stopWatching = watchFolder(dir, look);
      look();
    },
    stop() {
      clearTimeout(again);
      stopWatching();
    },
  };
}

/**
 * The folder says nothing: at the agent's start more likely a mount that is not there yet than all manifests removed while
 * no agent ran.
 *
 * @param has Something of before the start is in force.
 * @returns Until when that stays; undefined: the folder is believed.
 */
export function waitsForMount({ empty }: Pick<Refresh, "empty">, dir: string, has: boolean): string | undefined {
  if (!empty || !has) return undefined;
  return `until ${dir} has a manifest: is it mounted? If none is meant, write an empty List there (apiVersion: v1, kind: List, items: [])`;
}
