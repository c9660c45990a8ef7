/** Every message kind: encoded and decoded, accepted by the running kernel, and read back equal. */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import type { Cidr } from "../net/cidr.ts";
import { formatIp, type Ip, parseIp } from "../net/ip.ts";
import { formatMac, parseMac } from "../net/mac.ts";
import { nodeSys } from "../sys/node.ts";
import { deleteLink } from "./delete-link.ts";
import { accepting, type Request } from "./request.ts";
import { delAddress, getAddresses, newAddress, parseAddress } from "./rtnl/address.ts";
import { delLink, getLink, isUp, newLink, parseLink, setLink } from "./rtnl/link.ts";
import { delNeighbour, getNeighbours, parseNeighbour, replaceNeighbour } from "./rtnl/neighbour.ts";
import { delRoute, getRoutes, newRoute, parseRoute, replaceRoute } from "./rtnl/route.ts";
import { delRule, getRules, newRule, parseRule } from "./rtnl/rule.ts";
import { NetlinkError, talk } from "./socket.ts";
import { IFLA_PERM_ADDRESS } from "./uapi/if-link.ts";
import { parseMessages } from "./wire/reader.ts";
import { Writer } from "./wire/writer.ts";

function encode(request: Request): Uint8Array {
  const w = new Writer();
  const at = w.beginMessage(request.type, request.flags, 1);
  request.write(w);
  w.endMessage(at);
  const [message] = parseMessages(w.finish());
  return message?.payload ?? new Uint8Array(0);
}
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

const ip = fc
  .oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.uint8Array({ minLength: 16, maxLength: 16 }))
  .map((bytes): Ip => ({ family: bytes.length === 4 ? 4 : 6, bytes }));
const cidr = fc
  .tuple(ip, fc.nat(128))
  .map(([x, n]): Cidr => ({ ip: x, prefixLength: Math.max(1, Math.min(n, x.bytes.length * 8)) }));
const index = fc.integer({ min: 1, max: 0x7fffffff });
const table = fc.integer({ min: 1, max: 0x7fffffff });

describe("decode(encode(x)) is x", () => {
  const holds = <T>(arbitrary: fc.Arbitrary<T>, check: (x: T) => void) =>
    fc.assert(
      fc.property(arbitrary, (x) => void check(x)),
      { numRuns: 200 },
    );

  it("for addresses", () =>
    holds(fc.tuple(cidr, index, fc.nat(0x3ff)), ([address, linkIndex, flags]) =>
      expect(parseAddress(encode(newAddress({ address, linkIndex, flags })))).toMatchObject({
        linkIndex,
        ip: address.ip,
        prefixLength: address.prefixLength,
        flags,
      }),
    ));
  it("for routes", () =>
    holds(
      fc.tuple(cidr, index, table, ip, fc.boolean(), fc.nat(100000)),
      ([dst, linkIndex, t, gateway, onlink, metric]) =>
        expect(parseRoute(encode(newRoute({ dst, linkIndex, table: t, gateway, onlink, metric })))).toMatchObject({
          dst,
          linkIndex,
          table: t,
          gateway,
          onlink,
          metric,
        }),
    ));
  it("for rules", () =>
    holds(fc.tuple(cidr, fc.nat(32767), table, fc.nat(255)), ([from, priority, t, protocol]) =>
      expect(parseRule(encode(newRule({ family: from.ip.family, from, priority, table: t, protocol })))).toEqual({
        family: from.ip.family,
        from,
        priority,
        table: t,
        ...(protocol ? { protocol } : {}),
      }),
    ));
  it("for neighbours", () =>
    holds(fc.tuple(ip, index, fc.uint8Array({ minLength: 6, maxLength: 6 })), ([x, linkIndex, mac]) =>
      expect(parseNeighbour(encode(replaceNeighbour({ ip: x, linkIndex, mac })))).toEqual({
        ip: x,
        linkIndex,
        mac,
        state: 0x80,
      }),
    ));
  it("for links", () =>
    holds(
      fc.tuple(fc.uint8Array({ minLength: 6, maxLength: 6 }), fc.integer({ min: 68, max: 65535 }), fc.nat(4094)),
      ([mac, mtuBytes, vlanId]) => {
        expect(
          parseLink(encode(newLink({ kind: "vlan", name: "v0", index: 9, mac, mtuBytes, parentIndex: 7, vlanId }))),
        ).toMatchObject({ name: "v0", index: 9, mac, mtuBytes, kind: "vlan", parentIndex: 7, vlanId });
        expect(parseLink(encode(newLink({ kind: "veth", name: "a", mac, peer: { name: "b" } })))).toMatchObject({
          name: "a",
          mac,
          kind: "veth",
        });
        expect(parseLink(encode(newLink({ kind: "ipvlan", name: "i", parentIndex: 3, mode: 0 })))).toMatchObject({
          kind: "ipvlan",
          parentIndex: 3,
        });
        // Hardware has one more, which only the kernel writes.
        const dummy = newLink({ kind: "dummy", name: "d", mac: new Uint8Array(6) });
        const write = (w: Writer) => {
          dummy.write(w);
          w.attrBytes(IFLA_PERM_ADDRESS, mac);
        };
        expect(parseLink(encode(dummy))).toMatchObject({ mac: new Uint8Array(6), permanentMac: undefined });
        expect(parseLink(encode({ ...dummy, write }))).toMatchObject({ mac: new Uint8Array(6), permanentMac: mac });
      },
    ));
});

