/** Named network namespaces for the emulated hosts. */
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { type NetlinkSocket, openNetlink } from "../../shared/netlink/socket.ts";
import { O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";

const FOLDER = "/run/netns";

export interface Netns {
  readonly name: string;
  readonly path: string;
  readonly fd: number;
  /** Route netlink inside of it. */
  readonly nl: NetlinkSocket;
  close(): void;
}

/** Runs a program and throws with its words when it fails. */
export function runTool(command: string, args: readonly string[], input?: string): string {
  const done = spawnSync(command, args, { encoding: "utf8", input: input ?? "" });
  if (done.error) throw new Error(`${command} cannot be started: ${done.error.message}`);
  if (done.status !== 0)
    throw new Error(`${command} ${args.join(" ")}: ${done.stderr.trim() || `status ${done.status}`}`);
  return done.stdout;
}

export function createNetns(name: string): Netns {
  runTool("ip", ["netns", "add", name]);
  const path = `${FOLDER}/${name}`;
  const fd = sys.open(path, O_RDONLY);
  const ownFd = sys.open("/proc/thread-self/ns/net", O_RDONLY);
  const nl = openNetlink(sys, undefined, { netnsFd: fd, ownNetnsFd: ownFd });
  sys.close(ownFd);
  runTool("ip", ["-n", name, "link", "set", "lo", "up"]);
  return {
    name,
    path,
    fd,
    nl,
    close() {
      nl.close();
      sys.close(fd);
      runTool("ip", ["netns", "del", name]);
    },
  };
}

/** Removes what a former run with this prefix left behind. */
export function removeNetnsByPrefix(prefix: string): void {
  let names: string[] = [];
  try {
    names = readdirSync(FOLDER).filter((n) => n.startsWith(prefix));
  } catch {
    return; // no namespace has ever been named here
  }
  for (const name of names) spawnSync("ip", ["netns", "del", name]);
}
