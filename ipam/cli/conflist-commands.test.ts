/** conflist new, lint, from-config and node check, as a person runs them. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { createNetns, runTool } from "../../test/cloud/netns.ts";
import { needs, tryFeature } from "../../test/kernel/features.ts";
import { patient } from "../../test/kernel/patience.ts";
import { inNetns } from "../../test/runtime/exec.ts";
import { formatConflist, mustRender } from "../conflist/render.ts";
import { readConfigMap } from "./config-map.ts";
import { makeStore, runCli } from "./testkit.ts";

const root = process.getuid?.() === 0;
const base = mkdtempSync(join(tmpdir(), "terway-cli-conflist-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
let folder = "";
let count = 0;
beforeEach(() => {
  folder = join(base, String(count++));
  mkdirSync(join(folder, "net.d"), { recursive: true });
  mkdirSync(join(folder, "bin"));
});

const at = (name: string) => join(folder, name);
const put = (name: string, text: string) => {
  writeFileSync(at(name), text);
  return at(name);
};
/** A plugin that answers VERSION and nothing else. */
function install(type: string, versions: readonly string[] = ["0.3.1", "0.4.0", "1.0.0"]): void {
  const answer = JSON.stringify({ cniVersion: "1.0.0", supportedVersions: versions });
  put(`bin/${type}`, `#!/bin/sh\n[ "$CNI_COMMAND" = VERSION ] || exit 1\necho '${answer}'\n`);
  chmodSync(at(`bin/${type}`), 0o755);
}

describe("conflist new", () => {
  it("writes what it would print, and refuses to write over another file", () => {
    const printed = runCli("conflist", "new", "--mode", "eniip-veth", "--mtu", "8500", "--no-portmap");
    const want = formatConflist(mustRender({ mode: "eniip-veth", mtu: 8500, portmap: false }));
    expect(printed).toEqual({ status: 0, stdout: want, stderr: "" });

    const out = at("net.d/10-terway.conflist");
    expect(runCli("conflist", "new", "--mode", "eniip-veth", "--out", out).status).toBe(0);
    const refused = runCli("conflist", "new", "--mode", "vpc", "--out", out);
    expect([refused.status, refused.stderr]).toEqual([2, expect.stringMatching(/there already[\s\S]*--force/)]);
    expect(readFileSync(out, "utf8")).toBe(formatConflist(mustRender({ mode: "eniip-veth" })));
    expect(runCli("conflist", "new", "--mode", "vpc", "--out", out, "--force").status).toBe(0);
    expect(readFileSync(out, "utf8")).toBe(formatConflist(mustRender({ mode: "vpc" })));
    expect(readdirSync(at("net.d")).sort()).toEqual(["10-terway.conflist", "10-terway.conflist.previous"]);
  });

  it("says what cannot be, and writes nothing", () => {
    const ran = runCli(
      "conflist",
      "new",
      "--mode",
      "vpc",
      "--service-cidr",
      "172.16.0.0/16",
      "--out",
      at("net.d/x.conflist"),
    );
    expect([ran.status, ran.stdout, ran.stderr]).toEqual([2, "", expect.stringContaining("mean nothing in mode vpc")]);
    expect(existsSync(at("net.d/x.conflist"))).toBe(false);
  });
});

describe("conflist lint", () => {
  const lint = (file: string, ...more: string[]) =>
    runCli("conflist", "lint", file, "--bin-dir", at("bin"), "--conf-dir", at("net.d"), ...more);

  it("checks a file against the node: binaries, their versions, the other files", () => {
    for (const type of ["terway-eni", "terway-ipam", "terway-policy", "terway-bandwidth"]) install(type);
    install("portmap", ["0.3.1", "0.4.0"]);
    const file = put("net.d/10-terway.conflist", formatConflist(mustRender({ mode: "vpc" })));
    put("net.d/05-else.conf", '{"cniVersion":"0.3.1","name":"terway","type":"ptp"}');
    const { status, stdout } = lint(file);
    expect(status).toBe(1);
    expect(stdout.split("\n")).toEqual([
      `${file}:3:11: warning: 05-else.conf has a network of the name "terway" too; give one of them another name: attachments are told apart by it`,
      expect.stringMatching(/:15:15: error: the installed portmap does not speak CNI 1\.0\.0, but 0\.3\.1, 0\.4\.0; /),
      "",
    ]);
    install("portmap");
    rmSync(at("net.d/05-else.conf"));
    expect(lint(file)).toMatchObject({ status: 0, stdout: `${file}: good\n` });
  });

  it("leaves the node out when told to, and takes warnings for errors when told to", () => {
    const file = put("some.json", formatConflist(mustRender({ mode: "trunk" })));
    expect(runCli("conflist", "lint", file, "--no-node")).toMatchObject({
      status: 0,
      stdout: `${file}:1:1: warning: runtimes take a list of plugins from files that end in .conflist only, not ".json"; give it a name that ends in .conflist\n`,
    });
    expect(runCli("conflist", "lint", file, "--no-node", "--strict").status).toBe(1);
    const json = runCli("conflist", "lint", file, "--no-node", "--json");
    expect(JSON.parse(json.stdout)).toMatchObject({ file, findings: [{ line: 1, column: 1, level: "warning" }] });
  });

  it("tells a file that cannot be read from one that is wrong", () => {
    expect(lint(at("none")).status).toBe(2);
    expect(lint(put("bad.conflist", "{")).status).toBe(1);
  });
});