describe("the bytes are those of iproute2 6.1.0", () => {
  // Captured with: strace -e trace=sendmsg -e write=3 COMMAND, without the nlmsghdr.
  it.each<[string, Request, string]>([
    [
      "ip addr add 10.0.0.2/32 dev lo",
      newAddress({ linkIndex: 1, address: { ip: parseIp("10.0.0.2"), prefixLength: 32 } }),
      "0220000001000000080002000a000002080001000a000002",
    ],
    [
      "ip rule add from 10.0.0.2 lookup 100 pref 5",
      newRule({ family: 4, priority: 5, table: 100, from: { ip: parseIp("10.0.0.2"), prefixLength: 32 } }),
      "020020006400000100000000080002000a0000020800060005000000",
    ],
  ])("%s", (_command, request, want) => expect(hex(encode(request))).toBe(want));
});

describe("malformed input", () => {
  const good = encode(newLink({ kind: "veth", name: "a", peer: { name: "b" } }));
  it("is refused or read, but never read past its end", () =>
    fc.assert(
      fc.property(fc.nat(good.length), fc.nat(255), fc.nat(good.length - 1), (length, value, at) => {
        const bytes = good.slice(0, length);
        if (at < bytes.length) bytes[at] = value;
        for (const parse of [parseLink, parseAddress, parseRoute, parseRule, parseNeighbour]) {
          try {
            parse(bytes);
          } catch (error) {
            expect((error as Error).name).toBe("MalformedNetlink");
          }
        }
      }),
    ));
});

describe("talk", () => {
  /** An exchange that answers from a list. */
  const scripted = (answers: Uint8Array[]) => {
    const sent: Uint8Array[] = [];
    return {
      sent,
      nl: talk({ send: (b) => void sent.push(b.slice()), receive: () => answers.shift() ?? new Uint8Array(0) }),
    };
  };
  const message = (type: number, flags: number, seq: number, payload: number[]) => {
    const length = 16 + payload.length;
    return [length, 0, 0, 0, type, 0, flags, flags >> 8, seq, 0, 0, 0, 0, 0, 0, 0, ...payload];
  };
  const error = (seq: number, errno: number) =>
    message(2, 0x100, seq, [256 - errno, 255, 255, 255, 16, 0, 0, 0, 16, 0, 5, 0, seq, 0, 0, 0, 0, 0, 0, 0]);
  const ok = (seq: number) => message(2, 0x100, seq, [0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 5, 0, seq, 0, 0, 0, 0, 0, 0, 0]);

  it("tells which of several requests was refused, by one acknowledgement for all", () => {
    const { nl } = scripted([Uint8Array.from(error(2, 17)), Uint8Array.from(ok(3))]);
    const outcomes = nl.transact([getLink(), accepting(getLink(), "EEXIST"), getLink()]);
    expect(outcomes.map((o) => [o.ok, o.refusal?.errno])).toEqual([
      [true, undefined],
      [true, "EEXIST"],
      [true, undefined],
    ]);
  });
  it("reads a dump again when it was interrupted, and gives up in the end", () => {
    const interrupted = (seq: number) => Uint8Array.from(message(3, 0x12, seq, [0, 0, 0, 0]));
    const { nl, sent } = scripted([interrupted(1), Uint8Array.from(message(3, 0x2, 2, [0, 0, 0, 0]))]);
    expect(nl.dump(getLink())).toEqual([]);
    expect(sent.length).toBe(2);
    const never = scripted(Array.from({ length: 20 }, (_, i) => interrupted(i + 1)));
    expect(() => never.nl.dump(getLink())).toThrow(NetlinkError);
  });
});

