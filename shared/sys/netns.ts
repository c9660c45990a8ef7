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
export function isSameNetns(sys: Pick<Sys, "stat">, { netns, netnsDev, netnsIno }: RecordedNetns): boolean {
  const now = netns === "" ? undefined : sys.stat(netns);
  return now !== undefined && now.fsMagic === NSFS_MAGIC && now.ino === netnsIno && now.dev === netnsDev;
}
