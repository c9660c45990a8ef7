/** A pod's own way into the VPC, in the kernel: making it, and taking it back. */
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { isEniKind, macRequests } from "../../shared/datapath/eni-link.ts";
import { type PodLink, podRules, type Uplink } from "../../shared/datapath/pod-link.ts";
import { childIndex, isChildIndex, returnRequests, uplinkRequests } from "../../shared/datapath/uplink.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { formatMac } from "../../shared/net/mac.ts";
import { findLink } from "../../shared/netlink/find-link.ts";
import { accepting } from "../../shared/netlink/request.ts";
import { delAddress } from "../../shared/netlink/rtnl/address.ts";
import { delLink, type Link, setLink } from "../../shared/netlink/rtnl/link.ts";
import { delRule } from "../../shared/netlink/rtnl/rule.ts";
import {
  encodeRequests,
  NetlinkError,
  type NetlinkSocket,
  openNetlink,
  type Refusal,
} from "../../shared/netlink/socket.ts";
import { readU32 } from "../../shared/netlink/wire/reader.ts";
import { CLOCK_MONOTONIC } from "../../shared/sys/linux.ts";
import { DETACHED_FD, type Sys } from "../../shared/sys/sys.ts";
import { findByMac, inKernel, noLink, notOurs } from "./in-kernel.ts";
import type { PodNetns } from "./netns.ts";
import { takeName } from "./taken-name.ts";

/**
 * A VLAN that another pod has just left is free once that pod's namespace is gone, and an ENI is on its way back for a
 * while after DEL: the kernel does both later.
 */
const WAIT_MS = 3000;
const LOOK_MS = 10;

/**
 * Inside {@link inKernel}. The uplink is then in the pod, down.
 *
 * @param isLeft An ENI that is in the pod already was left there by a call that was killed. Otherwise a DEL has just sent
 *   it back: whoever took it now would lose it to the child process that moves it.
 * @returns A name to free when everything else is done ({@link freeName}).
 */
export function makeUplink(
  sys: Sys,
  host: NetlinkSocket,
  pod: NetlinkSocket,
  netns: PodNetns,
  link: PodLink,
  uplink: Uplink,
  isLeft: boolean,
): string | undefined {
  const deadline = sys.clock(CLOCK_MONOTONIC) + WAIT_MS;
  const look = () => findLink(pod, { name: link.podIfname });
  let found = look();
  if (uplink.kind === "eni") {
    while (found && !isLeft && formatMac(found.mac) === uplink.mac && sys.clock(CLOCK_MONOTONIC) < deadline) {
      sys.pollIn([], LOOK_MS);
      found = look();
    }
    if (found && formatMac(found.mac) !== uplink.mac) throw notOurs(found.name);
    if (found) {
      resetUplink(pod, link, found.index);
      return undefined;
    }
  }
  if (found) {
    if (!isChildIndex(link, found.index)) throw notOurs(found.name);
    pod.apply([accepting(delLink({ index: found.index }), "ENODEV")]);
  }
  const findParent = () => findByMac(host, uplink.parentMac, uplink.eniIfname ?? uplink.parentIfname);
  let parent = findParent();
  while (parent === undefined && uplink.kind === "eni" && sys.clock(CLOCK_MONOTONIC) < deadline) {
    sys.pollIn([], LOOK_MS);
    parent = findParent();
  }
  if (parent === undefined) throw noLink(`the ENI with MAC ${uplink.parentMac}`);
  const taken = uplink.kind === "eni" && takeName(sys, pod, link, parent.name) ? parent.name : undefined;
  const newIndex = childIndex(link, readU32(sys.randomBytes(4), 0));
  const requests = [
    ...(uplink.kind === "eni" ? macRequests(parent, uplink.mac) : []),
    ...uplinkRequests(link, uplink, parent.index, netns.fd, newIndex),
  ];
  for (;;) {
    const refused = host.transact(requests).find((outcome) => !outcome.ok);
    if (refused === undefined) break;
    const { refusal } = refused as { readonly refusal: Refusal };
    if (refusal.errno === "EEXIST" && uplink.kind === "vlan" && sys.clock(CLOCK_MONOTONIC) < deadline) {
      sys.pollIn([], LOOK_MS);
      continue;
    }
    throw refusal.errno === "EOPNOTSUPP" ? notInKernel(uplink) : new NetlinkError(refusal);
  }
  return taken;
}

