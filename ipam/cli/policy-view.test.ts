import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { makeKey } from "../store/contract/kit.ts";
import { openStore } from "../store/open.ts";
import { putCompiled, putPolicyAddress, setPolicyOff } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";
import { readFolder } from "./policy-view.ts";
import { runCli } from "./testkit.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "terway-cli-policy-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

it("waits for a file that is being written", async () => {
  const ns = (name: string) => `---\n{ kind: Namespace, apiVersion: v1, metadata: { name: ${name} } }\n`;
  writeFileSync(join(dir, "a.yaml"), "");
  setTimeout(() => writeFileSync(join(dir, "a.yaml"), ns("x")), 100);
  setTimeout(() => writeFileSync(join(dir, "a.yaml"), ns("x") + ns("y")), 200);
  expect(await readFolder(dir)).toMatchObject({ events: [{ type: "set" }, { type: "set" }], errors: [] });
});

/** Nobody may come in to d/p1. */
const POLICY: CompiledPolicy = {
  revision: 3,
  sets: [],
  endpointSets: [],
  profiles: [{ id: "shut", direction: "ingress", admin: [], policies: [], baseline: [] }],
  pods: [{ namespace: "d", name: "p1", ingress: "shut" }],
};

/** d/p1 and d/p2 on a node where NetworkPolicy is off or not. */
function policyCli({ off, compiled }: { off: boolean; compiled?: CompiledPolicy }) {
  const path = join(dir, "ipam.db");
  const store = openStore({ sys: nodeSys, openSql: openNodeSql }, path);
  inTransaction(store.db, () => {
    for (const name of ["p1", "p2"]) {
      const address = `10.9.0.${name.slice(1)}`;
      putPolicyAddress(store.db, { ...makeKey(name), address, namespace: "d", name, posture: "allow", sinceMs: 0 });
    }
    if (compiled !== undefined) putCompiled(store.db, compiled);
  });
  setPolicyOff(store.db, off);
  store.db.close();
  return (...args: string[]) => runCli("policy", ...args, "--store", path);
}
const FLOW = ["explain", "--from", "d/p2", "--to", "d/p1", "--port", "80"];

describe("on a node where NetworkPolicy is off", () => {
  it("show says so before the rules that are not in force", () => {
    const cli = policyCli({ off: true, compiled: POLICY });
    const { status, stdout } = cli("show", "d/p1");
    expect([status, stdout.split("\n")[0]]).toEqual([
      0,
      "NetworkPolicy is off on this node: nothing of this is in force",
    ]);
    expect(stdout).toContain("Ingress: profile shut");
    const shown = { policyOff: true, pod: "d/p1", revision: 3, ingress: { profile: "shut", isolated: true } };
    expect(JSON.parse(cli("show", "d/p1", "--json").stdout)).toMatchObject(shown);
    const unknown = cli("show", "d/p2");
    expect([unknown.status, unknown.stdout]).toEqual([1, expect.stringContaining("NetworkPolicy is off")]);
    expect(unknown.stderr).not.toContain("holds for it");
  });

  it.each([
    ["with", POLICY],
    ["without", undefined],
  ])("explain denies nothing, %s a policy in the store", (_what, compiled) => {
    const cli = policyCli({ off: true, ...(compiled && { compiled }) });
    expect(cli(...FLOW)).toEqual({
      status: 0,
      stdout: `d/p2 (10.9.0.2) → d/p1 (10.9.0.1), tcp 80: ALLOWED
  egress  allowed  NetworkPolicy is off on this node
  ingress allowed  NetworkPolicy is off on this node
`,
      stderr: "",
    });
    expect(JSON.parse(cli(...FLOW, "--json").stdout)).toMatchObject([{ allowed: true, protocol: "tcp", port: 80 }]);
  });

  it("explain still judges by a folder that is not in force", () => {
    const cli = policyCli({ off: true });
    writeFileSync(
      join(dir, "a.yaml"),
      `{ kind: Pod, apiVersion: v1, metadata: { name: p1, namespace: d } }
---
{ kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: { name: shut, namespace: d }, spec: { podSelector: {} } }
`,
    );
    expect(cli(...FLOW, "--dir", dir)).toMatchObject({ status: 1, stdout: expect.stringContaining("DENIED") });
  });
});

it("show and explain say nothing of that while it is on", () => {
  const cli = policyCli({ off: false, compiled: POLICY });
  expect(cli("show", "d/p1").stdout).toMatch(/^d\/p1 {2}10\.9\.0\.1/);
  expect(JSON.parse(cli("show", "d/p1", "--json").stdout)).toMatchObject({ policyOff: false });
  expect(cli(...FLOW)).toMatchObject({ status: 1, stdout: expect.stringContaining("DENIED") });
});
