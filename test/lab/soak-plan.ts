/** What a soak does, cycle by cycle: the same for the same seed. Pure. */
import { createRandom } from "../../ipam/pool/sim/random.ts";

/** Where SIGKILL goes. */
export interface Kill {
  readonly verb: "ADD" | "DEL";
  /** Which plugin of the chain, by its place: share of its length, below 1. */
  readonly place: number;
  /** When, as a share of the time that this plugin usually takes, below 1. */
  readonly moment: number;
}

export const ENDS = [
  /** The runtime deletes the sandbox, then its namespace goes. */
  "delete",
  /** The namespace goes first. */
  "late delete",
  /** The runtime asks for the same again (after a killed ADD), and deletes then. */
  "again",
  /** The runtime forgets the sandbox; its next GC does not list it. */
  "collect",
  /** The namespace goes, and neither DEL nor GC comes: the agent's sweep. */
  "sweep",
] as const;
export type End = (typeof ENDS)[number];

export interface Cycle {
  readonly number: number;
  readonly kill: Kill | undefined;
  readonly end: End;
  readonly check: boolean;
  /** Asks for a limit of its bandwidth. */
  readonly limited: boolean;
  /** Asks for a port of the node. */
  readonly hostPort: boolean;
}

/** A quarter of the cycles, rounded up, has a kill. Pods without one end by DEL as pods do, now and then otherwise. */
export function planCycles(seed: number, count: number): Cycle[] {
  const random = createRandom(seed);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  const killed = new Set(order.slice(0, Math.ceil(count / 4)));
  let kills = 0;
  return Array.from({ length: count }, (_, number) => {
    const kill: Kill | undefined = killed.has(number)
      ? { verb: kills++ % 2 === 0 ? "ADD" : "DEL", place: random(), moment: random() }
      : undefined;
    const end = kill ? pick(ENDS) : random() < 0.9 ? "delete" : pick(["late delete", "collect", "sweep"] as const);
    return {
      number,
      kill,
      end,
      check: random() < 0.5,
      limited: random() < 0.3,
      // Debian's portmap knows no GC: what nobody deletes stays, whatever we do.
      hostPort: kill === undefined && end === "delete" && random() < 0.2,
    };
  });
}
