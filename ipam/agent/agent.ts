/** The agent: start-up, the loops, the watchers. */
import { dirname } from "node:path";
import { LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from "../../shared/sys/linux.ts";
import { nodeSys as sys } from "../../shared/sys/node.ts";
import { isErrno } from "../../shared/sys/sys.ts";
import { listDemand } from "../store/demand.ts";
import { listEnis } from "../store/enis.ts";
import { getFact, setFacts } from "../store/facts.ts";
import { listIntents } from "../store/intents.ts";
import { readJournal } from "../store/journal.ts";
import { maintainStore } from "../store/maintain.ts";
import { storeNow } from "../store/open.ts";
import { expireReservations } from "../store/reservations.ts";
import { inTransaction } from "../store/transaction.ts";
import { type AgentContext, isStoreLost, journal, nowMs } from "./context.ts";
import { sweepDeadPods } from "./dead-pods.ts";
import { setUpKnownEnis, setUpNode } from "./eni-node.ts";
import { createLooks } from "./looks.ts";
import { createLoop, every } from "./loop.ts";
import { createPoolWork } from "./pool-work.ts";
import { repairAndReport } from "./repair.ts";
import { keepTrunk } from "./trunk.ts";
import { keepVpcRoutes } from "./vpc-routes.ts";
import { openWakeSocket } from "./wake-socket.ts";
import { watchNetlink, watchStore } from "./watch.ts";

const REPAIR_EVERY_MS = 30_000;
const SWEEP_EVERY_MS = 5000;
const SWEEP_MIN_AGE_MS = 10_000;
const MAINTAIN_EVERY_MS = 1000;

export interface Agent {
  stop(): void;
}

/** Two agents on one store would double everything. @throws when another one runs. */
export function lockForAgent(storePath: string): void {
  const fd = sys.open(`${storePath}.agent`, O_RDWR | O_CREAT, 0o600);
  try {
    sys.flock(fd, LOCK_EX | LOCK_NB); // held until the process ends
  } catch (error) {
    if (isErrno(error, "EAGAIN")) throw new Error(`another terway-agent works on ${storePath}: stop it first`);
    throw error;
  }
}

export interface AgentFacts {
  readonly nodeName: string;
  readonly podCidrs: readonly string[];
  readonly node6: string | undefined;
  readonly pick: "most" | "fewest";
  /** 0 to 1, different on every node. */
  readonly seed: number;
  /** The instance type's limits were asked for at this start. */
  readonly limitsAsked: boolean;
  /** The store is the one that was there before, whole. */
  readonly storeKept: boolean;
}

/**
 * Starts everything. Makes no call to the cloud by itself: what the store knows is enough to hand out addresses, and what
 * it does not know the pool's first look brings.
 */
export function startAgent(ctx: AgentContext, facts: AgentFacts): Agent {
  const { store, self } = ctx;
  const { mode } = ctx.config;
  // Before the facts are this instance's: a disk may have been another one's.
  const sameInstance = [undefined, self.instanceId].includes(getFact(store.db, "instance_id"));
  const wake = openWakeSocket(`${dirname(store.path)}/agent.sock`, () => loop.soon());
  writeFacts(ctx, facts, wake.name);
  setUpNode(ctx);
  const linked = setUpKnownEnis(ctx);
  const trusted = facts.storeKept && sameInstance && linked;
  const looks = createLooks(ctx);
  const pools = ctx.config.pools.map(({ kind }, i) => {
    const known = trusted && (i > 0 || listEnis(store.db).some((e) => e.kind === kind));
    const specOf = () => ctx.config.pools[i] ?? fail(kind);
    const start = { seed: facts.seed, known, limitsAsked: facts.limitsAsked };
    return createPoolWork(ctx, specOf, looks, i === 0, wake, start);
  });
  const observeCni = cniObserver(ctx);
  /** Pods that no pool of this node serves learn so at once. */
  function tellStranded(): void {
    const kinds = ctx.config.pools.map((p) => p.kind as string);
    for (const d of listDemand(store.db, nowMs()))
      if (!(d.only?.kinds ?? ["shared"]).some((kind) => kinds.includes(kind)))
        wake.tell(
          d.waiter,
          `this node is in mode ${mode} and keeps no ${d.only?.kinds?.join(" or ") ?? "shared"} ENIs: take the conflist of this mode, or change network_mode in eni_conf`,
        );
  }
  const failed = (error: Error) => {
    if (isStoreLost(error)) ctx.storeLost(error);
    else ctx.log("error", error.message);
  };
  const loop = createLoop(() => {
    const due = pools.flatMap((pool) => pool.step() ?? []);
    tellStranded();
    observeCni();
    return due.length === 0 ? undefined : Math.min(...due);
  }, failed);
  ctx.onWake(loop.soon);
  const guarded = (work: () => void) => () => {
    try {
      work();
    } catch (error) {
      failed(error as Error);
    }
  };

  for (const pool of pools) pool.resume();
  // Watching begins before the first look: what changes during it is seen again.
  const storeWatch = watchStore(store.path, loop.soon);
  const stopWatching = watchNetlink(guarded(() => repairAndReport(ctx, "netlink event")));
  guarded(() => repairAndReport(ctx, "at start"))();
  loop.soon();
  const stopRoutes = mode === "vpc" ? keepVpcRoutes(ctx, facts.podCidrs) : () => undefined;
  const hasMembers = ctx.config.pools.some((p) => p.kind === "member");
  const stopTrunk = hasMembers ? keepTrunk(ctx) : () => undefined;

  let suspects: Set<string> = new Set();
  const timers = [
    every(
      SWEEP_EVERY_MS,
      () => {
        suspects = sweepDeadPods(ctx, suspects, SWEEP_MIN_AGE_MS);
        for (const r of expireReservations(store.db, nowMs()))
          journal(ctx, "reservation", "ok", `${r.address} of ${r.podNamespace}/${r.podName} expired`);
        loop.soon(); // cool-downs end without anybody saying so
      },
      failed,
    ),
    every(REPAIR_EVERY_MS, () => repairAndReport(ctx, "periodic check"), failed),
    every(MAINTAIN_EVERY_MS, () => maintainStore(sys, store, storeNow(sys)), failed),
  ];
  const sizes = ctx.config.pools.map(({ kind, pool: p }) => `${kind} ${p.minIdle} to ${p.maxIdle} idle`);
  ctx.log(
    "info",
    `ready: ${mode} mode, pools: ${sizes.join(", ")}; instance ${self.instanceId} (${self.instanceType}) in ${self.zone}`,
    { trusted, intents: listIntents(store.db).length },
  );
  return {
    stop() {
      for (const stop of timers) stop();
      for (const pool of pools) pool.stop();
      stopRoutes();
      stopTrunk();
      stopWatching();
      storeWatch.close();
      loop.stop();
      wake.close();
    },
  };
}

function fail(kind: string): never {
  throw new Error(`the pool of ${kind} ENIs has no configuration any more`);
}

/** What plugins need to know of the node. */
function writeFacts(ctx: AgentContext, facts: AgentFacts, socket: string): void {
  const { self, store, config } = ctx;
  inTransaction(store.db, () =>
    setFacts(store.db, {
      instance_id: self.instanceId,
      instance_type: self.instanceType,
      region: self.region,
      zone: self.zone,
      node_name: facts.nodeName,
      node_ip: self.ip,
      node_ip6: facts.node6 ?? "",
      pod_cidrs: JSON.stringify(facts.podCidrs),
      agent_socket: socket,
      eni_pick: facts.pick,
      ip_stack: config.ipStack,
      via_node: JSON.stringify(config.viaNode),
      max_pool: String(config.pools[0]?.pool.maxIdle ?? 0),
      min_pool: String(config.pools[0]?.pool.minIdle ?? 0),
    }),
  );
}

/** Feeds the durations of CNI operations, which plugins write into the journal, to the metrics. */
function cniObserver({ store, metrics }: AgentContext): () => void {
  let seen = readJournal(store.db, { last: 1 })[0]?.id ?? 0;
  return () => {
    for (const row of readJournal(store.db, { afterId: seen })) {
      seen = row.id;
      if (row.actor !== "agent" && row.durationMs !== undefined) metrics.observeCni(row.op, row.durationMs);
    }
  };
}
