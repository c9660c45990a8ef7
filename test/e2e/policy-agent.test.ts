/** The agent's policy part against the kernel: a folder, foreign hands, a kill. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { putAttachment } from "../../ipam/store/attachments.ts";
import { makeAttachment, makeKey } from "../../ipam/store/contract/kit.ts";
import { readJournal } from "../../ipam/store/journal.ts";
import { openStore, type Store } from "../../ipam/store/open.ts";
import { getCompiled, putPolicyAddress } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { readTableAtOnce } from "../../shared/policy/read.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { createWorld, until as eventually, type WorldNode } from "../lab/world.ts";
import { inNetns } from "../runtime/exec.ts";

const prefix = `pa${process.pid % 10000}`;
let root: string;
let node: Netns;
let nft: NftSocket;
let store: Store;
let agent: ChildProcess | undefined;
let lines: { level: string; msg: string }[] = [];

const POD = (name: string, app: string, ip?: string) =>
  `---\n{ apiVersion: v1, kind: Pod, metadata: { name: ${name}, namespace: d, labels: { app: ${app} } }, status: { ${ip === undefined ? "" : `podIP: ${ip}`} } }\n`;
const POLICY = (from: string) =>
  `---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: web, namespace: d }\nspec:\n  podSelector: { matchLabels: { app: web } }\n  ingress:\n  - from: [{ podSelector: { matchLabels: { app: ${from} } } }]\n`;

const write = (name: string, text: string) => {
  writeFileSync(join(root, name), text);
  renameSync(join(root, name), join(root, "policies", name));
};

async function until<T>(look: () => T | undefined | false, what: string): Promise<T> {
  for (let i = 0; i < 500; i++) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`never: ${what}; the agent said ${lines.map((l) => l.msg).join(" | ")}`);
}

function startAgent(dir = true): void {
  const main = fileURLToPath(new URL("../lab/policy-agent-main.ts", import.meta.url));
  const args = ["--store", join(root, "ipam.db"), ...(dir ? ["--dir", join(root, "policies")] : [])];
  lines = [];
  agent = inNetns(node.path, () =>
    spawn(process.execPath, ["--disable-warning=ExperimentalWarning", main, ...args], {
      stdio: ["pipe", "pipe", "inherit"],
    }),
  );
  if (agent.stdout) createInterface({ input: agent.stdout }).on("line", (line) => lines.push(JSON.parse(line)));
}

async function restartAgent(meanwhile: () => void): Promise<void> {
  agent?.stdin?.end();
  if (agent) await ended(agent);
  meanwhile();
  startAgent();
}

function ended(child: ChildProcess): Promise<unknown> {
  return child.exitCode !== null || child.signalCode !== null
    ? Promise.resolve()
    : new Promise((resolve) => child.once("exit", resolve));
}

/** Elements of all sets and maps, and the origins of all rules. */
function kernel(): string[] {
  const table = readTableAtOnce(nft);
  return [
    ...[...(table?.sets ?? [])].flatMap(([name, set]) => set.elements.map((e) => `${name} ${e}`)),
    ...[...(table?.chains ?? [])].flatMap(([name, c]) => c.rules.map((r) => `${name}: ${r.comment ?? ""}`)),
  ];
}
const kernelHas = (text: string) => kernel().some((line) => line.includes(text));
/** The kernel has had so many revisions, each as a whole. */
const brought = (times = 1) => lines.filter((l) => l.msg.startsWith("policy revision")).length >= times;
const nftDo = (...args: string[]) => runTool("ip", ["netns", "exec", node.name, "nft", ...args]);

beforeAll(() => {
  node = createNetns(`${prefix}-node`);
  nft = inNetns(node.path, () => openNft(nodeSys));
});
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "terway-policy-agent-"));
  mkdirSync(join(root, "policies"));
  store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(root, "ipam.db"));
  inTransaction(store.db, () =>
    putPolicyAddress(store.db, {
      network: "net",
      containerId: "c1",
      ifname: "eth0",
      address: "10.9.0.1",
      namespace: "d",
      name: "web",
      posture: "deny",
      sinceMs: 0,
    }),
  );
});
afterEach(async () => {
  const child = agent;
  agent = undefined;
  if (child !== undefined) {
    child.stdin?.end();
    await ended(child);
  }
  store.db.close();
  nftDo("flush", "ruleset");
  rmSync(root, { recursive: true, force: true });
});
afterAll(() => {
  nft.close();
  node.close();
});

