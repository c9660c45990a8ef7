/** What the agent would do, done by hand: for tests that look at the plugins alone. */
import { addAddress } from "../../ipam/store/addresses.ts";
import { type EniKind, setEniLink, setEniState, upsertEni } from "../../ipam/store/enis.ts";
import { setFacts } from "../../ipam/store/facts.ts";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { familiesOf, type IpStack } from "../../shared/config/ip-stack.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { DEFAULT_SECURITY_GROUP } from "../cloud/cloud.ts";
import type { EniRecord } from "../cloud/model.ts";
import { runTool } from "../cloud/netns.ts";
import { createWorld, serviceCidrs, until, type World, type WorldNode, type WorldOptions } from "./world.ts";

export interface Prepared {
  readonly node: WorldNode;
  readonly store: Store;
  readonly enis: readonly EniRecord[];
}

/** A world whose nodes no agent serves: see {@link prepareByHand}. */
export function createIdleWorld(
  options: Pick<WorldOptions, "prefix" | "nodes" | "mode"> & Partial<WorldOptions>,
): Promise<World> {
  const nothing = { poolMin: 0, poolMax: 0, cooldownSeconds: 0, agents: false };
  return createWorld({ instanceType: "ecs.g7.xlarge", ...nothing, ...options });
}

/**
 * ENIs attached to the node and written into its store, facts, forwarding. Members come with their trunk.
 *
 * @param secondary Addresses besides the primary one, which only ENIs of a pod's own hand out; of each family in use.
 * @param ipStack The world's.
 * @param trunkId Of members: the trunk that is there already.
 */
export async function prepareByHand(
  world: World,
  node: WorldNode,
  kind: EniKind,
  count: number,
  secondary: number,
  ipStack: IpStack = "ipv4",
  trunkId?: string,
): Promise<Prepared> {
  const { model } = world.cloud;
  const zone = node.zone.endsWith("a") ? 0 : 1;
  const vswitch = model.vswitchOf(`vsw-pod-${zone}`);
  const [four, six] = ([4, 6] as const).map((family) => familiesOf(ipStack).includes(family));
  async function attach(type: "Secondary" | "Trunk", onTrunk?: string): Promise<EniRecord> {
    const eni = model.createEni(
      {
        vswitchId: vswitch.id,
        securityGroups: [DEFAULT_SECURITY_GROUP],
        count: four ? secondary : 0,
        count6: six ? Math.max(1, secondary) : 0,
        type,
        name: "",
        description: "",
        tags: new Map(),
        primaryIp: undefined,
        ips: [],
        deleteOnRelease: true,
      },
      undefined,
    );
    model.attach(eni.id, node.instance.id, onTrunk);
    await until(`${eni.id} in use`, 5000, () => eni.status === "InUse");
    return eni;
  }
  const trunk = kind === "member" && trunkId === undefined ? await attach("Trunk") : undefined;
  const enis: EniRecord[] = [];
  for (let i = 0; i < count; i++) enis.push(await attach("Secondary", trunk?.id ?? trunkId));
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, node.store);
  const ip = (...args: string[]) => runTool("ip", ["-n", node.netns.split("/").at(-1) ?? "", ...args]);
  const links = JSON.parse(ip("-j", "link")) as { ifname: string; address: string; ifindex: number; mtu: number }[];
  inTransaction(store.db, () => {
    for (const eni of [...(trunk ? [trunk] : []), ...enis]) {
      upsertEni(store.db, {
        id: eni.id,
        mac: eni.mac,
        kind: eni === trunk ? "trunk" : kind,
        ...(eni.trunk ? { trunkId: eni.trunk.eniId, vlanId: eni.trunk.vlanId } : {}),
        state: "ready",
        vswitchId: eni.vswitchId,
        securityGroups: eni.securityGroups,
        primary4: eni.primaryIp,
        cidr4: vswitch.cidr,
        gateway4: model.gatewayOf(vswitch),
        primary6: undefined,
        cidr6: vswitch.cidr6,
        gateway6: model.gateway6Of(vswitch),
        mtu: links.find((l) => l.address === eni.mac)?.mtu ?? 1500,
        createdMs: 0,
      });
      setEniState(store.db, eni.id, "ready");
      const link = links.find((l) => l.address === eni.mac);
      if (eni === trunk) continue;
      if (link && kind === "exclusive")
        setEniLink(store.db, eni.id, { ifname: link.ifname, ifindex: link.ifindex, mtu: link.mtu, preparedBoot: "" });
      // What the cloud keeps of IPv4 on an IPv6-only ENI is known, too.
      const usable = kind !== "shared" ? [eni.primaryIp] : [...eni.ips].filter((x) => x !== eni.primaryIp);
      for (const address of [...usable, ...eni.ips6]) addAddress(store.db, eni.id, address, 0);
    }
    setFacts(store.db, {
      node_ip: model.eniOf(node.instance.primaryEniId).primaryIp,
      via_node: JSON.stringify(serviceCidrs(ipStack)),
      node_ip6: [...model.eniOf(node.instance.primaryEniId).ips6][0] ?? "",
      ip_stack: ipStack,
    });
  });
  return { node, store, enis };
}
