/**
 * Runs many CNI calls, `concurrency` at a time, and measures each: wall time from the start of the process to its
 * end, CPU time and peak memory as the kernel accounts them. Engine-neutral: the benchmark runs it as a small static
 * executable, because a child of a large process pays for its parent's memory (and is charged with it as peak RSS).
 */
import { CLOCK_MONOTONIC, CLONE_NEWNET, O_RDONLY } from "../../shared/sys/linux.ts";
import type { RawSys } from "../../shared/sys/raw.ts";
import { decodeUtf8, encodeUtf8, type Sys } from "../../shared/sys/sys.ts";

export interface Call {
  /** Absolute path of the plugin. */
  readonly path: string;
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: string;
}

export interface Plan {
  /** Network namespace of the node. */
  readonly netns: string;
  readonly concurrency: number;
  /** Milliseconds before each call, for the kernel to end what the one before left to it. */
  readonly pauseMs?: number;
  readonly calls: readonly Call[];
}

export interface Sample {
  readonly wallMs: number;
  readonly cpuMs: number;
  readonly peakRssKiB: number;
  readonly status: number;
  /** Only of a failed call. */
  readonly output: string;
}

export interface Run {
  readonly samples: readonly Sample[];
  readonly totalMs: number;
}

interface Running {
  readonly index: number;
  readonly stdout: number;
  readonly stderr: number;
  readonly startedMs: number;
}

function start(raw: RawSys, sys: Sys, call: Call, index: number): { readonly pid: number; readonly child: Running } {
  const out = new Int32Array(4);
  const env = Object.entries(call.env).map(([k, v]) => `${k}=${v}`);
  const startedMs = sys.clock(CLOCK_MONOTONIC);
  const result = raw.spawn(call.path, [call.path], env, out);
  if (result < 0) throw new Error(`cannot start ${call.path}: errno ${-result}`);
  const [pid = 0, stdin = -1, stdout = -1, stderr = -1] = out;
  sys.writeAll(stdin, encodeUtf8(call.stdin)); // a conf is smaller than a pipe's buffer
  sys.close(stdin);
  return { pid, child: { index, stdout, stderr, startedMs } };
}

/**
 * Runs every call. The end of a call is the end of its process, not the end of its output: that is what a runtime
 * waits for.
 */
export function runPlan(raw: RawSys, sys: Sys, plan: Plan): Run {
  sys.setns(sys.open(plan.netns, O_RDONLY), CLONE_NEWNET);
  const { calls, concurrency, pauseMs } = plan;
  const samples: Sample[] = [];
  const running = new Map<number, Running>();
  const usage = new Float64Array(4);
  const buffer = new Uint8Array(65536);
  let next = 0;
  const startedMs = sys.clock(CLOCK_MONOTONIC);
  while (next < calls.length || running.size > 0) {
    while (running.size < concurrency) {
      const call = calls[next];
      if (call === undefined) break;
      if (pauseMs !== undefined) sys.pollIn([], pauseMs);
      const { pid, child } = start(raw, sys, call, next);
      running.set(pid, child);
      next += 1;
    }
    const pid = raw.wait4(-1, 0, usage);
    const endedMs = sys.clock(CLOCK_MONOTONIC);
    const child = running.get(pid);
    if (child === undefined) continue;
    running.delete(pid);
    const [status = 0, userMs = 0, systemMs = 0, peakRssKiB = 0] = usage;
    // Results are smaller than a pipe's buffer: all is there once the process has ended.
    const output = status === 0 ? "" : decodeUtf8(buffer.subarray(0, Math.max(0, raw.read(child.stdout, buffer))));
    sys.close(child.stdout);
    sys.close(child.stderr);
    samples[child.index] = {
      wallMs: endedMs - child.startedMs,
      cpuMs: userMs + systemMs,
      peakRssKiB,
      status: (status & 0x7f) === 0 ? status >> 8 : 128 + (status & 0x7f),
      output,
    };
  }
  return { samples, totalMs: sys.clock(CLOCK_MONOTONIC) - startedMs };
}
