/** Making an attachment: addresses, a row in the store that says what will be built, and then the kernel. */
import { type Leased, leasesOf } from "../../ipam/store/allocate.ts";
import {
  type Attachment,
  attachmentsInNetns,
  getAttachment,
  hostIfnameTaken,
  markReady,
  putAttachment,
} from "../../ipam/store/attachments.ts";
import { type Eni, getEni, setEniLink } from "../../ipam/store/enis.ts";
import { getFacts, type NodeFacts, setFacts } from "../../ipam/store/facts.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import { storeNow, wallClock } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { Result } from "../../shared/cni/result.ts";
import { asFailure } from "../../shared/cni/run-plugin.ts";
import { POD_TABLE_BASE } from "../../shared/datapath/constants.ts";
import { enableForwarding } from "../../shared/datapath/ipv6.ts";
import { ensureNodeRules } from "../../shared/datapath/node-rules.ts";
import type { PodAddress, PodLink, Uplink } from "../../shared/datapath/pod-link.ts";
import { parseIp } from "../../shared/net/ip.ts";
import { isSameNetns } from "../../shared/sys/netns.ts";
import { ipamResult, podOf } from "../terway-ipam/commands.ts";
import { type IpamConfig, parseIpamConfig } from "../terway-ipam/config.ts";
import { rangeSets, takeLease } from "../terway-ipam/lease.ts";
import { type Asked, type AskedInterface, askedInterfaces } from "./asked.ts";
import type { InterfaceConfig } from "./config.ts";
import { inKernel } from "./in-kernel.ts";
import { journal, journalRow } from "./journal.ts";
import { build, forgetConnections, isBuilt, isPrepared, openConntrack, prepareEni } from "./kernel.ts";
import { openPodNetns, type PodNetns } from "./netns.ts";
import {
  hostIfnameOf,
  joinResults,
  planPodLink,
  resultOf,
  routedAddresses,
  sharedAddresses,
  uplinkAddresses,
} from "./plan.ts";
import { undo } from "./remove.ts";
import { runIpam, type Work } from "./work.ts";

const DEFAULT_MTU = 1500;

/** ADD, the same for every interface plugin. Undoes what it did when it fails half-way. */
export function attach(w: Work): Result {
  const { sys } = w.host;
  const startedMs = storeNow(sys);
  const netns = openPodNetns(sys, w.call.env.netns);
  const done = alreadyDone(w, netns);
  if (done) return done;
  const facts = getFacts(w.store.db);
  let interfaces: ReturnType<typeof askedInterfaces>;
  try {
    interfaces = askedInterfaces(w, facts);
  } catch (error) {
    journal(w, { op: "ADD", startedMs, failure: asFailure(error) });
    throw error;
  }
  const [first, ...more] = interfaces;
  const made = [attachOne(first, netns, facts, startedMs)];
  try {
    for (const i of more) made.push(attachOne(i, netns, facts, storeNow(sys)));
  } catch (error) {
    for (const { work, link } of made.reverse()) undo(work, netns, link);
    throw error;
  }
  return joinResults(made.map((m) => resultOf(m.link, netns.path, m.ipam)));
}

interface Made {
  readonly work: Work;
  readonly link: PodLink;
  readonly ipam: Result;
}

