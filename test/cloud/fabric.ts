/**
 * The data plane: a router namespace for the VPC, one namespace for each instance, one for the world outside. An ENI is
 * a veth between router and instance. The router answers every ARP request with the VPC's own MAC address, delivers an
 * address only to the ENI that owns it, and drops what an ENI sends with an address that is not its own.
 */
import { parseCidr } from "../../shared/net/cidr.ts";
import { type Ip, parseIp } from "../../shared/net/ip.ts";
import { parseMac } from "../../shared/net/mac.ts";
import { accepting } from "../../shared/netlink/request.ts";
import { replaceAddress } from "../../shared/netlink/rtnl/address.ts";
import { delLink, getLink, linkIndexOf, newLink, setLink } from "../../shared/netlink/rtnl/link.ts";
import { delNeighbour, replaceNeighbour } from "../../shared/netlink/rtnl/neighbour.ts";
import { delRoute, replaceRoute } from "../../shared/netlink/rtnl/route.ts";
import { writeSysctl } from "../../shared/netlink/sysctl.ts";
import { IFA_F_NODAD, IFA_F_NOPREFIXROUTE } from "../../shared/netlink/uapi/if-addr.ts";
import { RTN_BLACKHOLE } from "../../shared/netlink/uapi/rtnetlink.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";
import { inNetns } from "../runtime/exec.ts";
import type { EniRecord, Instance, Model, RouteEntryRecord } from "./model.ts";
import { createNetns, type Netns, runTool } from "./netns.ts";

const VPC_MAC = parseMac("ee:ff:ff:ff:ff:ff");
export const METADATA_IP = "100.100.100.200";
export const API_IP = "100.100.0.10";
export const OUTSIDE_IP = "203.0.113.10";
export const OUTSIDE_IP6 = "2001:db8:ffff::10";

interface Port {
  readonly name: string;
  readonly index: number;
  readonly instanceId: string;
  ips: Set<string>;
}

export interface Fabric {
  readonly router: Netns;
  readonly outside: Netns;
  instanceNetns(instanceId: string): Netns;
  attach(model: Model, eni: EniRecord, instance: Instance): void;
  detach(eni: EniRecord): void;
  addresses(eni: EniRecord): void;
  route(model: Model, entry: RouteEntryRecord, present: boolean): void;
  /** Packets dropped because their source is not the sender's. */
  spoofed(): number;
  removeInstance(instanceId: string): void;
  close(): void;
}

function host(ip: Ip) {
  return { ip, prefixLength: ip.bytes.length * 8 };
}

export interface FabricOptions {
  readonly prefix: string;
  readonly vpcCidr: string;
  readonly vpcCidr6: string | undefined;
  readonly mtuBytes: number;
}

