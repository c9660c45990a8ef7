/** Every feature that cases may ask for, with real packets where it carries them: here, or in the virtual machine. */
import { afterAll, describe, expect, it } from "vitest";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { ping } from "../lab/traffic.ts";
import { type Feature, inMode, needs, tryFeature } from "./features.ts";

const spaces: Netns[] = [];
afterAll(() => {
  for (const space of spaces) space.close();
});

/** Two namespaces with a veth between them: u0 in the first, u0 in the second. */
function pair(name: string): readonly [Netns, Netns] {
  const [a, b] = [createNetns(`k${process.pid % 10000}${name}a`), createNetns(`k${process.pid % 10000}${name}b`)];
  spaces.push(a, b);
  runTool("ip", ["-n", a.name, "link", "add", "u0", "type", "veth", "peer", "name", "u0", "netns", b.name]);
  for (const space of [a, b]) runTool("ip", ["-n", space.name, "link", "set", "u0", "up"]);
  return [a, b];
}

function child(space: Netns, address: string, ...type: readonly string[]): void {
  runTool("ip", ["-n", space.name, "link", "add", "link", "u0", "name", "c0", "type", ...type]);
  runTool("ip", ["-n", space.name, "addr", "add", `${address}/24`, "dev", "c0"]);
  runTool("ip", ["-n", space.name, "link", "set", "c0", "up"]);
}

describe("links of the kernel", () => {
  it("carry packets tagged with 802.1Q to the same VLAN only", needs("vlan"), async () => {
    const [a, b] = pair("v");
    child(a, "10.66.0.1", "vlan", "id", "101");
    child(b, "10.66.0.2", "vlan", "id", "101");
    expect(await ping(a.path, "10.66.0.2")).toBe(true);
    runTool("ip", ["-n", b.name, "link", "del", "c0"]);
    child(b, "10.66.0.2", "vlan", "id", "102");
    expect(await ping(a.path, "10.66.0.2", 1)).toBe(false);
  });

  it("carry packets of IPvlan children", needs("ipvlan"), async () => {
    const [a, b] = pair("i");
    child(a, "10.66.1.1", "ipvlan", "mode", "l2");
    child(b, "10.66.1.2", "ipvlan", "mode", "l2");
    expect(await ping(a.path, "10.66.1.2")).toBe(true);
  });

  it("carry packets of VRFs apart from the rest", needs("vrf"), async () => {
    const [a, b] = pair("r");
    runTool("ip", ["-n", a.name, "link", "add", "red", "type", "vrf", "table", "10"]);
    runTool("ip", ["-n", a.name, "link", "set", "red", "up"]);
    runTool("ip", ["-n", a.name, "link", "set", "u0", "master", "red"]);
    runTool("ip", ["-n", a.name, "addr", "add", "10.66.2.1/24", "dev", "u0"]);
    runTool("ip", ["-n", b.name, "addr", "add", "10.66.2.2/24", "dev", "u0"]);
    expect(await ping(b.path, "10.66.2.1")).toBe(true);
    expect(await ping(a.path, "10.66.2.2", 1)).toBe(false); // not in the main table
  });

  it("pass what flower does not drop", needs("flower"), async () => {
    const [a, b] = pair("f");
    for (const [space, n] of [[a, 1] as const, [b, 2] as const])
      for (const net of [3, 4]) runTool("ip", ["-n", space.name, "addr", "add", `10.66.${net}.${n}/24`, "dev", "u0"]);
    runTool("tc", ["-n", b.name, "qdisc", "add", "dev", "u0", "clsact"]);
    const match = ["protocol", "ip", "flower", "dst_ip", "10.66.4.2", "action", "drop"];
    runTool("tc", ["-n", b.name, "filter", "add", "dev", "u0", "ingress", ...match]);
    expect([await ping(a.path, "10.66.3.2"), await ping(a.path, "10.66.4.2", 1)]).toEqual([true, false]);
  });
});

describe("what cases may ask for", () => {
  const rest: readonly Feature[] = [
    "dummy",
    "macvlan",
    "ifb",
    "bridge",
    "prio",
    "fq",
    "tbf",
    "clsact",
    "htb",
    "netem",
    "sctp",
  ];
  for (const feature of rest) {
    it(`${feature} is somewhere`, needs(feature), () => expect(tryFeature(feature)).toEqual({ there: true }));
  }

  it("a mode brings what it takes", () => {
    expect(inMode("trunk", "fq").meta.placement).toMatchObject({
      mode: "trunk",
      needs: expect.arrayContaining(["vlan", "fq"]),
    });
    // Nothing beyond what the host of these tests must have anyway.
    expect(inMode("vpc")).toMatchObject({ skip: false, meta: { placement: { mode: "vpc", lacks: [] } } });
  });
});
