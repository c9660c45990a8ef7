/**
 * One end of request and response over one TCP connection, a byte each way, in a network namespace of its own:
 *
 *   serve PORT            echoes until stdin ends; says "ready" first
 *   ask HOST PORT N       N turns; on stdout JSON with the median and the 99th percentile, microseconds
 */
import { connect, createServer } from "node:net";
import { percentile } from "./percentile.ts";

const WARM_UP = 500;
const [verb = "", ...rest] = process.argv.slice(2);

function serve(port: number): Promise<void> {
  const server = createServer({ noDelay: true }, (socket) => {
    socket.on("error", () => undefined);
    socket.pipe(socket);
  });
  server.listen({ port }, () => process.stdout.write("ready\n"));
  return new Promise((resolve) => {
    process.stdin.resume();
    process.stdin.once("end", () => {
      server.close();
      resolve();
    });
  });
}

function ask(host: string, port: number, turns: number): Promise<void> {
  const socket = connect({ host, port, noDelay: true });
  const took: number[] = [];
  let left = turns + WARM_UP;
  let asked = 0;
  const next = () => {
    asked = performance.now();
    socket.write("x");
  };
  socket.once("connect", next);
  return new Promise((resolve, reject) => {
    socket.once("error", reject);
    socket.on("data", () => {
      took.push((performance.now() - asked) * 1000);
      left -= 1;
      if (left > 0) return next();
      const counted = took.slice(WARM_UP);
      process.stdout.write(JSON.stringify({ p50Us: percentile(counted, 50), p99Us: percentile(counted, 99) }));
      socket.destroy();
      resolve();
    });
  });
}

switch (verb) {
  case "serve":
    await serve(Number(rest[0]));
    process.exit(0);
    break;
  case "ask":
    await ask(rest[0] ?? "", Number(rest[1]), Number(rest[2]));
    break;
  default:
    throw new Error(`${verb}: serve or ask is wanted`);
}
