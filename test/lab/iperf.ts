/** Throughput between two namespaces, measured by iperf3. */
import { type ChildProcess, spawn } from "node:child_process";
import { exec, inNetns } from "../runtime/exec.ts";

export interface Measurement {
  /** Where the server listens: path of a namespace. */
  readonly server: string;
  readonly client: string;
  /** Of the server. */
  readonly address: string;
  /** The server sends. */
  readonly reverse?: boolean;
  /** UDP at this many bits per second, instead of TCP as fast as it goes. */
  readonly udpBits?: number;
  readonly seconds: number;
  readonly port?: number;
}

/** What one second of the flow brought to the receiver, bits per second. */
export type Intervals = readonly number[];

interface Report {
  readonly error?: string;
  readonly end?: {
    readonly sum_received?: { readonly bits_per_second: number };
    readonly sum?: { readonly bits_per_second: number };
    /** Of both ends. */
    readonly cpu_utilization_percent?: { readonly host_total: number; readonly remote_total: number };
  };
  readonly intervals?: readonly { readonly sum: { readonly bits_per_second: number } }[];
}

/** Of a busy machine these two get their share: a sender that does not run proves nothing about a limit. */
const NICE = ["-n", "-15", "/usr/bin/iperf3"];
const ENV = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" };

function startServer(netns: string, port: number): Promise<ChildProcess> {
  const server = inNetns(netns, () =>
    spawn("/usr/bin/nice", [...NICE, "-s", "-1", "-p", String(port), "--forceflush"], {
      env: ENV,
      stdio: ["ignore", "pipe", "ignore"],
    }),
  );
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.stdout?.on("data", (chunk: Buffer) => {
      if (chunk.toString().includes("listening")) resolve(server);
    });
  });
}

async function run(m: Measurement): Promise<Report> {
  const port = m.port ?? 5201;
  const server = await startServer(m.server, port);
  try {
    const done = await exec({
      path: "/usr/bin/nice",
      args: [
        ...NICE,
        ...["-c", m.address, "-p", String(port), "-J", "-t", String(m.seconds), "-O", "1"],
        ...(m.udpBits === undefined ? [] : ["-u", "-b", String(m.udpBits)]),
        ...(m.reverse ? ["-R"] : []),
      ],
      env: ENV,
      stdin: "",
      netns: m.client,
      killAfterMs: (m.seconds + 30) * 1000,
    });
    const report = JSON.parse(done.stdout) as Report;
    if (report.error !== undefined) throw new Error(`iperf3: ${report.error}`);
    return report;
  } finally {
    server.kill("SIGKILL");
  }
}

/** What the receiver got, bits per second of payload; the first second is left out. */
export async function throughput(m: Measurement): Promise<number> {
  const { end } = await run(m);
  return end?.sum_received?.bits_per_second ?? end?.sum?.bits_per_second ?? 0;
}

/** What the receiver got for each second of CPU time of both ends, bits: what else runs here hardly counts. */
export async function throughputPerCpu(m: Measurement): Promise<number> {
  const { end } = await run(m);
  const { host_total = 0, remote_total = 0 } = end?.cpu_utilization_percent ?? {};
  return (end?.sum_received?.bits_per_second ?? 0) / ((host_total + remote_total) / 100);
}

/** Second by second, as the client saw it; the first second is left out. */
export async function throughputBySecond(m: Measurement): Promise<Intervals> {
  return ((await run(m)).intervals ?? []).map((i) => i.sum.bits_per_second);
}

const TRIES = 6;

/**
 * The rate that a limit lets through, as a share of it. Above the limit is wrong whenever it happens; below it may be the
 * machine's doing, so the best of a few tries counts.
 */
export async function shareOf(limitBits: number, m: Measurement): Promise<number> {
  let best = 0;
  for (let i = 0; i < TRIES; i++) {
    const share = (await throughput(m)) / limitBits;
    if (share > 1.05) return share;
    best = Math.max(best, share);
    if (best > 0.95) break;
  }
  return best;
}