/** An ENI as it was when it came into the pod. */
function resetUplink(pod: NetlinkSocket, link: PodLink, linkIndex: number): void {
  pod.apply([
    setLink({ index: linkIndex, up: false }),
    ...link.addresses.map((a) =>
      accepting(
        delAddress({ linkIndex, address: { ip: parseIp(a.address), prefixLength: a.prefixLength } }),
        "EADDRNOTAVAIL",
      ),
    ),
  ]);
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
 * Clears up in the pod what does not go with the veth: an ENI goes back to the node, a child of one is deleted, rules of
 * a second interface too. What is gone already counts.
 *
 * @param netns undefined: the namespace is gone, and the kernel has done the same.
 * @param wasBuilt Whether the pod's interface was once complete: until then another's may have its name.
 */
export function clearPod(
  sys: Sys,
  host: NetlinkSocket,
  netns: PodNetns | undefined,
  link: PodLink,
  wasBuilt: boolean,
): void {
  inKernel(`${link.podIfname}`, () => {
    if (netns) removeFromPod(sys, host, netns, link, wasBuilt);
    else if (link.uplink?.kind === "eni") giveBackName(host, link.uplink);
  });
}

/** Whether DEL has anything to do inside the pod. */
export function leavesTraces(link: PodLink): boolean {
  return link.uplink !== undefined || link.podTable !== undefined;
}

function removeFromPod(sys: Sys, host: NetlinkSocket, netns: PodNetns, link: PodLink, wasBuilt: boolean): void {
  const { uplink } = link;
  const pod = openNetlink(sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  try {
    pod.apply(podRules(link).map((rule) => accepting(delRule(rule), "ENOENT")));
    if (uplink?.kind === "eni") {
      const found = findByMac(pod, uplink.mac) ?? (wasBuilt ? findChanged(host, pod, link, uplink) : undefined);
      if (found) returnEni(sys, host, pod, netns, uplink, found);
      else giveBackName(host, uplink);
    } else if (uplink) deleteChild(sys, pod, link);
  } finally {
    pod.close();
  }
}

/** The name and the VLAN id are free a moment later; an ADD that wants them waits. */
function deleteChild(sys: Sys, pod: NetlinkSocket, link: PodLink): void {
  const found = findLink(pod, { name: link.podIfname });
  if (found && isChildIndex(link, found.index))
    sys.close(sys.sendDetached(pod.fd, encodeRequests([delLink({ index: found.index })])).reportFd);
}

/** The ENI with a MAC that the pod gave it: it has the ENI's name, is no child, and not the veth's own end. */
function findChanged(host: NetlinkSocket, pod: NetlinkSocket, link: PodLink, uplink: Uplink): Link | undefined {
  if (findByMac(host, uplink.mac, uplink.eniIfname)) return undefined;
  const found = findLink(pod, { name: link.podIfname });
  return found && isEniKind(found) && formatMac(found.mac) !== link.podMac ? found : undefined;
}

/**
 * The kernel holds whoever moves a link between namespaces for an RCU barrier or two (20 to 40 ms), so a child process
 * does it. Nothing waits for it: the address cools down, the ADD that gets this ENI next waits for its link, and if the
 * namespace dies first, the kernel does the same.
 */
function returnEni(
  sys: Sys,
  host: NetlinkSocket,
  pod: NetlinkSocket,
  netns: PodNetns,
  { mac, eniIfname: name }: Uplink,
  found: Link,
): void {
  const isFree = name !== undefined && findLink(host, { name }) === undefined;
  const requests = returnRequests(found, mac, DETACHED_FD, isFree ? name : "eth%d");
  sys.close(sys.sendDetached(pod.fd, encodeRequests(requests), { keepFd: netns.ownFd }).reportFd);
}

/** A namespace that dies gives its ENI back under whatever name is free, with the MAC that it had there. */
function giveBackName(host: NetlinkSocket, { mac, eniIfname }: Uplink): void {
  const found = findByMac(host, mac, eniIfname);
  if (found === undefined) return;
  host.apply(macRequests(found, mac));
  if (eniIfname === undefined || found.name === eniIfname) return;
  const outcome = host.transact([
    setLink({ index: found.index, up: false }),
    setLink({ index: found.index, name: eniIfname }),
  ]);
  const refused = outcome.find((o) => !o.ok);
  // The name is taken: any other will do, links are told by their MAC.
  if (refused && !refused.ok && refused.refusal.errno !== "EEXIST") throw new NetlinkError(refused.refusal);
}
