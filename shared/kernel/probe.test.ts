import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { getLink } from "../netlink/rtnl/link.ts";
import { openNetlink } from "../netlink/socket.ts";
import { nodeSys as sys } from "../sys/node.ts";
import { FEATURE_NAMES, KERNEL_FEATURES, type KernelFeature, lacking, remedyFor } from "./features.ts";
import { inScratchNetns, kernelWithout, probeKernel } from "./probe.ts";

/** What this kernel was built with: another witness than trying. undefined: it does not say. */
function buildOptions(): ReadonlyMap<string, string> | undefined {
  try {
    const text = gunzipSync(readFileSync("/proc/config.gz")).toString();
    return new Map([...text.matchAll(/^(CONFIG_\w+)=(.)/gm)].map((m) => [m[1] ?? "", m[2] ?? ""]));
  } catch {
    return undefined;
  }
}

const links = () => {
  const nl = openNetlink(sys);
  const count = nl.dump(getLink()).length;
  nl.close();
  return count;
};

describe("probeKernel", () => {
  const before = { links: links(), netns: sys.stat("/proc/thread-self/ns/net")?.ino };
  const report = probeKernel(sys);

  it("says of every feature whether it is there", () => {
    expect(Object.keys(report).sort()).toEqual([...FEATURE_NAMES].sort());
  });

  it("leaves the caller where it was, with nothing made there", () => {
    expect({ links: links(), netns: sys.stat("/proc/thread-self/ns/net")?.ino }).toEqual(before);
  });

  const options = buildOptions();
  it.skipIf(options === undefined).each(FEATURE_NAMES)("agrees with the kernel's build options on %s", (name) => {
    const config: readonly string[] = KERNEL_FEATURES[name].config;
    // A module may be missing from the disk; what is built in must work, what is not built must not.
    if (config.every((option) => options?.get(option) === "y")) expect(report[name]).toEqual({ there: true });
    if (config.some((option) => options?.get(option) === undefined)) {
      expect(report[name]).toMatchObject({ there: false, refusal: expect.stringMatching(/E[A-Z]+/) });
    }
  });

  it("starts from an empty namespace each time", () => {
    expect(inScratchNetns(sys, links)).toBeLessThanOrEqual(before.links);
    expect(probeKernel(sys)).toEqual(report);
  });
});

describe("what a person is told", () => {
  it("names module, build option and release", () => {
    expect(remedyFor("ipvlan")).toBe(
      'load it with "modprobe -a ipvlan", or boot a kernel with CONFIG_IPVLAN (Linux 4.2 or later)',
    );
  });

  it("lists what is lacking of what is wanted, and only that", () => {
    const wanted: KernelFeature[] = ["veth", "ipvlan"];
    expect(lacking(kernelWithout("ipvlan", "fq"), wanted)).toEqual(["ipvlan"]);
    expect(lacking(kernelWithout(), wanted)).toEqual([]);
  });
});
