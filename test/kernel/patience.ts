/** Deadlines of tests. They only end a wait that has no end; under software emulation everything takes longer. */

/** How many times slower this machine is than the one on which the deadlines were chosen; set by test/vm. */
const SLOWNESS = Number(process.env.TERWAY_TEST_SLOWNESS ?? 1);

/** A deadline in milliseconds as it is meant on this machine. */
export function patient(ms: number): number {
  return ms * SLOWNESS;
}
