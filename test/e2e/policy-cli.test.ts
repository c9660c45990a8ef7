/** terway-cli policy …, with no agent: a folder into store and kernel, shown, explained, and tried with packets. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { putAttachment } from "../../ipam/store/attachments.ts";
import { getCompiled } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { createPolicyNode, type PolicyNode } from "../lab/policy-node.ts";
import { exec } from "../runtime/exec.ts";

const CLI = fileURLToPath(new URL("../../ipam/cli/terway-cli", import.meta.url));
let world: PolicyNode;
let dir: string;

const POLICY = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: x }
spec:
  podSelector: { matchLabels: { pod: a } }
  ingress:
  - from: [{ namespaceSelector: { matchLabels: { ns: y } } }]
    ports: [{ port: 80 }, { port: 81, protocol: UDP }]
---
{ kind: Namespace, apiVersion: v1, metadata: { name: y, labels: { ns: y } } }
`;
const pod = (ns: string, name: string) =>
  `---\n{ kind: Pod, apiVersion: v1, metadata: { name: ${name}, namespace: ${ns}, labels: { pod: ${name} } } }\n`;

/** `json` parsed, when it was asked for. */
async function cli(...args: string[]) {
  const done = await exec({
    path: CLI,
    args: ["policy", ...args],
    env: { PATH: process.env.PATH ?? "", TERWAY_STORE: world.store.path },
    stdin: "",
    netns: world.node.ns.path,
  });
  return { ...done, json: () => JSON.parse(done.stdout) };
}

beforeAll(async () => {
  world = await createPolicyNode(`pc${process.pid % 10000}`);
  dir = mkdtempSync(join(tmpdir(), "terway-policy-cli-"));
  mkdirSync(join(dir, "policies"));
  inTransaction(world.store.db, () => {
    for (const p of world.node.pods)
      putAttachment(world.store.db, {
        network: "net",
        containerId: p.name,
        ifname: "eth0",
        netns: p.ns.path,
        netnsDev: undefined,
        netnsIno: undefined,
        podNamespace: p.name.charAt(0),
        podName: p.name.charAt(1),
        podUid: undefined,
        plugin: "test",
        mode: "shared",
        eniId: undefined,
        hostIfname: undefined,
        datapath: undefined,
        state: "ready",
        createdMs: 0,
        at: 0,
      });
  });
  writeFileSync(
    join(dir, "policies/all.yaml"),
    POLICY + ["x", "y", "z"].flatMap((ns) => ["a", "b", "c"].map((name) => pod(ns, name))).join(""),
  );
});
afterAll(async () => {
  await world?.close();
  rmSync(dir, { recursive: true, force: true });
});

