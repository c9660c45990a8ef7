/** Runs one program inside a network namespace, as a container runtime on that node would. */
import { spawn } from "node:child_process";
import { CLONE_NEWNET, O_RDONLY } from "../../shared/sys/linux.ts";
import { nodeSys } from "../../shared/sys/node.ts";

export interface ExecResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
  /** From the start of the process to the end of its output. */
  readonly ms: number;
}

export interface ExecRequest {
  readonly path: string;
  readonly args?: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: string;
  /** Path of the network namespace to start in; ours when absent. */
  readonly netns?: string | undefined;
  /** Sent SIGKILL after this many milliseconds, as a runtime does whose own deadline has passed. */
  readonly killAfterMs?: number | undefined;
}

/**
 * Calls `work` with this thread in the given network namespace. Only for synchronous work: sockets that it opens and
 * processes that it starts stay there, and nothing else of this process notices.
 */
export function inNetns<T>(netns: string | undefined, work: () => T): T {
  if (netns === undefined) return work();
  const own = nodeSys.open("/proc/thread-self/ns/net", O_RDONLY);
  const target = nodeSys.open(netns, O_RDONLY);
  try {
    nodeSys.setns(target, CLONE_NEWNET);
    try {
      return work();
    } finally {
      nodeSys.setns(own, CLONE_NEWNET);
    }
  } finally {
    nodeSys.close(target);
    nodeSys.close(own);
  }
}

export function exec(request: ExecRequest): Promise<ExecResult> {
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const child = inNetns(request.netns, () =>
      spawn(request.path, request.args ?? [], { env: { ...request.env }, stdio: ["pipe", "pipe", "pipe"] }),
    );
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    let ended = started;
    child.stdout.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => err.push(chunk));
    child.on("exit", () => {
      ended = performance.now();
    });
    child.stdin.on("error", () => undefined); // a plugin that fails early does not read its input
    child.on("error", reject);
    const timer =
      request.killAfterMs === undefined ? undefined : setTimeout(() => child.kill("SIGKILL"), request.killAfterMs);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      resolve({
        status: code ?? (signal === "SIGKILL" ? 137 : 128),
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString(),
        ms: ended - started,
      });
    });
    child.stdin.end(request.stdin);
  });
}
