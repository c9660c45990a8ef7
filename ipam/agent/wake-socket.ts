/** The unix datagram socket on which plugins say that a pod waits, and the answers to them. */
import { AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM, SOCK_NONBLOCK } from "../../shared/sys/linux.ts";
import { nodeSys as sys, watchFd } from "../../shared/sys/node.ts";
import { encodeUtf8, isErrno } from "../../shared/sys/sys.ts";

export interface WakeSocket {
  readonly name: string;
  /** Tells a waiting plugin to look again, or with `no` why there will be no address. */
  tell(waiter: string, no?: string): void;
  close(): void;
}

export function openWakeSocket(path: string, onWake: () => void): WakeSocket {
  try {
    sys.unlink(path); // of an agent that was killed; a living one would answer, and two agents are refused before this
  } catch (error) {
    if (!isErrno(error, "ENOENT")) throw error;
  }
  const fd = sys.socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  sys.bindUnix(fd, path);
  const buffer = new Uint8Array(256);
  const stop = watchFd(fd, () => {
    let wanted = false;
    for (;;) {
      try {
        const n = sys.recv(fd, buffer, MSG_DONTWAIT);
        if (n !== 4) wanted = true; // "ping" only asks whether we are here
      } catch {
        break; // EAGAIN: all read
      }
    }
    if (wanted) onWake();
  });
  return {
    name: path,
    tell(waiter, no) {
      try {
        sys.sendToUnix(fd, waiter, encodeUtf8(no === undefined ? "look" : `no:${no}`));
      } catch (error) {
        // The waiter gave up, or is told already.
        if (!isErrno(error, "ECONNREFUSED", "ENOENT", "EAGAIN")) throw error;
      }
    },
    close() {
      stop();
      sys.close(fd);
    },
  };
}
