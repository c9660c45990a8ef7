/** Builds and removes a pod's interface in the kernel. Decides nothing: the plan comes from plan.ts. */
import type { Eni } from "../../ipam/store/enis.ts";
import { eniRequests, macRequests } from "../../shared/datapath/eni-link.ts";
import { allowIpv6, isIpv6Off, quietLink, quietPod } from "../../shared/datapath/ipv6.ts";
import {
  hostRequests,
  type PodAddress,
  type PodLink,
  podRequests,
  sweepRequests,
  vethEndOf,
  vethRequest,
} from "../../shared/datapath/pod-link.ts";
import { sweepAddresses } from "../../shared/datapath/sweep.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { formatMac } from "../../shared/net/mac.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { deleteLink } from "../../shared/netlink/delete-link.ts";
import { getLink, isRunning, isUp, linkIndexOf, parseLink } from "../../shared/netlink/rtnl/link.ts";
import { getRouteTo, parseRoute } from "../../shared/netlink/rtnl/route.ts";
import { NetlinkError, type NetlinkSocket, type Outcome, openNetlink } from "../../shared/netlink/socket.ts";
import { NETLINK_NETFILTER } from "../../shared/netlink/uapi/netlink.ts";
import { RTN_LOCAL } from "../../shared/netlink/uapi/rtnetlink.ts";
import { isErrno, type Sys } from "../../shared/sys/sys.ts";
import { findByMac, inKernel, inNetns, noLink, notOurs } from "./in-kernel.ts";
import type { PodNetns } from "./netns.ts";
import { freeName } from "./taken-name.ts";
import { makeUplink } from "./uplink.ts";

/** The index in the reply to a get. */
function indexOf(outcome: Outcome | undefined): number {
  return linkIndexOf((outcome?.ok ? outcome.replies[0] : undefined) ?? new Uint8Array(16));
}

/**
 * Makes the veth and the uplink, configures them, and brings them up. What was there under the same name is removed before.
 *
 * @param isLeft A call for the same attachment may have been killed half-way; otherwise nothing of it is here to stay.
 */