/** One interface of the pod. */
function attachOne(i: AskedInterface, netns: PodNetns, facts: Partial<NodeFacts>, startedMs: number): Made {
  const w = i.work;
  const { sys } = w.host;
  const isLeft = w.config.uplink === "eni" && getAttachment(w.store.db, w.key) !== undefined;
  let planned: Planned & { readonly ipam: Result };
  try {
    planned = obtain(i, netns, facts);
  } catch (error) {
    journal(w, { op: "ADD", startedMs, failure: asFailure(error) });
    throw error;
  }
  const leasedMs = storeNow(sys);
  try {
    prepareOnce(w, facts, planned);
    const ct = openConntrack(sys);
    forgetConnections(
      ct,
      planned.link.addresses.map((a) => a.address),
    );
    ct?.close();
    build(sys, w.nl, netns, planned.link, isLeft);
    const builtMs = storeNow(sys);
    inTransaction(w.store.db, () => {
      if (!markReady(w.store.db, w.key))
        throw new CniFailure(
          CODE.tryAgainLater,
          `container ${w.key.containerId} was deleted while its interface ${w.key.ifname} was made`,
          "nothing is left of it; if the runtime still wants it, it calls again",
        );
      const phases = `addresses ${(leasedMs - startedMs).toFixed(2)} ms, kernel ${(builtMs - leasedMs).toFixed(2)} ms`;
      const detail = `${planned.link.addresses.map((a) => a.address).join(" ")}: ${phases}`;
      journalRow(w, { op: "ADD", startedMs, detail });
    });
    return { work: w, link: planned.link, ipam: planned.ipam };
  } catch (error) {
    undo(w, netns, planned.link);
    journal(w, { op: "ADD", startedMs, failure: asFailure(error) });
    throw error;
  }
}

/** ADD came twice for one attachment: the same answer, if what was built is still there. */
function alreadyDone(w: Work, netns: PodNetns): Result | undefined {
  const before = getAttachment(w.store.db, w.key);
  const link = before && builtBefore(w, before, netns);
  if (link === undefined) return undefined;
  const results = (link.others ?? []).map((ifname) => alreadyDone({ ...w, key: { ...w.key, ifname } }, netns));
  const own = resultOf(link, netns.path, {});
  return results.every((r) => r !== undefined) ? joinResults([own, ...results]) : undefined;
}

function builtBefore(w: Work, before: Attachment, netns: PodNetns): PodLink | undefined {
  if (
    before.state !== "ready" ||
    before.netnsIno !== netns.ino ||
    before.netnsDev !== netns.dev ||
    before.datapath === undefined
  )
    return undefined;
  const link = JSON.parse(before.datapath) as PodLink;
  return isBuilt(w.host.sys, w.nl, netns, link) ? link : undefined;
}

interface Planned {
  readonly link: PodLink;
  /** The ENI whose link on the node carries the pod's packets; undefined: none, or it moves into the pod. */
  readonly carrier: Eni | undefined;
}

/** Addresses and the attachment's row, in one transaction where IPAM runs in this process. */
function obtain(i: AskedInterface, netns: PodNetns, facts: Partial<NodeFacts>): Planned & { readonly ipam: Result } {
  const w = i.work;
  const { host, call, config, store, key } = w;
  refuseOthersNetns(w, netns);
  if (config.ipamInProcess) {
    const ipamConfig = ipamConfigOf(i);
    // What is reserved for a pod, or asked for by address, is its first interface's.
    const isFirst = key.ifname === call.env.ifname;
    let planned: (Planned & { readonly ipam: Result }) | undefined;
    takeLease(host.sys, store, {
      key,
      config: ipamConfig,
      facts,
      pod: isFirst ? podOf(call) : undefined,
      only: i.asked.only ?? (config.eniKind === undefined ? undefined : { kinds: [config.eniKind] }),
      fromEnis: i.asked.only !== undefined,
      inSameTransaction(leases) {
        const eni = config.eniKind !== undefined ? eniOfLeases(w, leases) : undefined;
        const sets = eni ? [] : (rangeSets(facts, ipamConfig) ?? []);
        const ipam = ipamResult(host, ipamConfig, { leases, sets }, () => eni);
        planned = { ...record(i, netns, facts, leases, eni, ipam), ipam };
      },
    });
    if (planned === undefined) throw new Error("addresses were leased without a plan");
    return planned;
  }
  const ipam = runIpam(host, call, config, "ADD") ?? {};
  try {
    return inTransaction(store.db, () => {
      const leases = leasesOf(store.db, key);
      const eni = config.eniKind !== undefined ? eniOfLeases(w, leases) : undefined;
      return { ...record(i, netns, facts, leases, eni, ipam), ipam };
    });
  } catch (error) {
    runIpam(host, call, config, "DEL");
    throw error;
  }
}

