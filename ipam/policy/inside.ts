/** Policy in the namespaces of pods whose packets pass no hook of the node. */
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { insideContent } from "../../shared/policy/inside.ts";
import { programContent } from "../../shared/policy/program.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";
import { listAttachments } from "../store/attachments.ts";
import type { Store } from "../store/open.ts";
import { listPolicyAddresses } from "../store/policy.ts";

/**
 * Brings every such pod that terway-policy was run for to the compiled policy.
 *
 * @returns What differed, one line each.
 * @throws {NetlinkError} When the kernel refuses.
 */
export function enforceInside({ db }: Store, compiled: CompiledPolicy): string[] {
  const rows = listPolicyAddresses(db);
  return listAttachments(db).flatMap((a) => {
    const row = rows.find((r) => r.network === a.network && r.containerId === a.containerId && r.ifname === a.ifname);
    const link = a.datapath === undefined ? undefined : (JSON.parse(a.datapath) as PodLink);
    // A namespace that is gone, or another one's by now, needs no policy of ours.
    const stat = row && link?.uplink ? sys.stat(a.netns) : undefined;
    if (row === undefined || link === undefined || stat?.ino !== a.netnsIno || stat?.dev !== a.netnsDev) return [];
    const policy = compiled.pods.find((p) => p.namespace === row.namespace && p.name === row.name);
    const content = insideContent({ compiled, policy, posture: row.posture, link });
    return inNamespace(a.netns, content).map((what) => `in pod ${row.namespace}/${row.name}: ${what}`);
  });
}

function inNamespace(netns: string, content: Parameters<typeof programContent>[1]): readonly string[] {
  const [netnsFd, ownNetnsFd] = [sys.open(netns, O_RDONLY), sys.open("/proc/thread-self/ns/net", O_RDONLY)];
  try {
    const nft = openNft(sys, { netnsFd, ownNetnsFd });
    try {
      return programContent(nft, content).changed;
    } finally {
      nft.close();
    }
  } finally {
    sys.close(netnsFd);
    sys.close(ownNetnsFd);
  }
}
