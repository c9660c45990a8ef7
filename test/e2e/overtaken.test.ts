/**
 * Calls that go on after their runtime is gone, while another one deletes the container: a DEL that comes between two
 * steps of an ADD. The store does what the DEL would, at exactly that step, by a trigger.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AgentContext } from "../../ipam/agent/context.ts";
import { sweepDeadPods } from "../../ipam/agent/dead-pods.ts";
import { addAddress, listAddresses } from "../../ipam/store/addresses.ts";
import { listAttachments } from "../../ipam/store/attachments.ts";
import { makeEni, putEni } from "../../ipam/store/contract/kit.ts";
import { setFacts } from "../../ipam/store/facts.ts";
import { openStore, type Store, storeNow } from "../../ipam/store/open.ts";
import { AF_UNIX, SOCK_DGRAM } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { CNI_PATH, until } from "../lab/world.ts";
import { exec, inNetns } from "../runtime/exec.ts";

const prefix = `ov${process.pid % 10000}`;
const dir = mkdtempSync(join(tmpdir(), "terway-overtaken-"));
const places = { store: join(dir, "ipam.db"), logDir: dir };
let node: Netns;
let pods: readonly Netns[];
let store: Store;

/** One address for everybody, free again at once. */
const CONF = {
  cniVersion: "1.1.0",
  name: "net",
  type: "terway-eni",
  mode: "vpc",
  ...places,
  ipam: {
    type: "terway-ipam",
    cooldownSeconds: 0,
    ranges: [[{ subnet: "10.73.0.0/29", rangeStart: "10.73.0.2", rangeEnd: "10.73.0.2" }]],
  },
};

const envOf = (verb: "ADD" | "DEL", containerId: string, netns: string) => ({
  CNI_COMMAND: verb,
  CNI_CONTAINERID: containerId,
  CNI_NETNS: netns,
  CNI_IFNAME: "eth0",
  CNI_PATH: CNI_PATH.join(":"),
});

function call(verb: "ADD" | "DEL", containerId: string, netns: string, conf: object = CONF, plugin = "terway-eni") {
  return exec({
    path: CNI_PATH.map((folder) => join(folder, plugin)).find(existsSync) ?? plugin,
    env: envOf(verb, containerId, netns),
    stdin: JSON.stringify(conf),
    netns: node.path,
  });
}

beforeAll(() => {
  node = createNetns(`${prefix}-node`);
  pods = [1, 2].map((i) => createNetns(`${prefix}-${i}`));
  store = openStore({ sys: nodeSys, openSql: openNodeSql }, places.store);
});
afterAll(() => {
  store.db.close();
  for (const ns of [...pods, node]) ns.close();
  rmSync(dir, { recursive: true, force: true });
});

const linksOfNode = () => runTool("ip", ["-n", node.name, "-o", "link", "show", "type", "veth"]);

describe("an ADD that a DEL overtakes", () => {
  it("fails, leaves nothing, and takes nothing from who has the address by then", async () => {
    const [first, second] = pods.map((ns) => ns.path) as [string, string];
    const byHand = new DatabaseSync(places.store);
    // The node is set up after the address was taken and before the link is made.
    byHand.exec(`CREATE TRIGGER overtaken AFTER INSERT ON fact WHEN NEW.name = 'prepared_boot' BEGIN
      UPDATE address SET container_id = 'other' WHERE container_id = 'c';
      DELETE FROM attachment WHERE container_id = 'c';
    END`);
    const overtaken = await call("ADD", "c", first);
    byHand.exec("DROP TRIGGER overtaken");
    byHand.close();
    expect([overtaken.status, JSON.parse(overtaken.stdout)]).toEqual([
      1,
      expect.objectContaining({
        code: 11,
        msg: expect.stringContaining("was deleted while its interface eth0 was made"),
      }),
    ]);
    expect([linksOfNode().trim(), listAttachments(store.db)]).toEqual(["", []]);
    expect(listAddresses(store.db)).toEqual([]); // of no ENI
    expect(store.db.all("SELECT container_id FROM address")).toEqual([{ container_id: "other" }]);
    store.db.run("DELETE FROM address");
    expect((await call("ADD", "d", second)).status).toBe(0);
    expect((await call("DEL", "c", first)).status).toBe(0);
    expect(linksOfNode()).toContain("cali");
    expect((await call("DEL", "d", second)).status).toBe(0);
    expect(linksOfNode().trim()).toBe("");
  });
});