export function build(sys: Sys, host: NetlinkSocket, netns: PodNetns, link: PodLink, isLeft: boolean): void {
  const pod = openNetlink(sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  const once = (left: boolean) => buildOnce(sys, host, pod, netns, link, left);
  try {
    inKernel(`${link.podIfname} of ${netns.path}`, () => {
      try {
        once(isLeft);
      } catch (error) {
        if (!isIpv6Off(error)) throw error;
        inNetns(sys, netns, () => allowIpv6(sys, [link.podIfname, vethEndOf(link)]));
        once(true);
      }
    });
  } finally {
    pod.close();
  }
}

function buildOnce(
  sys: Sys,
  host: NetlinkSocket,
  pod: NetlinkSocket,
  netns: PodNetns,
  link: PodLink,
  isLeft: boolean,
): void {
  // An uplink has neighbours that speak IPv6, whatever the pod does.
  if (link.uplink || link.addresses.some(isIpv6)) inNetns(sys, netns, () => quietPod(sys));
  const hostIndex = makeVeth(sys, host, pod, netns, link);
  const taken = link.uplink && makeUplink(sys, host, pod, netns, link, link.uplink, isLeft);
  const [veth, up] = pod.apply([
    getLink({ name: vethEndOf(link) }),
    ...(link.uplink ? [getLink({ name: link.podIfname })] : []),
  ]);
  pod.apply(podRequests(link, indexOf(veth), up && indexOf(up)));
  host.apply(hostRequests(link, hostIndex));
  awaitQueues(sys, pod, up ? [indexOf(veth), indexOf(up)] : [indexOf(veth)]);
  awaitLocal(sys, pod, link);
  if (taken !== undefined) freeName(sys, pod, link, taken);
}

function isIpv6({ address }: Pick<PodAddress, "address">): boolean {
  return address.includes(":");
}

const QUEUE_WAIT_MS = 1000;
const LOCAL_WAIT_MS = 1000;
/** Tries before a sleep, which takes longer than the worker mostly does. */
const LOCAL_SPINS = 4;

/**
 * The pod's end of the veth came up first, when it had no carrier, and an ENI was down. The kernel gives it a queue later, from a worker (linkwatch), and
 * until then drops what the pod sends: its first packet, on a busy node. To ask about the link makes the kernel do that at
 * once (rtnl_getlink, since 6.9); an older one is given time.
 */
function awaitQueues(sys: Sys, pod: NetlinkSocket, indexes: readonly number[]): void {
  for (let waitedMs = 0; waitedMs < QUEUE_WAIT_MS; waitedMs++) {
    const asked = pod.apply(indexes.map((index) => getLink({ index })));
    if (asked.every((a) => !a.ok || a.replies[0] === undefined || isRunning(a.replies[0]))) return;
    sys.pollIn([], 1);
  }
}

/**
 * The kernel lets a worker finish a new IPv6 address, also one without duplicate detection (addrconf_dad_work): until then
 * it can be bound to, but what is sent to it is not the pod's.
 */
function awaitLocal(sys: Sys, pod: NetlinkSocket, link: PodLink): void {
  for (const { address } of link.addresses.filter(isIpv6)) {
    const request = getRouteTo(parseIp(address));
    for (let waitedMs = 0; waitedMs < LOCAL_WAIT_MS; waitedMs++) {
      const [asked] = pod.transact([request]);
      const [reply] = asked?.ok ? asked.replies : [];
      if (reply !== undefined && parseRoute(reply).type === RTN_LOCAL) break;
      sys.pollIn([], waitedMs < LOCAL_SPINS ? 0 : 1);
    }
  }
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

/** What is gone already counts as removed. @param keepFd See `deleteLink`. */
export function removeVeth(sys: Sys, host: NetlinkSocket, hostIfname: string, keepFd?: number): void {
  inKernel(`removing ${hostIfname}`, () => deleteLink(sys, host, hostIfname, keepFd));
}

/** Removes the node's routes and rules of these addresses, whoever left them. */
export function removeRoutes(host: NetlinkSocket, addresses: readonly string[]): void {
  inKernel(`removing routes and rules of ${addresses.join(" ")}`, () => sweepAddresses(host, addresses));
}

/** undefined: a kernel without netfilter, which tracks nothing. */
export function openConntrack(sys: Sys): NetlinkSocket | undefined {
  try {
    return openNetlink(sys, NETLINK_NETFILTER);
  } catch (error) {
    if (isErrno(error, "EPROTONOSUPPORT", "EAFNOSUPPORT")) return undefined;
    throw error;
  }
}

/** Removes the connection tracking entries of exactly these addresses. */
export function forgetConnections(ct: NetlinkSocket | undefined, addresses: readonly string[]): void {
  inKernel("forgetting connections", () =>
    ct?.apply(addresses.flatMap((a) => [deleteConntrack(parseIp(a), "orig"), deleteConntrack(parseIp(a), "reply")])),
  );
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

/**
 * Whether the link that was set up for the ENI is still there and up: detached, attached again or moved away since, it has
 * no routes, and neither would the pod.
 */
export function isPrepared(host: NetlinkSocket, eni: Eni): boolean {
  if (eni.ifindex === undefined) return false;
  const [found] = host.transact([getLink({ index: eni.ifindex })]);
  const link = found?.ok && found.replies[0] ? parseLink(found.replies[0]) : undefined;
  return link !== undefined && isUp(link) && formatMac(link.mac) === eni.mac;
}

/** Finds the ENI's link by its MAC and sets it up. @throws {CniFailure} when the node has no such link. */
export function prepareEni(sys: Sys, host: NetlinkSocket, eni: Eni): PreparedLink {
  return inKernel(`ENI ${eni.id}`, () => {
    const link = findByMac(host, eni.mac);
    if (link === undefined) throw noLink(`ENI ${eni.id} (${eni.mac})`);
    quietLink(sys, link.name);
    host.apply([...macRequests(link, eni.mac), ...eniRequests(eni, link.index)]);
    return { ifname: link.name, ifindex: link.index };
  });
}