const TERWAY_CONF =
  '{"cniVersion":"0.4.0","name":"terway","type":"terway","eniip_virtual_type":"IPVlan","ip_stack":"dual"}';
const ENI_CONF =
  '{"version":"1","security_group":"sg-1","service_cidr":"172.16.0.0/16","vswitches":{"z":["vsw-1"]},"max_pool_size":30}';
const CONFIG_MAP = `apiVersion: v1
kind: ConfigMap
metadata:
  name: eni-config
  namespace: kube-system
data:
  eni_conf: |
    {
      // as in the documentation
      "security_group": "sg-1", "service_cidr": "172.16.0.0/16", "vswitches": {"z": ["vsw-1"]}
    }
  10-terway.conf: '${TERWAY_CONF}'
  disable_network_policy: "true"
`;

describe("conflist from-config", () => {
  it("prints the conflist, and on stderr what became of each key", () => {
    const ran = runCli(
      "conflist",
      "from-config",
      put("10-terway.conf", TERWAY_CONF),
      "--eni-conf",
      put("eni_conf", ENI_CONF),
      "--no-ipvlan",
    );
    expect(ran.status).toBe(0);
    expect(JSON.parse(ran.stdout)).toMatchObject({
      cniVersion: "0.4.0",
      plugins: [{ type: "terway-eni", mode: "shared" }, {}, {}, {}],
    });
    expect(ran.stderr).toMatch(/10-terway\.conf +ip_stack +moved +start terway-agent with --ip-stack dual/);
    expect(ran.stderr).toMatch(/eni_conf +max_pool_size +kept +terway-agent acts on it/);
    expect(ran.stderr).toMatch(/warning: .*asks for IPvlan, and this kernel has none/);
  });

  const fromConf = () =>
    runCli("conflist", "from-config", put("10-terway.conf", TERWAY_CONF), "--eni-conf", put("eni_conf", ENI_CONF));

  it.skipIf(!root || tryFeature("ipvlan").there)("asks this kernel, which has no IPvlan", () => {
    expect(JSON.parse(fromConf().stdout)).toMatchObject({ plugins: [{ type: "terway-eni" }, {}, {}, {}] });
  });

  it("asks this kernel, which has IPvlan", { ...needs("ipvlan"), timeout: patient(30_000) }, () => {
    const { stdout, stderr } = fromConf();
    expect(JSON.parse(stdout)).toMatchObject({ plugins: [{ type: "terway-ipvlan" }, {}, {}, {}] });
    expect(stderr).not.toContain("warning:");
  });

  it("takes the ConfigMap as kubectl prints it", () => {
    const ran = runCli("conflist", "from-config", "--config-map", put("cm.yaml", CONFIG_MAP), "--ipvlan");
    const { plugins } = JSON.parse(ran.stdout) as { plugins: { type: string }[] };
    expect(plugins.map((p) => p.type)).toEqual(["terway-ipvlan", "portmap", "terway-bandwidth"]);
  });

  it("writes eni_conf with the keys that move there, before the conflist", () => {
    const list = `{"cniVersion":"1.0.0","name":"k8s","plugins":[{"type":"terway","eni_max_pool_size":7,"eni_min_pool_size":1}]}`;
    const files = ["--eni-conf-out", at("new_eni_conf"), "--out", at("net.d/10-terway.conflist")];
    const args = [put("10-terway.conf", list), "--eni-conf", put("eni_conf", ENI_CONF), "--ipvlan"];
    expect(runCli("conflist", "from-config", ...args).stderr).toContain("name a file with --eni-conf-out");
    expect(runCli("conflist", "from-config", ...args, ...files).status).toBe(0);
    expect(JSON.parse(readFileSync(at("new_eni_conf"), "utf8"))).toMatchObject({
      max_pool_size: 7,
      min_pool_size: 1,
      security_group: "sg-1",
    });
    expect(existsSync(at("net.d/10-terway.conflist"))).toBe(true);
  });

  it("shows a secret that moves into eni_conf to nobody else (CON-40)", () => {
    const conf =
      '{"cniVersion":"1.0.0","name":"k8s","type":"terway","access_key":"LTAI4key","access_secret":"s3cr3t-value"}';
    const eniConf = put("eni_conf", ENI_CONF);
    const args = [put("10-terway.conf", conf), "--eni-conf", eniConf, "--ipvlan", "--json"];
    const fresh = runCli("conflist", "from-config", ...args, "--eni-conf-out", at("new_eni_conf"));
    chmodSync(eniConf, 0o600);
    const replaced = runCli("conflist", "from-config", ...args, "--eni-conf-out", eniConf, "--force");
    for (const ran of [fresh, replaced]) {
      expect(ran.status).toBe(0);
      expect(`${ran.stdout}${ran.stderr}`).not.toMatch(/LTAI4key|s3cr3t-value/);
      expect(JSON.parse(ran.stdout)).toMatchObject({ eniConf: { access_key: "***", security_group: "sg-1" } });
    }
    expect(JSON.parse(readFileSync(at("new_eni_conf"), "utf8"))).toMatchObject({ access_secret: "s3cr3t-value" });
    for (const file of ["new_eni_conf", "eni_conf", "eni_conf.previous"])
      expect([file, statSync(at(file)).mode & 0o7777]).toEqual([file, 0o600]);
  });

  it("refuses with line and column, and writes nothing", () => {
    const ran = runCli(
      "conflist",
      "from-config",
      put("10-terway.conf", '{\n "name": }'),
      "--out",
      at("net.d/x.conflist"),
    );
    expect([ran.status, ran.stderr]).toEqual([2, expect.stringContaining("line 2, column 10")]);
    expect(readdirSync(at("net.d"))).toEqual([]);
  });

  it.each([
    ["kind: Pod", /has no ConfigMap eni-config/],
    ["a: [", /is no YAML/],
    ["", /has no ConfigMap/],
  ])("names what is wrong with a ConfigMap: %s", (text, problem) => {
    expect(() => readConfigMap(text, "cm.yaml")).toThrow(problem);
  });

  it("finds the ConfigMap in a list of objects", () => {
    const list = JSON.stringify({
      kind: "List",
      items: [
        { kind: "ConfigMap", metadata: { name: "x" }, data: {} },
        { kind: "ConfigMap", metadata: { name: "eni-config" }, data: { eni_conf: "{}" } },
      ],
    });
    expect(readConfigMap(list, "l")).toEqual({ eniConf: "{}" });
  });
});

