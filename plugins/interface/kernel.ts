/** Builds and removes a pod's interface in the kernel. Decides nothing: the plan comes from plan.ts. */
import type { Eni } from "../../ipam/store/enis.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { eniRequests } from "../../shared/datapath/eni-link.ts";
import {
  hostRequests,
  type PodLink,
  podRequests,
  sweepRequests,
  type Uplink,
  vethEndOf,
  vethRequest,
} from "../../shared/datapath/pod-link.ts";
import { sweepAddresses } from "../../shared/datapath/sweep.ts";
import { returnRequests, uplinkRequests } from "../../shared/datapath/uplink.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { formatMac } from "../../shared/net/mac.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { deleteLink } from "../../shared/netlink/delete-link.ts";
import { delLink, getLink, isUp, type Link, linkIndexOf, parseLink, setLink } from "../../shared/netlink/rtnl/link.ts";
import {
  NetlinkError,
  type NetlinkSocket,
  type Outcome,
  openNetlink,
  type Refusal,
} from "../../shared/netlink/socket.ts";
import { writeSysctl } from "../../shared/netlink/sysctl.ts";
import { NETLINK_NETFILTER } from "../../shared/netlink/uapi/netlink.ts";
import { CLOCK_MONOTONIC, CLONE_NEWNET } from "../../shared/sys/linux.ts";
import { isErrno, type Sys } from "../../shared/sys/sys.ts";
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
      "run the same command with ip(8) in that namespace to see more",
      error,
    );
  }
}

/** The index in the reply to a get. */
function indexOf(outcome: Outcome | undefined): number {
  return linkIndexOf((outcome?.ok ? outcome.replies[0] : undefined) ?? new Uint8Array(16));
}

