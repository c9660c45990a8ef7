/** What the kernel refuses, as CNI failures; and working in a pod's namespace. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { findEniLink } from "../../shared/datapath/eni-link.ts";
import { findLink } from "../../shared/netlink/find-link.ts";
import { getLink, type Link, parseLink } from "../../shared/netlink/rtnl/link.ts";
import { NetlinkError, type NetlinkSocket } from "../../shared/netlink/socket.ts";
import { CLONE_NEWNET } from "../../shared/sys/linux.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import type { PodNetns } from "./netns.ts";

/** Runs `work` and says a kernel's refusal as a CNI failure. */
export function inKernel<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error;
    throw new CniFailure(
      CODE.kernel,
      `${what}: the kernel refused "${error.message}"`,
      error.extack.includes("IPv6 is disabled")
        ? "the node's new links have no IPv6: sysctl -w net.ipv6.conf.default.disable_ipv6=0, and look into /etc/sysctl.d"
        : "run the same command with ip(8) in that namespace to see more",
      error,
    );
  }
}

export function notOurs(ifname: string): CniFailure {
  return new CniFailure(
    CODE.kernel,
    `the pod already has an interface ${ifname} that is not ours`,
    "choose another CNI_IFNAME, or run only one CNI network with this name",
  );
}

/** @param what The ENI, as it is known here. */
export function noLink(what: string): CniFailure {
  return new CniFailure(
    CODE.tryAgainLater,
    `${what} has no link on this node`,
    "wait until the guest sees it, or look for it in another network namespace and give it back; the agent notices when the instance has lost it",
  );
}

export function inNetns<T>(sys: Sys, netns: Pick<PodNetns, "fd" | "ownFd">, work: () => T): T {
  sys.setns(netns.fd, CLONE_NEWNET);
  try {
    return work();
  } finally {
    sys.setns(netns.ownFd, CLONE_NEWNET);
  }
}

/** @param ifname Its name when last seen: one link is asked for before those of all pods are listed. */
export function findByMac(nl: NetlinkSocket, mac: string, ifname?: string): Link | undefined {
  const named = ifname === undefined ? undefined : findLink(nl, { name: ifname });
  return findEniLink(named ? [named] : [], mac) ?? findEniLink(nl.dump(getLink()).map(parseLink), mac);
}
