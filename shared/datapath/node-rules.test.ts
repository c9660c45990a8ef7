/** The node's own rules, in the running kernel. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import { inNetns } from "../../test/runtime/exec.ts";
import { openNetlink } from "../netlink/socket.ts";
import { nodeSys } from "../sys/node.ts";
import { ensureNodeRules } from "./node-rules.ts";

describe("the node's own rules", () => {
  let netns: Netns;
  beforeAll(() => {
    netns = createNetns(`noderules-${process.pid}`);
    runTool("ip", ["-n", netns.name, "link", "add", "eth0", "type", "veth", "peer", "name", "wire"]);
    runTool("ip", ["-n", netns.name, "addr", "add", "10.1.0.1/24", "dev", "eth0"]);
  });
  afterAll(() => netns.close());

  const ensure = () =>
    inNetns(netns.path, () => {
      const route = openNetlink(nodeSys);
      try {
        return ensureNodeRules(nodeSys, route, ["10.1.0.1"]);
      } finally {
        route.close();
      }
    });

  it("are as wanted once written: the next look finds nothing", () => {
    expect(ensure().length).toBeGreaterThan(0);
    expect(ensure()).toEqual([]);
  });

  it.each([
    ["a lost rule", ["delete", "rule", "inet", "terway-node", "postrouting", "handle"], /rule is missing: from a pod/],
    ["a flushed chain", ["flush", "chain", "inet", "terway-node", "prerouting"], /rule is missing: came to the node/],
    ["a lost table", ["delete", "table", "inet", "terway-node"], /chain terway-node prerouting is missing/],
    ["a foreign rule", ["add", "rule", "inet", "terway-node", "prerouting", "drop"], /foreign rules/],
  ])("%s is named, once", (_what, command, named) => {
    ensure();
    const inside = (args: readonly string[]) => runTool("ip", ["netns", "exec", netns.name, "nft", ...args]);
    const handle = /masquerade.*# handle (\d+)/.exec(
      String(inside(["-a", "list", "table", "inet", "terway-node"])),
    )?.[1];
    inside(command.at(-1) === "handle" ? [...command, String(handle)] : command);
    expect(ensure().join("; ")).toMatch(named);
    expect(ensure()).toEqual([]);
  });
});