describe("what another IPAM plugin freed before a DEL was killed", () => {
  /** Frees at once, and knows nothing of attachments. */
  const foreign = {
    ...CONF,
    cniVersion: "1.0.0",
    ipam: { ...CONF.ipam, type: "host-local", dataDir: join(dir, "host-local") },
  };
  const routes = () => runTool("ip", ["-n", node.name, "route", "show", "table", "17000"]).trim();

  it.each([
    ["DEL comes again", (netns: string) => call("DEL", "e", netns, foreign)],
    [
      "the agent sweeps",
      async () => {
        store.db.run("UPDATE attachment SET netns = '/run/netns/gone' WHERE container_id = 'e'");
        const ctx = { store, log: () => undefined } as unknown as AgentContext;
        inNetns(node.path, () => sweepDeadPods(ctx, sweepDeadPods(ctx, new Set(), 0), 0));
        return { status: 0 };
      },
    ],
  ])("is its next owner's when %s", async (_, again) => {
    const [first, second] = pods.map((ns) => ns.path) as [string, string];
    expect((await call("ADD", "e", first, foreign)).status).toBe(0);
    expect((await call("DEL", "e", first, foreign, "host-local")).status).toBe(0);
    expect((await call("ADD", "f", second, foreign)).status).toBe(0);
    const before = routes();
    expect(before).toContain("10.73.0.2");
    expect((await again(first)).status).toBe(0);
    expect([routes(), listAttachments(store.db).map((a) => a.containerId)]).toEqual([before, ["f"]]);
    expect((await call("DEL", "f", second, foreign)).status).toBe(0);
    expect([linksOfNode().trim(), routes(), listAttachments(store.db)]).toEqual(["", "", []]);
  });
});

describe("an ADD that waits for the agent while its container is deleted", () => {
  it("takes no address", async () => {
    putEni(store, makeEni(1), []);
    const agent = inNetns(node.path, () => nodeSys.socket(AF_UNIX, SOCK_DGRAM, 0));
    nodeSys.bindUnix(agent, "");
    setFacts(store.db, { agent_socket: nodeSys.unixName(agent) });
    const conf = { ...CONF, type: "terway-ipam", mode: undefined, ipam: { type: "terway-ipam", waitSeconds: 20 } };
    const waiting = inNetns(node.path, () =>
      spawn(join(CNI_PATH[0] ?? "", "terway-ipam"), {
        env: envOf("ADD", "w", pods[0]?.path ?? ""),
        stdio: ["pipe", "pipe", "inherit"],
      }),
    );
    waiting.stdin.end(JSON.stringify(conf));
    let out = "";
    waiting.stdout.on("data", (chunk) => {
      out += chunk;
    });
    const ended = new Promise<number | null>((resolve) => waiting.on("exit", resolve));
    const waiters = () => Number(store.db.get("SELECT count(*) AS n FROM demand")?.n);
    await until("it waits", 10_000, () => waiters() === 1 || (out !== "" && Promise.reject(new Error(out))));
    expect((await call("DEL", "w", "", conf, "terway-ipam")).status).toBe(0);
    addAddress(store.db, "eni-1", "10.0.1.9", storeNow(nodeSys));
    expect([await ended, JSON.parse(out)]).toEqual([
      1,
      expect.objectContaining({ code: 11, msg: expect.stringContaining("was deleted while it waited") }),
    ]);
    expect(listAddresses(store.db).map((a) => a.state)).toEqual(["idle"]);
    nodeSys.close(agent);
  });
});
