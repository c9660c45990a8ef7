/**
 * Runs many CNI calls, `concurrency` at a time, and measures each: wall time from the start of the process to its
 * end, CPU time and peak memory as the kernel accounts them. On raw syscalls, without an event loop between the
 * kernel and the clock, so that both peers are measured alike and nothing of Node's is added.
 */
import { CLOCK_MONOTONIC } from "../../shared/sys/linux.ts";
import { nodeRaw, nodeSys } from "../../shared/sys/node.ts";
import { encodeUtf8 } from "../../shared/sys/sys.ts";

export interface Call {
  /** Absolute path of the plugin. */
  readonly path: string;
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: string;
}

export interface Sample {
  readonly wallMs: number;
  readonly cpuMs: number;
  readonly peakRssKiB: number;
  readonly status: number;
  readonly stdout: string;
}

export interface Run {
  readonly samples: readonly Sample[];
  readonly totalMs: number;
}

interface Running {
  readonly index: number;
  readonly pid: number;
  readonly stdout: number;
  readonly stderr: number;
  readonly startedMs: number;
  readonly chunks: Uint8Array[];
}

const decoder = new TextDecoder();

function start(call: Call, index: number): Running {
  const out = new Int32Array(4);
  const env = Object.entries(call.env).map(([k, v]) => `${k}=${v}`);
  const startedMs = nodeSys.clock(CLOCK_MONOTONIC);
  const result = nodeRaw.spawn(call.path, [call.path], env, out);
  if (result < 0) throw new Error(`cannot start ${call.path}: errno ${-result}`);
  const [pid = 0, stdin = -1, stdout = -1, stderr = -1] = out;
  nodeSys.writeAll(stdin, encodeUtf8(call.stdin)); // a conf is smaller than a pipe's buffer
  nodeSys.close(stdin);
  return { index, pid, stdout, stderr, startedMs, chunks: [] };
}

/**
 * Runs every call. The end of a call is the end of its process, not the end of its output: a child that outlives it
 * does not count, as it does not for a runtime that waits for the process.
 */
export function runCalls(calls: readonly Call[], concurrency: number): Run {
  const samples: Sample[] = new Array(calls.length);
  const running = new Map<number, Running>();
  const startedMs = nodeSys.clock(CLOCK_MONOTONIC);
  const usage = new Float64Array(4);
  const buffer = new Uint8Array(16384);
  let next = 0;
  while (next < calls.length || running.size > 0) {
    while (running.size < concurrency && next < calls.length) {
      const call = calls[next];
      if (call === undefined) break;
      const child = start(call, next);
      running.set(child.pid, child);
      next += 1;
    }
    const pid = nodeRaw.wait4(-1, 0, usage);
    const endedMs = nodeSys.clock(CLOCK_MONOTONIC);
    const child = running.get(pid);
    if (child === undefined) continue;
    running.delete(pid);
    for (;;) {
      const n = nodeRaw.read(child.stdout, buffer); // results are smaller than a pipe's buffer
      if (n <= 0) break;
      child.chunks.push(buffer.slice(0, n));
      if (n < buffer.length) break;
    }
    nodeSys.close(child.stdout);
    nodeSys.close(child.stderr);
    const [status = 0, userMs = 0, systemMs = 0, peakRssKiB = 0] = usage;
    samples[child.index] = {
      wallMs: endedMs - child.startedMs,
      cpuMs: userMs + systemMs,
      peakRssKiB,
      status: (status & 0x7f) === 0 ? status >> 8 : 128 + (status & 0x7f),
      stdout: child.chunks.map((c) => decoder.decode(c)).join(""),
    };
  }
  return { samples, totalMs: nodeSys.clock(CLOCK_MONOTONIC) - startedMs };
}

export function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil((p / 100) * sorted.length) - 1))] ?? Number.NaN;
}