describe("terway-cli policy", () => {
  it("syncs a folder into store and kernel, once and again", async () => {
    const first = await cli("sync", join(dir, "policies"), "--json");
    expect(first.stderr).toBe("");
    expect(first.json()).toMatchObject({ revision: 1, pods: 9, profiles: 1, sets: 1 });
    expect(first.json().changed.length).toBeGreaterThan(0);
    const [xa, xb, ya] = ["xa", "xb", "ya"].map((name) => world.node.pod(name));
    expect(await ya?.process.reaches("tcp", xa?.ip4 ?? "", 80)).toBe(true);
    expect(await xb?.process.probe("tcp", xa?.ip4 ?? "", 80)).toBe(false);
    const second = await cli("sync", join(dir, "policies"), "--json");
    expect(second.json()).toMatchObject({ revision: 2, rows: 0, changed: [] });
  });

  it("ends what is open and no longer allowed when asked to, and nothing else", async () => {
    const [xa, ya, za] = ["xa", "ya", "za"].map((name) => world.node.pod(name));
    const stays = await ya?.process.stream("tcp", za?.ip4 ?? "", 80);
    const ends = await ya?.process.stream("udp", xa?.ip4 ?? "", 81);
    mkdirSync(join(dir, "closed"));
    writeFileSync(
      join(dir, "closed/all.yaml"),
      readFileSync(join(dir, "policies/all.yaml"), "utf8").replace("protocol: UDP", "protocol: SCTP"),
    );
    const synced = (await cli("sync", join(dir, "closed"), "--cut-established", "--json")).json();
    expect(synced.changed).toContain(`cut ${ya?.ip4} to ${xa?.ip4} port 81 (udp)`);
    await new Promise((resolve) => setTimeout(resolve, 100));
    const [stayed, ended] = [await stays?.stop(), await ends?.stop()];
    expect(stayed?.echoed).toBe(stayed?.sent);
    expect(ended?.echoed).toBeGreaterThan(0);
    expect(ended?.echoed).toBeLessThan(ended?.sent ?? 0);
    await cli("sync", join(dir, "policies"));
    expect(await ya?.process.reaches("udp", xa?.ip4 ?? "", 81)).toBe(true);
  });

  it("changes nothing for a folder with a fault, and names its line and path", async () => {
    mkdirSync(join(dir, "faulty"));
    writeFileSync(join(dir, "faulty/p.yaml"), POLICY.replace("port: 80", "port: 80, endPort: 79"));
    const before = getCompiled(world.store.db);
    const done = await cli("sync", join(dir, "faulty"));
    expect(done.status).toBe(1);
    expect(done.stderr.replace(/\s+›?\s*/g, " ")).toContain(
      "p.yaml:8: error: NetworkPolicy x/db: spec.ingress[0].ports[0].endPort: must not be less",
    );
    expect(getCompiled(world.store.db)).toEqual(before);
  });

  it("shows a pod's rules in words, with what they counted", async () => {
    const shown = (await cli("show", "x/a", "--json")).json();
    expect(shown.ingress.policies).toMatchObject([
      {
        verdict: "accept",
        about: "from pods in namespaces ns=y, on tcp 80, udp 81",
        origin: "NetworkPolicy x/db ingress[0]",
        peers: 6,
      },
    ]);
    expect(shown.ingress.policies[0].packets).toBeGreaterThan(0);
    expect(shown.egress.profile).toBeUndefined();
    const { stdout } = await cli("show", world.node.pod("xa").ip6);
    expect(stdout).toContain("accept from pods in namespaces ns=y, on tcp 80, udp 81 [6 now]");
    expect(stdout).toContain("Egress: everything is allowed");
    expect((await cli("show", "x/nobody")).status).toBe(1);
  });

  it.each([
    ["y/b", "x/a", "tcp", "80", true, "NetworkPolicy x/db ingress[0]"],
    ["y/b", "x/a", "tcp", "81", false, "no rule of NetworkPolicy x/db matches"],
    ["y/b", "x/a", "udp", "81", true, "NetworkPolicy x/db ingress[0]"],
    ["z/b", "x/a", "udp", "81", false, "no rule of NetworkPolicy x/db matches"],
    ["x/a", "z/c", "tcp", "80", true, "no policy selects the pod"],
    // Nobody serves these: the answer that says so proves that the packet arrived.
    ["x/a", "z/c", "tcp", "9", true, "no policy selects the pod"],
    ["x/a", "z/c", "udp", "9", true, "no policy selects the pod"],
  ])("explains %s → %s %s %s and proves it with a packet", async (from, to, protocol, port, allowed, why) => {
    const args = ["--from", from, "--to", to, "--protocol", protocol, "--port", port, "--probe", "--json"];
    // Nothing comes of a denied one: it need not be waited for long.
    const done = await cli("explain", ...args, "--probe-timeout", allowed ? "8000" : "500");
    const families = done.json();
    expect(families.length).toBe(2);
    for (const e of families) {
      expect(e.allowed).toBe(allowed);
      expect(JSON.stringify(e.sides)).toContain(why);
      expect(e.probe).toMatchObject({
        outcome: allowed ? "reached" : protocol === "udp" ? "undecided" : "not reached",
      });
    }
    expect(done.status).toBe(allowed ? 0 : 1);
  });

  it("explains a folder that is not in force, and says what it does not know", async () => {
    const ahead = await cli("explain", "--dir", join(dir, "policies"), "--from", "z/a", "--to", "x/a", "--port", "80");
    expect(ahead.stdout).toContain("DENIED");
    const unknown = await cli("explain", "--from", "a", "--to", "x/a", "--port", "80");
    expect(unknown.status).toBe(2);
    expect(unknown.stderr.replace(/\s+›?\s*/g, " ")).toContain("no pod default/a is known here; there is x/a");
  });

  it("lints with lines", async () => {
    const bad = await cli("lint", join(dir, "faulty/p.yaml"));
    expect(bad.status).toBe(1);
    expect(bad.stdout).toContain("p.yaml:8: error: NetworkPolicy x/db: spec.ingress[0].ports[0].endPort");
    expect((await cli("lint", join(dir, "policies/all.yaml"))).stdout).toContain("good, 11 objects");
  });
});
