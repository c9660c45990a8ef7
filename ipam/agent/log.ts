/** The agent's log: JSON lines. The same words are said once a minute, whatever request they are about. */
import type { AgentContext } from "./context.ts";

const SAY_AGAIN_MS = 60_000;
const MOST_REMEMBERED = 1000;
/** As CloudError tells it, and as the cloud and its SDK do. */
const REQUEST_ID = /\(request [\w-]+\)|\brequest ?id\W+[\w-]+/gi;

/** @param write Takes one line, with its end. */
export function createLog(write: (line: string) => void): AgentContext["log"] {
  const lastSaid = new Map<string, number>();
  return (level, msg, fields = {}) => {
    const now = performance.now();
    // Each try has another one.
    const words = msg.replace(REQUEST_ID, "");
    if (now - (lastSaid.get(words) ?? Number.NEGATIVE_INFINITY) < SAY_AGAIN_MS) return;
    lastSaid.set(words, now);
    if (lastSaid.size > MOST_REMEMBERED) lastSaid.clear();
    write(`${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`);
  };
}
