import { mkdtempSync, renameSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { asksForInterfaces, parsePodFacts } from "../../shared/config/pod-facts.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { putAttachment, releaseAttachment } from "../store/attachments.ts";
import { getFact } from "../store/facts.ts";
import { openStore, type Store } from "../store/open.ts";
import { getPodFacts, listPodFacts } from "../store/pod-facts.ts";
import { inTransaction } from "../store/transaction.ts";
import { type Manifests, openManifests } from "./manifests.ts";
import { keepPodFacts, type PodFactsKeeper } from "./pod-facts.ts";

let dir: string;
let store: Store;
let running: { manifests: Manifests; keeper: PodFactsKeeper } | undefined;
let said: string[] = [];
let asked: string[][] = [];
let refusesZones = false;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "pod-facts-"));
  store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(dir, "ipam.db"));
  [said, asked, refusesZones] = [[], [], false];
});
afterEach(() => {
  stop();
  store.db.close();
  rmSync(dir, { recursive: true, force: true });
});

function start(): void {
  const log = (_level: string, msg: string) => void said.push(msg);
  const storeLost = (error: unknown) => {
    throw error;
  };
  const manifests = openManifests({ log }, dir, 0);
  const keeper = keepPodFacts({ store, log, storeLost }, manifests, {
    nodeName: "here",
    means: () => ({
      mode: "shared",
      zone: "z1",
      kinds: ["shared", "exclusive"],
      own: "exclusive",
      securityGroups: ["sg-node"],
    }),
    zonesOf: async (ids) => {
      asked.push([...ids]);
      if (refusesZones) throw new Error("Forbidden.RAM");
      return new Map(ids.filter((id) => id !== "vsw-none").map((id) => [id, "z1"]));
    },
  });
  manifests.start();
  running = { manifests, keeper };
}
function stop(): void {
  running?.manifests.stop();
  running?.keeper.stop();
  running = undefined;
}

const write = (name: string, ...texts: string[]) => {
  writeFileSync(join(dir, `.${name}`), texts.map((t) => `---\n${t}\n`).join(""));
  renameSync(join(dir, `.${name}`), join(dir, name));
};
const pod = (name: string, annotations = {}, more: { uid?: string; node?: string; labels?: object } = {}) =>
  JSON.stringify({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, annotations, ...(more.uid ? { uid: more.uid } : {}), labels: more.labels ?? {} },
    spec: { nodeName: more.node ?? "here" },
  });
const eni = { "k8s.aliyun.com/eni": "true" };
const limit = (rate: string) => ({ "kubernetes.io/egress-bandwidth": rate });
const facts = (name: string) => {
  const row = getPodFacts(store.db, "default", name);
  return row && parsePodFacts(row.facts);
};
const asks = (name: string) => asksForInterfaces(getFact(store.db, "asking_pods"), "default", name);
const own = [{ ifname: "eth0", kind: "exclusive" }];

