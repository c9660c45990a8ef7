/**
 * The data plane: a router namespace for the VPC, one namespace for each instance, one for the world outside. An ENI is
 * a veth between router and instance, a member ENI a VLAN on the router's end of its trunk. The router answers ARP and
 * ND with the VPC's own MAC address, delivers an address only to the ENI that owns it, drops what an ENI sends with an
 * address (IP or MAC) that is not its own, and enforces security groups.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { parseCidr } from "../../shared/net/cidr.ts";
import { type Ip, parseIp } from "../../shared/net/ip.ts";
import { parseMac } from "../../shared/net/mac.ts";
import { accepting, type Request } from "../../shared/netlink/request.ts";
import { replaceAddress } from "../../shared/netlink/rtnl/address.ts";
import { delLink, getLink, linkIndexOf, newLink, setLink } from "../../shared/netlink/rtnl/link.ts";
import { delNeighbour, newProxy, replaceNeighbour } from "../../shared/netlink/rtnl/neighbour.ts";
import { delRoute, replaceRoute } from "../../shared/netlink/rtnl/route.ts";
import { writeSysctl } from "../../shared/netlink/sysctl.ts";
import { IFA_F_NODAD, IFA_F_NOPREFIXROUTE } from "../../shared/netlink/uapi/if-addr.ts";
import { RTM_DELNEIGH, RTN_BLACKHOLE } from "../../shared/netlink/uapi/rtnetlink.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";
import { inNetns } from "../runtime/exec.ts";
import { createFirewall, FIREWALL_TABLE } from "./firewall.ts";
import type { EniRecord, Instance, Model, RouteEntryRecord, VSwitch } from "./model.ts";
import { createNetns, type Netns, runTool } from "./netns.ts";

export const VPC_MAC = "ee:ff:ff:ff:ff:ff";
export const METADATA_IP = "100.100.100.200";
export const API_IP = "100.100.0.10";
export const OUTSIDE_IP = "203.0.113.10";
export const OUTSIDE_IP6 = "2001:db8:ffff::10";
const LOOPBACK = 1; // the first link of every namespace

/** How the links of ENIs that are attached from now on come into the guest; the primary ENI's is there at once. */
export interface Hotplug {
  /** After the API says InUse; `never` until {@link Fabric.plug}. For all, or asked for each. */
  delayMs: number | "never" | ((eni: EniRecord) => number | "never");
  mtuBytes: number;
}

interface Port {
  readonly eni: EniRecord;
  readonly instance: Instance;
  readonly vswitch: VSwitch;
  readonly name: string;
  index: number;
  mtuBytes: number;
  ips: Set<string>;
}

export interface Fabric {
  readonly router: Netns;
  readonly outside: Netns;
  readonly hotplug: Hotplug;
  /** Why member ENIs cannot be carried on this machine; undefined when they can. */
  noMembers(): string | undefined;
  instanceNetns(instanceId: string): Netns;
  attach(eni: EniRecord, instance: Instance): void;
  /** The link of an attached ENI appears now, if it is not there. */
  plug(eniId: string): void;
  detach(eni: EniRecord): void;
  addresses(eni: EniRecord): void;
  groups(eni: EniRecord): void;
  rules(groupId: string): void;
  route(entry: RouteEntryRecord, present: boolean): void;
  /** Both ends of an ENI's link; the guest's end must be in its instance's namespace. */
  setMtu(eniId: string, mtuBytes: number): void;
  /** As udev would; the link must be in its instance's namespace. */
  renameLink(eniId: string, name: string): void;
  /** The gateways and neighbours answer with another MAC address from now on. */
  setGatewayMac(mac: string): void;
  /** Packets dropped because their source is not the sender's. */
  spoofed(): number;
  /** Packets dropped by security groups. */
  denied(): number;
  removeInstance(instanceId: string): void;
  close(): void;
}

function host(ip: Ip) {
  return { ip, prefixLength: ip.bytes.length * 8 };
}

/** ip neigh del proxy IP dev LINK */
function delProxy(n: { readonly ip: Ip; readonly linkIndex: number }): Request {
  return { ...newProxy(n), type: RTM_DELNEIGH, flags: 0 };
}

