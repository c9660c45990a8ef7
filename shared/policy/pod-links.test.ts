import { describe, expect, it } from "vitest";
import { isBridged, nodeLinks } from "./pod-links.ts";

const onNode = (...names: string[]) => names.map((name) => ({ name }));
const inPod = (...names: string[]) => names.map((name) => ({ name, sandbox: "/run/netns/x" }));

describe("the node's ends of a pod's links", () => {
  it.each([
    ["one veth", [...onNode("veth1"), ...inPod("eth0")], ["%veth1"]],
    ["a veth beside an uplink", [...onNode("cali1"), ...inPod("eth0", "veth1")], ["%cali1"]],
    ["several interfaces", [...onNode("a", "b"), ...inPod("eth0", "eth1")], ["%a", "%b"]],
    ["none: macvlan", inPod("eth0"), []],
    ["a bridge, which is not one pod's", [...onNode("cni0", "veth1"), ...inPod("eth0")], []],
    ["nothing a link can be called", [...onNode("a name of too many letters"), ...inPod("eth0")], []],
  ])("are those of %s", (what, interfaces, links) => {
    expect([nodeLinks({ interfaces }), isBridged({ interfaces })]).toEqual([links, what.startsWith("a bridge")]);
  });

  it("are none of a result that is not there", () => {
    expect(nodeLinks(undefined)).toEqual([]);
  });
});
