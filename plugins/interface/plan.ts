/** What a pod's interface will be: names, MAC addresses, gateways and tables. Pure. */
import type { Leased } from "../../ipam/store/allocate.ts";
import type { Eni } from "../../ipam/store/enis.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import type { IpConfig, Result } from "../../shared/cni/result.ts";
import { HOST_IFNAME_PREFIX, HOST_UPLINK_PREFIX, POD_GATEWAY4, POD_GATEWAY6 } from "../../shared/datapath/constants.ts";
import { routeTableOf } from "../../shared/datapath/eni-link.ts";
import { type PodAddress, type PodLink, type Uplink, uplinkMac, vethEndOf } from "../../shared/datapath/pod-link.ts";
import { parseCidr } from "../../shared/net/cidr.ts";
import { hash128, toHex } from "../../shared/net/hash.ts";
import { formatIp } from "../../shared/net/ip.ts";
import { formatMac, localMac } from "../../shared/net/mac.ts";

/** Host interface name for a key: prefix and 11 hex digits. `salt` tells apart keys whose names would be the same. */
export function hostIfnameOf(key: AttachmentKey, salt: number, hasUplink = false): string {
  const prefix = hasUplink ? HOST_UPLINK_PREFIX : HOST_IFNAME_PREFIX;
  return prefix + toHex(hash128(`${key.network}/${key.containerId}/${key.ifname}/${salt}`)).slice(0, 11);
}

function macOf(key: AttachmentKey, end: "host" | "pod"): string {
  return formatMac(localMac(hash128(`${end}/${key.network}/${key.containerId}/${key.ifname}`)));
}

export function sharedAddresses(leases: readonly Leased[], eniOf: (id: string) => Eni): PodAddress[] {
  return leases.map((l) => ({
    address: l.address,
    prefixLength: l.family === 4 ? 32 : 128,
    gateway: formatIp(l.family === 4 ? POD_GATEWAY4 : POD_GATEWAY6),
    table: routeTableOf(eniOf(l.eniId ?? "")),
  }));
}

/** Of an uplink: the vSwitch is on the link, its gateway answers for itself. @throws {Error} An ENI without a gateway. */
export function uplinkAddresses(leases: readonly Leased[], eni: Eni): PodAddress[] {
  return leases.map((l) => {
    const [cidr, gateway] = l.family === 4 ? [eni.cidr4, eni.gateway4] : [eni.cidr6, eni.gateway6];
    if (cidr === undefined || gateway === undefined)
      throw new Error(`ENI ${eni.id} has the address ${l.address} in a vSwitch without an IPv${l.family} range`);
    return { address: l.address, prefixLength: parseCidr(cidr).prefixLength, gateway };
  });
}

/** From the result of any IPAM plugin: its mask and gateway stay. */
export function routedAddresses(ips: readonly IpConfig[]): PodAddress[] {
  return ips.map((ip) => {
    const [address = "", prefix = ""] = ip.address.split("/");
    const is6 = address.includes(":");
    return {
      address,
      prefixLength: Number(prefix),
      gateway: ip.gateway ?? formatIp(is6 ? POD_GATEWAY6 : POD_GATEWAY4),
    };
  });
}

export interface LinkInputs {
  readonly key: AttachmentKey;
  readonly hostIfname: string;
  readonly podMac: string | undefined;
  readonly mtuBytes: number;
  readonly addresses: readonly PodAddress[];
  readonly nodeIps: readonly string[];
  readonly uplink?: Omit<Uplink, "vethIfname"> | undefined;
  readonly podTable?: number | undefined;
  readonly routes?: readonly string[];
  readonly others?: readonly string[];
}

/** As users of Terway know it beside eth0; of other interfaces, a name that says whose it is. */
function vethIfnameOf(ifname: string): string {
  return ifname === "eth0" ? "veth1" : `host-${ifname}`.slice(0, 15);
}

export function planPodLink(inputs: LinkInputs): PodLink {
  const { key, hostIfname, mtuBytes, addresses, nodeIps, uplink, podTable, routes = [], others = [] } = inputs;
  return {
    version: 1,
    hostIfname,
    hostMac: macOf(key, "host"),
    podIfname: key.ifname,
    podMac: inputs.podMac ?? macOf(key, "pod"),
    mtuBytes,
    addresses,
    nodeIps,
    ...(uplink ? { uplink: { ...uplink, vethIfname: vethIfnameOf(key.ifname) } } : {}),
    ...(podTable === undefined ? {} : { podTable }),
    ...(routes.length > 0 ? { routes } : {}),
    ...(others.length > 0 ? { others } : {}),
  };
}

/** The result of ADD: host end, the interface with the addresses, and with an uplink the pod's end of the veth. */
export function resultOf(link: PodLink, netns: string, ipam: Pick<Result, "dns" | "routes">): Result {
  const { uplink, mtuBytes: mtu } = link;
  const veth = { name: vethEndOf(link), mac: link.podMac, mtu, sandbox: netns };
  return {
    interfaces: [
      { name: link.hostIfname, mac: link.hostMac, mtu },
      ...(uplink ? [{ name: link.podIfname, mac: uplinkMac(uplink), mtu, sandbox: netns }] : []),
      veth,
    ],
    ips: link.addresses.map((a) => ({ address: `${a.address}/${a.prefixLength}`, gateway: a.gateway, interface: 1 })),
    routes: link.addresses.flatMap((a) => {
      const is6 = a.address.includes(":");
      const dsts = [
        ...(link.podTable === undefined ? [is6 ? "::/0" : "0.0.0.0/0"] : []),
        ...(link.routes ?? []).filter((dst) => dst.includes(":") === is6),
      ];
      return dsts.map((dst) => ({ dst, gw: a.gateway }));
    }),
    ...(ipam.dns ? { dns: ipam.dns } : {}),
  };
}

/** Of several interfaces one result; the first's come first. */
export function joinResults([first = {}, ...more]: readonly Result[]): Result {
  if (more.length === 0) return first;
  const [interfaces, ips, routes] = [[...(first.interfaces ?? [])], [...(first.ips ?? [])], [...(first.routes ?? [])]];
  for (const r of more) {
    const before = interfaces.length;
    ips.push(...(r.ips ?? []).map((ip) => ({ ...ip, interface: before + (ip.interface ?? 0) })));
    interfaces.push(...(r.interfaces ?? []));
    routes.push(...(r.routes ?? []));
  }
  return { ...first, interfaces, ips, routes };
}
