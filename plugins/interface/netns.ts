/** The pod's network namespace: opened, recognised, and held by one call at a time. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { CLOCK_MONOTONIC, LOCK_EX, LOCK_NB, NSFS_MAGIC, O_RDONLY } from "../../shared/sys/linux.ts";
import { isSameNetns, type RecordedNetns } from "../../shared/sys/netns.ts";
import { isErrno, type Sys } from "../../shared/sys/sys.ts";

export interface PodNetns {
  readonly path: string;
  readonly fd: number;
  /** The node's own namespace, to come back to. */
  readonly ownFd: number;
  readonly dev: number;
  readonly ino: number;
}

const LOCK_WAIT_MS = 30_000;

/**
 * Opens CNI_NETNS and takes the lock on it. The kernel drops the lock with the process, whatever happens to it. Calls
 * for one pod wait for each other; calls for two pods never do.
 *
 * @throws {CniFailure} When it is no network namespace, or the node's own.
 */
export function openPodNetns(sys: Sys, path: string): PodNetns {
  const stat = sys.stat(path);
  if (stat === undefined) {
    throw new CniFailure(
      CODE.invalidEnvironment,
      `network namespace ${path} does not exist`,
      "the container is gone, or the runtime passed a wrong CNI_NETNS",
    );
  }
  if (sys.fsType(path) !== NSFS_MAGIC) {
    throw new CniFailure(
      CODE.invalidEnvironment,
      `${path} is no network namespace`,
      "pass a path like /run/netns/NAME or /proc/PID/ns/net in CNI_NETNS",
    );
  }
  const ownFd = sys.open("/proc/self/ns/net", O_RDONLY);
  const own = sys.stat("/proc/self/ns/net");
  if (own?.ino === stat.ino && own.dev === stat.dev) {
    throw new CniFailure(
      CODE.invalidEnvironment,
      `CNI_NETNS ${path} is the node's own network namespace`,
      "a pod with hostNetwork needs no CNI call: check the runtime",
    );
  }
  const fd = sys.open(path, O_RDONLY);
  lock(sys, fd, path);
  return { path, fd, ownFd, dev: stat.dev, ino: stat.ino };
}

/** For DEL: the namespace that this attachment was made in, if it still is at its path; another one is not touched. */
export function findPodNetns(sys: Sys, made: RecordedNetns): PodNetns | undefined {
  return isSameNetns(sys, made) ? openPodNetns(sys, made.netns) : undefined;
}

function lock(sys: Sys, fd: number, path: string): void {
  const deadline = sys.clock(CLOCK_MONOTONIC) + LOCK_WAIT_MS;
  for (;;) {
    try {
      sys.flock(fd, LOCK_EX | LOCK_NB);
      return;
    } catch (error) {
      if (!isErrno(error, "EAGAIN")) throw error;
    }
    if (sys.clock(CLOCK_MONOTONIC) > deadline) {
      throw new CniFailure(
        CODE.tryAgainLater,
        `another call for ${path} has been running for ${LOCK_WAIT_MS / 1000} s`,
        "look for a terway-eni process that hangs",
      );
    }
    sys.pollIn([], 2);
  }
}
