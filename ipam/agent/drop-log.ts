/** What NetworkPolicy dropped, one log line each, with the names of pods. The rule in the kernel lets 10 a second through. */
import { type LoggedPacket, listenToGroup, parseLogged } from "../../shared/netlink/nflog.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { NETLINK_NETFILTER } from "../../shared/netlink/uapi/netlink.ts";
import { parseMessages } from "../../shared/netlink/wire/reader.ts";
import { NFLOG_GROUP } from "../../shared/policy/names.ts";
import { MSG_DONTWAIT } from "../../shared/sys/linux.ts";
import { nodeSys as sys, watchFd } from "../../shared/sys/node.ts";

/** @param nameOf "NAMESPACE/NAME" of the pod that has an address. */
export function describeDrop(packet: LoggedPacket, nameOf: (address: string) => string | undefined): string {
  const end = (address: string) => {
    const name = nameOf(address);
    return name === undefined ? address : `${name} (${address})`;
  };
  const direction = packet.prefix.endsWith(" egress") ? "egress" : "ingress";
  const port = packet.port === undefined ? "" : ` ${packet.port}`;
  return `policy dropped ${direction}: ${end(packet.from)} to ${end(packet.to)}, ${packet.protocol}${port}`;
}

/**
 * @returns Ends it.
 * @throws {NetlinkError} EBUSY: another program listens to the group.
 */
export function logDrops(log: (line: string) => void, nameOf: (address: string) => string | undefined): () => void {
  const nl = openNetlink(sys, NETLINK_NETFILTER);
  try {
    nl.apply(listenToGroup(NFLOG_GROUP));
  } catch (error) {
    nl.close();
    throw error;
  }
  const buffer = new Uint8Array(64 << 10);
  const stop = watchFd(nl.fd, () => {
    for (;;) {
      let length: number;
      try {
        length = sys.recv(nl.fd, buffer, MSG_DONTWAIT);
      } catch {
        return; // nothing more, or some were lost: they are counted in any case
      }
      for (const message of parseMessages(buffer.subarray(0, length))) {
        const packet = parseLogged(message);
        if (packet !== undefined) log(describeDrop(packet, nameOf));
      }
    }
  });
  return () => {
    stop();
    nl.close();
  };
}
