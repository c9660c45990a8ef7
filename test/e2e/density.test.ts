/** As many members on one node as the densest trunk type carries: the agent, the cloud's API and terway-ipam; no wire. */
import { expect, it } from "vitest";
import { measureDensity } from "../bench/density.ts";
import { patient } from "../kernel/patience.ts";

it(
  "200 members of one trunk: each with a VLAN id of its own, all given out, none lost by a restart",
  async () => {
    const report = await measureDensity({ members: 200, real: false, prefix: `de${process.pid % 10000}` });
    expect(report).toMatchObject({ vlanIds: 200, reached: 200, violations: [] });
    // One trunk and 200 members, each made and attached once; a restart looks, and makes none.
    expect(report.apiCalls).toMatchObject({ CreateNetworkInterface: 201, AttachNetworkInterface: 201 });
    expect(report.restartCalls).toBeLessThan(5);
    expect(report.oneMore).toContain("all 200 of 200 ENIs of this instance type have their 1 addresses");
  },
  patient(300_000),
);
