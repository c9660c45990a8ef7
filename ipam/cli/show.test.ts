/** show, pods and journal: what the store says, in the forms that people and scripts read (section 8 of the requirements). */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { readJournal } from "../store/journal.ts";
import { formatAge, formatFramed, formatJournal, formatPods, formatShow, formatTable } from "./format.ts";
import { openForLooking, readNodeView } from "./node-view.ts";
import { makeStore, runCli } from "./testkit.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-cli-show-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = join(folder, "ipam.db");
makeStore(path);
const store = openForLooking(path);
const view = readNodeView(store);
const journal = readJournal(store.db);
store.db.close();

const SHOW = `Node: node-1
ENI: eni-1 (eth1)
  Primary IP: 10.0.1.1
  Secondary IPs:
    - 10.0.1.2 (allocated to shop/web-0)
    - 10.0.1.3 (allocated to c0ffee00000000000002)
    - 10.0.1.4 (cooling)
    - 10.0.1.5 (available)
ENI: eni-2 (no link) draining
  Primary IP: 10.0.2.1
  Secondary IPs:
    - 10.0.2.2 (available)
IP Pool: 5 total, 2 allocated, 3 available
Utilization: 40%
Waiting: 1 pods wait for an address`;

const FRAMED = `┌──────────────────────────────────────────────────────────────┐
│ Node: node-1                                                 │
├──────────────────────────────────────────────────────────────┤
│ ENI Count: 2                                                 │
│ IP Pool: Total=5, Allocated=2, Available=3                   │
│ Utilization: 40%                                             │
├──────────────────────────────────────────────────────────────┤
│ ENI Details:                                                 │
│   eni-1 (eth1): Primary=10.0.1.1, Secondary=4 IPs            │
│   eni-2 (no link): Primary=10.0.2.1, Secondary=1 IPs         │
└──────────────────────────────────────────────────────────────┘`;

const PODS = `POD                   INTERFACE  ADDRESSES  ENI    HOST INTERFACE   MODE    STATE  AGE  CONTAINER
shop/web-0            eth0       10.0.1.2   eni-1  cali00000000001  shared  ready  3h   c0ffee0000000
c0ffee00000000000002  eth0       10.0.1.3   eni-1  cali00000000002  shared  ready  3h   c0ffee0000000`;

const JOURNAL = `2026-01-02T03:04:05.678Z  terway-eni  ADD  shop/web-0  ok  4.6 ms
2026-01-02T03:04:06.678Z  terway-eni  ADD  c0ffee00000000000003  FAILED 11: no free address  500.0 ms
2026-01-02T03:04:07.678Z  terway-agent  repair  -  ok  rule is missing`;

describe("the forms", () => {
  it("show", () => expect(formatShow(view)).toBe(SHOW));
  it("show --framed", () => expect(formatFramed(view)).toBe(FRAMED));
  it("pods", () => expect(formatPods(view.pods)).toBe(PODS));
  it("journal", () => expect(formatJournal(journal)).toBe(JOURNAL));

  it("show of an empty store", () => {
    const empty = {
      facts: {},
      enis: [],
      pods: [],
      waiting: 0,
      pool: { total: 0, allocated: 0, available: 0, utilization: 0 },
    };
    expect(formatShow(empty)).toBe("Node: unknown\nIP Pool: 0 total, 0 allocated, 0 available\nUtilization: 0%");
  });

  it.each([
    [-5, "0s"],
    [119_999, "119s"],
    [120_000, "2m"],
    [7_199_999, "119m"],
    [7_200_000, "2h"],
    [172_800_000, "2d"],
  ])("an age of %i ms is %s", (ms, text) => expect(formatAge(ms)).toBe(text));

  it("a table without rows is its titles", () => expect(formatTable(["A", "LONG"], [])).toBe("A  LONG"));
});

describe("terway-cli", () => {
  it.each([
    [["show"], SHOW],
    [["show", "--framed"], FRAMED],
    [["pods"], PODS],
    [["journal"], JOURNAL],
    [["journal", "--failed"], JOURNAL.split("\n")[1]],
    [["journal", "--last", "1"], JOURNAL.split("\n")[2]],
    [["journal", "--pod", "web-0"], JOURNAL.split("\n")[0]],
    [["journal", "--pod", "nobody"], "the journal has no such entry"],
  ])("%j", (argv, want) => {
    expect(runCli(...argv, "--store", path)).toEqual({ status: 0, stdout: `${want}\n`, stderr: "" });
  });

  it("show --json has what the text has", () => {
    const { stdout, status } = runCli("show", "--json", "--store", path);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      facts: { node_name: "node-1" },
      waiting: 1,
      pool: { total: 5, allocated: 2 },
    });
  });

  it("names the store that is not there, and the way to name another, with status 2", () => {
    const { status, stderr } = runCli("show", "--store", join(folder, "none.db"));
    expect([status, stderr]).toEqual([2, expect.stringMatching(/none\.db[\s\S]*--store/)]);
  });
});
