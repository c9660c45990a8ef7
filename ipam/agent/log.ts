/** The agent's log: JSON lines. The same words are said once a minute. */
import type { AgentContext } from "./context.ts";

const SAY_AGAIN_MS = 60_000;
const MOST_REMEMBERED = 1000;

/** @param write Takes one line, with its end. */
export function createLog(write: (line: string) => void): AgentContext["log"] {
  const lastSaid = new Map<string, number>();
  return (level, msg, fields = {}) => {
    const now = performance.now();
    if (now - (lastSaid.get(msg) ?? Number.NEGATIVE_INFINITY) < SAY_AGAIN_MS) return;
    lastSaid.set(msg, now);
    if (lastSaid.size > MOST_REMEMBERED) lastSaid.clear();
    write(`${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`);
  };
}
