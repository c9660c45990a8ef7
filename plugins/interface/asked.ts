/** What a pod asks for by its facts: read only for pods that the node's facts name, so that others cost nothing. */
import type { EniConstraint } from "../../ipam/store/eni-constraint.ts";
import type { NodeFacts } from "../../ipam/store/facts.ts";
import { getPodFacts } from "../../ipam/store/pod-facts.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { asksForInterfaces, type PodInterfaceFacts, parsePodFacts } from "../../shared/config/pod-facts.ts";
import { podOf } from "../terway-ipam/commands.ts";
import { ASKED_MODES, type InterfaceConfig } from "./config.ts";
import type { Work } from "./work.ts";

/** One interface to be made. */
export interface Asked {
  /** undefined: as the conflist says. */
  readonly only: EniConstraint | undefined;
  /** Its routes are in the pod's table main. undefined: if no other attachment's are. */
  readonly isMain: boolean | undefined;
  /** CIDRs reached by it. */
  readonly routes: readonly string[];
  /** Made with it, and gone with it. */
  readonly others: readonly string[];
}

export interface AskedInterface {
  readonly work: Work;
  readonly asked: Asked;
}

const AS_CONFIGURED: Asked = { only: undefined, isMain: undefined, routes: [], others: [] };

/**
 * The interfaces of this ADD, the one that the runtime named first.
 *
 * @throws {CniFailure} The pod asks for something that it cannot have.
 */
export function askedInterfaces(w: Work, facts: Partial<NodeFacts>): readonly [AskedInterface, ...AskedInterface[]] {
  const pod = podOf(w.call);
  if (pod === undefined || !asksForInterfaces(facts.asking_pods, pod.namespace, pod.name))
    return [{ work: w, asked: AS_CONFIGURED }];
  const row = getPodFacts(w.store.db, pod.namespace, pod.name);
  // The successor of a pod by the same name is another pod: its own facts are on their way.
  if (row?.uid !== undefined && pod.uid !== "" && row.uid !== pod.uid)
    throw new CniFailure(
      CODE.tryAgainLater,
      `what pod ${pod.namespace}/${pod.name} asks for is not known yet: the store has it of its predecessor ${row.uid}`,
      "the agent reads the Pod's manifest; the runtime tries again",
    );
  const { interfaces = [], refused } = parsePodFacts(row?.facts ?? "{}");
  if (refused)
    throw new CniFailure(
      refused.again ? CODE.tryAgainLater : CODE.invalidConfig,
      `pod ${pod.namespace}/${pod.name} asks for what it cannot have: ${refused.why}`,
      "correct the Pod, its PodNetworking or the node's eni_conf; the runtime tries again",
    );
  return plan(w, interfaces);
}

/** Others than the first are made with the attachment of the sandbox's own interface: another CNI network has its own. */
function plan(w: Work, interfaces: readonly PodInterfaceFacts[]): readonly [AskedInterface, ...AskedInterface[]] {
  const own = interfaces.find((i) => i.ifname === w.key.ifname);
  const more = w.key.ifname === SANDBOX_IFNAME ? interfaces.filter((i) => i !== own) : [];
  const main = [own, ...more].find((i) => i?.defaultRoute)?.ifname ?? w.key.ifname;
  const several = more.length > 0;
  const of = (ifname: string, asked: PodInterfaceFacts | undefined, others: readonly string[]): AskedInterface => ({
    work: {
      ...w,
      key: { ...w.key, ifname },
      config: asked === undefined ? w.config : configOf(w.config, asked),
    },
    asked: {
      only: asked && constraintOf(asked),
      isMain: several ? ifname === main : undefined,
      routes: asked?.routes ?? [],
      others,
    },
  });
  return [
    of(
      w.key.ifname,
      own,
      more.map((i) => i.ifname),
    ),
    ...more.map((i) => of(i.ifname, i, [])),
  ];
}

const SANDBOX_IFNAME = "eth0";

/** The plugin's own mode where it is for ENIs of that kind (IPvlan and veth both are for shared ones). */
function configOf(config: InterfaceConfig, { kind, ifname }: PodInterfaceFacts): InterfaceConfig {
  // What is asked for is not for any IPAM plugin to know: ours, in this process.
  if (config.eniKind === kind) return { ...config, ipamInProcess: true };
  const { uplink: _uplink, ...rest } = config;
  const asked: InterfaceConfig = { ...rest, ...ASKED_MODES[kind], ipamInProcess: true };
  if (asked.podMac !== undefined && asked.uplink !== undefined)
    throw new CniFailure(
      CODE.invalidConfig,
      `mac ${asked.podMac} cannot be had: the pod asks for an ENI of its own on ${ifname}, whose MAC address it has`,
      "leave out the MAC address, or the request for an ENI",
    );
  return asked;
}

function constraintOf({ kind, vswitchIds, securityGroups }: PodInterfaceFacts): EniConstraint {
  return { kinds: [kind], ...(vswitchIds ? { vswitchIds } : {}), ...(securityGroups ? { securityGroups } : {}) };
}
