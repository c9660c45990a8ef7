import { describe, expect, it } from "vitest";
import { VERBS } from "./environment.ts";
import { CniFailure, CODE } from "./failure.ts";
import type { Result } from "./result.ts";
import { type CniCall, type Handlers, runPlugin } from "./run-plugin.ts";
import { VERSIONS } from "./version.ts";

const ENV = { CNI_CONTAINERID: "c1", CNI_NETNS: "/run/netns/a", CNI_IFNAME: "eth0", CNI_PATH: "/bin" };
const RESULT: Result = {
  interfaces: [{ name: "eth0", mac: "02:00:00:00:00:01", mtu: 1500, sandbox: "/run/netns/a", pciID: "0000:00:01.0" }],
  ips: [{ address: "10.0.0.2/24", gateway: "10.0.0.1", interface: 0 }, { address: "2001:db8::2/64" }],
  routes: [{ dst: "0.0.0.0/0", gw: "10.0.0.1", mtu: 1400, priority: 5 }],
};

function run(env: Record<string, string>, stdin: string, handlers: Partial<Handlers> = {}) {
  let out = "";
  const calls: CniCall[] = [];
  const note = (call: CniCall) => void calls.push(call);
  const status = runPlugin(
    {
      env,
      readStdin: () => stdin,
      writeStdout: (text) => {
        out += text;
      },
    },
    {
      add: (c) => {
        note(c);
        return RESULT;
      },
      del: note,
      check: note,
      gc: note,
      status: note,
      ...handlers,
    },
  );
  return { status, out: out === "" ? undefined : JSON.parse(out), calls };
}

const conf = (cniVersion: string, more: object = {}) => JSON.stringify({ cniVersion, name: "net", type: "t", ...more });

