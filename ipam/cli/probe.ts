/** A real packet from a pod's network namespace, by a child process that is born there. */
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { CLONE_NEWNET, O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";

export interface ProbeOutcome {
  /** undecided: an application that stays silent looks the same as a packet that is dropped. */
  readonly outcome: "reached" | "not reached" | "undecided";
  /** What came back: "connected", "refused: nobody listens", "nothing within 2 s", … */
  readonly seen: string;
}

export interface ProbeRequest {
  readonly protocol: "tcp" | "udp";
  readonly address: string;
  readonly port: number;
  readonly fromNetns: string;
  /** The target's own namespace, when it is a pod of this node: a listener is opened there. */
  readonly toNetns: string | undefined;
  readonly timeoutMs: number;
}

function spawnIn(netns: string, args: readonly string[]): ChildProcess {
  const own = nodeSys.open("/proc/thread-self/ns/net", O_RDONLY);
  const target = nodeSys.open(netns, O_RDONLY);
  try {
    nodeSys.setns(target, CLONE_NEWNET);
    try {
      const main = fileURLToPath(new URL("probe-main.ts", import.meta.url));
      return spawn(process.execPath, ["--disable-warning=ExperimentalWarning", main, ...args], {
        stdio: ["ignore", "pipe", "inherit"],
      });
    } finally {
      nodeSys.setns(own, CLONE_NEWNET);
    }
  } finally {
    nodeSys.close(target);
    nodeSys.close(own);
  }
}

function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    child.stdout?.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes("\n")) resolve(text.slice(0, text.indexOf("\n")));
    });
    child.once("error", reject);
    child.once("exit", () => resolve(text));
  });
}

const ARRIVED = ["connected", "answered", "refused: nobody listens"];

export async function probe(request: ProbeRequest): Promise<ProbeOutcome> {
  const { protocol, address, port, timeoutMs } = request;
  const common = [protocol, address, String(port), String(timeoutMs)];
  // A port that an application has already is served by it: then the listener just says so.
  const listener = request.toNetns === undefined ? undefined : spawnIn(request.toNetns, ["listen", ...common]);
  try {
    const listening = listener === undefined ? "" : await firstLine(listener);
    const seen = await firstLine(spawnIn(request.fromNetns, ["send", ...common]));
    // Only an application that stays silent leaves a UDP probe without an answer although it arrived.
    const mayBeSilent = protocol === "udp" && listening !== "listening";
    if (ARRIVED.includes(seen)) return { outcome: "reached", seen };
    return mayBeSilent
      ? { outcome: "undecided", seen: `${seen}; a silent application looks the same` }
      : { outcome: "not reached", seen };
  } finally {
    listener?.kill();
  }
}