function ipamConfigOf({ work: { host, call, config, key }, asked }: AskedInterface): IpamConfig {
  // Another IPAM plugin's section says nothing to us; the pod's ENI is not its business.
  const { store, logDir } = config;
  const foreign = asked.only !== undefined && config.ipamType !== "terway-ipam";
  const raw = foreign ? { ...call.conf.raw, ipam: { store, logDir } } : call.conf.raw;
  const ipam = parseIpamConfig({ ...call, conf: { ...call.conf, raw } }, host.env);
  return key.ifname === call.env.ifname ? ipam : { ...ipam, requested: [] };
}

/** Plans the links and writes them down before anything is built. Inside a transaction. */
function record(
  { work: w, asked }: AskedInterface,
  netns: PodNetns,
  facts: Partial<NodeFacts>,
  leases: readonly Leased[],
  eni: Eni | undefined,
  ipam: Result,
): Planned {
  const { call, config, store, key } = w;
  const carrier = eni && carrierOf(w, eni);
  const limit = carrier?.mtu ?? Number(facts.node_mtu ?? DEFAULT_MTU);
  if (config.mtuBytes !== undefined && config.mtuBytes > limit) {
    throw new CniFailure(
      CODE.invalidConfig,
      `mtu ${config.mtuBytes} is larger than the ${limit} bytes of ${carrier ? `ENI ${carrier.id}` : "the node's ENI"}`,
      "lower mtu in the conflist, or leave it out",
    );
  }
  let salt = 0;
  const hostIfname = () => hostIfnameOf(key, salt, config.uplink !== undefined);
  while (hostIfnameTaken(store.db, hostIfname(), key)) salt += 1;
  const link = planPodLink({
    key,
    hostIfname: hostIfname(),
    podMac: config.podMac,
    mtuBytes: config.mtuBytes ?? limit,
    addresses: addressesOf(config, leases, eni, ipam),
    nodeIps: [facts.node_ip, facts.node_ip6].filter((ip) => ip !== undefined && ip !== "") as string[],
    uplink: eni && carrier && uplinkOf(config, facts, eni, carrier),
    podTable: podTableFor(w, netns, asked),
    routes: asked.routes,
    others: asked.others,
  });
  const pod = podOf(call);
  putAttachment(store.db, {
    ...key,
    netns: netns.path,
    netnsDev: netns.dev,
    netnsIno: netns.ino,
    podNamespace: pod?.namespace,
    podName: pod?.name,
    podUid: pod?.uid,
    plugin: w.plugin.name,
    mode: config.mode,
    eniId: eni?.id,
    hostIfname: link.hostIfname,
    datapath: JSON.stringify(link),
    state: "building",
    createdMs: storeNow(w.host.sys),
    at: wallClock(w.host.sys),
  });
  return { link, carrier: config.uplink === "eni" ? undefined : carrier };
}

function addressesOf(
  config: InterfaceConfig,
  leases: readonly Leased[],
  eni: Eni | undefined,
  ipam: Result,
): PodAddress[] {
  if (eni === undefined) return routedAddresses(ipam.ips ?? []);
  return config.uplink === undefined ? sharedAddresses(leases, () => eni) : uplinkAddresses(leases, eni);
}

/** The ENI whose link is on the node: of a member, its trunk. */
function carrierOf(w: Work, eni: Eni): Eni {
  if (eni.kind !== "member") return eni;
  const trunk = eni.trunkId === undefined ? undefined : getEni(w.store.db, eni.trunkId);
  if (trunk === undefined || eni.vlanId === undefined || eni.vlanId < 1 || eni.vlanId > 4094) {
    throw new CniFailure(
      CODE.store,
      trunk === undefined
        ? `member ENI ${eni.id} belongs to the trunk ENI ${eni.trunkId ?? "?"}, which is not in the store`
        : `member ENI ${eni.id} has VLAN id ${eni.vlanId ?? "none"}, want 1 to 4094`,
      "the agent reads trunk and members from the cloud: see its log",
    );
  }
  return trunk;
}