export interface FabricOptions {
  readonly prefix: string;
  readonly vpcCidr: string;
  readonly vpcCidr6: string | undefined;
  readonly mtuBytes: number;
  /** Members are attached without a wire: for what asks the API alone, on every kernel. */
  readonly membersUnplugged?: boolean;
  readonly model: () => Model;
}

const TABLE = `table inet fabric {
  set own4 { type ifname . ipv4_addr; }
  set own6 { type ifname . ipv6_addr; }
  # Behind an instance by the route table. Apart: nft reads a set with intervals whole for each change.
  set routed4 { type ifname . ipv4_addr; flags interval; }
  set routed6 { type ifname . ipv6_addr; flags interval; }
  set mac { type ifname . ether_addr; }
  counter spoofed { }
  chain ingress {
    type filter hook prerouting priority -300; policy accept;
    iifname "p*" iifname . ether saddr != @mac counter name spoofed drop
    iifname "p*" meta nfproto ipv4 iifname . ip saddr != @own4 iifname . ip saddr != @routed4 counter name spoofed drop
    iifname "p*" ip6 saddr fe80::/10 accept
    iifname "p*" ip6 saddr :: accept
    iifname "p*" meta nfproto ipv6 iifname . ip6 saddr != @own6 iifname . ip6 saddr != @routed6 counter name spoofed drop
  }
  ${FIREWALL_TABLE}
}
table arp fabric {
  set own4 { type ifname . ipv4_addr; }
  chain probes {
    type filter hook input priority 0; policy accept;
    # Who asks for an address of its own looks for a conflict: the proxy does not make one.
    arp operation request iifname . arp daddr ip @own4 drop
  }
}`;

