import { describe, expect, it } from "vitest";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { type Mode, parseInterfaceConfig } from "./config.ts";

const MODES: Readonly<Record<string, Mode>> = {
  shared: { eniKind: "shared" },
  vpc: {},
  exclusive: { eniKind: "exclusive", uplink: "eni" },
};

function call(raw: Record<string, unknown>, runtimeConfig: Record<string, unknown> = {}): CniCall {
  return {
    env: { verb: "ADD", containerId: "c", netns: "/run/netns/c", ifname: "eth0", args: {}, path: [] },
    conf: {
      cniVersion: "1.1.0",
      name: "net",
      type: "terway-eni",
      raw: { ipam: { type: "terway-ipam" }, ...raw },
      runtimeConfig,
      cniArgs: {},
      prevResult: undefined,
      validAttachments: undefined,
    },
    stdin: "",
    prevResult: undefined,
  };
}

const parse = (raw: Record<string, unknown> = {}, runtimeConfig: Record<string, unknown> = {}) =>
  parseInterfaceConfig(call(raw, runtimeConfig), {}, "terway-eni", MODES);

function refusal(raw: Record<string, unknown>, runtimeConfig: Record<string, unknown> = {}): string {
  try {
    parse(raw, runtimeConfig);
  } catch (error) {
    if (!(error instanceof CniFailure)) throw error;
    expect([error.code, error.details]).toEqual([CODE.invalidConfig, "correct the terway-eni entry of the conflist"]);
    return error.message;
  }
  throw new Error("it should have been refused");
}

describe("the configuration of an interface plugin", () => {
  it("has the first mode where none is named, and terway-ipam in its own process", () =>
    expect(parse()).toMatchObject({ mode: "shared", eniKind: "shared", ipamInProcess: true, viaNode: [] }));

  it("runs terway-ipam as a program where that is asked for", () =>
    expect(parse({ ipam: { type: "terway-ipam", exec: true } }).ipamInProcess).toBe(false));

  it("takes any IPAM plugin where no ENI owns the addresses", () =>
    expect(parse({ mode: "vpc", ipam: { type: "host-local" } })).toMatchObject({
      ipamType: "host-local",
      ipamInProcess: false,
    }));

  it("reads what goes through the node, as networks", () =>
    expect(
      parse({ mode: "exclusive", serviceCIDRs: ["172.16.0.9/16"], hostStackCIDRs: ["fd00::/108"] }).viaNode,
    ).toEqual(["172.16.0.0/16", "fd00::/108"]));

  it.each<[string, Record<string, unknown>, Record<string, unknown>, string]>([
    ["an unknown mode", { mode: "trunk" }, {}, 'mode is "trunk", want "shared" or "vpc" or "exclusive"'],
    ["no IPAM plugin", { ipam: {} }, {}, "ipam.type is missing"],
    ["another IPAM plugin in mode shared", { ipam: { type: "host-local" } }, {}, 'only "terway-ipam" knows which ENI'],
    ["an MTU below that of IPv6", { mtu: 1000 }, {}, "mtu is 1000, want bytes from 1280 to 9500"],
    ["an MTU that is no number", { mtu: "1500" }, {}, 'mtu is "1500"'],
    ["a multicast MAC address", {}, { mac: "01:00:5e:00:00:01" }, "want a unicast MAC address"],
    ["a MAC address where the ENI has its own", { mode: "exclusive" }, { mac: "02:00:00:00:00:01" }, "cannot be had"],
    ["CIDRs that are none", { serviceCIDRs: ["172.16.0.0"] }, {}, "serviceCIDRs is"],
    ["CIDRs that are no list", { hostStackCIDRs: "10.0.0.0/8" }, {}, "hostStackCIDRs is"],
  ])("refuses %s", (_what, raw, runtimeConfig, words) => expect(refusal(raw, runtimeConfig)).toContain(words));

  it("says all faults at once", () => {
    const message = refusal({ mode: "x", mtu: 1, ipam: {} });
    expect([message.includes("mode is"), message.includes("mtu is"), message.includes("ipam.type")]).toEqual([
      true,
      true,
      true,
    ]);
  });
});