function uplinkOf(
  config: InterfaceConfig,
  facts: Partial<NodeFacts>,
  eni: Eni,
  carrier: Eni,
): Omit<Uplink, "vethIfname"> | undefined {
  if (config.uplink === undefined) return undefined;
  return {
    kind: config.uplink,
    mac: eni.mac,
    parentMac: carrier.mac,
    viaNode: [...config.viaNode, ...(JSON.parse(facts.via_node ?? "[]") as string[])],
    ...(config.uplink === "eni" && eni.ifname !== undefined ? { eniIfname: eni.ifname } : {}),
    ...(config.uplink !== "eni" && carrier.ifname !== undefined ? { parentIfname: carrier.ifname } : {}),
    ...(config.uplink === "vlan" && eni.vlanId !== undefined ? { vlanId: eni.vlanId } : {}),
  };
}

/** The pod's first interface has its routes in main, the others in tables of their own. */
function podTableFor(w: Work, netns: PodNetns, { isMain }: Asked): number | undefined {
  if (isMain) return undefined;
  const others = attachmentsInNetns(w.store.db, netns.dev, netns.ino).filter((a) => isSibling(a, w.key));
  if (others.length === 0 && isMain === undefined) return undefined;
  const taken = others.map((a) => (JSON.parse(a.datapath ?? "{}") as Partial<PodLink>).podTable);
  if (!taken.includes(undefined) && isMain === undefined) return undefined;
  let table = POD_TABLE_BASE;
  while (taken.includes(table)) table += 1;
  return table;
}

function isSibling(a: Attachment, key: AttachmentKey): boolean {
  return a.containerId === key.containerId && !(a.network === key.network && a.ifname === key.ifname);
}

function eniOfLeases(w: Work, leases: readonly Leased[]): Eni {
  const id = leases[0]?.eniId;
  const eni = id === undefined ? undefined : getEni(w.store.db, id);
  if (eni === undefined) {
    throw new CniFailure(
      CODE.store,
      `the address of ${w.key.containerId} belongs to no ENI in the store`,
      "use terway-ipam without ranges in mode shared",
    );
  }
  return eni;
}

/** A namespace in which another living container was attached is somebody else's. */
function refuseOthersNetns(w: Work, netns: PodNetns): void {
  for (const other of attachmentsInNetns(w.store.db, netns.dev, netns.ino)) {
    if (other.containerId === w.key.containerId) continue;
    // Inode numbers of dead namespaces come again; a path that still leads here does not lie.
    if (other.netns !== netns.path && isSameNetns(w.host.sys, other)) {
      throw new CniFailure(
        CODE.invalidEnvironment,
        `CNI_NETNS ${netns.path} is the network namespace of container ${other.containerId}`,
        "check the runtime: each sandbox has its own",
      );
    }
  }
}

/** After a boot, or after the ENI was away, node and ENI are not set up until the agent is there; a pod need not wait for it. */
function prepareOnce(w: Work, facts: Partial<NodeFacts>, { link, carrier: eni }: Planned): void {
  const { store, host } = w;
  const families = [...new Set(link.addresses.map((a) => parseIp(a.address).family))];
  if (facts.prepared_boot !== store.bootId) {
    inKernel("the node's rules", () => {
      enableForwarding(host.sys, w.nl, families);
      ensureNodeRules(host.sys, w.nl, link.nodeIps);
    });
    inTransaction(store.db, () => setFacts(store.db, { prepared_boot: store.bootId }));
  }
  if (eni === undefined || (eni.preparedBoot === store.bootId && isPrepared(w.nl, eni))) return;
  const prepared = prepareEni(host.sys, w.nl, eni);
  inTransaction(store.db, () =>
    setEniLink(store.db, eni.id, { ...prepared, mtu: eni.mtu, preparedBoot: store.bootId }),
  );
  host.log(w.config.logDir, {
    level: "info",
    op: "ADD",
    msg: `set up ENI ${eni.id} (${prepared.ifname}) before the agent`,
  });
}