export function createFabric(options: FabricOptions): Fabric {
  const { prefix } = options;
  const router = createNetns(`${prefix}-vpc`);
  const outside = createNetns(`${prefix}-out`);
  const instances = new Map<string, Netns>();
  const ports = new Map<string, Port>();
  /** Attached, and the guest does not see them yet; members whose trunk it does not see. */
  const waiting = new Map<string, { readonly instance: Instance; readonly timer: NodeJS.Timeout | undefined }>();
  const hotplug: Hotplug = { delayMs: 0, mtuBytes: options.mtuBytes };
  const firewall = createFirewall((id) => options.model().securityGroups.get(id));
  let gatewayMac = parseMac(VPC_MAC);
  let watcher: ChildProcess | undefined;
  let serial = 0;
  let membersChecked: { readonly why: string | undefined } | undefined;

  function nft(script: readonly string[]): void {
    if (script.length > 0) inNetns(router.path, () => runTool("nft", ["-f", "-"], script.join("\n")));
  }

  function counter(name: string): number {
    const text = inNetns(router.path, () => runTool("nft", ["list", "counter", "inet", "fabric", name]));
    return Number(/packets (\d+)/.exec(text)?.[1] ?? 0);
  }

  function setUpRouter(): void {
    inNetns(router.path, () => {
      writeSysctl(sys, "net/ipv4/ip_forward", "1");
      writeSysctl(sys, "net/ipv6/conf/all/forwarding", "1");
      for (const conf of ["all", "default"]) {
        writeSysctl(sys, `net/ipv4/conf/${conf}/rp_filter`, "0");
        writeSysctl(sys, `net/ipv4/conf/${conf}/send_redirects`, "0");
      }
    });
    nft([TABLE]);
    router.nl.apply(
      [METADATA_IP, API_IP].map((ip) => replaceAddress({ linkIndex: LOOPBACK, address: host(parseIp(ip)) })),
    );
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

  /** A network card outlives the namespace that it is in, a veth does not: what vanishes comes back to its instance. */
  function watchLinks(): void {
    watcher = spawn("ip", ["-n", router.name, "monitor", "link"], { stdio: ["ignore", "pipe", "ignore"] });
    watcher.unref();
    let rest = "";
    watcher.stdout?.on("data", (chunk: Buffer) => {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const name = /^Deleted \d+: (p\d+)[@:]/.exec(line)?.[1];
        const port = [...ports.values()].find((p) => p.name === name);
        if (port !== undefined) bringBack(port);
      }
    });
  }

  const indexOf = (netns: Netns, name: string): number | undefined => {
    const [found] = netns.nl.transact([getLink({ name })]);
    return found?.ok ? linkIndexOf(found.replies[0] ?? new Uint8Array(16)) : undefined;
  };

  function bringBack(port: Port): void {
    if (indexOf(router, port.name) !== undefined) return; // announced late: it is another link by now
    const trunk = port.eni.trunk && ports.get(port.eni.trunk.eniId);
    if (trunk !== undefined && indexOf(router, trunk.name) === undefined) return; // comes with its trunk
    const netns = instances.get(port.instance.id);
    if (netns === undefined) return;
    connect(port, netns, "dev%d");
    for (const other of ports.values()) if (other.eni.trunk?.eniId === port.eni.id) connect(other, netns, "");
  }

  function instanceNetns(instanceId: string): Netns {
    const found = instances.get(instanceId);
    if (found === undefined) throw new Error(`instance ${instanceId} has no namespace`);
    return found;
  }

  /** The guest's end of a port, if it is in the instance's namespace. */
  function guestLink(eniId: string): { readonly netns: Netns; readonly ifname: string; readonly port: Port } {
    const port = portOf(eniId);
    const netns = instanceNetns(port.instance.id);
    const links = JSON.parse(runTool("ip", ["-n", netns.name, "-j", "link"])) as {
      readonly ifname: string;
      readonly address: string;
      readonly link_index?: number;
    }[];
    const found = links.find((l) => l.address === port.eni.mac && l.link_index === port.index);
    if (found === undefined) throw new Error(`the link of ${eniId} is not in the namespace of ${port.instance.name}`);
    return { netns, ifname: found.ifname, port };
  }

  function portOf(eniId: string): Port {
    const port = ports.get(eniId);
    if (port === undefined) throw new Error(`${eniId} is not plugged in`);
    return port;
  }

  const wanted = (eni: EniRecord) => new Set([...eni.ips, ...eni.ips6]);
  const deliver = (port: Port, text: string): Request[] => {
    const ip = parseIp(text);
    return [
      replaceRoute({ dst: host(ip), linkIndex: port.index }),
      replaceNeighbour({ ip, linkIndex: port.index, mac: parseMac(port.eni.mac) }),
    ];
  };
  /** Nobody but the router hears a neighbour solicitation: it answers for the others of the vSwitch, as for ARP. */
  const neighboursOf = (port: Port) =>
    [...ports.values()].filter((p) => p !== port && p.vswitch.id === port.vswitch.id && p.vswitch.cidr6 !== undefined);
  const only6 = (ips: Iterable<string>) => [...ips].filter((ip) => ip.includes(":"));

  /** Brings the router to what the port's ENI has now. */
  function sync(port: Port, want: ReadonlySet<string>, groups: readonly string[]): void {
    const added = [...want].filter((ip) => !port.ips.has(ip));
    const removed = [...port.ips].filter((ip) => !want.has(ip));
    const neighbours = neighboursOf(port);
    const proxies = (ips: readonly string[], make: (n: { ip: Ip; linkIndex: number }) => Request) =>
      only6(ips).flatMap((ip) => neighbours.map((p) => make({ ip: parseIp(ip), linkIndex: p.index })));
    router.nl.apply([
      ...removed.flatMap((text) => {
        const ip = parseIp(text);
        return [
          accepting(delRoute({ dst: host(ip) }), "ESRCH"),
          accepting(delNeighbour({ ip, linkIndex: port.index }), "ENOENT"),
        ];
      }),
      ...proxies(removed, (n) => accepting(delProxy(n), "ENOENT")),
      ...added.flatMap((ip) => deliver(port, ip)),
      ...proxies(added, newProxy),
    ]);
    const elements = (verb: string, ips: readonly string[]) =>
      ips.flatMap((ip) => {
        const element = `{ "${port.name}" . ${ip} }`;
        if (ip.includes(":")) return [`${verb} element inet fabric own6 ${element}`];
        return [`${verb} element inet fabric own4 ${element}`, `${verb} element arp fabric own4 ${element}`];
      });
    nft([...elements("delete", removed), ...elements("add", added), ...firewall.port(port.name, groups, want)]);
    port.ips = new Set(want);
  }

  /** Makes the link of a port (again), with all that the router has on it. */
  function connect(port: Port, netns: Netns, ifname: string): void {
    const { name, eni, mtuBytes } = port;
    const trunk = eni.trunk;
    router.nl.apply([
      trunk === undefined
        ? newLink({
            kind: "veth",
            name,
            mac: gatewayMac,
            mtuBytes,
            peer: { name: ifname, mac: parseMac(eni.mac), mtuBytes, netnsFd: netns.fd },
          })
        : newLink({
            kind: "vlan",
            name,
            mac: gatewayMac,
            parentIndex: portOf(trunk.eniId).index,
            vlanId: trunk.vlanId,
          }),
    ]);
    port.index = indexOf(router, name) ?? 0;
    inNetns(router.path, () => {
      writeSysctl(sys, `net/ipv4/conf/${name}/proxy_arp`, "1");
      writeSysctl(sys, `net/ipv4/conf/${name}/proxy_arp_pvlan`, "1");
      writeSysctl(sys, `net/ipv4/neigh/${name}/proxy_delay`, "0");
      writeSysctl(sys, `net/ipv6/conf/${name}/accept_dad`, "0");
      writeSysctl(sys, `net/ipv6/conf/${name}/proxy_ndp`, "1");
      writeSysctl(sys, `net/ipv6/neigh/${name}/proxy_delay`, "0");
    });
    const gateway6 = options.model().gateway6Of(port.vswitch);
    const address = gateway6 && host(parseIp(gateway6));
    const flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE;
    router.nl.apply([
      setLink({ index: port.index, up: true }),
      ...(address ? [replaceAddress({ linkIndex: port.index, address, flags })] : []),
      ...[...port.ips].flatMap((ip) => deliver(port, ip)),
      ...neighboursOf(port).flatMap((p) =>
        only6(p.ips).map((ip) => newProxy({ ip: parseIp(ip), linkIndex: port.index })),
      ),
    ]);
  }

  /** As the cloud's DHCP does for the primary ENI. */
  function configurePrimary(port: Port, netns: Netns, ifname: string): void {
    const { eni, vswitch } = port;
    const model = options.model();
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

  function plugIn(eni: EniRecord, instance: Instance): void {
    const netns = instanceNetns(instance.id);
    const vswitch = options.model().vswitchOf(eni.vswitchId);
    const { mtuBytes } = hotplug;
    const port: Port = { eni, instance, vswitch, name: `p${++serial}`, index: 0, mtuBytes, ips: new Set() };
    // The kernel counts on: of the other links, a pod's may come back under its name at the same moment.
    const ifname = eni.type === "Primary" ? "eth0" : "eth%d";
    // The gateway's IPv4 address is answered for on every port.
    const gateway = options.model().gatewayOf(vswitch);
    if (gateway !== "") router.nl.apply([replaceAddress({ linkIndex: LOOPBACK, address: host(parseIp(gateway)) })]);
    nft([`add element inet fabric mac { "${port.name}" . ${eni.mac} }`]); // the guest may speak as soon as there is a link
    connect(port, netns, ifname);
    ports.set(eni.id, port);
    sync(port, wanted(eni), eni.securityGroups);
    if (eni.type === "Primary") configurePrimary(port, netns, ifname);
    for (const id of [...waiting.keys()]) if (options.model().enis.get(id)?.trunk?.eniId === eni.id) plug(id);
  }

  function plug(eniId: string): void {
    const { instance, timer } = waiting.get(eniId) ?? {};
    clearTimeout(timer);
    waiting.delete(eniId);
    if (instance !== undefined) plugIn(options.model().eniOf(eniId), instance);
  }

  function follow(eni: EniRecord): void {
    const port = ports.get(eni.id);
    if (port !== undefined) sync(port, wanted(eni), eni.securityGroups);
  }

  /** Makes a VLAN link to see whether the kernel can. */
  function tryVlan(): string | undefined {
    const parentIndex = indexOf(router, "out") ?? 0;
    const [made] = router.nl.transact([newLink({ kind: "vlan", name: "probe", parentIndex, vlanId: 1 })]);
    const index = indexOf(router, "probe");
    if (index !== undefined) router.nl.apply([delLink({ index })]);
    if (made?.ok) return undefined;
    return "the emulated cloud cannot carry member ENIs: this kernel makes no 802.1Q links (8021q): run it in the VM";
  }

  setUpRouter();
  watchLinks();
  return {
    router,
    outside,
    hotplug,
    instanceNetns,
    plug,
    noMembers() {
      membersChecked ??= { why: options.membersUnplugged ? undefined : tryVlan() };
      return membersChecked.why;
    },
    attach(eni, instance) {
      if (!instances.has(instance.id)) instances.set(instance.id, createNetns(`${prefix}-${instance.name}`));
      if (eni.trunk !== undefined && options.membersUnplugged) return;
      // A member has no link of its own to wait for, but perhaps its trunk's.
      const trunkThere = eni.trunk !== undefined && ports.has(eni.trunk.eniId);
      if (eni.type === "Primary" || trunkThere) return plugIn(eni, instance);
      const ofLink = typeof hotplug.delayMs === "function" ? hotplug.delayMs(eni) : hotplug.delayMs;
      const delayMs = eni.trunk === undefined ? ofLink : "never";
      if (delayMs === 0) return plugIn(eni, instance);
      const timer = delayMs === "never" ? undefined : setTimeout(() => plug(eni.id), delayMs);
      timer?.unref();
      waiting.set(eni.id, { instance, timer });
    },
    detach(eni) {
      clearTimeout(waiting.get(eni.id)?.timer);
      waiting.delete(eni.id);
      const port = ports.get(eni.id);
      if (port === undefined) return;
      sync(port, new Set(), []);
      ports.delete(eni.id);
      router.nl.apply([accepting(delLink({ index: port.index }), "ENODEV")]);
      nft([`delete element inet fabric mac { "${port.name}" . ${eni.mac} }`]);
    },
    addresses: follow,
    groups: follow,
    rules: (groupId) => nft(firewall.group(groupId)),
    route(entry, present) {
      const model = options.model();
      const primary = model.eniOf(model.instanceOf(entry.nextHopId).primaryEniId);
      const port = ports.get(primary.id);
      if (port === undefined) return;
      const dst = parseCidr(entry.destination);
      const { family } = dst.ip;
      const gateway = family === 4 ? primary.primaryIp : [...primary.ips6][0];
      if (gateway === undefined) throw new Error(`${entry.destination} leads to an instance without IPv6`);
      router.nl.apply([
        present
          ? replaceRoute({ dst, linkIndex: port.index, gateway: parseIp(gateway), onlink: true })
          : accepting(delRoute({ dst }), "ESRCH"),
      ]);
      nft([
        `${present ? "add" : "delete"} element inet fabric routed${family} { "${port.name}" . ${entry.destination} }`,
      ]);
    },
    setMtu(eniId, mtuBytes) {
      const { netns, ifname, port } = guestLink(eniId);
      port.mtuBytes = mtuBytes;
      router.nl.apply([setLink({ index: port.index, mtuBytes })]);
      runTool("ip", ["-n", netns.name, "link", "set", "dev", ifname, "mtu", String(mtuBytes)]);
    },
    renameLink(eniId, name) {
      const { netns, ifname } = guestLink(eniId);
      runTool("ip", ["-n", netns.name, "link", "set", "dev", ifname, "name", name]);
    },
    setGatewayMac(mac) {
      gatewayMac = parseMac(mac);
      for (const port of ports.values()) {
        // The kernel forgets all neighbours of a link whose address changes.
        router.nl.apply([setLink({ index: port.index, mac: gatewayMac })]);
        router.nl.apply([...port.ips].flatMap((ip) => deliver(port, ip)));
      }
    },
    spoofed: () => counter("spoofed"),
    denied: () => counter("denied"),
    removeInstance(instanceId) {
      instances.get(instanceId)?.close();
      instances.delete(instanceId);
    },
    close() {
      watcher?.kill();
      for (const { timer } of waiting.values()) clearTimeout(timer);
      ports.clear();
      for (const netns of instances.values()) netns.close();
      outside.close();
      router.close();
    },
  };
}