async function until(look: () => unknown): Promise<void> {
  for (let i = 0; i < 1000 && !look(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(look()).toBeTruthy();
}

function attach(name: string): () => void {
  const key = { network: "n", containerId: name, ifname: "eth0" };
  inTransaction(store.db, () =>
    putAttachment(store.db, {
      ...key,
      netns: "",
      netnsDev: undefined,
      netnsIno: undefined,
      podNamespace: "default",
      podName: name,
      podUid: undefined,
      plugin: "p",
      mode: "shared",
      eniId: undefined,
      hostIfname: undefined,
      datapath: undefined,
      state: "ready",
      createdMs: 0,
      at: 0,
    }),
  );
  return () => inTransaction(store.db, () => releaseAttachment(store.db, key, 0, 0));
}

describe("facts of pods", () => {
  it("come from the manifests of this node's pods, and say who asks for something", () => {
    write("a.yaml", pod("a", { ...eni, ...limit("10M"), other: "x" }, { labels: { app: "x" }, uid: "u1" }));
    write("b.yaml", pod("b"), pod("elsewhere", eni, { node: "there" }));
    start();
    expect(facts("a")).toEqual({ labels: { app: "x" }, annotations: limit("10M"), interfaces: own });
    expect(getPodFacts(store.db, "default", "a")?.uid).toBe("u1");
    expect(facts("b")).toEqual({ labels: {}, annotations: {} });
    expect([asks("a"), asks("b"), asks("elsewhere"), facts("elsewhere")]).toEqual([true, false, false, undefined]);
  });

  it("change and go with the manifest, but not under a living pod", async () => {
    const gone = attach("a");
    write("a.yaml", pod("a", eni), pod("b", eni));
    start();
    write("a.yaml", pod("c", limit("1M")));
    await until(() => facts("c"));
    expect([facts("a")?.interfaces, asks("a"), facts("b"), asks("b")]).toEqual([own, true, undefined, false]);
    gone();
    await until(() => facts("a") === undefined);
    expect(getFact(store.db, "asking_pods")).toBe("");
    unlinkSync(join(dir, "a.yaml"));
    await until(() => listPodFacts(store.db).length === 0);
  });

  it("stay as they were last while a manifest is faulty, after a restart too", async () => {
    write("a.yaml", pod("a", { ...eni, ...limit("10M") }), pod("b", eni));
    start();
    const last = facts("a");
    write("a.yaml", pod("a", { "k8s.aliyun.com/eni": "maybe", ...limit("fast") }), pod("b", eni));
    await until(() => said.some((line) => /annotations\[k8s.aliyun.com\/eni\]: must be "true" or "false"/.test(line)));
    expect(said.some((line) => /annotations\[kubernetes.io\/egress-bandwidth\]/.test(line))).toBe(true);
    expect(facts("a")).toEqual(last);
    stop();
    write("a.yaml", "this: [is no");
    start();
    expect([facts("a"), facts("b")?.interfaces, asks("a")]).toEqual([last, own, true]);
    write("a.yaml", pod("a", limit("1M")));
    await until(() => facts("a")?.annotations["kubernetes.io/egress-bandwidth"] === "1M");
    expect([asks("a"), facts("b")]).toEqual([false, undefined]);
  });

  it("refuse a pod whose first request is faulty, rather than let it start as any other", () => {
    write("a.yaml", pod("a", { "k8s.aliyun.com/eni": "maybe" }, { uid: "new" }));
    start();
    expect(asks("a")).toBe(true);
    expect(facts("a")?.refused?.why).toMatch(/must be "true" or "false"/);
  });

  it("ask for a vSwitch's zone no sooner because manifests change, while the cloud refuses to say", async () => {
    refusesZones = true;
    const plane = `{ apiVersion: network.alibabacloud.com/v1beta1, kind: PodNetworking, metadata: { name: db }, spec: { vSwitchOptions: [vsw-1] } }`;
    const request = { "k8s.aliyun.com/pod-networks-request": '[{"interfaceName":"eth1","network":"db"}]' };
    write("a.yaml", pod("a", request), plane);
    start();
    for (let i = 0; i < 3; i++) {
      write("b.yaml", pod("b", {}, { labels: { i: String(i) } }));
      await until(() => facts("b")?.labels.i === String(i));
    }
    expect(asked).toEqual([["vsw-1"]]);
  });

  it("name the vSwitches of a network plane once it is known where they are", async () => {
    const request = (network: string) => ({
      "k8s.aliyun.com/pod-networks-request": JSON.stringify([{ interfaceName: "eth1", network }]),
    });
    write("a.yaml", pod("a", request("db")), pod("b", request("none")));
    start();
    expect(facts("a")?.refused).toEqual({ why: "interface eth1: there is no PodNetworking db", again: true });
    const plane = (name: string, id: string) =>
      `{ apiVersion: network.alibabacloud.com/v1beta1, kind: PodNetworking, metadata: { name: ${name} }, spec: { vSwitchOptions: [${id}] } }`;
    write("n.yaml", plane("db", "vsw-1"), plane("none", "vsw-none"));
    await until(() => facts("a")?.interfaces);
    expect(facts("a")?.interfaces).toEqual([
      { ifname: "eth1", kind: "exclusive", vswitchIds: ["vsw-1"], securityGroups: ["sg-node"] },
    ]);
    expect(facts("b")?.refused?.why).toMatch(/vsw-none does not exist/);
    expect(asked).toEqual([["vsw-1", "vsw-none"]]);
  });
});
