/** What the store knows of this node, gathered for display. */
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { listAddresses } from "../store/addresses.ts";
import { type Attachment, listAttachments } from "../store/attachments.ts";
import { listDemand } from "../store/demand.ts";
import { listEnis } from "../store/enis.ts";
import { getFacts, type NodeFacts } from "../store/facts.ts";
import { openStore, type Store } from "../store/open.ts";

export interface AddressView {
  readonly address: string;
  readonly family: 4 | 6;
  /** idle, cooling, allocated, reserved or releasing */
  readonly state: string;
  /** namespace/name, or the container id when the runtime named no pod. */
  readonly pod: string | undefined;
}

export interface EniView {
  readonly id: string;
  readonly ifname: string;
  readonly state: string;
  readonly vswitchId: string;
  /** Only for pods that ask for its vSwitch or security groups. */
  readonly dedicated: boolean;
  readonly primary: string;
  readonly addresses: readonly AddressView[];
}

export interface PodView {
  readonly pod: string;
  readonly containerId: string;
  readonly network: string;
  readonly ifname: string;
  readonly mode: string;
  readonly addresses: readonly string[];
  readonly eniId: string | undefined;
  readonly hostIfname: string | undefined;
  readonly state: string;
  readonly ageMs: number;
}

export interface NodeView {
  readonly facts: Partial<NodeFacts>;
  readonly enis: readonly EniView[];
  readonly pods: readonly PodView[];
  readonly waiting: number;
  /** IPv4 addresses of the pool (IPv6 follows it in dual stack); of an IPv6-only node, IPv6 ones. */
  readonly pool: {
    readonly total: number;
    readonly allocated: number;
    readonly available: number;
    readonly utilization: number;
  };
}

/** Opens the store to look at it. @throws {StoreError} when there is none. */
export function openForLooking(path: string): Store {
  return openStore({ sys: nodeSys, openSql: openNodeSql }, path, { mustExist: true });
}

function podName(a: Pick<Attachment, "podNamespace" | "podName" | "containerId">): string {
  return a.podName === undefined ? a.containerId : `${a.podNamespace ?? ""}/${a.podName}`;
}

export function readNodeView(store: Store): NodeView {
  const { db } = store;
  const now = nodeSys.clock(CLOCK_BOOTTIME);
  const attachments = listAttachments(db);
  const addresses = listAddresses(db);
  const local = db.all("SELECT * FROM address WHERE pool <> 'eni' AND container_id IS NOT NULL");
  const podOf = new Map(attachments.map((a) => [`${a.network}/${a.containerId}/${a.ifname}`, podName(a)]));
  const view = (a: (typeof addresses)[number]): AddressView => ({
    address: a.address,
    family: a.family,
    state: a.state === "idle" && a.coolUntilMs > now ? "cooling" : a.state,
    pod:
      a.containerId === undefined
        ? undefined
        : (podOf.get(`${a.network}/${a.containerId}/${a.ifname}`) ?? a.containerId),
  });
  const facts = getFacts(db);
  const lead = addresses.filter((a) => a.family === (facts.ip_stack === "ipv6" ? 6 : 4));
  const allocated = lead.filter((a) => a.state === "allocated").length;
  return {
    facts,
    enis: listEnis(db).map((e) => ({
      id: e.id,
      ifname: e.ifname ?? "no link",
      state: e.state,
      vswitchId: e.vswitchId,
      dedicated: e.dedicated,
      primary: e.primary4 ?? e.primary6 ?? "",
      addresses: addresses.filter((a) => a.eniId === e.id).map(view),
    })),
    pods: attachments.map((a) => ({
      pod: podName(a),
      containerId: a.containerId,
      network: a.network,
      ifname: a.ifname,
      mode: a.mode,
      addresses: [
        ...addresses
          .filter((x) => x.containerId === a.containerId && x.network === a.network && x.ifname === a.ifname)
          .map((x) => x.address),
        ...local
          .filter((x) => x.container_id === a.containerId && x.network === a.network && x.ifname === a.ifname)
          .map((x) => String(x.address)),
      ],
      eniId: a.eniId,
      hostIfname: a.hostIfname,
      state: a.state,
      ageMs: now - a.createdMs,
    })),
    waiting: listDemand(db, now).length,
    pool: {
      total: lead.length,
      allocated,
      available: lead.length - allocated,
      utilization: lead.length === 0 ? 0 : Math.floor((100 * allocated) / lead.length),
    },
  };
}
