/** What a node holds, and what is too much of it: kernel, store, cloud and processes compared, by other eyes than the product's. */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { CNI_PATH, type World, type WorldNode } from "./world.ts";

export interface Leak {
  readonly kind: "address" | "ENI" | "link" | "kernel" | "store" | "netns" | "process" | "cloud";
  readonly what: string;
}

const KERNEL = [
  ["rule", "ip rule"],
  ["rule6", "ip -6 rule"],
  ["route", "ip route show table all"],
  ["route6", "ip -6 route show table all"],
  // Others come and go by the kernel's own will.
  ["neighbour", "ip neigh show nud permanent"],
  ["neighbour6", "ip -6 neigh show nud permanent"],
  ["qdisc", "tc qdisc"],
  ["nftables", "nft list ruleset"],
] as const;

/** What of a line changes by itself. */
function steady(line: string): string {
  return line
    .replace(/counter packets \d+ bytes \d+/g, "counter")
    .replace(/ (expires|lastuse|used) \S+/g, "")
    .replace(/ qdisc (\S+) \w+:/g, " qdisc $1")
    .trim();
}

function inside(node: WorldNode, command: string): string {
  const done = spawnSync("nsenter", [`--net=${node.netns}`, "sh", "-ec", command], {
    encoding: "utf8",
    maxBuffer: 1 << 26,
  });
  if (done.status !== 0) throw new Error(`${command} in ${node.name}: ${done.stderr}`);
  return done.stdout;
}

/** Rules, routes, neighbours, queues and nftables of the node, a line each; lines of ENIs' links (eth0, ens5, dev1) left out. */
export function kernelLines(node: WorldNode): Set<string> {
  const script = KERNEL.map(([kind, command]) => `${command} | sed 's/^/${kind}: /'`).join("; ");
  const lines = inside(node, script)
    .split("\n")
    .map(steady)
    .filter((l) => l !== "" && !/ dev (eth|dev|ens)\d+/.test(l));
  return new Set(lines);
}

interface IpLink {
  readonly ifname: string;
  readonly address: string;
  readonly linkinfo?: { readonly info_kind?: string };
}

const linksOf = (node: WorldNode) => JSON.parse(inside(node, "ip -d -j link")) as IpLink[];
/** A child of an ENI has its MAC address, and another kind. */
const isWire = (l: IpLink) => (l.linkinfo?.info_kind ?? "veth") === "veth";

export interface Baseline {
  readonly kernel: ReadonlySet<string>;
  /** ENIs' links are left out. */
  readonly links: ReadonlySet<string>;
}

const macsOf = (world: World) => new Set([...world.cloud.model.enis.values()].map((e) => e.mac));

export function baselineOf(world: World, node: WorldNode): Baseline {
  const enis = macsOf(world);
  const links = linksOf(node).filter((l) => !enis.has(l.address));
  return { kernel: kernelLines(node), links: new Set(links.map((l) => l.ifname)) };
}

/** Everything that a node without pods should not have. */
export function leaksOf(world: World, node: WorldNode, before: Baseline, podNetnsInodes: ReadonlySet<number>): Leak[] {
  return [
    ...kernelLeaks(world, node, before),
    ...storeLeaks(world, node),
    ...world.cloud.model.violations().map((what): Leak => ({ kind: "cloud", what })),
    ...processLeaks(world, podNetnsInodes),
  ];
}

/** Of links, rules, routes and the rest in the kernel of the node. */
export function kernelLeaks(world: World, node: WorldNode, before: Baseline): Leak[] {
  const leaks: Leak[] = [];
  const enis = macsOf(world);
  const links = linksOf(node);
  for (const l of links)
    if (!before.links.has(l.ifname) && !(enis.has(l.address) && isWire(l)))
      leaks.push({ kind: "link", what: `${l.ifname} ${l.address} ${l.linkinfo?.info_kind ?? ""}` });
  for (const name of before.links)
    if (!links.some((l) => l.ifname === name)) leaks.push({ kind: "link", what: `${name} is gone from the node` });
  const after = kernelLines(node);
  const ofEni = eniRulesOf(world, node);
  for (const line of after) if (!before.kernel.has(line) && !ofEni(line)) leaks.push({ kind: "kernel", what: line });
  for (const line of before.kernel)
    if (!after.has(line) && !/^rule6?: 2049:/.test(line)) leaks.push({ kind: "kernel", what: `gone: ${line}` });
  for (const eni of world.cloud.model.attachedTo(node.instance.id)) {
    if (eni.type === "Member") continue;
    const found = links.filter((l) => l.address === eni.mac && isWire(l));
    if (found.length !== 1) leaks.push({ kind: "ENI", what: `${eni.id} has ${found.length} links on the node` });
  }
  return leaks;
}

