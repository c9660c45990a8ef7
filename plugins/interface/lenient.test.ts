import { describe, expect, it } from "vitest";
import type { CniCall } from "../../shared/cni/run-plugin.ts";
import { type Mode, parseInterfaceConfig } from "./config.ts";
import { lenient } from "./remove.ts";

const modes: Readonly<Record<string, Mode>> = {
  shared: { eniKind: "shared" },
  vpc: {},
  exclusive: { eniKind: "exclusive", uplink: "eni" },
};

function read(raw: object, given = modes) {
  const call = {
    env: { verb: "DEL", containerId: "c", netns: "", ifname: "eth0", args: {}, path: [] },
    conf: { cniVersion: "1.1.0", name: "net", type: "terway-eni", raw, runtimeConfig: {}, cniArgs: {} },
    stdin: "",
  } as unknown as CniCall;
  const { mode, ipamType } = parseInterfaceConfig(lenient({ name: "terway-eni", modes: given }, call), {}, "x", given);
  return [mode, ipamType];
}

describe("a configuration that became wrong", () => {
  it.each<[string, object, string, string]>([
    [
      "a mode that is none, and an IPAM plugin of others",
      { mode: "vpcc", ipam: { type: "host-local" } },
      "vpc",
      "host-local",
    ],
    [
      "a mode with ENIs, and an IPAM plugin of others",
      { mode: "shared", ipam: { type: "host-local" } },
      "vpc",
      "host-local",
    ],
    ["no IPAM plugin", { ipam: {} }, "shared", "terway-ipam"],
    ["a list for IPAM", { ipam: [] }, "shared", "terway-ipam"],
    ["a number for IPAM's type", { mode: "exclusive", ipam: { type: 3 } }, "exclusive", "terway-ipam"],
    ["no mode", { ipam: { type: "terway-ipam" }, mtu: "x", serviceCIDRs: 1 }, "shared", "terway-ipam"],
  ])("keeps no pod from being deleted: %s", (_what, raw, mode, ipamType) => {
    expect(read(raw)).toEqual([mode, ipamType]);
  });

  it("does without the IPAM plugin of others where every mode has ENIs", () => {
    expect(read({ ipam: { type: "host-local" } }, { trunk: { eniKind: "member" } })).toEqual(["trunk", "terway-ipam"]);
  });
});
