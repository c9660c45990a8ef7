/** CHECK: what was built is still there, and as it was built. */
import { getAttachment } from "../../ipam/store/attachments.ts";
import { type Eni, getEni } from "../../ipam/store/enis.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { readKernelView } from "../../shared/datapath/kernel-view.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { hostProblems, type KernelView, podProblems } from "../../shared/datapath/verify.ts";
import { openNetlink } from "../../shared/netlink/socket.ts";
import { check as checkIpam } from "../terway-ipam/commands.ts";
import { ownLinkOf } from "./in-kernel.ts";
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
  const link = JSON.parse(attachment.datapath) as PodLink;
  const eni = attachment.eniId === undefined ? undefined : getEni(w.store.db, attachment.eniId);
  const problems = linkProblems(w, netns, link, eni);
  if (problems.length > 0) {
    throw new CniFailure(
      CODE.changed,
      `the datapath of container ${w.key.containerId} was changed: ${problems.join("; ")}`,
      "the agent repairs the node's side; otherwise create the pod again",
    );
  }
  if (w.config.ipamInProcess) checkIpam(w.call, w.host);
  else runIpam(w.host, w.call, w.config, "CHECK");
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
  const carrier = ownLinkOf(link.uplink?.parentMac ?? eni.mac, node.links);
  if (carrier === undefined) return [`ENI ${eni.id} has no link on the node`];
  return carrier.mtuBytes < link.mtuBytes
    ? [`link ${carrier.name} of ENI ${eni.id} has MTU ${carrier.mtuBytes}, less than the pod's ${link.mtuBytes}`]
    : [];
}
