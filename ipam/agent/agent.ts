/** The agent: start-up, the loop around the decision, and its watchers. */
import { type FSWatcher, watch } from "node:fs";
import { createServer, type Server } from "node:http";
import { dirname } from "node:path";
import { NETLINK_ROUTE } from "../../shared/netlink/uapi/netlink.ts";
import * as R from "../../shared/netlink/uapi/rtnetlink.ts";
import {
  AF_NETLINK,
  LOCK_EX,
  LOCK_NB,
  MSG_DONTWAIT,
  O_CREAT,
  O_RDWR,
  SOCK_NONBLOCK,
  SOCK_RAW,
} from "../../shared/sys/linux.ts";
import { openNodeSql, nodeSys as sys, watchFd } from "../../shared/sys/node.ts";
import { isErrno } from "../../shared/sys/sys.ts";
import { decide } from "../pool/decide.ts";
import { listDemand, pruneDemand } from "../store/demand.ts";
import { setFacts } from "../store/facts.ts";
import { readJournal } from "../store/journal.ts";
import { openStore, type Store } from "../store/open.ts";
import { inTransaction } from "../store/transaction.ts";
import { removeOrphans, syncWithCloud } from "./cloud-sync.ts";
import { type AgentContext, nowMs } from "./context.ts";
import { sweepDeadPods } from "./dead-pods.ts";
import { setUpNode } from "./eni-node.ts";
import { createExecutor } from "./executor.ts";
import { type PoolMemory, readPoolState } from "./pool-state.ts";
import { repairAndReport } from "./repair.ts";
import { ensureVpcRoutes } from "./vpc-routes.ts";
import { openWakeSocket } from "./wake-socket.ts";

const REPAIR_AFTER_MS = 200;
const REPAIR_EVERY_MS = 30_000;
const SWEEP_EVERY_MS = 5000;
const SWEEP_MIN_AGE_MS = 10_000;
const CHECKPOINT_EVERY_MS = 2000;
const STORE_SETTLE_MS = 50;

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

export function openAgentStore(path: string): Store {
  return openStore({ sys, openSql: openNodeSql }, path);
}

export interface AgentFacts {
  readonly nodeName: string;
  readonly podCidrs: readonly string[];
  readonly dualStack: boolean;
  readonly node6: string | undefined;
  readonly pick: "most" | "fewest";
}

/** Starts everything; returns once the pool is known to be safe to hand out of. */
export async function startAgent(
  ctx: AgentContext,
  facts: AgentFacts,
  metricsAddress: string | undefined,
  reconcileMs: number,
): Promise<Agent> {
  const { store, self } = ctx;
  setUpNode(ctx);
  const memory: PoolMemory = { surplusSinceMs: undefined, unassignedAt: new Map() };
  const executor = createExecutor(ctx);
  const wake = openWakeSocket(`${dirname(store.path)}/agent.sock`, () => loop.soon());
  const loop = createLoop(() => step());
  ctx.wake = () => loop.soon();

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
      agent_socket: wake.name,
      eni_pick: facts.pick,
      ip_stack: facts.dualStack ? "dual" : "ipv4",
      max_pool: String(ctx.config.pool.maxIdle),
      min_pool: String(ctx.config.pool.minIdle),
    }),
  );

  async function step(): Promise<number | undefined> {
    const now = nowMs();
    if (ctx.config.mode === "vpc") return undefined;
    const before = readPoolState(ctx, memory);
    const decision = decide(before, now);
    for (const action of decision.actions) {
      if (action.kind === "unassign") memory.unassignedAt.set(action.eniId, now);
      void executor.run(action);
    }
    tellWaiters(decision.stuck);
    if (decision.stuck !== undefined) ctx.log("warn", `pods wait for an address: ${decision.stuck}`);
    reportPool();
    return decision.againAtMs;
  }

  /** As many as there are addresses, oldest first; all of them when there will be none. */
  function tellWaiters(stuck: string | undefined): void {
    const demand = listDemand(store.db, nowMs());
    if (demand.length === 0) return;
    const idle = readPoolState(ctx, memory)
      .enis.filter((e) => e.state === "ready")
      .reduce((n, e) => n + e.idle.length, 0);
    for (const [i, d] of demand.entries()) {
      if (i < idle) wake.tell(d.waiter);
      else if (stuck !== undefined) wake.tell(d.waiter, stuck);
    }
  }

  let journalSeen = readJournal(store.db, { last: 1 })[0]?.id ?? 0;
  function reportPool(): void {
    const { enis } = readPoolState(ctx, memory);
    const total = enis.reduce((n, e) => n + e.total, 0);
    const allocated = enis.reduce((n, e) => n + e.allocated, 0);
    ctx.metrics.observePool({
      total,
      allocated,
      available: total - allocated,
      enis: enis.length,
      attached: enis.filter((e) => e.state === "ready").length,
    });
    for (const row of readJournal(store.db, { afterId: journalSeen })) {
      journalSeen = row.id;
      if (row.actor !== "agent" && row.durationMs !== undefined) ctx.metrics.observeCni(row.op, row.durationMs);
    }
  }

  // What is already attached first: pods of before the restart keep their addresses, and nothing is doubled.
  await executor.resume();
  if (ctx.config.mode === "shared") await syncWithCloud(ctx);
  if (ctx.config.mode === "vpc") await ensureVpcRoutes(ctx, facts.podCidrs);
  // Watching begins before the first look: what changes during it is seen again.
  const storeWatch = watchStore(store.path, () => loop.soon());
  const stopWatching = watchNetlink(() => repairAndReport(ctx, "netlink event"), ctx);
  repairAndReport(ctx, "at start");
  loop.soon();

  let suspects: Set<string> = new Set();
  const timers = [
    every(SWEEP_EVERY_MS, () => {
      suspects = sweepDeadPods(ctx, suspects, SWEEP_MIN_AGE_MS);
      inTransaction(store.db, () => pruneDemand(store.db, nowMs()));
      loop.soon(); // cool-downs end without anybody saying so
    }),
    every(REPAIR_EVERY_MS, () => repairAndReport(ctx, "periodic check")),
    every(CHECKPOINT_EVERY_MS, () => store.db.all("PRAGMA wal_checkpoint(PASSIVE)")),
    every(reconcileMs, async () => {
      if (ctx.config.mode === "vpc") return ensureVpcRoutes(ctx, facts.podCidrs);
      await syncWithCloud(ctx);
      await removeOrphans(ctx);
    }),
  ];

  /** A failure of one turn is told and does not end the agent. */
  function every(ms: number, work: () => unknown): () => void {
    const timer = setInterval(async () => {
      try {
        await work();
      } catch (error) {
        ctx.log("error", `${(error as Error).message}`);
      }
    }, ms);
    return () => clearInterval(timer);
  }

  const server = metricsAddress === undefined ? undefined : await serveMetrics(ctx, metricsAddress);
  ctx.log(
    "info",
    `ready: ${ctx.config.mode} mode, pool ${ctx.config.pool.minIdle} to ${ctx.config.pool.maxIdle} idle, instance ${self.instanceId} (${self.instanceType}) in ${self.zone}`,
  );
  return {
    stop() {
      for (const stop of timers) stop();
      stopWatching();
      storeWatch.close();
      loop.stop();
      wake.close();
      server?.close();
    },
  };
}