export function createFabric(options: FabricOptions): Fabric {
  const { prefix, mtuBytes } = options;
  const router = createNetns(`${prefix}-vpc`);
  const outside = createNetns(`${prefix}-out`);
  const instances = new Map<string, Netns>();
  const ports = new Map<string, Port>();
  let serial = 0;

  const nft = (script: string) => inNetns(router.path, () => runTool("nft", ["-f", "-"], script));
  const element = (port: string, address: string) => `{ "${port}" . ${address} }`;

  function setUpRouter(): void {
    inNetns(router.path, () => {
      writeSysctl(sys, "net/ipv4/ip_forward", "1");
      writeSysctl(sys, "net/ipv6/conf/all/forwarding", "1");
      writeSysctl(sys, "net/ipv4/conf/all/rp_filter", "0");
      writeSysctl(sys, "net/ipv4/conf/default/rp_filter", "0");
    });
    nft(`table inet fabric {
      set own4 { type ifname . ipv4_addr; flags interval; }
      set own6 { type ifname . ipv6_addr; flags interval; }
      counter spoofed { }
      chain ingress {
        type filter hook prerouting priority -300; policy accept;
        iifname "p*" meta nfproto ipv4 iifname . ip saddr != @own4 counter name spoofed drop
        iifname "p*" ip6 saddr fe80::/10 accept
        iifname "p*" ip6 saddr :: accept
        iifname "p*" meta nfproto ipv6 iifname . ip6 saddr != @own6 counter name spoofed drop
      }
    }`);
    const lo = 1; // the first link of every namespace
    router.nl.apply([METADATA_IP, API_IP].map((ip) => replaceAddress({ linkIndex: lo, address: host(parseIp(ip)) })));
    // What no ENI owns is delivered nowhere.
    for (const cidr of [options.vpcCidr, options.vpcCidr6]) {
      if (cidr !== undefined) router.nl.apply([replaceRoute({ dst: parseCidr(cidr), type: RTN_BLACKHOLE })]);
    }
    router.nl.apply([newLink({ kind: "veth", name: "out", peer: { name: "eth0", netnsFd: outside.fd } })]);
    runTool("ip", ["-n", router.name, "addr", "add", "203.0.113.1/24", "dev", "out"]);
    runTool("ip", ["-n", router.name, "addr", "add", "2001:db8:ffff::1/64", "dev", "out", "nodad"]);
    runTool("ip", ["-n", router.name, "link", "set", "out", "up"]);
    runTool("ip", ["-n", outside.name, "addr", "add", `${OUTSIDE_IP}/24`, "dev", "eth0"]);
    runTool("ip", ["-n", outside.name, "addr", "add", `${OUTSIDE_IP6}/64`, "dev", "eth0", "nodad"]);
    runTool("ip", ["-n", outside.name, "link", "set", "eth0", "up"]);
    runTool("ip", ["-n", outside.name, "route", "add", "default", "via", "203.0.113.1"]);
    runTool("ip", ["-n", outside.name, "-6", "route", "add", "default", "via", "2001:db8:ffff::1"]);
  }

  function instanceNetns(instanceId: string): Netns {
    const found = instances.get(instanceId);
    if (found === undefined) throw new Error(`instance ${instanceId} has no namespace`);
    return found;
  }

  function freeName(netns: Netns): string {
    for (let i = 0; ; i++) if (!netns.nl.transact([getLink({ name: `eth${i}` })])[0]?.ok) return `eth${i}`;
  }

  function syncAddresses(port: Port, mac: string, wanted: ReadonlySet<string>): void {
    const added = [...wanted].filter((ip) => !port.ips.has(ip));
    const removed = [...port.ips].filter((ip) => !wanted.has(ip));
    router.nl.apply([
      ...removed.flatMap((text) => {
        const ip = parseIp(text);
        return [
          accepting(delRoute({ dst: host(ip) }), "ESRCH"),
          accepting(delNeighbour({ ip, linkIndex: port.index }), "ENOENT"),
        ];
      }),
      ...added.flatMap((text) => {
        const ip = parseIp(text);
        return [
          replaceRoute({ dst: host(ip), linkIndex: port.index }),
          replaceNeighbour({ ip, linkIndex: port.index, mac: parseMac(mac) }),
        ];
      }),
    ]);
    const lines = [
      ...removed.map(
        (ip) => `delete element inet fabric ${ip.includes(":") ? "own6" : "own4"} ${element(port.name, ip)}`,
      ),
      ...added.map((ip) => `add element inet fabric ${ip.includes(":") ? "own6" : "own4"} ${element(port.name, ip)}`),
    ];
    if (lines.length > 0) nft(lines.join("\n"));
    port.ips = new Set(wanted);
  }

  /** As the cloud's DHCP does for the primary ENI. */
  function configurePrimary(model: Model, eni: EniRecord, netns: Netns, ifname: string): void {
    const vswitch = model.vswitchOf(eni.vswitchId);
    const prefixLength = parseCidr(vswitch.cidr).prefixLength;
    const ip = (...args: string[]) => runTool("ip", ["-n", netns.name, ...args]);
    ip("addr", "add", `${eni.primaryIp}/${prefixLength}`, "dev", ifname);
    ip("link", "set", ifname, "up");
    ip("route", "add", "default", "via", model.gatewayOf(vswitch), "dev", ifname);
    const gateway6 = model.gateway6Of(vswitch);
    const first6 = [...eni.ips6][0];
    if (gateway6 !== undefined && first6 !== undefined) {
      ip("addr", "add", `${first6}/128`, "dev", ifname, "nodad");
      ip("-6", "route", "add", "default", "via", gateway6, "dev", ifname, "onlink");
    }
  }

  setUpRouter();
  return {
    router,
    outside,
    instanceNetns,
    attach(model, eni, instance) {
      let netns = instances.get(instance.id);
      if (netns === undefined) {
        netns = createNetns(`${prefix}-${instance.name}`);
        instances.set(instance.id, netns);
      }
      const name = `p${++serial}`;
      const ifname = freeName(netns);
      router.nl.apply([
        newLink({
          kind: "veth",
          name,
          mac: VPC_MAC,
          mtuBytes,
          peer: { name: ifname, mac: parseMac(eni.mac), mtuBytes, netnsFd: netns.fd },
        }),
      ]);
      const [found] = router.nl.apply([getLink({ name })]);
      const index = linkIndexOf((found?.ok ? found.replies[0] : undefined) ?? new Uint8Array(16));
      inNetns(router.path, () => {
        writeSysctl(sys, `net/ipv4/conf/${name}/proxy_arp`, "1");
        writeSysctl(sys, `net/ipv4/conf/${name}/proxy_arp_pvlan`, "1");
        writeSysctl(sys, `net/ipv4/neigh/${name}/proxy_delay`, "0");
        writeSysctl(sys, `net/ipv6/conf/${name}/accept_dad`, "0");
      });
      const gateway6 = model.gateway6Of(model.vswitchOf(eni.vswitchId));
      router.nl.apply([
        setLink({ index, up: true }),
        ...(gateway6 === undefined
          ? []
          : [
              replaceAddress({
                linkIndex: index,
                address: host(parseIp(gateway6)),
                flags: IFA_F_NODAD | IFA_F_NOPREFIXROUTE,
              }),
            ]),
      ]);
      // The gateway's IPv4 address is answered for on every port.
      router.nl.apply([
        replaceAddress({ linkIndex: 1, address: host(parseIp(model.gatewayOf(model.vswitchOf(eni.vswitchId)))) }),
      ]);
      const port: Port = { name, index, instanceId: instance.id, ips: new Set() };
      ports.set(eni.id, port);
      syncAddresses(port, eni.mac, new Set([...eni.ips, ...eni.ips6]));
      if (eni.type === "Primary") configurePrimary(model, eni, netns, ifname);
    },
    detach(eni) {
      const port = ports.get(eni.id);
      if (port === undefined) return;
      syncAddresses(port, eni.mac, new Set());
      router.nl.apply([accepting(delLink({ index: port.index }), "ENODEV")]);
      ports.delete(eni.id);
    },
    addresses(eni) {
      const port = ports.get(eni.id);
      if (port !== undefined) syncAddresses(port, eni.mac, new Set([...eni.ips, ...eni.ips6]));
    },
    route(model, entry, present) {
      const primary = model.eniOf(model.instanceOf(entry.nextHopId).primaryEniId);
      const port = ports.get(primary.id);
      if (port === undefined) return;
      const dst = parseCidr(entry.destination);
      router.nl.apply([
        present
          ? replaceRoute({ dst, linkIndex: port.index, gateway: parseIp(primary.primaryIp), onlink: true })
          : accepting(delRoute({ dst }), "ESRCH"),
      ]);
      nft(`${present ? "add" : "delete"} element inet fabric own4 ${element(port.name, entry.destination)}`);
    },
    spoofed() {
      const text = inNetns(router.path, () => runTool("nft", ["list", "counter", "inet", "fabric", "spoofed"]));
      return Number(/packets (\d+)/.exec(text)?.[1] ?? 0);
    },
    removeInstance(instanceId) {
      instances.get(instanceId)?.close();
      instances.delete(instanceId);
    },
    close() {
      for (const netns of instances.values()) netns.close();
      outside.close();
      router.close();
    },
  };
}