describe("the running kernel", () => {
  let a: Netns;
  let b: Netns;
  beforeAll(() => {
    a = createNetns(`nl${process.pid % 100000}a`);
    b = createNetns(`nl${process.pid % 100000}b`);
  });
  afterAll(() => {
    a.close();
    b.close();
  });
  const macs = ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(parseMac);
  const linkOf = (netns: Netns, name: string) => {
    const [found] = netns.nl.apply([getLink({ name })]);
    return parseLink((found?.ok ? found.replies[0] : undefined) ?? new Uint8Array(16));
  };

  it("makes a veth with each end in its namespace, takes addresses, routes, rules and neighbours, and gives them back equal", () => {
    a.nl.apply([
      newLink({
        kind: "veth",
        name: "h0",
        mac: macs[0] ?? new Uint8Array(6),
        mtuBytes: 1400,
        peer: { name: "p0", mac: macs[1] ?? new Uint8Array(6), mtuBytes: 1400, netnsFd: b.fd },
      }),
    ]);
    const [host, pod] = [linkOf(a, "h0"), linkOf(b, "p0")];
    expect([formatMac(host.mac), host.mtuBytes, formatMac(pod.mac), isUp(host)]).toEqual([
      "02:00:00:00:00:01",
      1400,
      "02:00:00:00:00:02",
      false,
    ]);
    a.nl.apply([
      setLink({ index: host.index, noLinkLocal: true }),
      setLink({ index: host.index, up: true, mtuBytes: 1300 }),
    ]);
    b.nl.apply([setLink({ index: pod.index, up: true })]);
    expect([isUp(linkOf(a, "h0")), linkOf(a, "h0").mtuBytes]).toEqual([true, 1300]);
    for (const [text, gateway] of [
      ["10.1.2.3", "169.254.1.1"],
      ["2001:db8::5", "fe80::1"],
    ] as const) {
      const address = { ip: parseIp(text), prefixLength: text.includes(":") ? 128 : 32 };
      const via = parseIp(gateway);
      b.nl.apply([
        newAddress({ linkIndex: pod.index, address, flags: 0x202 }),
        ...(via.family === 4 ? [newRoute({ dst: { ip: via, prefixLength: 32 }, linkIndex: pod.index })] : []),
        replaceRoute({
          dst: { ip: { family: via.family, bytes: new Uint8Array(via.bytes.length) }, prefixLength: 0 },
          gateway: via,
          linkIndex: pod.index,
          onlink: true,
          table: 17001,
        }),
        newRule({ family: via.family, priority: 2048, table: 17001, from: address }),
        replaceNeighbour({ linkIndex: pod.index, ip: via, mac: macs[0] ?? new Uint8Array(6) }),
      ]);
      expect(
        b.nl
          .dump(getAddresses())
          .map(parseAddress)
          .some((x) => formatIp(x.ip) === text && (x.flags & 0x40) === 0),
      ).toBe(true);
      expect(b.nl.dump(getRoutes(via.family, 17001)).map(parseRoute)).toMatchObject([
        { gateway: via, table: 17001, linkIndex: pod.index },
      ]);
      expect(b.nl.dump(getRules(via.family)).map(parseRule)).toContainEqual(
        expect.objectContaining({ priority: 2048, from: address, table: 17001 }),
      );
      expect(b.nl.dump(getNeighbours(via.family)).map(parseNeighbour)).toContainEqual(
        expect.objectContaining({ ip: via, mac: macs[0], state: 0x80 }),
      );
      b.nl.apply([
        delRule({ family: via.family, from: address }),
        delNeighbour({ linkIndex: pod.index, ip: via }),
        delRoute({
          dst: { ip: { family: via.family, bytes: new Uint8Array(via.bytes.length) }, prefixLength: 0 },
          table: 17001,
        }),
        delAddress({ linkIndex: pod.index, address }),
      ]);
      expect(b.nl.dump(getRoutes(via.family, 17001))).toEqual([]);
    }
  });

  it("says its own words when it refuses", () => {
    const wrong = newRoute({
      dst: { ip: parseIp("10.9.0.0"), prefixLength: 16 },
      gateway: parseIp("10.200.0.1"),
      linkIndex: 1,
    });
    expect(() => a.nl.apply([wrong])).toThrow(/ip route add 10\.9\.0\.0\/16 via 10\.200\.0\.1 dev if1: \w+ \(.+\)/);
  });

  it("deletes a link without the caller waiting for its clean-up, and nothing is nothing", () => {
    a.nl.apply([newLink({ kind: "veth", name: "gone0", peer: { name: "gone1", netnsFd: b.fd } })]);
    const inside = (work: () => boolean) => {
      const own = nodeSys.open("/proc/thread-self/ns/net", 0);
      nodeSys.setns(a.fd, 0x40000000);
      try {
        return work();
      } finally {
        nodeSys.setns(own, 0x40000000);
        nodeSys.close(own);
      }
    };
    expect(inside(() => deleteLink(nodeSys, a.nl, "gone0"))).toBe(true);
    expect(runTool("ip", ["-n", a.name, "link"])).not.toContain("gone0");
    expect(runTool("ip", ["-n", b.name, "link"])).not.toContain("gone1");
    expect(inside(() => deleteLink(nodeSys, a.nl, "gone0"))).toBe(false);
    expect(a.nl.transact([delLink({ name: "gone0" })])[0]).toMatchObject({ ok: false, refusal: { errno: "ENODEV" } });
  });
});
