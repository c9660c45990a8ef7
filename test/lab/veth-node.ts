/** A node with pods on veths, without cloud, plugins or agent: what policies are tried on. */
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { type PodProcess, startPodProcess } from "./pod-process.ts";

export interface VethPod {
  readonly name: string;
  readonly ip4: string;
  readonly ip6: string;
  readonly ns: Netns;
  readonly process: PodProcess;
}

export interface VethNode {
  readonly ns: Netns;
  /** The node's own addresses. */
  readonly ip4: string;
  readonly ip6: string;
  readonly pods: readonly VethPod[];
  pod(name: string): VethPod;
  close(): Promise<void>;
}

/** @param ports Served by every pod. */
export async function createVethNode(
  prefix: string,
  names: readonly string[],
  ports: readonly number[],
): Promise<VethNode> {
  const ns = createNetns(`${prefix}-node`);
  const onNode = (...args: string[]) => runTool("ip", ["-n", ns.name, ...args]);
  const sysctl = (where: Netns, setting: string) =>
    runTool("ip", ["netns", "exec", where.name, "sysctl", "-qw", setting]);
  for (const s of ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]) sysctl(ns, s);
  const [ip4, ip6] = ["10.88.0.1", "fd88::1"];
  onNode("addr", "add", `${ip4}/32`, "dev", "lo");
  onNode("addr", "add", `${ip6}/128`, "dev", "lo");
  const pods = await Promise.all(
    names.map(async (name, i): Promise<VethPod> => {
      const pod = createNetns(`${prefix}-${name}`);
      const [a4, a6, host] = [`10.88.0.${i + 10}`, `fd88::${(i + 10).toString(16)}`, `h${i}`];
      const inPod = (...args: string[]) => runTool("ip", ["-n", pod.name, ...args]);
      onNode("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", pod.name);
      onNode("addr", "add", "169.254.1.1/32", "dev", host);
      onNode("addr", "add", "fe80::1/64", "dev", host, "nodad");
      onNode("link", "set", host, "up");
      inPod("addr", "add", `${a4}/32`, "dev", "eth0");
      inPod("addr", "add", `${a6}/128`, "dev", "eth0", "nodad");
      inPod("link", "set", "eth0", "up");
      inPod("route", "add", "169.254.1.1", "dev", "eth0");
      inPod("route", "add", "default", "via", "169.254.1.1");
      inPod("route", "add", "default", "via", "fe80::1", "dev", "eth0");
      onNode("route", "add", `${a4}/32`, "dev", host, "src", ip4);
      onNode("route", "add", `${a6}/128`, "dev", host, "src", ip6);
      const process = await startPodProcess(pod.path);
      await process.serve(ports);
      return { name, ip4: a4, ip6: a6, ns: pod, process };
    }),
  );
  return {
    ns,
    ip4,
    ip6,
    pods,
    pod(name) {
      const found = pods.find((p) => p.name === name);
      if (found === undefined) throw new Error(`there is no pod ${name}`);
      return found;
    },
    async close() {
      await Promise.all(pods.map((p) => p.process.close()));
      for (const p of pods) p.ns.close();
      ns.close();
    },
  };
}
