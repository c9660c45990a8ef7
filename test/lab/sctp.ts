/** SCTP between namespaces: `sctp.pl` in one of them. Perl is part of every Debian; Node has neither SCTP nor raw sockets. */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { inNetns } from "../runtime/exec.ts";

export interface SctpProcess {
  /** Whether an INIT was answered. */
  probe(host: string, port: number, timeoutMs: number): Promise<boolean>;
  close(): Promise<void>;
}

/** Starts it, with these ports served. */
export async function startSctp(netns: string, ports: readonly number[]): Promise<SctpProcess> {
  const script = fileURLToPath(new URL("sctp.pl", import.meta.url));
  const child = inNetns(netns, () => spawn("/usr/bin/perl", [script], { stdio: ["pipe", "pipe", "inherit"] }));
  const waiting = new Map<string, { resolve(reached: boolean): void; reject(error: Error): void }>();
  let serial = 0;
  const ready = new Promise<boolean>((resolve, reject) => waiting.set("ready", { resolve, reject }));
  const fail = (error: Error) => {
    for (const { reject } of waiting.values()) reject(error);
  };
  child.once("error", fail);
  child.once("exit", (code) => fail(new Error(`the SCTP process ended with ${code}`)));
  createInterface({ input: child.stdout }).on("line", (line) => {
    const [id = "", reached] = line.split(" ");
    waiting.get(id)?.resolve(reached === "1");
    waiting.delete(id);
  });
  await ready;
  child.stdin.write(`serve ${ports.join(" ")}\n`);
  return {
    probe(host, port, timeoutMs) {
      serial += 1;
      const id = String(serial);
      child.stdin.write(`probe ${id} ${host} ${port} ${timeoutMs}\n`);
      return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
    },
    close: () =>
      new Promise((resolve) => {
        child.once("exit", () => resolve());
        child.stdin.end();
      }),
  };
}