describe("runPlugin", () => {
  const since: Record<string, string> = { CHECK: "0.4.0", GC: "1.1.0", STATUS: "1.1.0" };
  const rows = VERBS.flatMap((verb) => VERSIONS.map((version) => [verb, version] as const));
  it("has a row for every verb and version", () => expect(rows.length).toBe(VERBS.length * VERSIONS.length));

  it.each(rows)("%s in %s", (verb, version) => {
    const { status, out, calls } = run({ ...ENV, CNI_COMMAND: verb }, conf(version));
    if (version < (since[verb] ?? "")) {
      expect([status, out.code, out.cniVersion, calls.length]).toEqual([1, CODE.incompatibleVersion, version, 0]);
      return;
    }
    expect(status).toBe(0);
    if (verb === "VERSION") expect(out.supportedVersions).toEqual([...VERSIONS]);
    else expect(calls.length).toBe(1);
    if (verb === "ADD") expect(out.cniVersion).toBe(version);
    else if (verb !== "VERSION") expect(out).toBeUndefined();
  });

  it.each<[string, Record<string, string>, string, number]>([
    ["no command", ENV, conf("1.0.0"), 4],
    ["an unknown command", { ...ENV, CNI_COMMAND: "FOO" }, conf("1.0.0"), 4],
    ["ADD without netns", { ...ENV, CNI_COMMAND: "ADD", CNI_NETNS: "" }, conf("1.0.0"), 4],
    ["a container id with a slash", { ...ENV, CNI_COMMAND: "ADD", CNI_CONTAINERID: "a/b" }, conf("1.0.0"), 4],
    ["a container id that begins with a dot", { ...ENV, CNI_COMMAND: "DEL", CNI_CONTAINERID: ".a" }, conf("1.0.0"), 4],
    [
      "an interface name of 16 characters",
      { ...ENV, CNI_COMMAND: "ADD", CNI_IFNAME: "0123456789abcdef" },
      conf("1.0.0"),
      4,
    ],
    ["an interface name with a colon", { ...ENV, CNI_COMMAND: "ADD", CNI_IFNAME: "eth0:1" }, conf("1.0.0"), 4],
    ["CNI_ARGS without =", { ...ENV, CNI_COMMAND: "ADD", CNI_ARGS: "IgnoreUnknown" }, conf("1.0.0"), 4],
    ["cut JSON", { ...ENV, CNI_COMMAND: "ADD" }, '{"cniVersion":', 6],
    ["JSON that is no object", { ...ENV, CNI_COMMAND: "ADD" }, "[]", 6],
    ["an unknown version", { ...ENV, CNI_COMMAND: "ADD" }, conf("9.9.9"), 1],
    ["no version", { ...ENV, CNI_COMMAND: "ADD" }, '{"name":"n","type":"t"}', 1],
    ["a bad network name", { ...ENV, CNI_COMMAND: "ADD" }, JSON.stringify({ cniVersion: "1.0.0", name: "a b" }), 7],
    [
      "attachments that are no list",
      { ...ENV, CNI_COMMAND: "GC" },
      conf("1.1.0", { "cni.dev/valid-attachments": [{ containerID: 1 }] }),
      7,
    ],
    ["a broken prevResult for CHECK", { ...ENV, CNI_COMMAND: "CHECK" }, conf("1.0.0", { prevResult: { ips: "x" } }), 6],
  ])("refuses %s and calls nothing", (_what, env, stdin, code) => {
    const { status, out, calls } = run(env, stdin);
    expect([status, out.code, calls.length]).toEqual([1, code, 0]);
    expect(out.msg.length).toBeLessThan(300);
    expect(out.msg).not.toContain("\n");
  });

  it.each([undefined, null, {}, "text", { cniVersion: "9.9.9" }, { ips: [{}] }])(
    "DEL works with prevResult %j",
    (prevResult) => {
      expect(run({ ...ENV, CNI_COMMAND: "DEL", CNI_NETNS: "" }, conf("1.0.0", { prevResult })).calls.length).toBe(1);
    },
  );

  it("prints a handler's failure with its code, and a bug without a stack trace", () => {
    const failing = run({ ...ENV, CNI_COMMAND: "ADD" }, conf("0.4.0"), {
      add: () => {
        throw new CniFailure(11, "nothing free", "wait");
      },
    });
    expect(failing.out).toEqual({ cniVersion: "0.4.0", code: 11, msg: "nothing free", details: "wait" });
    const bug = run({ ...ENV, CNI_COMMAND: "ADD" }, conf("1.0.0"), {
      add: () => {
        throw new TypeError("oops");
      },
    });
    expect([bug.status, bug.out.code, bug.out.msg]).toEqual([1, CODE.internal, "unexpected error: oops"]);
  });

  it("reads pod identity, capabilities and attachments", () => {
    const { calls } = run(
      { ...ENV, CNI_COMMAND: "GC", CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAME=p" },
      conf("1.1.0", {
        "cni.dev/valid-attachments": [{ containerID: "c", ifname: "eth0" }],
        runtimeConfig: { mac: "x" },
        args: { cni: { ips: ["1.2.3.4"] } },
      }),
    );
    expect(calls[0]?.conf.validAttachments).toEqual([{ containerId: "c", ifname: "eth0" }]);
    expect([calls[0]?.env.args.K8S_POD_NAME, calls[0]?.conf.runtimeConfig, calls[0]?.conf.cniArgs]).toEqual([
      "p",
      { mac: "x" },
      { ips: ["1.2.3.4"] },
    ]);
  });
});

describe("results", () => {
  it.each(VERSIONS.map((v) => [v]))("in %s have just the fields of that version", (version) => {
    const { out } = run({ ...ENV, CNI_COMMAND: "ADD" }, conf(version));
    const is1 = version >= "1.0.0";
    const is11 = version >= "1.1.0";
    expect(out.ips.map((i: { version?: string }) => i.version)).toEqual(is1 ? [undefined, undefined] : ["4", "6"]);
    expect([out.interfaces[0].mtu, out.interfaces[0].pciID]).toEqual(
      is11 ? [1500, "0000:00:01.0"] : [undefined, undefined],
    );
    expect(Object.keys(out.routes[0])).toEqual(is11 ? ["dst", "gw", "mtu", "priority"] : ["dst", "gw"]);
    expect(out.dns).toEqual({});
  });

  it.each(VERSIONS.map((v) => [v]))("of %s are read back, with what others wrote kept", (version) => {
    const { out } = run({ ...ENV, CNI_COMMAND: "ADD" }, conf(version));
    const prevResult = { ...out, vendor: { x: 1 }, interfaces: [...out.interfaces, { name: "extra0", color: "red" }] };
    const { calls } = run({ ...ENV, CNI_COMMAND: version >= "0.4.0" ? "CHECK" : "DEL" }, conf(version, { prevResult }));
    const parsed = calls[0]?.prevResult;
    expect(parsed?.ips?.map((i) => i.address)).toEqual(["10.0.0.2/24", "2001:db8::2/64"]);
    expect([parsed?.vendor, parsed?.interfaces?.[1]]).toEqual([{ x: 1 }, { name: "extra0", color: "red" }]);
  });
});
