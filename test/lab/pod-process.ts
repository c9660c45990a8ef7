/** A process in a pod that serves and probes: real connections between network namespaces. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { inNetns } from "../runtime/exec.ts";

export type PodQuestion = { readonly id: number } & (
  | { readonly ask: "serve"; readonly ports: readonly number[] }
  | {
      readonly ask: "probe";
      readonly protocol: "tcp" | "udp";
      readonly host: string;
      readonly port: number;
      readonly timeoutMs: number;
    }
  | { readonly ask: "stream"; readonly protocol: "tcp" | "udp"; readonly host: string; readonly port: number }
  | { readonly ask: "pause"; readonly stream: number }
  | { readonly ask: "count"; readonly stream: number }
);

export interface StreamReport {
  readonly sent: number;
  readonly echoed: number;
  readonly longestGapMs: number;
}

export type PodAnswer = { readonly id: number; readonly reached: boolean } & Partial<StreamReport>;

export interface PodStream {
  /** So far. */
  count(): Promise<StreamReport>;
  stop(): Promise<StreamReport>;
}

export interface PodProcess {
  /** Echo servers on these ports, TCP and UDP, both families. */
  serve(ports: readonly number[]): Promise<void>;
  /** Whether an echo came back. */
  probe(protocol: "tcp" | "udp", host: string, port: number, timeoutMs?: number): Promise<boolean>;
  /** A probe that is meant to arrive: it has all the time that a busy machine needs. */
  reaches(protocol: "tcp" | "udp", host: string, port: number): Promise<boolean>;
  /** A packet a millisecond over one flow, until stopped. */
  stream(protocol: "tcp" | "udp", host: string, port: number): Promise<PodStream>;
  close(): Promise<void>;
}

/** An allowed flow gets all the time that a busy machine needs; a denied one is waited for in vain. */
export const ALLOWED_MS = 8000;
export const DENIED_MS = 400;

type Ask<Q = PodQuestion> = Q extends unknown ? Omit<Q, "id"> : never;

/** Starts it in a network namespace. */
export async function startPodProcess(netns: string): Promise<PodProcess> {
  const main = fileURLToPath(new URL("pod-process-main.ts", import.meta.url));
  const child: ChildProcess = inNetns(netns, () =>
    spawn(process.execPath, ["--disable-warning=ExperimentalWarning", main], { stdio: ["pipe", "pipe", "inherit"] }),
  );
  const waiting = new Map<number, { resolve(a: PodAnswer): void; reject(error: Error): void }>();
  let serial = 0;
  const ready = new Promise<PodAnswer>((resolve, reject) => waiting.set(0, { resolve, reject }));
  child.on("exit", (code) => {
    for (const { reject } of waiting.values()) reject(new Error(`a pod's process ended with ${code}`));
  });
  if (child.stdout === null || child.stdin === null) throw new Error("a pod's process has no pipes");
  const { stdin } = child;
  createInterface({ input: child.stdout }).on("line", (line) => {
    const a = JSON.parse(line) as PodAnswer;
    waiting.get(a.id)?.resolve(a);
    waiting.delete(a.id);
  });
  const ask = (question: Ask): Promise<PodAnswer> => {
    serial += 1;
    const id = serial;
    return new Promise((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      stdin.write(`${JSON.stringify({ id, ...question })}\n`);
    });
  };
  await ready;
  const probe: PodProcess["probe"] = async (protocol, host, port, timeoutMs = DENIED_MS) =>
    (await ask({ ask: "probe", protocol, host, port, timeoutMs })).reached;
  return {
    serve: async (ports) => void (await ask({ ask: "serve", ports })),
    probe,
    reaches: (protocol, host, port) => probe(protocol, host, port, ALLOWED_MS),
    async stream(protocol, host, port) {
      const { id } = await ask({ ask: "stream", protocol, host, port });
      const report = async (verb: "pause" | "count") => {
        const { sent = 0, echoed = 0, longestGapMs = 0 } = await ask({ ask: verb, stream: id });
        return { sent, echoed, longestGapMs };
      };
      return { count: () => report("count"), stop: () => report("pause") };
    },
    close: () =>
      new Promise((resolve) => {
        child.once("exit", () => resolve());
        stdin.end();
      }),
  };
}
