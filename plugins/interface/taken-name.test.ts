import { afterEach, beforeEach, expect, it } from "vitest";
import type { PodLink } from "../../shared/datapath/pod-link.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import { until } from "../../test/lab/world.ts";
import type { PodNetns } from "./netns.ts";
import { freeName } from "./taken-name.ts";
import { makeUplink } from "./uplink.ts";

const ENI_MAC = "00:16:3e:00:00:01";
const LINK: PodLink = {
  version: 1,
  hostIfname: "calu0123456789a",
  hostMac: "00:16:3e:00:00:02",
  podIfname: "eth0",
  podMac: "00:16:3e:00:00:03",
  mtuBytes: 1500,
  addresses: [],
  nodeIps: [],
  uplink: { kind: "eni", mac: ENI_MAC, parentMac: ENI_MAC, eniIfname: "eth5", vethIfname: "veth1", viaNode: [] },
};

let node: Netns;
let pod: Netns;
let netns: PodNetns;

beforeEach(() => {
  node = createNetns(`tn${process.pid}n`);
  pod = createNetns(`tn${process.pid}p`);
  const { dev, ino } = nodeSys.stat(pod.path) ?? { dev: 0, ino: 0 };
  netns = { path: pod.path, fd: pod.fd, ownFd: nodeSys.open("/proc/thread-self/ns/net", O_RDONLY), dev, ino };
  runTool("ip", ["-n", node.name, "link", "add", "eth5", "address", ENI_MAC, "type", "veth", "peer", "name", "wire"]);
  runTool("ip", ["-n", pod.name, "link", "add", "veth1", "type", "veth", "peer", "name", "other"]);
});
afterEach(() => {
  nodeSys.close(netns.ownFd);
  pod.close();
  node.close();
});

interface Named {
  readonly ifname: string;
  readonly address: string;
  readonly altnames?: readonly string[];
}
const links = () => JSON.parse(runTool("ip", ["-n", pod.name, "-j", "link"])) as Named[];
const altNames = () => links().flatMap((l) => l.altnames ?? []);
const macOf = (name: string) => links().find((l) => l.ifname === name)?.address;

const on = (release: string): Sys => ({ ...nodeSys, kernelRelease: () => release });
const move = (sys: Sys, isLeft = false) =>
  makeUplink(sys, node.nl, pod.nl, netns, LINK, LINK.uplink as NonNullable<PodLink["uplink"]>, isLeft);

it("an ENI comes into the pod under its new name, and the old one is free there afterwards", async () => {
  const sys = on("5.10.134-16.al8.x86_64");
  expect(move(sys)).toBe("eth5");
  expect([macOf("eth0"), altNames()]).toEqual([ENI_MAC, ["eth5"]]);
  freeName(sys, pod.nl, LINK, "eth5");
  await until("the name to be free", 5000, () => altNames().length === 0);
  runTool("ip", ["-n", pod.name, "link", "add", "eth5", "type", "bridge"]);
});

it("where a change of name costs nothing, none is taken", () => {
  expect(move(on("6.9.0"))).toBeUndefined();
  expect([macOf("eth0"), altNames()]).toEqual([ENI_MAC, []]);
});

it("somebody's own link of the ENI's name stays as it is", () => {
  runTool("ip", ["-n", pod.name, "link", "add", "eth5", "type", "bridge"]);
  expect(move(on("5.10.0"))).toBeUndefined();
  expect([macOf("eth0"), altNames(), links().some((l) => l.ifname === "eth5")]).toEqual([ENI_MAC, [], true]);
});
