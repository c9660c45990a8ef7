import { describe, expect, it } from "vitest";
import type { NodeFacts } from "../../ipam/store/facts.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { formatAskingPods, formatPodFacts, type PodFactsJson } from "../../shared/config/pod-facts.ts";
import { askedInterfaces } from "./asked.ts";
import type { Work } from "./work.ts";

const NODE: Partial<NodeFacts> = { asking_pods: formatAskingPods(["default/asks", "default/other"]) };
const SHARED = { mode: "shared", eniKind: "shared", podMac: undefined, ipamInProcess: false };

/** A call for a pod, on a store that has these facts of it; counts what is asked of the store. */
function work(pod: string, facts: PodFactsJson = {}, { uid = "u1", rowUid = "u1", ifname = "eth0", config = {} } = {}) {
  const asked: string[] = [];
  const row = { uid: rowUid, facts: formatPodFacts(facts), at: 0 };
  const w = {
    config: { ...SHARED, ...config },
    key: { network: "net", containerId: "c", ifname },
    call: { env: { args: { K8S_POD_NAMESPACE: "default", K8S_POD_NAME: pod, K8S_POD_UID: uid }, ifname } },
    store: {
      db: {
        get(sql: string) {
          asked.push(sql);
          return row;
        },
      },
    },
  } as unknown as Work;
  return { w, asked };
}
const interfacesOf = (facts: PodFactsJson, more = {}) =>
  askedInterfaces(work("asks", facts, more).w, NODE).map(({ work: { key, config }, asked }) => ({
    ifname: key.ifname,
    mode: config.mode,
    uplink: config.uplink,
    inProcess: config.ipamInProcess,
    ...asked,
  }));
function refusal(facts: PodFactsJson, more = {}): string {
  try {
    askedInterfaces(work("asks", facts, more).w, NODE);
  } catch (error) {
    if (error instanceof CniFailure) return `${error.code} ${error.message}`;
    throw error;
  }
  return "none";
}

describe("what a pod asks for", () => {
  it("is asked of the store only for pods that the node's facts name", () => {
    for (const [pod, facts] of [
      ["plain", NODE],
      ["ask", NODE],
      ["asks", {}],
      ["asks", { asking_pods: "" }],
    ] as const) {
      const { w, asked } = work(pod);
      const [only, ...more] = askedInterfaces(w, facts);
      expect([asked, more, only.work === w, only.asked.only]).toEqual([[], [], true, undefined]);
    }
    const { w, asked } = work("asks");
    askedInterfaces(w, NODE);
    expect(asked).toHaveLength(1);
  });

  it("is an ENI of its own, whatever the conflist's mode, from our IPAM", () => {
    const interfaces = [{ ifname: "eth0", kind: "exclusive", securityGroups: ["sg-1"] }] as const;
    expect(interfacesOf({ interfaces })).toEqual([
      {
        ifname: "eth0",
        mode: "exclusive",
        uplink: "eni",
        inProcess: true,
        only: { kinds: ["exclusive"], securityGroups: ["sg-1"] },
        isMain: undefined,
        routes: [],
        others: [],
      },
    ]);
    expect(interfacesOf({ interfaces: [{ ifname: "eth0", kind: "member" }] })).toMatchObject([
      { mode: "trunk", uplink: "vlan" },
    ]);
    // Groups on a shared ENI: as the conflist makes them, IPvlan too.
    const ipvlan = { config: { mode: "ipvlan", uplink: "ipvlan" } };
    const grouped = [{ ifname: "eth0", kind: "shared", securityGroups: ["sg-1"] }] as const;
    expect(interfacesOf({ interfaces: grouped }, ipvlan)).toMatchObject([{ mode: "ipvlan", uplink: "ipvlan" }]);
    expect(interfacesOf({ interfaces }, ipvlan)).toMatchObject([{ mode: "exclusive", uplink: "eni" }]);
  });

  it("is several interfaces, one of them with the routes in main, made with the sandbox's own", () => {
    const eth1 = { ifname: "eth1", kind: "exclusive", vswitchIds: ["vsw-1"], routes: ["10.0.0.0/8"] } as const;
    const shape = (facts: PodFactsJson, more = {}) =>
      interfacesOf(facts, more).map((i) => [i.ifname, i.mode, i.isMain, i.others]);
    expect(shape({ interfaces: [eth1] })).toEqual([
      ["eth0", "shared", true, ["eth1"]],
      ["eth1", "exclusive", false, []],
    ]);
    expect(shape({ interfaces: [{ ...eth1, defaultRoute: true }] }).map(([, , isMain]) => isMain)).toEqual([
      false,
      true,
    ]);
    // Another conflist's interface of the same pod is that one alone.
    expect(shape({ interfaces: [eth1] }, { ifname: "net1" })).toEqual([["net1", "shared", undefined, []]]);
    expect(interfacesOf({ interfaces: [eth1] })[1]?.routes).toEqual(["10.0.0.0/8"]);
  });

  it("fails with the reason where it cannot be had", () => {
    expect(refusal({ refused: { why: "no such plane", again: true } })).toBe(
      `${CODE.tryAgainLater} pod default/asks asks for what it cannot have: no such plane`,
    );
    expect(refusal({ refused: { why: "nonsense" } })).toMatch(new RegExp(`^${CODE.invalidConfig} .*nonsense`));
    expect(refusal({}, { rowUid: "u0" })).toMatch(/not known yet: the store has it of its predecessor u0/);
    expect(refusal({}, { rowUid: "u0", uid: "" })).toBe("none");
    const mac = { config: { podMac: "02:00:00:00:00:01" } };
    expect(refusal({ interfaces: [{ ifname: "eth0", kind: "exclusive" }] }, mac)).toMatch(/mac 02:.* cannot be had/);
  });
});