/**
 * Plugins need not say that they took an address: every commit writes the WAL, and inotify says that. Our own writes
 * come back too; a step that changes nothing writes nothing, so that ends by itself.
 */
function watchStore(path: string, onChange: () => void): FSWatcher {
  let timer: NodeJS.Timeout | undefined;
  const watcher = watch(`${path}-wal`, () => {
    timer ??= setTimeout(() => {
      timer = undefined;
      onChange();
    }, STORE_SETTLE_MS);
    timer.unref();
  });
  watcher.on("error", () => undefined); // the periodic look remains
  return watcher;
}

/** Runs `step` when asked, at most one at a time, and again at the moment it names. */
function createLoop(step: () => Promise<number | undefined>) {
  let timer: NodeJS.Timeout | undefined;
  let running = false;
  let again = false;
  let stopped = false;
  async function run(): Promise<void> {
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      const atMs = await step();
      if (atMs !== undefined) schedule(Math.max(50, atMs - nowMs()));
    } finally {
      running = false;
      if (again && !stopped) {
        again = false;
        schedule(0);
      }
    }
  }
  function schedule(ms: number): void {
    if (stopped) return;
    clearTimeout(timer);
    timer = setTimeout(() => void run(), ms);
  }
  return {
    /** Several wake-ups within a few milliseconds are one: pods of a burst come together. */
    soon: () => schedule(5),
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}

const WATCHED =
  R.RTMGRP_LINK |
  R.RTMGRP_IPV4_ROUTE |
  R.RTMGRP_IPV4_RULE |
  R.RTMGRP_IPV6_ROUTE |
  R.RTMGRP_IPV6_RULE |
  R.RTMGRP_IPV4_NETCONF |
  R.RTMGRP_IPV6_NETCONF |
  R.RTMGRP_NEIGH;

/** Calls `onChange` soon after anything changed in links, routes or rules; what changed is found by comparing. */
function watchNetlink(onChange: () => void, ctx: AgentContext): () => void {
  const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
  sys.bindNetlink(fd, WATCHED);
  const buffer = new Uint8Array(64 << 10);
  let timer: NodeJS.Timeout | undefined;
  const stop = watchFd(fd, () => {
    for (;;) {
      try {
        sys.recv(fd, buffer, MSG_DONTWAIT);
      } catch (error) {
        if (isErrno(error, "ENOBUFS")) continue; // events were lost: comparing finds them all the same
        break;
      }
    }
    // Not put off by further events: under churn it still runs every REPAIR_AFTER_MS.
    timer ??= setTimeout(() => {
      timer = undefined;
      try {
        onChange();
      } catch (error) {
        ctx.log("error", `repair: ${(error as Error).message}`);
      }
    }, REPAIR_AFTER_MS);
  });
  return () => {
    clearTimeout(timer);
    stop();
    sys.close(fd);
  };
}

function serveMetrics(ctx: AgentContext, address: string): Promise<Server> {
  const [host = "127.0.0.1", port = "9191"] = address.split(":");
  const server = createServer(async (request, response) => {
    if (request.url === "/healthz") {
      response.end("ok\n");
      return;
    }
    response.setHeader("content-type", ctx.metrics.registry.contentType);
    response.end(await ctx.metrics.registry.metrics());
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(Number(port), host, () => resolve(server));
  });
}