describe("node check", () => {
  const check = (...more: string[]) =>
    runCli("node", "check", "--bin-dir", at("bin"), "--conf-dir", at("net.d"), "--store", at("ipam.db"), ...more);

  /** Not in this machine's own namespace, which may forward or not. */
  const onNode = (forwards: "0" | "1", ...more: string[]) => {
    const node = createNetns(`check${process.pid}`);
    try {
      runTool("ip", ["netns", "exec", node.name, "sysctl", "-qw", `net.ipv4.ip_forward=${forwards}`]);
      return inNetns(node.path, () => check(...more));
    } finally {
      node.close();
    }
  };

  it.skipIf(!root)("looks at this node and says it in both forms", () => {
    for (const type of ["terway-eni", "terway-ipam", "terway-policy", "terway-bandwidth", "portmap", "loopback"])
      install(type);
    makeStore(at("ipam.db"));
    put("net.d/10-terway.conflist", formatConflist(mustRender({ mode: "eniip-veth" })));
    const { status, stdout } = onNode("1", "--json");
    const report = JSON.parse(stdout) as {
      modes: { mode: string; possible: string }[];
      findings: { subject: string; message: string }[];
    };
    expect([status, report]).toMatchObject([0, { modeInForce: "eniip-veth" }]);
    expect(report.modes.find((m) => m.mode === "eniip-veth")?.possible).toBe("yes");
    expect(report.findings.find((f) => f.subject === "terway-agent")?.message).toContain(
      "(1; 1 cooling, 1 of ENIs out of service)",
    );
    const text = onNode("1");
    expect([text.status, text.stdout]).toEqual([
      0,
      expect.stringMatching(/^Kernel [\s\S]*eniip-veth \* +yes[\s\S]*\ngood\n$/),
    ]);
    expect(onNode("0")).toMatchObject({ status: 1, stdout: expect.stringContaining("net.ipv4.ip_forward: is 0") });
  });

  it.skipIf(!root)("fails where the runtime would take another CNI's file", () => {
    for (const type of ["terway-eni", "terway-ipam", "terway-policy", "terway-bandwidth", "portmap", "loopback"])
      install(type);
    put("net.d/10-terway.conflist", formatConflist(mustRender({ mode: "eniip-veth" })));
    put("net.d/05-other.conflist", '{"cniVersion":"1.0.0","name":"o","plugins":[{"type":"flannel"}]}');
    expect(check()).toMatchObject({ status: 1, stdout: expect.stringContaining("sorts before 10-terway.conflist") });
  });
});
