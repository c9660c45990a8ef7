/** Reads and changes the order in which an ENI sends. Decides nothing: the plan comes from eni-qos.ts. */
import type { TcRule } from "../config/qos-config.ts";
import { getLink, linkIndexOf } from "../netlink/rtnl/link.ts";
import type { NetlinkSocket } from "../netlink/socket.ts";
import { getClasses, parseHtbClass } from "../netlink/tc/class.ts";
import { getFilters, parseFilter } from "../netlink/tc/filter.ts";
import { tcHandle } from "../netlink/tc/tcmsg.ts";
import { BPF_PROG_TYPE_SCHED_CLS } from "../netlink/uapi/bpf.ts";
import { TC_H_ROOT } from "../netlink/uapi/pkt-sched.ts";
import type { Sys } from "../sys/sys.ts";
import { planEniQos } from "./eni-qos.ts";
import { classOfPacketProgram } from "./limiter-program.ts";
import { OUR_MAJOR } from "./shaping.ts";
import type { QdiscsOfLinks } from "./shaping-kernel.ts";

export type EniQosOutcome = "right" | "changed" | "no link" | { readonly foreign: string };

/**
 * @param read The qdiscs of all links, read just now.
 * @throws {NetlinkError | SysError}
 */
export function applyEniQos(
  sys: Sys,
  nl: NetlinkSocket,
  ifname: string,
  wanted: boolean,
  rules: readonly TcRule[],
  read: QdiscsOfLinks,
): EniQosOutcome {
  const [found] = nl.transact([getLink({ name: ifname })]);
  if (!found?.ok || found.replies[0] === undefined) return "no link";
  const linkIndex = linkIndexOf(found.replies[0]);
  const qdiscs = read.get(linkIndex) ?? [];
  const root = tcHandle(OUR_MAJOR);
  const ours = qdiscs.some((q) => q.parent === TC_H_ROOT && q.handle === root && q.kind === "htb");
  const classes = ours ? nl.dump(getClasses(linkIndex)).map(parseHtbClass) : [];
  const filters = ours ? nl.dump(getFilters(linkIndex, root)).map(parseFilter) : [];
  const plan = planEniQos(
    { linkIndex, qdiscs, classes: classes.filter((c) => c !== undefined), filters },
    wanted,
    rules,
  );
  if (plan.kind === "right") return "right";
  if (plan.kind === "foreign") return { foreign: plan.qdisc };
  nl.apply(plan.before);
  if (plan.filter) {
    const fd = sys.bpfLoad(BPF_PROG_TYPE_SCHED_CLS, classOfPacketProgram(OUR_MAJOR));
    try {
      nl.apply([plan.filter(fd)]);
    } finally {
      sys.close(fd);
    }
  }
  return "changed";
}
