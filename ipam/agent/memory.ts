/** How V8 keeps the agent's heap. */
import { setFlagsFromString } from "node:v8";

/**
 * Keeps the space of new objects as small as it is at the start. V8 lets it grow to some 60 MB where much is allocated at
 * once (a rebuild of all policies), and does not give that back to a process that is idle between bursts. Measured with
 * 20,000 pods: 60 MB less, at the same CPU time. The flag is read whenever the space would grow.
 */
export function keepHeapSmall(): void {
  setFlagsFromString("--semi-space-growth-factor=1");
}
