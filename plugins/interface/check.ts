/** CHECK: what was built is still there, and as it was built. */
import { type Attachment, getAttachment } from "../../ipam/store/attachments.ts";
import { type Eni, getEni } from "../../ipam/store/enis.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { findEniLink } from "../../shared/datapath/eni-link.ts";
import { readKernelView } from "../../shared/datapath/kernel-view.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { hostProblems, type KernelView, podProblems } from "../../shared/datapath/verify.ts";
import { formatMac } from "../../shared/net/mac.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { check as checkIpam } from "../terway-ipam/commands.ts";
import { openPodNetns, type PodNetns } from "./netns.ts";
import { runIpam, type Work } from "./work.ts";

/** @throws {CniFailure} naming everything that differs. */
export function verify(w: Work): void {
  const attachment = getAttachment(w.store.db, w.key);
  if (attachment?.datapath === undefined) {
    throw new CniFailure(
      CODE.unknownContainer,
      `container ${w.key.containerId} has no attachment ${w.key.ifname} in network "${w.key.network}"`,
      "delete and create the pod again",
    );
  }
  const netns = openPodNetns(w.host.sys, w.call.env.netns);
  const problems = attachmentProblems(w, netns, attachment);
  if (problems.length > 0) {
    throw new CniFailure(
      CODE.changed,
      `the datapath of container ${w.key.containerId} was changed: ${problems.join("; ")}`,
      "the agent repairs the node's side; otherwise create the pod again",
    );
  }
  // A pod that asked for another mode has its addresses from us, whatever IPAM the conflist names.
  if (w.config.ipamInProcess || attachment.mode !== w.config.mode) checkIpam(w.call, w.host);
  else runIpam(w.host, w.call, w.config, "CHECK");
}

/** Of the interface and those that were made with it. */
function attachmentProblems(w: Work, netns: PodNetns, { datapath, eniId }: Attachment): string[] {
  const link = JSON.parse(datapath ?? "{}") as PodLink;
  const eni = eniId === undefined ? undefined : getEni(w.store.db, eniId);
  const others = (link.others ?? []).flatMap((ifname) => {
    const other = getAttachment(w.store.db, { ...w.key, ifname });
    return other?.datapath === undefined
      ? [`interface ${ifname} has no attachment`]
      : attachmentProblems(w, netns, other);
  });
  return [...linkProblems(w, netns, link, eni), ...others];
}

/** Everything that differs from the plan, in the pod and on the node. */
function linkProblems(w: Work, netns: PodNetns, link: PodLink, eni: Eni | undefined): string[] {
  const pod = openNetlink(w.host.sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  try {
    const node = readKernelView(w.nl);
    return [
      ...podProblems(link, readKernelView(pod)),
      ...hostProblems(link, node),
      ...(eni ? carrierProblems(link, eni, node) : []),
    ];
  } finally {
    pod.close();
  }
}

/** The ENI's link on the node, which carries the pod's packets: it may have gone, or become smaller. */
function carrierProblems(link: PodLink, eni: Eni, node: KernelView): string[] {
  if (link.uplink?.kind === "eni") return [];
  const mac = link.uplink?.parentMac ?? eni.mac;
  const carrier = findEniLink(node.links, mac);
  if (carrier === undefined) return [`ENI ${eni.id} has no link on the node`];
  if (formatMac(carrier.mac) !== mac)
    return [`link ${carrier.name} of ENI ${eni.id} has MAC ${formatMac(carrier.mac)}, want ${mac}`];
  return carrier.mtuBytes < link.mtuBytes
    ? [`link ${carrier.name} of ENI ${eni.id} has MTU ${carrier.mtuBytes}, less than the pod's ${link.mtuBytes}`]
    : [];
}
