/**
 * The demo's world, kept up until Ctrl-C for people and tools to play with; or, with --soak, pods that come and go so
 * many times while plugins are killed, and exit status 1 if anything is left.
 *
 *   npm run lab -- [--nodes N] [--mode eniip-veth|vpc|eni-exclusive|eniip-ipvlan|trunk] [--instance-type TYPE] [--pool-min N] [--pool-max N] [--ip-stack ipv4|dual|ipv6] [--state FILE]
 *   npm run lab -- --soak CYCLES [--mode M] [--ip-stack S] [--seed N] [--at-once N] [--json]
 */
import { rmSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { METADATA_IP, OUTSIDE_IP, OUTSIDE_IP6 } from "../cloud/fabric.ts";
import { labMode, labStack } from "./modes.ts";
import { describeSoak, runSoak } from "./soak.ts";
import { CNI_PATH, createWorld } from "./world.ts";

const { values } = parseArgs({
  options: {
    nodes: { type: "string", default: "2" },
    mode: { type: "string", default: "eniip-veth" },
    "instance-type": { type: "string", default: "ecs.g7.xlarge" },
    "pool-min": { type: "string", default: "5" },
    "pool-max": { type: "string", default: "10" },
    "ip-stack": { type: "string" },
    "dual-stack": { type: "boolean", default: false },
    state: { type: "string" },
    soak: { type: "string" },
    seed: { type: "string", default: "1" },
    "at-once": { type: "string", default: "3" },
    json: { type: "boolean", default: false },
  },
});

const mode = labMode(values.mode);
const ipStack = labStack(values["ip-stack"] ?? (values["dual-stack"] ? "dual" : "ipv4"));

function count(name: string, text: string): number {
  const n = Number(text);
  if (!Number.isInteger(n) || n < 1) throw new Error(`--${name} ${text}: a whole number from 1 on is wanted`);
  return n;
}

if (values.soak !== undefined) {
  const report = await runSoak({
    mode,
    ipStack,
    cycles: count("soak", values.soak),
    seed: count("seed", values.seed),
    atOnce: count("at-once", values["at-once"]),
    prefix: `soak${process.pid % 1000}`,
    say: (text) => process.stderr.write(`${text}\n`),
  });
  process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : `${describeSoak(report)}\n`);
  process.exit(report.ok ? 0 : 1);
}

const world = await createWorld({
  prefix: `lab${process.pid % 1000}`,
  nodes: Number(values.nodes),
  mode,
  instanceType: values["instance-type"],
  poolMin: Number(values["pool-min"]),
  poolMax: Number(values["pool-max"]),
  ipStack,
});

let closing = false;
async function close(): Promise<void> {
  if (closing) return;
  closing = true;
  process.stdout.write("\nremoving the lab\n");
  if (values.state !== undefined) rmSync(values.state, { force: true });
  await world.close();
  process.exit(0);
}
process.on("SIGINT", () => void close());
process.on("SIGTERM", () => void close());

const state = {
  cloud: {
    endpoint: world.cloud.apiUrl,
    metadata: world.cloud.metadataUrl,
    accessKeyId: "emulated-key",
    accessKeySecret: "emulated-secret",
  },
  mode,
  ipStack,
  nodes: world.nodes.map((n) => ({
    name: n.name,
    netns: n.netns,
    zone: n.zone,
    instanceId: n.instance.id,
    store: n.store,
    conflist: n.conflistPath,
    cniPath: CNI_PATH.join(":"),
    agentPid: n.agent?.pid,
    agentLog: n.agentLog,
    metricsAddress: n.metricsAddress,
  })),
};
if (values.state !== undefined) writeFileSync(values.state, `${JSON.stringify(state, null, 2)}\n`);

const outside = ipStack === "ipv6" ? OUTSIDE_IP6 : OUTSIDE_IP;
const node = state.nodes[0];
process.stdout.write(`
An emulated VPC with ${state.nodes.length} nodes is up (${mode}, ${ipStack}). API ${state.cloud.endpoint}; inside the nodes metadata ${METADATA_IP}; the world outside ${outside}.
${state.nodes.map((n) => `  ${n.name}  ${n.zone}  netns ${n.netns}  store ${n.store}  agent pid ${n.agentPid}`).join("\n")}

Add a pod on ${node?.name}:
  ip netns add mypod
  jq '.plugins[0] + {cniVersion, name}' ${node?.conflist} | \\
    CNI_COMMAND=ADD CNI_CONTAINERID=mypod CNI_NETNS=/run/netns/mypod CNI_IFNAME=eth0 CNI_PATH=${node?.cniPath} \\
    nsenter --net=${node?.netns} dist/cni/terway-eni
  ip netns exec mypod ping -c1 ${outside}
Look at it:
  npx terway-cli show --store ${node?.store}
  npx terway-cli journal --store ${node?.store}
Remove it: the same with CNI_COMMAND=DEL, then: ip netns del mypod

Ctrl-C removes the lab.
`);
