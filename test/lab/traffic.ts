/** Real packets between namespaces. */
import { createServer, type Server } from "node:net";
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
  const script = `exec 3<>/dev/tcp/$1/$2; head -c ${BYTES} /dev/zero >&3 & head -c ${BYTES} <&3 | wc -c`;
  const done = await exec({
    path: "/bin/bash",
    args: ["-c", script, "bash", host, String(port)],
    env: { PATH: "/usr/bin:/bin" },
    stdin: "",
    netns,
    killAfterMs: 5000,
  });
  return Number(done.stdout) === BYTES;
}
