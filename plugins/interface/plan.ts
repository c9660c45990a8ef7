/** What a pod's veth will be: names, MAC addresses, gateways and tables. Pure. */
import type { Leased } from "../../ipam/store/allocate.ts";
import type { Eni } from "../../ipam/store/enis.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import type { IpConfig, Result } from "../../shared/cni/result.ts";
import { HOST_IFNAME_PREFIX, POD_GATEWAY4, POD_GATEWAY6 } from "../../shared/datapath/constants.ts";
import { routeTableOf } from "../../shared/datapath/eni-link.ts";
import type { PodAddress, PodLink } from "../../shared/datapath/pod-link.ts";
import { hash128, toHex } from "../../shared/net/hash.ts";
import { formatIp } from "../../shared/net/ip.ts";
import { formatMac, localMac } from "../../shared/net/mac.ts";

/** Host interface name for a key: prefix and 11 hex digits. `salt` tells apart keys whose names would be the same. */
export function hostIfnameOf(key: AttachmentKey, salt: number): string {
  return HOST_IFNAME_PREFIX + toHex(hash128(`${key.network}/${key.containerId}/${key.ifname}/${salt}`)).slice(0, 11);
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
}

export function planPodLink(inputs: LinkInputs): PodLink {
  const { key, hostIfname, mtuBytes, addresses, nodeIps } = inputs;
  return {
    version: 1,
    hostIfname,
    hostMac: macOf(key, "host"),
    podIfname: key.ifname,
    podMac: inputs.podMac ?? macOf(key, "pod"),
    mtuBytes,
    addresses,
    nodeIps,
  };
}

/** The result of ADD: host end, pod end, addresses on the pod end, default routes. */
export function resultOf(link: PodLink, netns: string, ipam: Pick<Result, "dns" | "routes">): Result {
  return {
    interfaces: [
      { name: link.hostIfname, mac: link.hostMac, mtu: link.mtuBytes },
      { name: link.podIfname, mac: link.podMac, mtu: link.mtuBytes, sandbox: netns },
    ],
    ips: link.addresses.map((a) => ({ address: `${a.address}/${a.prefixLength}`, gateway: a.gateway, interface: 1 })),
    routes: link.addresses.map((a) => ({ dst: a.address.includes(":") ? "::/0" : "0.0.0.0/0", gw: a.gateway })),
    ...(ipam.dns ? { dns: ipam.dns } : {}),
  };
}
