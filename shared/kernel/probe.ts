/**
 * Finds out what the kernel can do by doing it, in a network namespace made for that and gone afterwards. A kernel's
 * configuration or version says less: modules may be missing, and vendors port features back.
 *
 * Modules load as they would at a pod's start: what ADD would get is what is reported.
 */

import { LIMITER_STATE_BYTES, limiterProgram } from "../datapath/limiter-program.ts";
import { CLSACT_INGRESS } from "../datapath/shaping.ts";
import { parseIp } from "../net/ip.ts";
import { deleteConntrack } from "../netlink/conntrack.ts";
import { openNft } from "../netlink/nft/socket.ts";
import { getLink, type LinkSpec, newLink, parseLink } from "../netlink/rtnl/link.ts";
import { newRule } from "../netlink/rtnl/rule.ts";
import { NetlinkError, openNetlink } from "../netlink/socket.ts";
import { type FilterMatch, newFilter } from "../netlink/tc/filter.ts";
import { newQdisc, type QdiscOptions } from "../netlink/tc/qdisc.ts";
import { BPF_PROG_TYPE_SCHED_CLS } from "../netlink/uapi/bpf.ts";
import { IPVLAN_MODE_L2 } from "../netlink/uapi/if-link.ts";
import { NETLINK_NETFILTER } from "../netlink/uapi/netlink.ts";
import { TCA_EGRESS_REDIR } from "../netlink/uapi/pkt-cls.ts";
import { MalformedNetlink } from "../netlink/wire/reader.ts";
import type { CompiledPolicy } from "../policy/compiled.ts";
import { programContent } from "../policy/program.ts";
import { renderNode } from "../policy/render.ts";
import { CLONE_NEWNET, O_RDONLY } from "../sys/linux.ts";
import { type Sys, SysError } from "../sys/sys.ts";
import { FEATURE_NAMES, type KernelFeature, type KernelReport, type Verdict } from "./features.ts";

const TRY_TABLE = 4242;
const TRY_ADDRESSES = { 4: "192.0.2.1", 6: "2001:db8::1" } as const;

/** Something of everything that policies are made of: addresses, networks, ports, peers with ports, a pod. */
const TRY_POLICY: CompiledPolicy = {
  revision: 1,
  sets: [
    { id: "try-addresses", cidrs: ["192.0.2.1/32", "2001:db8::1/128"] },
    { id: "try-networks", cidrs: ["198.51.100.0/24", "2001:db8:1::/64"] },
  ],
  endpointSets: [{ id: "try-endpoints", endpoints: ["192.0.2.1 tcp 80", "2001:db8::1 udp 53"] }],
  profiles: [
    {
      id: "try",
      direction: "ingress",
      admin: [],
      policies: [
        { verdict: "accept", peers: ["try-addresses", "try-networks"], origin: "try" },
        { verdict: "accept", ports: [{ protocol: "tcp", first: 80, last: 90 }], origin: "try" },
        { verdict: "accept", endpoints: ["try-endpoints"], origin: "try" },
      ],
      baseline: [],
    },
  ],
  pods: [{ namespace: "try", name: "try", ingress: "try" }],
};

const UNTRIED: Verdict = { there: false, refusal: "not tried: the kernel made no link to stand on" };
const TRY_LIMIT = { bytesPerSecond: 125_000, burstBytes: 100_000 };
const QUEUES = {
  tbf: { kind: "tbf", ...TRY_LIMIT, limitBytes: 100_000 },
  htb: { kind: "htb", defaultClass: 0 },
  prio: { kind: "prio", bands: 3, bandOf: [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1] },
  fq: { kind: "fq" },
} as const satisfies Readonly<Record<string, QdiscOptions>>;

/**
 * Tries each feature. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN; the calling thread is back in its own namespace after.
 *
 * @throws {SysError} EPERM where no namespace may be made.
 */
export function probeKernel(sys: Sys): KernelReport {
  return inScratchNetns(sys, () => probeHere(sys));
}

/** Runs `work` in a network namespace of its own. */
export function inScratchNetns<T>(sys: Sys, work: () => T): T {
  const ownFd = sys.open("/proc/thread-self/ns/net", O_RDONLY);
  try {
    sys.unshare(CLONE_NEWNET);
    try {
      return work();
    } finally {
      sys.setns(ownFd, CLONE_NEWNET);
    }
  } finally {
    sys.close(ownFd);
  }
}

