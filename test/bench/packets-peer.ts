/**
 * One end of the benchmark of packets, in a network namespace of its own. On stdout JSON with the CPU time of this process,
 * the kernel's work for it included:
 *
 *   serve PORT              until stdin ends; says "ready" first
 *   connect HOST PORT N     N connections, opened and closed
 *   flood HOST PORT N       N datagrams
 */
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";

const AT_ONCE = 16;
const [verb = "", ...rest] = process.argv.slice(2);

function open(host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    let made = false;
    const socket = connect({ host, port });
    socket.once("connect", () => {
      made = true;
    });
    // A reset by the end that closes first is an end as well.
    socket.once("error", (error) => (made ? undefined : reject(error)));
    socket.once("close", () => resolve());
    socket.resume();
  });
}

async function connections(host: string, port: number, count: number): Promise<void> {
  let left = count;
  const lane = async () => {
    for (; left > 0; left -= 1) await open(host, port);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
}

async function flood(host: string, port: number, count: number): Promise<void> {
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => socket.connect(port, host, resolve));
  const payload = new Uint8Array(64);
  for (let i = 0; i < count; i++) {
    if (i % 256 === 255) await new Promise<void>((resolve) => socket.send(payload, () => resolve()));
    else socket.send(payload);
  }
  socket.close();
}

function serve(port: number): Promise<void> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.resume();
    socket.end();
  });
  server.listen({ port, backlog: 1024 }, () => process.stdout.write("ready\n"));
  return new Promise((resolve) => {
    process.stdin.resume();
    process.stdin.once("end", () => server.close(() => resolve()));
  });
}

const [host = "", port = "", count = ""] = verb === "serve" ? ["", ...rest] : rest;
const before = process.cpuUsage();
if (verb === "serve") await serve(Number(port));
else if (verb === "connect") await connections(host, Number(port), Number(count));
else await flood(host, Number(port), Number(count));
const { user, system } = process.cpuUsage(before);
process.stdout.write(`${JSON.stringify({ cpuMs: (user + system) / 1000 })}\n`);
