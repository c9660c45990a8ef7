/** Whether a network namespace is still the one that was written down. */
import { NSFS_MAGIC } from "./linux.ts";
import type { Sys } from "./sys.ts";

/** A namespace as the store records it: a path alone is not enough, another one may have come there. */
export interface RecordedNetns {
  readonly netns: string;
  readonly netnsDev: number | undefined;
  readonly netnsIno: number | undefined;
}

/** What is at the recorded path is a network namespace (nsfs, linux/magic.h) and the same one: device and inode. */
export function isSameNetns(sys: Pick<Sys, "stat" | "fsType">, made: RecordedNetns): boolean {
  const now = made.netns === "" ? undefined : sys.stat(made.netns);
  return now?.ino === made.netnsIno && now?.dev === made.netnsDev && sys.fsType(made.netns) === NSFS_MAGIC;
}