/** The node's own rule for each ENI, which may have come or gone meanwhile. */
function eniRulesOf(world: World, node: WorldNode): (line: string) => boolean {
  const own = new Set(
    world.cloud.model.attachedTo(node.instance.id).flatMap((e) => [e.primaryIp, ...e.ips6].filter((ip) => ip !== "")),
  );
  return (line) => own.has(/^rule6?: 2049:\s+from (\S+) lookup/.exec(line)?.[1] ?? "");
}

const HELD = {
  "addresses allocated": "SELECT count(*) AS n FROM address WHERE state = 'allocated'",
  attachments: "SELECT count(*) AS n FROM attachment",
  intents: "SELECT count(*) AS n FROM intent",
  "waiting for addresses": "SELECT count(*) AS n FROM demand",
  "limits recorded": "SELECT count(*) AS n FROM shaping",
  "policy addresses": "SELECT count(*) AS n FROM policy_address",
  reservations: "SELECT count(*) AS n FROM reservation",
} as const;

/** Store and cloud say the same of ENIs and addresses, and nothing is held or under way. */
function storeLeaks(world: World, node: WorldNode): Leak[] {
  const leaks: Leak[] = [];
  const db = openNodeSql(node.store);
  try {
    for (const [what, sql] of Object.entries(HELD)) {
      const n = Number(db.get(sql)?.n);
      if (n > 0) leaks.push({ kind: what.startsWith("addresses") ? "address" : "store", what: `${n} ${what}` });
    }
    const known = new Map(db.all("SELECT id, kind, state FROM eni").map((r) => [String(r.id), r]));
    for (const eni of world.cloud.model.enis.values()) {
      if (eni.type === "Primary") continue;
      const mine = known.get(eni.id);
      known.delete(eni.id);
      if (mine === undefined) leaks.push({ kind: "ENI", what: `${eni.id} (${eni.status}) is not in the store` });
      else if (eni.status !== "InUse" || mine.state !== "ready")
        leaks.push({ kind: "ENI", what: `${eni.id} is ${eni.status} in the cloud and ${mine.state} in the store` });
      else leaks.push(...addressLeaks(db.all("SELECT address FROM address WHERE eni_id = ?", [eni.id]), eni));
    }
    for (const [id, r] of known)
      if (r.kind !== "primary") leaks.push({ kind: "ENI", what: `${id} is in the store only` });
  } finally {
    db.close();
  }
  return leaks;
}

function addressLeaks(
  rows: readonly Readonly<Record<string, unknown>>[],
  eni: {
    readonly id: string;
    readonly primaryIp: string;
    readonly ips: ReadonlySet<string>;
    readonly ips6: ReadonlySet<string>;
  },
): Leak[] {
  const ours = new Set(rows.map((r) => String(r.address)));
  const theirs = new Set([...eni.ips, ...eni.ips6]);
  // The ENI's own address is in the pool only where the ENI is a pod's.
  const lost = [...theirs].filter((a) => !ours.has(a) && a !== eni.primaryIp && !eni.ips6.has(a));
  return [
    ...lost.map((a): Leak => ({ kind: "address", what: `${a} is on ${eni.id} and not in the store` })),
    ...[...ours]
      .filter((a) => !theirs.has(a))
      .map((a): Leak => ({ kind: "address", what: `${a} is in the store and not on ${eni.id}` })),
  ];
}

const read = (look: () => string) => {
  try {
    return look();
  } catch {
    return ""; // the process has ended
  }
};

function netnsInodes(world: World): number[] {
  return readdirSync("/run/netns")
    .filter((name) => name.startsWith(`${world.prefix}-`))
    .flatMap((name) => nodeSys.stat(`/run/netns/${name}`)?.ino ?? []);
}

/** Plugin processes of this world that still run, and whoever keeps the namespace of a pod that is gone. */
function processLeaks(world: World, podNetnsInodes: ReadonlySet<number>): Leak[] {
  const dead = new Set([...podNetnsInodes].map((ino) => `net:[${ino}]`));
  // Numbers come again: those of the world's own namespaces are no pod's.
  for (const ino of netnsInodes(world)) dead.delete(`net:[${ino}]`);
  return readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid) && Number(pid) !== process.pid)
    .flatMap((pid): Leak[] => {
      const exe = read(() => readlinkSync(`/proc/${pid}/exe`));
      const environ = read(() => readFileSync(`/proc/${pid}/environ`, "utf8"));
      if (exe.startsWith(CNI_PATH[0] ?? "") && environ.includes(`CNI_NETNS=/run/netns/${world.prefix}-`))
        return [{ kind: "process", what: `${exe} (pid ${pid}) still runs` }];
      const fds = read(() => readdirSync(`/proc/${pid}/fd`).join(" "))
        .split(" ")
        .filter((fd) => fd !== "")
        .map((fd) => read(() => readlinkSync(`/proc/${pid}/fd/${fd}`)));
      const held = [read(() => readlinkSync(`/proc/${pid}/ns/net`)), ...fds].find((ns) => dead.has(ns));
      return held === undefined ? [] : [{ kind: "netns", what: `${held} of a pod is kept by ${exe} (pid ${pid})` }];
    });
}
