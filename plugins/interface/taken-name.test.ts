import { afterEach, beforeEach, expect, it } from "vitest";
import type { Uplink } from "../../shared/datapath/pod-link.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import { runTool } from "../../test/cloud/netns.ts";
import { createUplinkPair, ENI_MAC, linkOver, type UplinkPair } from "../../test/lab/uplink-pair.ts";
import { until } from "../../test/lab/world.ts";
import { freeName } from "./taken-name.ts";
import { makeUplink } from "./uplink.ts";

const UPLINK: Uplink = {
  kind: "eni",
  mac: ENI_MAC,
  parentMac: ENI_MAC,
  eniIfname: "eth5",
  vethIfname: "veth1",
  viaNode: [],
};
const LINK = linkOver(UPLINK);

let pair: UplinkPair;

beforeEach(() => {
  pair = createUplinkPair("tn");
  const { node, pod } = pair;
  runTool("ip", ["-n", node.name, "link", "add", "eth5", "address", ENI_MAC, "type", "veth", "peer", "name", "wire"]);
  runTool("ip", ["-n", pod.name, "link", "add", "veth1", "type", "veth", "peer", "name", "other"]);
});
afterEach(() => pair.close());

interface Named {
  readonly ifname: string;
  readonly address: string;
  readonly altnames?: readonly string[];
}
const links = () => JSON.parse(runTool("ip", ["-n", pair.pod.name, "-j", "link"])) as Named[];
const altNames = () => links().flatMap((l) => l.altnames ?? []);
const macOf = (name: string) => links().find((l) => l.ifname === name)?.address;

const on = (release: string): Sys => ({ ...nodeSys, kernelRelease: () => release });
const move = (sys: Sys, isLeft = false) => makeUplink(sys, pair.node.nl, pair.pod.nl, pair.netns, LINK, UPLINK, isLeft);

it("an ENI comes into the pod under its new name, and the old one is free there afterwards", async () => {
  const sys = on("5.10.134-16.al8.x86_64");
  expect(move(sys)).toBe("eth5");
  expect([macOf("eth0"), altNames()]).toEqual([ENI_MAC, ["eth5"]]);
  freeName(sys, pair.pod.nl, LINK, "eth5");
  await until("the name to be free", 5000, () => altNames().length === 0);
  runTool("ip", ["-n", pair.pod.name, "link", "add", "eth5", "type", "bridge"]);
});

it("where a change of name costs nothing, none is taken", () => {
  expect(move(on("6.9.0"))).toBeUndefined();
  expect([macOf("eth0"), altNames()]).toEqual([ENI_MAC, []]);
});

it("somebody's own link of the ENI's name stays as it is", () => {
  runTool("ip", ["-n", pair.pod.name, "link", "add", "eth5", "type", "bridge"]);
  expect(move(on("5.10.0"))).toBeUndefined();
  expect([macOf("eth0"), altNames(), links().some((l) => l.ifname === "eth5")]).toEqual([ENI_MAC, [], true]);
});
