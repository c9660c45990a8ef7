/** A shared ENI on the node: link, address, its routing table, and the rule for what the node sends with its address. */
import { parseIp } from "../net/ip.ts";
import { formatMac, parseMac } from "../net/mac.ts";
import { accepting, type Request } from "../netlink/request.ts";
import { replaceAddress } from "../netlink/rtnl/address.ts";
import { type Link, setLink } from "../netlink/rtnl/link.ts";
import { type Route, replaceRoute } from "../netlink/rtnl/route.ts";
import { newRule, type Rule } from "../netlink/rtnl/rule.ts";
import { IFA_F_NODAD, IFA_F_NOPREFIXROUTE } from "../netlink/uapi/if-addr.ts";
import { FROM_ENI_PRIORITY, PROTOCOL, ROUTE_TABLE_BASE } from "./constants.ts";
import { defaultCidr } from "./pod-link.ts";

/** What the datapath needs to know of an ENI. */
export interface EniLinkSpec {
  readonly routeSlot: number;
  readonly mtu: number;
  readonly primary4: string | undefined;
  readonly gateway4: string | undefined;
  readonly primary6: string | undefined;
  readonly gateway6: string | undefined;
}

export function routeTableOf(eni: Pick<EniLinkSpec, "routeSlot">): number {
  return ROUTE_TABLE_BASE + eni.routeSlot;
}

export function eniRoutes(eni: EniLinkSpec, linkIndex: number): Route[] {
  return [eni.gateway4, eni.gateway6].flatMap((text) => {
    if (text === undefined) return [];
    const gateway = parseIp(text);
    return [
      {
        dst: defaultCidr(gateway.family),
        gateway,
        linkIndex,
        onlink: true,
        table: routeTableOf(eni),
        protocol: PROTOCOL,
      },
    ];
  });
}

export function eniRules(eni: EniLinkSpec): Rule[] {
  return [eni.primary4, eni.primary6].flatMap((text) => {
    if (text === undefined) return [];
    const ip = parseIp(text);
    return [
      {
        family: ip.family,
        priority: FROM_ENI_PRIORITY,
        from: { ip, prefixLength: ip.bytes.length * 8 },
        table: routeTableOf(eni),
        protocol: PROTOCOL,
      },
    ];
  });
}

/** Hardware's, and the emulated cloud's; children of an ENI (vlan, ipvlan) share its MAC and have another kind. */
export function isEniKind({ kind }: Pick<Link, "kind">): boolean {
  return kind === "" || kind === "veth";
}

/** A link that came back from a namespace that died may have a MAC that the pod gave it: hardware knows its own. */
export function findEniLink(links: readonly Link[], mac: string): Link | undefined {
  const own = links.filter(isEniKind);
  return (
    own.find((l) => formatMac(l.mac) === mac) ??
    own.find((l) => l.permanentMac !== undefined && formatMac(l.permanentMac) === mac)
  );
}

/** A pod may have changed the MAC of the ENI that it had. The link is then down: most drivers want that. */
export function macRequests(link: Pick<Link, "index" | "mac">, mac: string): Request[] {
  const { index } = link;
  return formatMac(link.mac) === mac ? [] : [setLink({ index, up: false }), setLink({ index, mac: parseMac(mac) })];
}

/** Idempotent. The ENI's own address is written /32 without a connected route: the vSwitch is reached by eth0. */
export function eniRequests(eni: EniLinkSpec, linkIndex: number): Request[] {
  const addresses = [eni.primary4, eni.primary6].flatMap((text) => (text === undefined ? [] : [parseIp(text)]));
  return [
    setLink({ index: linkIndex, up: true, mtuBytes: eni.mtu }),
    ...addresses.map((ip) =>
      replaceAddress({
        linkIndex,
        address: { ip, prefixLength: ip.bytes.length * 8 },
        flags: IFA_F_NOPREFIXROUTE | (ip.family === 6 ? IFA_F_NODAD : 0),
      }),
    ),
    ...eniRoutes(eni, linkIndex).map(replaceRoute),
    ...eniRules(eni).map((rule) => accepting(newRule(rule), "EEXIST")),
  ];
}
