/** A simulated node: pods that come and go, the real decision, and the thinnest executor around it. */
import { createRateLimiter, type Rate } from "../../cloud/rate-limit.ts";
import { createPoolKeeper, type PoolView } from "../keeper.ts";
import type { Observation, PoolAction, PoolConfig, PoolOperation } from "../state.ts";
import type { VirtualClock } from "./clock.ts";
import type { Reply, SimCloud, SimFailure } from "./cloud.ts";
import { createInventory } from "./inventory.ts";

export interface SimNodeOptions {
  readonly name: string;
  readonly clock: VirtualClock;
  readonly cloud: SimCloud;
  readonly config: PoolConfig;
  readonly limits: { readonly enis: number; readonly perEni: number };
  readonly vswitchIds: readonly string[];
  readonly rates: Readonly<Record<string, Rate>>;
  readonly random: () => number;
  /** The store was kept over the restart. */
  readonly known: boolean;
}

export interface SimNodeStats {
  /** How long each pod waited for its address. */
  readonly podWaitMs: number[];
  /** What failing pods were told, with the moment. */
  readonly told: { readonly atMs: number; readonly message: string }[];
  readonly actions: { readonly atMs: number; readonly action: PoolAction }[];
  /** Conditions that began and ended: what an operator sees. */
  readonly events: { readonly atMs: number; readonly event: string }[];
}

type End = (failure?: SimFailure) => void;

const failureOf = (reply: Reply<unknown>) => (reply.kind === "failed" ? reply.failure : undefined);

const POLL_MS = 2000;
const SETTLE_MS = 100;
const API: Readonly<Record<PoolAction["kind"], string>> = {
  create: "CreateNetworkInterface",
  assign: "AssignPrivateIpAddresses",
  unassign: "UnassignPrivateIpAddresses",
  remove: "DeleteNetworkInterface",
};

export type SimNode = ReturnType<typeof createSimNode>;