/** In the namespace as it is, which must be an empty one. */
function probeHere(sys: Sys): KernelReport {
  const nl = openNetlink(sys);
  try {
    const link = (name: string, spec: LinkSpec): Verdict => attempt(() => nl.apply([newLink({ ...spec, name })]));
    const indexOf = (name: string): number => {
      const [outcome] = nl.apply([getLink({ name })]);
      const reply = outcome?.ok ? outcome.replies[0] : undefined;
      if (reply === undefined) throw new MalformedNetlink(`no answer says where the link ${name} is`, 0);
      return parseLink(reply).index;
    };
    const veth = link("try0", { kind: "veth", peer: { name: "try1" } });
    const bridge = link("trybr0", { kind: "bridge" });
    const ifb = link("tryifb0", { kind: "ifb" });
    // Something with an Ethernet header for the rest to stand on.
    const base = [veth.there && "try0", bridge.there && "trybr0", ifb.there && "tryifb0"].find(
      (name) => name !== false,
    );
    const over = (work: (index: number) => Verdict): Verdict => (base === undefined ? UNTRIED : work(indexOf(base)));
    // One root queue per link: each gets a link of its own.
    const rootQueue = (kind: keyof typeof QUEUES): Verdict => {
      if (!veth.there) return UNTRIED;
      nl.apply([newLink({ kind: "veth", name: `try${kind}0`, peer: { name: `try${kind}1` } })]);
      return attempt(() => nl.apply([newQdisc({ linkIndex: indexOf(`try${kind}0`), options: QUEUES[kind] })]));
    };
    const rule = (family: 4 | 6): Verdict =>
      attempt(() =>
        nl.apply([
          newRule({
            family,
            priority: 100,
            table: TRY_TABLE,
            from: { ip: parseIp(TRY_ADDRESSES[family]), prefixLength: family === 4 ? 32 : 128 },
          }),
        ]),
      );
    const clsact = over((linkIndex) => attempt(() => nl.apply([newQdisc({ linkIndex, options: { kind: "clsact" } })])));
    const filter = (preference: number, match: (index: number) => FilterMatch): Verdict =>
      !clsact.there
        ? { there: false, refusal: `not tried, without clsact: ${clsact.refusal}` }
        : over((linkIndex) =>
            attempt(() =>
              nl.apply([newFilter({ linkIndex, parent: CLSACT_INGRESS, preference, match: match(linkIndex) })]),
            ),
          );
    return {
      veth,
      bridge,
      ifb,
      ipvlan: over((parentIndex) => link("tryipvl0", { kind: "ipvlan", parentIndex, mode: IPVLAN_MODE_L2 })),
      vlan: over((parentIndex) => link("tryvlan0", { kind: "vlan", parentIndex, vlanId: 101 })),
      macvlan: tryMacvlan(),
      tbf: rootQueue("tbf"),
      htb: rootQueue("htb"),
      prio: rootQueue("prio"),
      fq: rootQueue("fq"),
      clsact,
      redirect: filter(1, (linkIndex) => ({
        kind: "u32",
        keys: [{ value: 0, mask: 0, offset: 0 }],
        actions: [{ kind: "mirred", direction: TCA_EGRESS_REDIR, linkIndex }],
      })),
      bpf: tryBpf(),
      policyRouting4: rule(4),
      policyRouting6: rule(6),
      nftables: tryNftables(sys),
      conntrack: tryConntrack(sys),
    };

    /** The program that limits a pod, loaded and attached. */
    function tryBpf(): Verdict {
      let fd: number;
      try {
        const state = sys.bpfArray(LIMITER_STATE_BYTES);
        try {
          fd = sys.bpfLoad(BPF_PROG_TYPE_SCHED_CLS, limiterProgram({ limit: TRY_LIMIT }, state));
        } finally {
          sys.close(state); // the program holds it
        }
      } catch (error) {
        if (error instanceof SysError) return { there: false, refusal: error.message };
        throw error;
      }
      try {
        return filter(2, () => ({ kind: "bpf", fd, name: "try", direct: true }));
      } finally {
        sys.close(fd);
      }
    }

    function tryMacvlan(): Verdict {
      // Not on the link that has the IPvlan child: a link is parent of one kind only.
      if (!veth.there) return UNTRIED;
      const parentIndex = indexOf("try1");
      return link("trymacv0", { kind: "macvlan", parentIndex });
    }
  } finally {
    nl.close();
  }
}

function tryNftables(sys: Sys): Verdict {
  return attempt(() => {
    const nft = openNft(sys);
    try {
      const pods = [{ namespace: "try", name: "try", addresses: Object.values(TRY_ADDRESSES) }];
      programContent(nft, renderNode({ compiled: TRY_POLICY, pods, logDrops: true }));
    } finally {
      nft.close();
    }
  });
}

function tryConntrack(sys: Sys): Verdict {
  return attempt(() => {
    const nl = openNetlink(sys, NETLINK_NETFILTER);
    try {
      // Where the plugins take "there is no such thing" for "nothing to remove", here it is the answer.
      nl.apply([{ ...deleteConntrack(parseIp(TRY_ADDRESSES[4]), "orig"), accept: ["ENOENT"] }]);
    } finally {
      nl.close();
    }
  });
}

function attempt(work: () => unknown): Verdict {
  try {
    work();
    return { there: true };
  } catch (error) {
    if (error instanceof NetlinkError || error instanceof SysError) return { there: false, refusal: error.message };
    throw error;
  }
}

/** A report in which every feature is there, but for those named. For tests and previews. */
export function kernelWithout(...absent: readonly KernelFeature[]): KernelReport {
  const verdict = (name: KernelFeature): Verdict =>
    absent.includes(name) ? { there: false, refusal: `${name}: EOPNOTSUPP` } : { there: true };
  return Object.fromEntries(FEATURE_NAMES.map((name) => [name, verdict(name)])) as unknown as KernelReport;
}