/** Makes the veth and the uplink, configures them, and brings them up. What was there under the same name is removed before. */
export function build(sys: Sys, host: NetlinkSocket, netns: PodNetns, link: PodLink): void {
  const pod = openNetlink(sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  try {
    inKernel(`${link.podIfname} of ${netns.path}`, () => {
      const hostIndex = makeVeth(sys, host, pod, netns, link);
      if (link.uplink) makeUplink(sys, host, pod, netns, link, link.uplink);
      const [veth, up] = pod.apply([
        getLink({ name: vethEndOf(link) }),
        ...(link.uplink ? [getLink({ name: link.podIfname })] : []),
      ]);
      pod.apply(podRequests(link, indexOf(veth), up && indexOf(up)));
      host.apply(hostRequests(link, hostIndex));
    });
  } finally {
    pod.close();
  }
}

/** A VLAN that another pod has just left is free once that pod's namespace is gone, which the kernel does later. */
const VLAN_WAIT_MS = 3000;
const VLAN_LOOK_MS = 20;

function makeUplink(
  sys: Sys,
  host: NetlinkSocket,
  pod: NetlinkSocket,
  netns: PodNetns,
  link: PodLink,
  uplink: Uplink,
): void {
  // Left by a call that was killed: ours by its MAC, and for an ENI all that is to be done.
  const left = pod.transact([getLink({ name: link.podIfname })])[0];
  if (left?.ok && left.replies[0]) {
    const found = parseLink(left.replies[0]);
    if (formatMac(found.mac) !== uplink.mac && formatMac(found.mac) !== uplink.parentMac) throw notOurs(link.podIfname);
    if (uplink.kind === "eni") return;
    pod.apply([delLink({ index: found.index })]);
  }
  const parent = findByMac(host, uplink.parentMac);
  if (parent === undefined) {
    throw new CniFailure(
      CODE.tryAgainLater,
      `the ENI with MAC ${uplink.parentMac} has no link on this node`,
      "wait until the guest sees it, or let the agent detach and attach it again",
    );
  }
  quietIpv6(sys, netns);
  const requests = uplinkRequests(link, uplink, parent.index, netns.fd);
  const deadline = sys.clock(CLOCK_MONOTONIC) + VLAN_WAIT_MS;
  for (;;) {
    const refused = host.transact(requests).find((outcome) => !outcome.ok);
    if (refused === undefined) return;
    const { refusal } = refused as { readonly refusal: Refusal };
    if (refusal.errno === "EEXIST" && uplink.kind === "vlan" && sys.clock(CLOCK_MONOTONIC) < deadline) {
      sys.pollIn([], VLAN_LOOK_MS);
      continue;
    }
    throw refusal.errno === "EOPNOTSUPP" ? notInKernel(uplink) : new NetlinkError(refusal);
  }
}

function notInKernel({ kind }: Uplink): CniFailure {
  return new CniFailure(
    CODE.kernel,
    `this kernel has no ${kind === "ipvlan" ? "IPvlan" : "802.1Q VLAN"} links`,
    kind === "ipvlan"
      ? "load the module ipvlan, or use the conflist eniip-veth; `terway-cli node check` says what the kernel can do"
      : "load the module 8021q; `terway-cli node check` says what the kernel can do",
  );
}

/**
 * For links that come to be in the pod: a link-local address that waits for duplicate detection sends no neighbour
 * solicitation, and a router advertisement must not add routes beside ours.
 */
function quietIpv6(sys: Sys, netns: PodNetns): void {
  inNetns(sys, netns, () => {
    for (const name of ["accept_dad", "accept_ra"]) {
      try {
        writeSysctl(sys, `net/ipv6/conf/default/${name}`, "0");
      } catch (error) {
        if (!isErrno(error, "ENOENT")) throw error; // a kernel without IPv6
      }
    }
  });
}

function inNetns<T>(sys: Sys, netns: Pick<PodNetns, "fd" | "ownFd">, work: () => T): T {
  sys.setns(netns.fd, CLONE_NEWNET);
  try {
    return work();
  } finally {
    sys.setns(netns.ownFd, CLONE_NEWNET);
  }
}

function notOurs(ifname: string): CniFailure {
  return new CniFailure(
    CODE.kernel,
    `the pod already has an interface ${ifname} that is not ours`,
    "choose another CNI_IFNAME, or run only one CNI network with this name",
  );
}

/**
 * Both ends and, in the same send, the sweep of what the addresses' last owners left. @returns The host end's index.
 */
function makeVeth(sys: Sys, host: NetlinkSocket, pod: NetlinkSocket, netns: PodNetns, link: PodLink): number {
  const addresses = link.addresses.map((a) => a.address);
  const make = [vethRequest(link, netns.fd), getLink({ name: link.hostIfname })];
  const sweep = sweepRequests(addresses);
  let outcomes = host.transact([...make, ...sweep]);
  const [made] = outcomes;
  if (made && !made.ok) {
    if (made.refusal.errno !== "EEXIST") throw new NetlinkError(made.refusal);
    // Left by a call that was killed. The name on the node is ours alone; the one in the pod may be another plugin's.
    const gone = deleteLink(sys, host, link.hostIfname);
    if (!gone && pod.transact([getLink({ name: vethEndOf(link) })])[0]?.ok) throw notOurs(vethEndOf(link));
    outcomes = host.apply([...make, ...sweep]);
  }
  for (const outcome of outcomes) if (!outcome.ok) throw new NetlinkError(outcome.refusal);
  // Something was swept: there may be more of it.
  if (outcomes.slice(make.length).some((o) => o.refusal === undefined)) sweepAddresses(host, addresses);
  return indexOf(outcomes[1]);
}

/**
 * Takes the uplink out of the pod: an ENI goes back to the node, a child of one is deleted. What is gone already counts.
 *
 * @param netns undefined: the namespace is gone, and the kernel has done the same.
 */
export function removeUplink(sys: Sys, host: NetlinkSocket, netns: PodNetns | undefined, link: PodLink): void {
  const { uplink } = link;
  if (uplink === undefined) return;
  inKernel(`${link.podIfname}`, () => {
    if (netns) removeFromPod(sys, netns, link, uplink);
    if (uplink.kind === "eni") giveBackName(host, uplink);
  });
}

function removeFromPod(sys: Sys, netns: PodNetns, link: PodLink, uplink: Uplink): void {
  const pod = openNetlink(sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  try {
    if (uplink.kind === "eni") {
      const found = findByMac(pod, uplink.mac);
      if (found !== undefined) pod.apply(returnRequests(uplink, found.index, netns.ownFd));
    } else {
      inNetns(sys, netns, () => deleteLink(sys, pod, link.podIfname));
    }
  } finally {
    pod.close();
  }
}

/** A namespace that dies gives its ENI back under whatever name is free. */
function giveBackName(host: NetlinkSocket, { mac, eniIfname }: Uplink): void {
  const found = findByMac(host, mac);
  if (found === undefined || eniIfname === undefined || found.name === eniIfname) return;
  const outcome = host.transact([
    setLink({ index: found.index, up: false }),
    setLink({ index: found.index, name: eniIfname }),
  ]);
  const refused = outcome.find((o) => !o.ok);
  // The name is taken: any other will do, links are told by their MAC.
  if (refused && !refused.ok && refused.refusal.errno !== "EEXIST") throw new NetlinkError(refused.refusal);
}

/** The ENI's own link: children of it (ipvlan, vlan) may share its MAC, and have another kind. */
function findByMac(nl: NetlinkSocket, mac: string): Link | undefined {
  return nl
    .dump(getLink())
    .map(parseLink)
    .find((l) => formatMac(l.mac) === mac && (l.kind === "" || l.kind === "veth"));
}

/** Removes everything on the node; what is gone already counts as removed. */
export function removeVeth(sys: Sys, host: NetlinkSocket, hostIfname: string, addresses: readonly string[]): void {
  inKernel(`removing ${hostIfname}`, () => {
    deleteLink(sys, host, hostIfname);
    sweepAddresses(host, addresses);
  });
}

/** Removes the connection tracking entries of exactly these addresses. */
export function forgetConnections(sys: Sys, addresses: readonly string[]): void {
  let ct: NetlinkSocket;
  try {
    ct = openNetlink(sys, NETLINK_NETFILTER);
  } catch (error) {
    if (isErrno(error, "EPROTONOSUPPORT", "EAFNOSUPPORT")) return; // a kernel without netfilter tracks nothing
    throw error;
  }
  try {
    inKernel("forgetting connections", () =>
      ct.apply(addresses.flatMap((a) => [deleteConntrack(parseIp(a), "orig"), deleteConntrack(parseIp(a), "reply")])),
    );
  } finally {
    ct.close();
  }
}

/** Whether all links are there and up: what an ADD that comes again looks at. CHECK looks at everything. */
export function isBuilt(sys: Sys, host: NetlinkSocket, netns: PodNetns, link: PodLink): boolean {
  const pod = openNetlink(sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  try {
    const found = [
      ...host.transact([getLink({ name: link.hostIfname })]),
      ...pod.transact([getLink({ name: link.podIfname }), getLink({ name: vethEndOf(link) })]),
    ];
    return found.every((outcome) => outcome.ok && outcome.replies.some((reply) => isUp(parseLink(reply))));
  } finally {
    pod.close();
  }
}

export interface PreparedLink {
  readonly ifname: string;
  readonly ifindex: number;
}

/** Finds the ENI's link by its MAC and sets it up. @throws {CniFailure} when the node has no such link. */
export function prepareEni(host: NetlinkSocket, eni: Eni): PreparedLink {
  return inKernel(`ENI ${eni.id}`, () => {
    const link = findByMac(host, eni.mac);
    if (link === undefined) {
      throw new CniFailure(
        CODE.tryAgainLater,
        `ENI ${eni.id} (${eni.mac}) has no link on this node`,
        "wait until the guest sees it, or let the agent detach and attach it again",
      );
    }
    host.apply(eniRequests(eni, link.index));
    return { ifname: link.name, ifindex: link.index };
  });
}
