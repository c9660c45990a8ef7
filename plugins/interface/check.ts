/** CHECK: what was built is still there, and as it was built. */
import { getAttachment } from "../../ipam/store/attachments.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { readKernelView } from "../../shared/datapath/kernel-view.ts";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { hostProblems, podProblems } from "../../shared/datapath/verify.ts";
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
  const problems = linkProblems(w, netns, JSON.parse(attachment.datapath) as PodLink);
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
function linkProblems(w: Work, netns: PodNetns, link: PodLink): string[] {
  const pod = openNetlink(w.host.sys, undefined, { netnsFd: netns.fd, ownNetnsFd: netns.ownFd });
  try {
    return [...podProblems(link, readKernelView(pod)), ...hostProblems(link, readKernelView(w.nl))];
  } finally {
    pod.close();
  }
}
