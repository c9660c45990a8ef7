import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { MODE_NAMES, MODES, type ModeName } from "./modes.ts";
import { type ConflistWish, formatConflist, LOOPBACK_CONF, mustRender, renderConflist } from "./render.ts";

const shipped = new URL("../../conflist/", import.meta.url);
const read = (file: string) => readFileSync(new URL(file, shipped), "utf8");

describe("the files in conflist/", () => {
  it("are one for each mode, and lo's", () => {
    expect(readdirSync(shipped).sort()).toEqual(
      [...MODE_NAMES.map((mode) => `${mode}.conflist`), "99-loopback.conf", "README.md"].sort(),
    );
  });

  it.each(MODE_NAMES)("%s.conflist is what the template renders", (mode) => {
    // After a change of the templates: terway-cli conflist new --mode MODE --out conflist/MODE.conflist --force
    expect(read(`${mode}.conflist`)).toBe(formatConflist(mustRender({ mode })));
  });

  it("99-loopback.conf is what the template renders", () => {
    expect(read("99-loopback.conf")).toBe(formatConflist(LOOPBACK_CONF));
  });

  it("have a line in the README", () => {
    const readme = read("README.md");
    expect(MODE_NAMES.filter((mode) => !readme.includes(`\`${mode}\``))).toEqual([]);
  });
});

describe("renderConflist", () => {
  const types = (wish: ConflistWish) => mustRender(wish).plugins.map((p) => p.type);

  it("chains interface, policy, portmap and bandwidth in this order (CON-7)", () => {
    const all = { networkPolicy: true, portmap: true, bandwidth: true };
    expect(types({ mode: "eniip-veth", ...all })).toEqual([
      "terway-eni",
      "terway-policy",
      "portmap",
      "terway-bandwidth",
    ]);
    expect(types({ mode: "standalone-ipam-ptp", ...all })).toEqual([
      "ptp",
      "terway-policy",
      "portmap",
      "terway-bandwidth",
    ]);
    expect(types({ mode: "eniip-cilium" })).toEqual(["terway-eni", "portmap", "cilium-cni"]);
  });

  it("leaves out what is switched off", () => {
    expect(types({ mode: "trunk", networkPolicy: false, portmap: false, bandwidth: false })).toEqual(["terway-trunk"]);
  });

  it.each(MODE_NAMES.filter((mode) => MODES[mode].path === "uplink"))(
    "%s: has the node's address stand for clients of host ports, whose answers would pass it by",
    (mode) => {
      expect(mustRender({ mode }).plugins.find((p) => p.type === "portmap")).toMatchObject({ masqAll: true });
    },
  );

  it("puts what was asked for where the plugins read it", () => {
    const { plugins } = mustRender({
      mode: "eniip-ipvlan",
      mtu: 8500,
      serviceCidrs: ["172.16.0.0/16"],
      hostStackCidrs: ["169.254.20.10/32"],
    });
    expect(plugins[0]).toEqual({
      type: "terway-ipvlan",
      mtu: 8500,
      serviceCIDRs: ["172.16.0.0/16"],
      hostStackCIDRs: ["169.254.20.10/32"],
      capabilities: { ips: true },
      ipam: { type: "terway-ipam" },
    });
  });

  it("gives a standalone chain one range and one default route of each family", () => {
    const { plugins } = mustRender({ mode: "standalone-ipam-ptp", subnets: ["10.9.0.0/24", "fd00:9::/64"] });
    expect(plugins[0]?.ipam).toEqual({
      type: "terway-ipam",
      ranges: [[{ subnet: "10.9.0.0/24" }], [{ subnet: "fd00:9::/64" }]],
      routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
    });
  });

  it.each<[wish: Partial<ConflistWish> & { mode: ModeName }, word: string]>([
    [{ mode: "eniip-veth", mtu: 900 }, "mtu 900: want bytes from 1280 to 9500"],
    [{ mode: "eniip-veth", mtu: 1500.5 }, "mtu 1500.5"],
    [{ mode: "eniip-cilium", networkPolicy: true }, "no networkPolicy in mode eniip-cilium: Cilium enforces"],
    [{ mode: "standalone-ipam-macvlan", portmap: true }, "no portmap in mode standalone-ipam-macvlan"],
    [{ mode: "vpc", cniVersion: "2.0.0" }, "CNI version 2.0.0: want one of"],
    [{ mode: "vpc", name: "-a" }, 'name "-a"'],
    [{ mode: "vpc", serviceCidrs: ["172.16.0.0/16"] }, "service CIDRs mean nothing in mode vpc"],
    [{ mode: "trunk", serviceCidrs: ["172.16.0.1/16"] }, "host bits set: want 172.16.0.0/16"],
    [{ mode: "trunk", hostStackCidrs: ["ten"] }, "host-stack CIDR ten: want a CIDR"],
    [{ mode: "trunk", subnets: ["10.0.0.0/24"] }, "a subnet means nothing in mode trunk"],
    [{ mode: "standalone-ipam-ptp", subnets: ["10.0.0.0/24", "10.1.0.0/24"] }, "more than one subnet of a family"],
    [{ mode: "vpc", master: "eth1" }, "a master means nothing in mode vpc"],
  ])("refuses %j and says why", (wish, word) => {
    expect(renderConflist(wish)).toEqual({ kind: "refused", faults: [expect.stringContaining(word)] });
  });

  it("says all that is wrong at once", () => {
    const outcome = renderConflist({ mode: "vpc", mtu: 1, name: "", master: "eth1" });
    expect(outcome.kind === "refused" && outcome.faults).toHaveLength(3);
  });
});

describe("formatConflist", () => {
  it.each(MODE_NAMES)("%s: writes what JSON.parse reads back the same", (mode) => {
    const conflist = mustRender({ mode });
    expect(JSON.parse(formatConflist(conflist))).toEqual(conflist);
  });
});
