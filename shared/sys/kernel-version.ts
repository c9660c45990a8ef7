/** For what a kernel does otherwise since some version, and cannot be asked about. */
import type { Sys } from "./sys.ts";

/** The running kernel is of this version or later. */
export function isLinux(sys: Pick<Sys, "kernelRelease">, major: number, minor: number): boolean {
  const [a = 0, b = 0] = sys.kernelRelease().split(".").map(Number);
  return a > major || (a === major && b >= minor);
}