export function createSimNode(options: SimNodeOptions) {
  const { clock, cloud, random } = options;
  const inventory = createInventory();
  const limiter = createRateLimiter(options.rates, clock.now());
  const operations = new Set<{ -readonly [K in keyof PoolOperation]: PoolOperation[K] }>();
  const waiting = new Map<string, number>();
  const stats: SimNodeStats = { podWaitMs: [], told: [], actions: [], events: [] };
  const keeper = createPoolKeeper(clock.now(), random(), options.known);
  let vswitchIds = options.vswitchIds;
  let limits = options.limits;
  let stepDue = Number.POSITIVE_INFINITY;
  const looking = new Set<Observation>();

  function view(): PoolView {
    const now = clock.now();
    return {
      config: options.config,
      limits,
      enis: inventory.view(now),
      waiters: waiting.size,
      operations: [...operations],
      vswitchIds,
      budgets: {
        create: limiter.budget(API.create, now),
        assign: limiter.budget(API.assign, now),
      },
    };
  }

  function wake(inMs = SETTLE_MS): void {
    const atMs = clock.now() + Math.max(1, inMs);
    if (stepDue <= atMs) return;
    stepDue = atMs;
    clock.after(atMs - clock.now(), () => {
      if (stepDue !== atMs) return;
      stepDue = Number.POSITIVE_INFINITY;
      step();
    });
  }

  function step(): void {
    const now = clock.now();
    serveWaiting();
    const decision = keeper.decide(view(), now);
    for (const { reason } of decision.began) stats.events.push({ atMs: now, event: `+${reason}` });
    for (const { reason } of decision.ended) stats.events.push({ atMs: now, event: `-${reason}` });
    for (const action of decision.actions) {
      stats.actions.push({ atMs: now, action });
      run(action);
    }
    for (const { what } of decision.observe) if (!looking.has(what)) look(what);
    if (decision.stuck !== undefined) failWaiting(decision.stuck);
    if (decision.againAtMs !== undefined) wake(decision.againAtMs - now);
  }

  function serveWaiting(): void {
    for (const [pod, since] of waiting) {
      if (!inventory.take(pod, clock.now())) return;
      waiting.delete(pod);
      stats.podWaitMs.push(clock.now() - since);
    }
  }

  /** Kubelet tries again with a pause. */
  function failWaiting(message: string): void {
    stats.told.push({ atMs: clock.now(), message });
    for (const [pod, since] of [...waiting]) {
      waiting.delete(pod);
      clock.after(2000 + 2000 * random(), () => start(pod, since));
    }
  }

  function start(pod: string, since = clock.now()): void {
    if (inventory.take(pod, clock.now())) stats.podWaitMs.push(clock.now() - since);
    else waiting.set(pod, since);
    wake();
  }

  function look(what: Observation): void {
    looking.add(what);
    const finish = (reply: Reply<unknown>, seen?: readonly { readonly id: string; readonly available: number }[]) => {
      looking.delete(what);
      if (reply.kind === "ok") keeper.saw(what, clock.now(), { vswitches: seen });
      else keeper.sawNothing(what, clock.now(), reply.failure.retryAfterMs);
      wake();
    };
    if (what === "enis") cloud.describeEnis(finish);
    if (what === "vswitches") cloud.describeVSwitches((r) => finish(r, r.kind === "ok" ? r.value : undefined));
    if (what === "limits")
      cloud.describeLimits((r) => {
        if (r.kind === "ok") limits = r.value;
        finish(r);
      });
  }

  function run(action: PoolAction): void {
    const operation = {
      kind: action.kind,
      eniId: action.kind === "create" ? undefined : action.eniId,
      vswitchId: action.kind === "create" ? action.vswitchId : undefined,
      count: action.kind === "unassign" ? action.addresses.length : action.kind === "remove" ? 0 : action.count,
    };
    operations.add(operation);
    const end = (failure?: SimFailure) => {
      operations.delete(operation);
      const [enis, now] = [inventory.view(clock.now()), clock.now()];
      const untilNextMinuteMs = 60_000 - (now % 60_000);
      if (failure === undefined) keeper.done(action, enis, now);
      else keeper.failed(action, { retryAfterMs: undefined, untilNextMinuteMs, ...failure }, enis, now, random());
      wake();
    };
    // The brake of our own comes before the call.
    clock.after(limiter.take(API[action.kind], clock.now()), () => carryOut(action, operation, end));
  }

  function carryOut(action: PoolAction, operation: { eniId: string | undefined }, end: End): void {
    switch (action.kind) {
      case "create":
        cloud.createEni(action.vswitchId, action.count, (r) => {
          if (r.kind === "failed") {
            end(r.failure);
          } else {
            operation.eniId = r.value.id;
            inventory.addEni(r.value.id, action.vswitchId, "attaching", r.value.addresses, clock.now());
            attach(r.value.id, end);
          }
        });
        break;
      case "assign":
        cloud.assign(action.eniId, action.count, (r) => {
          if (r.kind === "ok") inventory.addAddresses(action.eniId, r.value, clock.now());
          end(failureOf(r));
        });
        break;
      case "unassign":
        unassign(action.eniId, inventory.markReleasing(action.eniId, action.addresses, clock.now()), end);
        break;
      case "remove":
        remove(action.eniId, end);
        break;
      default:
        action satisfies never;
    }
  }

  function unassign(eniId: string, marked: readonly string[], end: End): void {
    const eni = inventory.enis.get(eniId);
    if (eni === undefined || marked.length === 0) {
      end();
      return;
    }
    eni.unassignedAtMs = clock.now();
    cloud.unassign(eniId, marked, (r) => {
      for (const address of marked) eni.addresses.delete(address);
      if (r.kind === "failed") inventory.addAddresses(eniId, marked, clock.now());
      end(failureOf(r));
    });
  }

  function remove(eniId: string, end: End): void {
    const eni = inventory.enis.get(eniId);
    if (eni === undefined || [...eni.addresses.values()].some((a) => a.pod !== undefined)) {
      end();
      return;
    }
    eni.state = "detaching";
    cloud.detachEni(eniId, (r) => {
      if (r.kind === "failed") {
        eni.state = "ready";
        end(r.failure);
      } else {
        pollUntil(eniId, "Available", () => deleteEni(eniId, end));
      }
    });
  }

  function attach(id: string, end: End): void {
    cloud.attachEni(id, (r) => {
      if (r.kind === "ok") {
        pollUntil(id, "InUse", () => {
          const eni = inventory.enis.get(id);
          if (eni !== undefined) eni.state = "ready";
          end();
        });
      } else if (r.failure.class === "eni-limit") {
        deleteEni(id, () => end(r.failure));
      } else {
        // Throttled, or busy: the ENI is made, so it is attached in the end.
        clock.after(5000 + 30_000 * random(), () => attach(id, end));
      }
    });
  }

  function deleteEni(id: string, end: End): void {
    cloud.deleteEni(id, (r) => {
      if (r.kind === "failed" && r.failure.class !== "gone") {
        clock.after(5000 + 30_000 * random(), () => deleteEni(id, end));
      } else {
        inventory.enis.delete(id);
        end();
      }
    });
  }

  function pollUntil(id: string, status: string, then: () => void): void {
    clock.after(POLL_MS * 2, () =>
      cloud.describeEni(id, (r: Reply<{ readonly status: string } | undefined>) => {
        if (r.kind === "ok" && r.value?.status === status) then();
        else pollUntil(id, status, then);
      }),
    );
  }

  wake(1);
  return {
    name: options.name,
    inventory,
    stats,
    startPod: (pod: string) => start(pod),
    stopPod(pod: string) {
      waiting.delete(pod);
      inventory.free(pod, clock.now());
      wake();
    },
    /** A change of eni_conf. */
    setVSwitches(ids: readonly string[]) {
      vswitchIds = ids;
      wake();
    },
    conditions: keeper.conditions,
    running: () => inventory.held.size,
  };
}
