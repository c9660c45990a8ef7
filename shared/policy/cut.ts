/** Ends the connections that a changed policy no longer allows, and no others (`cutEstablished`). */
import {
  type Connection,
  deleteConnection,
  getConnections,
  markConnection,
  parseConnection,
} from "../netlink/conntrack-entries.ts";
import type { NftSocket } from "../netlink/nft/socket.ts";
import { CidrSet } from "./cidr-set.ts";
import { protocolName } from "./content.ts";
import { createEvaluator, type Evaluator, type FlowEnd } from "./evaluate.ts";
import { CUT_MARK } from "./names.ts";
import type { LocalPod } from "./pod-verdicts.ts";
import type { DesiredPolicy } from "./render.ts";

/** So many at a time: one message each. */
const CHUNK = 256;

/**
 * Call it after `programPolicy`. From then on both directions of what is cut are dropped; what was cut and is allowed
 * again may begin anew.
 *
 * @param nodeAddresses The node's own, canonical texts: what it began itself is always allowed.
 * @param elsewhere CIDRs of destinations that are judged in another place.
 * @returns What was cut, one line each.
 */
export function cutDenied(
  nft: Pick<NftSocket, "dump" | "apply">,
  desired: DesiredPolicy,
  nodeAddresses: readonly string[],
  elsewhere: readonly string[] = [],
): string[] {
  const judge = judgeOf(desired, new Set(nodeAddresses));
  const isCut = (c: Connection) => (c.mark & CUT_MARK) !== 0;
  const others = new CidrSet(elsewhere);
  const all = nft
    .dump(getConnections())
    .map(parseConnection)
    .filter((c) => !others.has(c.to));
  const denied = all.filter((c) => !isCut(c) && !judge(c));
  const back = all.filter((c) => isCut(c) && judge(c));
  const requests = [...denied.map((c) => markConnection(c, CUT_MARK)), ...back.map(deleteConnection)];
  for (let at = 0; at < requests.length; at += CHUNK) nft.apply(requests.slice(at, at + CHUNK));
  return denied.map((c) => `${c.from} to ${c.to} port ${c.port} (${protocolName(c.protocol) ?? c.protocol})`);
}

/** Whether a connection could begin now. Pure. */
export function judgeOf(
  desired: Pick<DesiredPolicy, "compiled" | "pods">,
  nodeAddresses: ReadonlySet<string>,
): (c: Pick<Connection, "from" | "to" | "port" | "protocol">) => boolean {
  const local = new Map(desired.pods.flatMap((pod) => pod.addresses.map((a): [string, LocalPod] => [a, pod])));
  const named = new Set(desired.compiled.pods.map((p) => `${p.namespace}/${p.name}`));
  let evaluator: Evaluator | undefined;
  const end = (address: string): FlowEnd => {
    const pod = local.get(address);
    return pod === undefined ? { address } : { address, pod };
  };
  const shut = (pod: LocalPod | undefined) => pod?.posture === "deny" && !named.has(`${pod.namespace}/${pod.name}`);
  return ({ from, to, port, protocol }) => {
    const [source, target] = [local.get(from), local.get(to)];
    if ((source === undefined && target === undefined) || from === to || nodeAddresses.has(from)) return true;
    if (shut(source) || shut(target)) return false;
    evaluator ??= createEvaluator(desired.compiled);
    return evaluator.judge({ from: end(from), to: end(to), protocol: protocolName(protocol) ?? "icmp", port }).allowed;
  };
}
