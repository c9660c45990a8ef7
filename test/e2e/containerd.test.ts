/** Debian's containerd and runc call our chain: real containers on two nodes of the emulated VPC. */
import { type ChildProcess, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CLOCK_BOOTTIME } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";
import { OUTSIDE_IP } from "../cloud/fabric.ts";
import { inMode } from "../kernel/features.ts";
import { poolView } from "../lab/store-view.ts";
import { CNI_PATH, createWorld, until, type World, type WorldNode } from "../lab/world.ts";

const PATH = "/usr/sbin:/usr/bin:/sbin:/bin";
let world: World;
let folder: string;
let daemon: ChildProcess;
const clients: ChildProcess[] = [];

const view = (n: WorldNode) => poolView(n.store, nodeSys.clock(CLOCK_BOOTTIME));

/** A root file system of one static busybox. */
function makeRoot(root: string): void {
  for (const sub of ["bin", "proc", "sys", "dev", "tmp"]) mkdirSync(join(root, sub), { recursive: true });
  cpSync("/usr/bin/busybox", join(root, "bin/busybox"));
  for (const applet of ["sh", "ping", "ip", "sleep", "cat"]) symlinkSync("busybox", join(root, "bin", applet));
}

interface Container {
  readonly client: ChildProcess;
  output(): string;
  ended: Promise<number | null>;
}

/**
 * `ctr run --cni` inside the node's namespace. It looks for configuration and plugins in fixed folders: these are put in
 * their place in a mount namespace of its own.
 */
function run(node: WorldNode, id: string, script: string): Container {
  const [etc = "", bin = ""] = [join(folder, node.name, "net.d"), CNI_PATH[0]];
  mkdirSync(etc, { recursive: true });
  writeFileSync(join(etc, "10-terway.conflist"), JSON.stringify({ ...node.runtime.conflist, cniVersion: "1.0.0" }));
  const mounts = `mkdir -p /etc/cni/net.d /opt/cni/bin && mount --bind ${etc} /etc/cni/net.d && mount --bind ${bin} /opt/cni/bin`;
  const ctr = `exec ctr -a ${folder}/c.sock run --rm --cni --rootfs ${folder}/rootfs ${id} /bin/sh -c "$1"`;
  const client = spawn(
    "nsenter",
    [`--net=${node.netns}`, "unshare", "--mount", "sh", "-c", `${mounts} && ${ctr}`, "sh", script],
    { env: { PATH }, stdio: ["ignore", "pipe", "pipe"] },
  );
  clients.push(client);
  let text = "";
  client.stdout.on("data", (chunk) => {
    text += chunk;
  });
  client.stderr.on("data", (chunk) => {
    text += chunk;
  });
  return { client, output: () => text, ended: new Promise((resolve) => client.once("close", resolve)) };
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "terway-containerd-"));
  makeRoot(join(folder, "rootfs"));
  const config = join(folder, "config.toml");
  writeFileSync(
    config,
    `version = 2\nroot = "${folder}/root"\nstate = "${folder}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "${folder}/c.sock"\n`,
  );
  daemon = spawn("containerd", ["-c", config], { env: { PATH }, stdio: "ignore" });
  world = await createWorld({
    prefix: `d${process.pid % 10000}`,
    nodes: 2,
    mode: "eniip-veth",
    instanceType: "ecs.g7.xlarge",
    poolMin: 3,
    poolMax: 6,
    cooldownSeconds: 1,
  });
  await until("warm pools", 20_000, () => {
    try {
      return world.nodes.every((n) => view(n).idle >= 3);
    } catch {
      return false;
    }
  });
}, 60_000);

afterAll(async () => {
  for (const client of clients) if (client.exitCode === null) client.kill("SIGKILL");
  const gone = new Promise((resolve) => daemon.once("exit", resolve));
  daemon.kill("SIGTERM");
  await gone;
  await world?.close();
  rmSync(folder, { recursive: true, force: true });
});

describe("containerd", inMode("eniip-veth"), () => {
  it("starts containers that reach each other across nodes, and gives the addresses back", async () => {
    const [a, b] = world.nodes;
    if (a === undefined || b === undefined) throw new Error("two nodes are needed");
    const server = run(a, "server", "ip -4 -o addr show eth0; sleep 60");
    const address = await until("the server's address", 20_000, () => /inet ([\d.]+)\/32/.exec(server.output())?.[1]);
    const client = run(b, "client", `ping -c2 -W2 ${address} && ping -c1 -W2 ${OUTSIDE_IP}`);
    const status = await client.ended;
    expect([status, client.output()]).toEqual([0, expect.stringContaining("2 packets received")]);
    expect([view(a).allocated, view(b).allocated]).toEqual([1, 0]);
    const stop = spawn("ctr", ["-a", `${folder}/c.sock`, "task", "kill", "-s", "KILL", "server"], { env: { PATH } });
    await new Promise((resolve) => stop.once("close", resolve));
    await server.ended;
    expect(view(a).allocated).toBe(0);
  }, 60_000);
});
