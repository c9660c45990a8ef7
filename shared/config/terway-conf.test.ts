import { describe, expect, it } from "vitest";
import { parseAddonOptions, parseTerwayConf } from "./terway-conf.ts";

const single = { cniVersion: "0.4.0", name: "terway", type: "terway", eniip_virtual_type: "IPVlan", ip_stack: "ipv4" };

describe("parseTerwayConf", () => {
  it("reads the single form (ARC-25, CFG-70 to 74)", () => {
    expect(parseTerwayConf(JSON.stringify(single)).conf).toEqual({
      cniVersion: "0.4.0",
      name: "terway",
      type: "terway",
      eniipVirtualType: "IPVlan",
      ipStack: "ipv4",
      plugin: single,
    });
  });

  it("reads the list form (ARC-24) and keeps the plugin's inline keys", () => {
    const plugin = { type: "terway", eni_conf: "/etc/eni/eni_conf", eni_max_pool_size: 25 };
    const list = { cniVersion: "1.0.0", name: "k8s-pod-network", plugins: [plugin, { type: "portmap" }] };
    expect(parseTerwayConf(list).conf).toMatchObject({ cniVersion: "1.0.0", name: "k8s-pod-network", plugin });
  });

  it("has defaults for what is absent", () => {
    expect(parseTerwayConf({ type: "terway" }).conf).toMatchObject({
      cniVersion: "0.4.0",
      name: "terway",
      eniipVirtualType: "IPVlan",
      ipStack: "ipv4",
    });
  });

  it.each([
    ["CFG-70", { ...single, cniVersion: "one" }, "cniVersion"],
    ["CFG-71", { ...single, name: 5 }, "name"],
    ["CFG-72", { ...single, type: 5 }, "type"],
    ["CFG-73", { ...single, eniip_virtual_type: "ipvlan" }, "eniip_virtual_type"],
    ["CFG-74", { ...single, ip_stack: "ipv5" }, "ip_stack"],
    ["a list without us", { cniVersion: "1.0.0", plugins: [{ type: "bridge" }] }, "plugins"],
    ["a text that is no JSON", "{", "10-terway.conf"],
  ])("%s is refused by name", (_claim, document, key) => {
    const { conf, faults } = parseTerwayConf(document as string | object);
    expect(conf).toBeUndefined();
    expect(faults.map((f) => f.key)).toEqual([key]);
  });
});

describe("parseAddonOptions", () => {
  it.each([
    ['{"IPVlan":"true","NetworkPolicy":"true"}', { eniipVirtualType: "IPVlan", disableNetworkPolicy: false }],
    ['{"IPVlan":"false","NetworkPolicy":"false"}', { eniipVirtualType: "Veth", disableNetworkPolicy: true }],
    ["{}", {}],
  ])("%s", (text, want) => expect(parseAddonOptions(text)).toEqual({ options: want, warnings: [], faults: [] }));

  it("names what it cannot read and what it does not know", () => {
    const { warnings, faults } = parseAddonOptions('{"IPVlan":"maybe","Extra":"x"}');
    expect(faults.map((f) => f.message)).toEqual(['"IPVlan" is "maybe": want "true" or "false"']);
    expect(warnings.map((w) => w.key)).toEqual(["Extra"]);
    expect(parseAddonOptions("{").faults).toHaveLength(1);
  });
});
