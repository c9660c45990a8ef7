/** What foreign hands changed of a pod's side on the node, with a real kernel that refuses a part of it. */
import { afterAll, beforeAll, expect, it } from "vitest";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import { inNetns } from "../../test/runtime/exec.ts";
import { putAttachment } from "../store/attachments.ts";
import { makeAttachment, makeKey } from "../store/contract/kit.ts";
import { readJournal } from "../store/journal.ts";
import { inTransaction } from "../store/transaction.ts";
import type { AgentContext } from "./context.ts";
import { repairAndReport } from "./repair.ts";
import { storeAndClock } from "./testkit.ts";

const storeOf = storeAndClock();
let node: Netns;
beforeAll(() => {
  node = createNetns(`rp${process.pid % 10000}`);
});
afterAll(() => node.close());

/** More than a veth can have: the kernel refuses that, and nothing else. */
const TOO_LARGE = 70_000;

const LINK: PodLink = {
  version: 1,
  hostIfname: "cali0",
  hostMac: "02:00:00:00:00:01",
  podIfname: "eth0",
  podMac: "02:00:00:00:00:02",
  mtuBytes: TOO_LARGE,
  addresses: [{ address: "10.9.0.1", prefixLength: 32, gateway: "169.254.1.1" }],
  nodeIps: [],
};

it("tells of a pod what was put back, and apart from it what the kernel refused", () => {
  const store = storeOf();
  const counted: number[] = [];
  const said: string[] = [];
  const ctx = {
    store,
    self: { ip: "10.0.0.1" },
    config: { ipStack: "ipv4" },
    metrics: { repaired: (n: number) => void counted.push(n) },
    log: (level: string, msg: string) => void said.push(`${level}: ${msg}`),
  } as unknown as AgentContext;
  const repair = () => inNetns(node.path, () => repairAndReport(ctx, "a test"));
  repair(); // what the node needs without any pod
  said.length = 0;
  counted.length = 0;
  const ends = ["cali0", "address", LINK.hostMac, "type", "veth", "peer", "name", "peer0"];
  runTool("ip", ["-n", node.name, "link", "add", ...ends]);
  const datapath = JSON.stringify(LINK);
  inTransaction(store.db, () =>
    putAttachment(store.db, makeAttachment(makeKey("c1"), { podNamespace: "shop", podName: "web-0", datapath })),
  );

  const refusal =
    /^cannot put right \(a test\): pod shop\/web-0: ip link set dev if\d+ mtu 70000: EINVAL \(mtu greater than device maximum\)$/;
  expect(repair).toThrow(refusal);
  const putBack = [
    "link cali0 is down on the node",
    "rule is missing: from all",
    "route is missing: 10.9.0.1",
    "neighbour 10.9.0.1 is missing on the node",
  ];
  expect([said.length, counted]).toEqual([1, [putBack.length]]);
  for (const line of putBack) expect(said[0]).toContain(`pod shop/web-0: ${line}`);
  expect(said[0]).not.toContain("MTU");
  expect(readJournal(store.db, {}).filter(({ detail }) => detail?.includes("MTU"))).toEqual([]);

  // All the rest is there now, and nothing is said to have been put back any more.
  expect(repair).toThrow(refusal);
  expect([said.length, counted]).toEqual([1, [putBack.length]]);
});
