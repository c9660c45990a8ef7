/** Real packets between namespaces. */
import { createServer, type Server } from "node:net";
import { patient } from "../kernel/patience.ts";
import { exec, inNetns } from "../runtime/exec.ts";

const BYTES = 64 << 10;

/** One echo request; `waitSeconds` for its answer. */
export async function ping(fromNetns: string, to: string, waitSeconds = 2): Promise<boolean> {
  const done = await exec({
    path: "/usr/bin/ping",
    args: ["-c1", `-W${waitSeconds}`, to],
    env: { PATH: "/usr/bin:/bin" },
    stdin: "",
    netns: fromNetns,
  });
  return done.status === 0;
}

/** A server in one namespace echoes what a client in another sends: 64 KiB each way. */
export async function tcpEcho(serverNetns: string, address: string, clientNetns: string): Promise<boolean> {
  const server = await listen(serverNetns);
  try {
    const at = server.address();
    return await exchange(clientNetns, address, typeof at === "object" && at !== null ? at.port : 0);
  } finally {
    server.close();
  }
}

/** A server that echoes, on a port of its own. */
export async function serve(netns: string): Promise<{ readonly port: number; close(): void }> {
  const server = await listen(netns);
  const at = server.address();
  return { port: typeof at === "object" && at !== null ? at.port : 0, close: () => server.close() };
}

/** Of `times` connections, how many were made without a lost SYN (the kernel repeats it after a second) and echo. */
export async function connections(netns: string, host: string, port: number, times: number): Promise<number> {
  const seconds = patient(900) / 1000;
  const once = `exec 3<>"/dev/tcp/$1/$2" && echo x >&3 && read -r -t ${seconds} x <&3 && [ "$x" = x ]`;
  const script = `n=0; for i in $(seq ${times}); do timeout ${seconds} bash -c '${once}' bash "$1" "$2" 2>/dev/null && n=$((n+1)); done; echo $n`;
  const done = await inBash(netns, script, [host, String(port)], patient(2000 * times));
  return Number(done.stdout);
}

/** Sends so many bytes to an echo server and waits for them to come back. @returns Mbit/s of payload. */
export async function sendRate(netns: string, host: string, port: number, bytes: number): Promise<number> {
  const { all, ms } = await echoed(netns, host, port, bytes, patient(30_000));
  return all ? (bytes * 8) / 1000 / ms : 0;
}

function listen(netns: string): Promise<Server> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.pipe(socket);
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    // Without a host the socket is made at once, in the namespace of this call.
    inNetns(netns, () => server.listen({ port: 0, exclusive: true }, () => resolve(server)));
  });
}

async function exchange(netns: string, host: string, port: number): Promise<boolean> {
  return (await echoed(netns, host, port, BYTES, 5000)).all;
}

/** Sends so many zeroes to an echo server. @returns Whether all came back, and how long it took. */
async function echoed(netns: string, host: string, port: number, bytes: number, killAfterMs: number) {
  const script = `exec 3<>/dev/tcp/$1/$2; head -c ${bytes} /dev/zero >&3 & head -c ${bytes} <&3 | wc -c`;
  const { stdout, ms } = await inBash(netns, script, [host, String(port)], killAfterMs);
  return { all: Number(stdout) === bytes, ms };
}

function inBash(netns: string, script: string, args: readonly string[], killAfterMs: number) {
  return exec({
    path: "/bin/bash",
    args: ["-c", script, "bash", ...args],
    env: { PATH: "/usr/bin:/bin" },
    stdin: "",
    netns,
    killAfterMs,
  });
}