describe("the agent with a folder of policies", () => {
  it("brings what the folder says into store and kernel, and every change of it", async () => {
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client"));
    startAgent();
    await until(() => kernelHas("10.8.0.1/32") && kernelHas("to4 10.9.0.1 : goto in-"), "the policy in the kernel");
    expect(getCompiled(store.db)?.pods.map((p) => p.name)).toEqual(["web"]);
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.2") + POLICY("client"));
    await until(() => kernelHas("10.8.0.2/32") && !kernelHas("10.8.0.1/32"), "the new address");
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.2"));
    await until(() => kernelHas("to4 10.9.0.1 : return"), "the pod without policy");
    expect(kernelHas("10.8.0.2/32")).toBe(false);
  });

  it("takes a pod's own address from the attachment as soon as it is there", async () => {
    write("a.yaml", POD("web", "web") + POD("peer", "client") + POLICY("client"));
    startAgent();
    await until(() => kernelHas("goto in-"), "the policy in the kernel");
    inTransaction(store.db, () =>
      putPolicyAddress(store.db, {
        network: "net",
        containerId: "c2",
        ifname: "eth0",
        address: "10.9.0.2",
        namespace: "d",
        name: "peer",
        posture: "deny",
        sinceMs: 0,
      }),
    );
    await until(() => kernelHas("10.9.0.2/32"), "the peer's address in the set");
  });

  it("refuses a faulty policy by line and path, and keeps what was in force, also over its own restart", async () => {
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1"));
    write("p.yaml", POLICY("client"));
    startAgent();
    await until(() => kernelHas("10.8.0.1/32"), "the policy in the kernel");
    write("p.yaml", POLICY("client").replace("podSelector: { matchLabels", "podSelektor: { matchLabels"));
    await until(
      () => lines.some((l) => l.msg.includes("p.yaml:6: error: NetworkPolicy d/web: spec.podSelektor")),
      "the refusal",
    );
    expect(kernelHas("10.8.0.1/32")).toBe(true);
    await restartAgent(() => undefined);
    await until(() => lines.some((l) => l.msg.includes("stay as they were")), "the refusal after the restart");
    expect(kernelHas("to4 10.9.0.1 : goto in-")).toBe(true);
    write("p.yaml", POLICY("nobody"));
    await until(() => !kernelHas("10.8.0.1/32"), "the policy that is right again");
  });

  it("keeps what is in force while a file is written in place", async () => {
    const text = POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client");
    write("a.yaml", text);
    startAgent();
    await until(() => brought(), "the policy in the kernel");
    const before = kernel();
    writeFileSync(join(root, "policies/a.yaml"), "");
    await until(() => lines.some((l) => l.msg.includes("a.yaml:1: error: has no text")), "the refusal");
    expect(kernel()).toEqual(before);
    const next = text.replace("10.8.0.1", "10.8.0.2");
    for (let at = 0; at < text.length; at += 20) {
      writeFileSync(join(root, "policies/a.yaml"), next.slice(0, at));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    writeFileSync(join(root, "policies/a.yaml"), next);
    await until(() => brought(2), "the new text");
    expect(kernelHas("10.8.0.2/32") && kernelHas("goto in-")).toBe(true);
  });

  it.each([
    ["a file that cannot be read", () => symlinkSync("a.yaml", join(root, "policies/a.yaml")), "until"],
    ["a file without text", () => writeFileSync(join(root, "policies/a.yaml"), ""), "until"],
    ["a folder without manifests", () => undefined, "is it mounted?"],
  ])("keeps over its restart what was in force, with %s", async (_what, harm, said) => {
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client"));
    startAgent();
    await until(() => kernelHas("10.8.0.1/32"), "the policy in the kernel");
    await restartAgent(() => {
      rmSync(join(root, "policies/a.yaml"));
      harm();
    });
    await until(() => lines.some((l) => l.msg.includes("stay as they were") && l.msg.includes(said)), "what is amiss");
    expect(kernelHas("10.8.0.1/32")).toBe(true);
    expect(getCompiled(store.db)?.profiles.length).toBe(1);
    write("a.yaml", "{ apiVersion: v1, kind: List, items: [] }\n");
    await until(() => !kernelHas("10.8.0.1/32"), "the folder that says that there is no policy");
  });

  it("takes a folder without manifests when no policy was in force", async () => {
    startAgent();
    await until(() => getCompiled(store.db), "the first revision");
    await restartAgent(() => undefined);
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client"));
    await until(() => brought(), "the policy in the kernel");
    expect(lines.filter((l) => l.level === "error")).toEqual([]);
  });

  it.each([
    ["a flushed ruleset", () => nftDo("flush", "ruleset"), "is missing"],
    ["a flushed chain", () => nftDo("flush", "chain", "inet", "terway-policy", "to-pod"), "chain to-pod"],
    [
      "a foreign element",
      () => nftDo("add", "element", "inet", "terway-policy", "to4", "{ 10.9.9.9 : return }"),
      "that is not wanted",
    ],
  ])("puts right %s, and says by whom", async (_what, harm, said) => {
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client"));
    startAgent();
    await until(() => brought(), "the start");
    const before = kernel();
    harm();
    await until(
      () => lines.some((l) => /changed by nft \(pid \d+\)/.test(l.msg) && l.msg.includes(said)),
      "the repair",
    );
    expect(kernel()).toEqual(before);
    expect(readJournal(store.db, {}).some((row) => row.op === "policy-repair" && row.detail?.includes("nft"))).toBe(
      true,
    );
  });

  it("tells what it put right, and what it brought, while a pod's own namespace refuses its policy", async () => {
    const { dev, ino } = nodeSys.stat(node.path) ?? { dev: 0, ino: 0 };
    const where = { netns: node.path, netnsDev: dev, netnsIno: ino };
    // What is noted of the pod's link cannot be read: that fails as early as anything can.
    inTransaction(store.db, () =>
      putAttachment(store.db, makeAttachment(makeKey("c1"), { ...where, datapath: '{"uplink":' })),
    );
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client"));
    startAgent();
    await until(() => brought(), "the start");
    const before = kernel();
    // Again and again: a look at the manifests may be who mends it.
    await until(() => {
      nftDo("flush", "ruleset");
      return lines.some((l) => /^policy put right \(changed by nft .*is missing/.test(l.msg));
    }, "the repair");
    await until(() => isDeepStrictEqual(kernel(), before), "the policy in the kernel again");
    await until(() => lines.some((l) => l.level === "error" && l.msg.includes("in pod d/web: ")), "the refusal");
  });

  it("leaves other tables alone, and is not stirred by them", async () => {
    write("a.yaml", POD("web", "web") + POLICY("client"));
    startAgent();
    await until(() => brought(), "the start");
    nftDo("add", "table", "inet", "other");
    nftDo("add", "chain", "inet", "other", "x");
    nftDo("flush", "chain", "inet", "terway-policy", "to-pod");
    await until(() => lines.some((l) => l.msg.includes("put right")), "the repair of our own");
    expect(lines.filter((l) => l.msg.includes("put right")).length).toBe(1);
    expect(runTool("ip", ["netns", "exec", node.name, "nft", "list", "tables"])).toContain("table inet other");
  });

  it("keeps the store's policy in force without a folder", async () => {
    write("a.yaml", POD("web", "web") + POD("c", "client", "10.8.0.1") + POLICY("client"));
    startAgent();
    await until(() => kernelHas("10.8.0.1/32"), "the policy in the kernel");
    agent?.kill("SIGKILL");
    if (agent) await ended(agent);
    nftDo("flush", "ruleset");
    startAgent(false);
    await until(() => kernelHas("to4 10.9.0.1 : goto in-"), "the policy from the store");
  });
});

describe("an agent with disable_network_policy", inMode("eni-exclusive"), () => {
  it(
    "takes out of the kernel what the agent before it enforced, on the node and in pods' own namespaces, until it ends",
    async () => {
      const world = await createWorld({
        prefix: `${prefix}o`,
        nodes: 1,
        mode: "eni-exclusive",
        instanceType: "ecs.g7.xlarge",
        poolMin: 2,
        poolMax: 2,
        chained: ["terway-policy"],
        manifests: true,
      });
      try {
        const [at] = world.nodes as [WorldNode];
        const [pod, later] = [at.newPod(), at.newPod()];
        const add = (which: typeof pod) =>
          eventually("an ENI", patient(30_000), async () =>
            at.runtime.add(which).then(
              () => true,
              () => false,
            ),
          );
        await add(pod);
        const tables = () =>
          [at.netns, pod.netns, later.netns].map((netns) => {
            const own = inNetns(netns, () => openNft(nodeSys));
            try {
              return readTableAtOnce(own) !== undefined;
            } finally {
              own.close();
            }
          });
        expect(tables()).toEqual([true, true, false]);
        await at.stopAgent();
        const path = join(at.dir, "eni_conf");
        const conf = JSON.parse(readFileSync(path, "utf8")) as object;
        writeFileSync(path, JSON.stringify({ ...conf, disable_network_policy: "true" }));
        at.startAgent();
        await eventually("the tables are gone", patient(10_000), () => !tables().includes(true));
        await eventually("the log says so", patient(5000), () =>
          readFileSync(at.agentLog, "utf8").includes(
            `NetworkPolicy is switched off: its rules were removed on the node, in pod default/${pod.name}`,
          ),
        );
        // Once more, and nothing is there any more.
        await at.stopAgent();
        at.startAgent();
        await eventually("it starts", patient(10_000), () =>
          readFileSync(at.agentLog, "utf8").includes('"NetworkPolicy is switched off"'),
        );
        await add(later);
        expect(tables()).toEqual([false, false, false]);
        // Switched on again, for both.
        await at.stopAgent();
        writeFileSync(path, JSON.stringify(conf));
        at.startAgent();
        await eventually("the tables are back", patient(10_000), () => !tables().includes(false));
        for (const each of [pod, later]) await at.runtime.del(each);
      } finally {
        await world.close();
      }
    },
    patient(90_000),
  );
});
