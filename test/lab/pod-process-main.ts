/**
 * What runs in a pod of the tests: echo servers and clients, told what to do by JSON lines on stdin. Answers with JSON
 * lines on stdout, each with the id of its question.
 */
import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { connect, createServer, type Socket } from "node:net";
import { createInterface } from "node:readline";
import type { PodAnswer, PodQuestion, StreamReport } from "./pod-process.ts";

const answer = (a: PodAnswer): void => {
  process.stdout.write(`${JSON.stringify(a)}\n`);
};

function serve(ports: readonly number[]): Promise<unknown> {
  const tcp = ports.map(
    (port) =>
      new Promise((resolve) => {
        const server = createServer((socket) => {
          socket.on("error", () => undefined);
          socket.pipe(socket);
        });
        server.listen({ port, host: "::", ipv6Only: false }, () => resolve(undefined));
      }),
  );
  const udp = ports.map(
    (port) =>
      new Promise((resolve) => {
        const socket = createSocket("udp6"); // both families
        socket.on("message", (bytes, from) => socket.send(bytes, from.port, from.address));
        socket.bind(port, () => resolve(undefined));
      }),
  );
  return Promise.all([...tcp, ...udp]);
}

function probeTcp(host: string, port: number, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    const end = (reached: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(reached);
    };
    const timer = setTimeout(() => end(false), timeoutMs);
    socket.on("error", () => end(false));
    socket.on("connect", () => socket.write("x"));
    socket.on("data", () => end(true));
  });
}

function probeUdp(host: string, port: number, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
    const end = (reached: boolean) => {
      clearTimeout(timer);
      socket.close();
      resolve(reached);
    };
    const timer = setTimeout(() => end(false), timeoutMs);
    socket.on("error", () => end(false));
    socket.on("message", () => end(true));
    socket.send("x", port, host);
  });
}

const DRAIN_MS = 500;

interface Stream {
  readonly count: () => StreamReport;
  readonly stop: () => Promise<StreamReport>;
}

/** One UDP packet a millisecond, or one TCP byte; what does not come back is lost. */
function stream(protocol: "tcp" | "udp", host: string, port: number): Promise<Stream> {
  return new Promise((resolve, reject) => {
    let sent = 0;
    let echoed = 0;
    let longestGapMs = 0;
    let last = performance.now();
    let udp: UdpSocket | undefined;
    let tcp: Socket | undefined;
    const seen = (count: number) => {
      echoed += count;
      longestGapMs = Math.max(longestGapMs, performance.now() - last);
      last = performance.now();
    };
    const begin = () => {
      const timer = setInterval(() => {
        sent += 1;
        if (udp) udp.send("x", port, host);
        else tcp?.write("x");
      }, 1);
      const count = () => ({ sent, echoed, longestGapMs: Math.max(longestGapMs, performance.now() - last) });
      resolve({
        count,
        stop: async () => {
          clearInterval(timer);
          // What was sent last is on its way.
          const deadline = performance.now() + DRAIN_MS;
          while (echoed < sent && performance.now() < deadline) await new Promise((r) => setTimeout(r, 10));
          udp?.close();
          tcp?.destroy();
          return count();
        },
      });
    };
    if (protocol === "udp") {
      udp = createSocket(host.includes(":") ? "udp6" : "udp4");
      udp.on("message", () => seen(1));
      udp.on("error", () => undefined);
      begin();
    } else {
      tcp = connect({ host, port });
      tcp.setNoDelay(true);
      tcp.on("error", reject);
      tcp.on("data", (bytes) => seen(bytes.length));
      tcp.on("connect", begin);
    }
  });
}

const streams = new Map<number, Stream>();

async function handle(q: PodQuestion): Promise<void> {
  switch (q.ask) {
    case "serve":
      await serve(q.ports);
      return answer({ id: q.id, reached: true });
    case "probe": {
      const probe = q.protocol === "tcp" ? probeTcp : probeUdp;
      return answer({ id: q.id, reached: await probe(q.host, q.port, q.timeoutMs) });
    }
    case "stream":
      streams.set(q.id, await stream(q.protocol, q.host, q.port));
      return answer({ id: q.id, reached: true });
    case "count":
      return answer({ id: q.id, reached: true, ...streams.get(q.stream)?.count() });
    case "pause": {
      const found = streams.get(q.stream);
      streams.delete(q.stream);
      return answer({ id: q.id, reached: true, ...(await found?.stop()) });
    }
    default:
      return q satisfies never;
  }
}

createInterface({ input: process.stdin })
  .on("line", (line) => void handle(JSON.parse(line) as PodQuestion).catch(() => process.exit(1)))
  .on("close", () => process.exit(0));
answer({ id: 0, reached: true });
