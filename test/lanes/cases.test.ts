import { describe, expect, it } from "vitest";
import type { Feature } from "../kernel/features.ts";
import {
  type CaseRecord,
  casesForVm,
  type LaneRecord,
  mergeLanes,
  modeTable,
  namePattern,
  parseRecords,
  totals,
  whyNowhere,
} from "./cases.ts";

const END: LaneRecord = { type: "end" };

function record(
  name: string,
  state: CaseRecord["state"],
  needs: readonly Feature[] = [],
  lacks: readonly Feature[] = [],
): CaseRecord {
  return {
    type: "case",
    file: "test/e2e/a.test.ts",
    name,
    state,
    ms: 1,
    errors: [],
    placement: {
      mode: "eniip-ipvlan",
      needs,
      lacks: lacks.map((feature) => ({ feature, refusal: "EOPNOTSUPP" })),
    },
  };
}

const veth = record("veth", "passed");
const ipvlan = record("ipvlan", "skipped", ["ipvlan"], ["ipvlan"]);
const both = record("ipvlan and veth", "skipped", ["veth", "ipvlan"], ["ipvlan"]);

describe("placement", () => {
  it("sends to the virtual machine what the host lacks, and nothing else", () => {
    expect(casesForVm([veth, ipvlan, both, END])).toEqual([ipvlan, both]);
  });

  it("names exactly those cases to vitest", () => {
    const odd = record("a (b) [c] > d.e* 1+1 | $x ^ {y} \\ z? /", "skipped", ["fq"], ["fq"]);
    const pattern = new RegExp(namePattern([ipvlan, odd]));
    expect([ipvlan.name, odd.name, both.name, "ipvlan > x", "x > ipvlan"].map((n) => pattern.test(n))).toEqual([
      true,
      true,
      false,
      false,
      false,
    ]);
  });
});

describe("two runs as one", () => {
  it("counts a case where it ran", () => {
    const merged = mergeLanes(
      [veth, ipvlan, both, END],
      [
        { ...ipvlan, state: "passed" },
        { ...both, state: "failed", errors: ["no answer"] },
        { ...veth, state: "skipped" }, // left out by the pattern of names
        END,
      ],
    );
    expect(merged.cases.map((c) => [c.name, c.lane, c.state])).toEqual([
      ["veth", "host", "passed"],
      ["ipvlan", "vm", "passed"],
      ["ipvlan and veth", "vm", "failed"],
    ]);
    expect(merged.broken).toEqual([]);
    expect(totals(merged)).toEqual({ passed: 2, failed: 1, nowhere: [], skipped: [] });
    expect(modeTable(merged)).toBe("mode          host  vm  failed  nowhere\neniip-ipvlan     1   2       1        0");
  });

  it("fails a case that ran nowhere: not asked for, lost with the machine, or lacking there, too", () => {
    expect(totals(mergeLanes([ipvlan, END], undefined)).nowhere.map((c) => c.name)).toEqual(["ipvlan"]);
    const died = mergeLanes([ipvlan, both, END], [{ ...ipvlan, state: "passed" }]);
    expect(totals(died).nowhere.map((c) => c.name)).toEqual(["ipvlan and veth"]);
    expect(died.broken).toEqual(["vm: the run did not come to its end"]);
    const lacking = mergeLanes([ipvlan, END], [ipvlan, END]);
    expect(totals(lacking).nowhere.map(whyNowhere)).toEqual(["ipvlan is missing (EOPNOTSUPP)"]);
  });

  it("fails an end-to-end case that somebody skipped, and lists one beside the code", () => {
    const { placement: _, ...plain } = record("skipped", "skipped");
    const beside: CaseRecord = { ...plain, file: "shared/x.test.ts" };
    const { nowhere, skipped } = totals(mergeLanes([plain, beside, END], undefined));
    expect([nowhere.map((c) => c.file), skipped.map((c) => c.file)]).toEqual([[plain.file], [beside.file]]);
    expect(nowhere.map(whyNowhere)[0]).toContain("it was skipped");
  });

  it("tells files with cases of the same name apart", () => {
    const other = { ...ipvlan, file: "test/e2e/b.test.ts" };
    const merged = mergeLanes([ipvlan, other, END], [{ ...other, state: "passed" }, END]);
    expect(merged.cases.map((c) => c.lane)).toEqual([undefined, "vm"]);
  });

  it("keeps what broke outside of every case, by lane", () => {
    const broken: LaneRecord = { type: "broken", what: "x.test.ts: no such module" };
    expect(mergeLanes([broken, END], [broken, END]).broken).toEqual([`host: ${broken.what}`, `vm: ${broken.what}`]);
  });
});

describe("the records' file", () => {
  it("is read up to a line that was cut short", () => {
    const text = `${JSON.stringify(veth)}\n${JSON.stringify(END)}\n{"type":"ca`;
    expect(parseRecords(text)).toEqual([veth, END]);
    expect(parseRecords("")).toEqual([]);
  });
});
