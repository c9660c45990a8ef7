/** The child of a probe: listens or sends once, prints one line of what came of it. */
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";

const [role = "", protocol = "", address = "", portText = "", timeoutText = ""] = process.argv.slice(2);
const port = Number(portText);
const timeoutMs = Number(timeoutText);

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function end(line: string): never {
  say(line);
  process.exit(0);
}

const family = address.includes(":") ? "udp6" : "udp4";

if (role === "listen" && protocol === "tcp") {
  const server = createServer((socket) => socket.end());
  server.once("error", (error) => end(`taken: ${error.message}`));
  server.listen(port, address, () => say("listening"));
} else if (role === "listen") {
  const socket = createSocket(family);
  socket.once("error", (error) => end(`taken: ${error.message}`));
  socket.on("message", (message, from) => socket.send(message, from.port, from.address));
  socket.bind(port, address, () => say("listening"));
} else if (protocol === "tcp") {
  setTimeout(() => end(`nothing within ${timeoutMs} ms`), timeoutMs);
  const socket = connect(port, address, () => end("connected"));
  socket.once("error", (error: NodeJS.ErrnoException) =>
    end(error.code === "ECONNREFUSED" ? "refused: nobody listens" : (error.code ?? error.message)),
  );
} else {
  setTimeout(() => end(`nothing within ${timeoutMs} ms`), timeoutMs);
  const socket = createSocket(family);
  socket.once("error", (error: NodeJS.ErrnoException) =>
    end(error.code === "ECONNREFUSED" ? "refused: nobody listens" : (error.code ?? error.message)),
  );
  socket.once("message", () => end("answered"));
  socket.connect(port, address, () => {
    const send = () => socket.send("terway-cli policy explain --probe", () => undefined);
    send();
    setInterval(send, 200); // datagrams may get lost
  });
}
// A listener that nobody ends goes by itself.
if (role === "listen") setTimeout(() => process.exit(0), timeoutMs + 10_000).unref();
