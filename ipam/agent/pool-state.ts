/** What the decision needs to know, read from the store. */
import type { IpStack } from "../../shared/config/ip-stack.ts";
import type { NodeEnis } from "../../shared/datapath/node-enis.ts";
import { matchesConstraint, usableOf } from "../pool/counts.ts";
import type { Budget, ConstrainedDemand, PoolEni, PoolOperation } from "../pool/decide.ts";
import type { PoolView } from "../pool/keeper.ts";
import { type EniAddress, listAddresses } from "../store/addresses.ts";
import { type Demand, listDemand } from "../store/demand.ts";
import type { EniConstraint } from "../store/eni-constraint.ts";
import { type Eni, listEnis } from "../store/enis.ts";
import { getFact } from "../store/facts.ts";
import { type Intent, listIntents } from "../store/intents.ts";
import type { AgentContext, PoolKind, PoolSpec } from "./context.ts";
import { actionOf } from "./intent-action.ts";

/** Pods that wait, in the groups in which they are served. Each is oldest first. */
export interface Waiting {
  /** For an address of any shared ENI. */
  readonly any: readonly Demand[];
  /** In the order of `PoolView.constrained`. */
  readonly constrained: readonly { readonly only: EniConstraint; readonly demands: readonly Demand[] }[];
}

type ViewContext = Pick<AgentContext, "store" | "config" | "lately" | "budgets">;

export function readPool(
  ctx: ViewContext,
  spec: PoolSpec,
  now: number,
): { readonly view: PoolView; readonly waiting: Waiting } {
  const { db } = ctx.store;
  const { config } = ctx;
  const enis = listEnis(db);
  const demands = listDemand(db, now);
  const intents = listIntents(db);
  const addresses = listAddresses(db);
  const waiting = groupDemand(demands, spec.kind);
  const eniSlots = config.eniSlots - nodeEniCount(ctx);
  const { promised, ...pressure } = slotPressure({ kind: spec.kind, eniSlots, enis, addresses, demands, intents });
  const view: PoolView = {
    config: spec.pool,
    limits: { ...spec.limits, enis: Math.max(0, slotsFor(spec, eniSlots, enis) - promised) },
    ...pressure,
    enis: poolEnis(
      enis.filter((e) => e.kind === spec.kind),
      addresses,
      config.ipStack,
      ctx.lately.unassigned,
      now,
    ),
    waiters: waiting.any.length,
    waitingSinceMs: waiting.any[0]?.sinceMs,
    constrained: waiting.constrained.map((g): ConstrainedDemand => ({ only: g.only, waiters: g.demands.length })),
    operations: intents.filter((i) => poolOf(i, enis) === spec.kind).flatMap(operationOf),
    vswitchIds: config.vswitchIds,
    // Of network planes that pods ask for, beside the node's.
    otherVSwitchIds: [...new Set(waiting.constrained.flatMap((g) => g.only.vswitchIds ?? []))].filter(
      (id) => !config.vswitchIds.includes(id),
    ),
    budgets: { ...ctx.budgets(now), ...untilTrunk(spec, enis, now) },
  };
  return { view, waiting };
}

/** Somebody looks again at the latest so long after; the trunk's coming wakes the pool at once. */
const TRUNK_LOOK_MS = 5000;

/** Nothing to hang a member on yet: a try would fail, and the failure keep the pool from the next. Pure. */
export function untilTrunk(
  spec: Pick<PoolSpec, "kind">,
  enis: readonly Pick<Eni, "kind" | "state">[],
  now: number,
): { readonly create?: Budget } {
  if (spec.kind !== "member" || enis.some((e) => e.kind === "trunk" && e.state === "ready")) return {};
  return { create: { tokens: 0, nextAtMs: now + TRUNK_LOOK_MS } };
}

export interface SlotInputs {
  readonly kind: PoolKind;
  readonly eniSlots: number;
  readonly enis: readonly Pick<Eni, "id" | "kind" | "state">[];
  readonly addresses: readonly Pick<EniAddress, "eniId" | "state">[];
  readonly demands: readonly Demand[];
  readonly intents: readonly Intent[];
}

/**
 * Shared ENIs without a pod give way to pods that wait for a whole one: what the pool of shared ones has too many, and to
 * the pool of whole ones, whether one comes free. Pure.
 */
export function slotPressure(i: SlotInputs): Pick<PoolView, "roomFor" | "roomComing"> & {
  /** Slots that the pool must leave to others, free or not. */
  readonly promised: number;
} {
  const held = new Set(
    i.addresses.filter((a) => a.state === "allocated" || a.state === "reserved").map((a) => a.eniId),
  );
  const creating = i.intents.filter(
    (x) => x.kind === "create-eni" && !i.enis.some((e) => e.id === x.eniId) && poolOf(x, []) !== "member",
  );
  const own = i.enis.filter((e) => e.kind === "exclusive" && e.state !== "lost" && !held.has(e.id));
  const { any, constrained } = groupDemand(i.demands, "exclusive");
  const waiting = any.length + constrained.reduce((n, g) => n + g.demands.length, 0);
  const taken = i.enis.filter((e) => e.kind !== "primary" && e.kind !== "member" && e.state !== "lost").length;
  const free = Math.max(0, i.eniSlots - taken - creating.length);
  const coming = own.length + creating.filter((x) => poolOf(x, []) === "exclusive").length;
  const short = waiting - coming - free;
  const promised = i.kind === "shared" ? Math.max(0, waiting - coming) : 0;
  if (short <= 0) return { promised };
  const shared = i.enis.filter((e) => e.kind === "shared");
  if (i.kind === "shared") return { promised, roomFor: short };
  const goes = (e: (typeof shared)[number]) => e.state === "detaching" || e.state === "deleting";
  const empty = shared.filter((e) => e.state === "ready" && !held.has(e.id)).length;
  const ready = shared.filter((e) => e.state === "ready").length;
  return i.kind === "exclusive" && (shared.some(goes) || (empty > 0 && ready > 1))
    ? { promised, roomComing: true }
    : { promised };
}

/** The node's own take slots, too. */
function nodeEniCount({ store }: Pick<AgentContext, "store">): number {
  const text = getFact(store.db, "node_enis");
  return text === undefined || text === "" ? 0 : (JSON.parse(text) as NodeEnis).enis.length;
}

/** ENIs that the pool may have: what other pools have takes slots of the same instance. Pure. */
export function slotsFor(spec: PoolSpec, slots: number, enis: readonly Pick<Eni, "kind">[]): number {
  if (spec.kind === "member") return spec.limits.enis;
  const others = enis.filter((e) => e.kind !== spec.kind && e.kind !== "member" && e.kind !== "primary").length;
  return Math.max(0, Math.min(spec.limits.enis, slots - others));
}

/** Whose call it is: said in the intent of a new ENI, else told by the ENI. Pure. */
export function poolOf(intent: Intent, enis: readonly Pick<Eni, "id" | "kind">[]): PoolKind {
  const known = enis.find((e) => e.id === intent.eniId)?.kind;
  if (known === "exclusive" || known === "member" || known === "shared") return known;
  return intent.kind === "create-eni"
    ? ((JSON.parse(intent.payload) as { pool?: PoolKind }).pool ?? "shared")
    : "shared";
}

/** Pods that this pool serves. Pure. */
export function groupDemand(demands: readonly Demand[], kind: PoolKind): Waiting {
  const any: Demand[] = [];
  const groups = new Map<string, { only: EniConstraint; demands: Demand[] }>();
  for (const d of demands) {
    const { kinds, ...only }: EniConstraint = d.only ?? {};
    if (!(kinds ?? ["shared"]).includes(kind)) continue;
    if (Object.keys(only).length === 0) {
      any.push(d);
    } else {
      const key = JSON.stringify(only);
      const group = groups.get(key) ?? { only, demands: [] as Demand[] };
      groups.set(key, group);
      group.demands.push(d);
    }
  }
  return { any, constrained: [...groups.values()] };
}

/** The ENIs of the pool with their addresses. Pure. */
export function poolEnis(
  enis: readonly Eni[],
  addresses: readonly EniAddress[],
  stack: IpStack,
  unassignedAt: ReadonlyMap<string, number>,
  now: number,
): PoolEni[] {
  return enis.map((e): PoolEni => {
    const own = addresses.filter((a) => a.eniId === e.id && a.state !== "releasing");
    const of = (family: 4 | 6) => own.filter((a) => a.family === family);
    const lead = of(stack === "ipv6" ? 6 : 4);
    const cooling = lead.filter((a) => a.state === "idle" && a.coolUntilMs > now);
    // One family alone may be held by a pod of before the stack was changed.
    const held = (["allocated", "reserved"] as const).map((state) =>
      Math.max(...([4, 6] as const).map((f) => of(f).filter((a) => a.state === state).length)),
    );
    // A whole ENI is one pod's.
    const free = (family: readonly EniAddress[]) => (e.kind !== "shared" && held[0] ? [] : idleOf(family, now));
    return {
      id: e.id,
      state: e.state,
      vswitchId: e.vswitchId,
      total: lead.length,
      allocated: held[0] ?? 0,
      reserved: held[1] ?? 0,
      idle: free(lead),
      cooling: cooling.length,
      nextFreeAtMs: cooling.length === 0 ? undefined : Math.min(...cooling.map((a) => a.coolUntilMs)),
      unassignedAtMs: unassignedAt.get(e.id),
      securityGroups: e.securityGroups,
      ...(stack === "dual" && { total6: of(6).length, idle6: free(of(6)) }),
      ...(e.dedicated && { dedicated: true }),
    };
  });
}

/** Those that can be handed out now, the longest idle first. */
function idleOf(addresses: readonly EniAddress[], now: number): string[] {
  return addresses
    .filter((a) => a.state === "idle" && a.coolUntilMs <= now)
    .sort((a, b) => a.sinceMs - b.sinceMs)
    .map((a) => a.address);
}

/** A call as the decision counts it; nothing for calls that are not the pool's. Pure. */
export function operationOf(intent: Intent): PoolOperation[] {
  const action = actionOf(intent);
  if (action === undefined) return [];
  switch (action.kind) {
    case "create":
      return [
        {
          kind: "create",
          eniId: intent.eniId,
          count: action.count,
          vswitchId: action.vswitchId,
          ...(action.only && { only: action.only }),
        },
      ];
    case "assign":
      return [{ kind: "assign", eniId: action.eniId, count: action.count }];
    default:
      // What goes is marked in the transaction that wrote the intent: it is not among the idle ones any more.
      return [{ kind: action.kind, eniId: action.eniId, count: 0 }];
  }
}

/** How many pods of a group could be served now. Pure. */
export function idleFor(enis: readonly PoolEni[], only: EniConstraint): number {
  return enis
    .filter((e) => e.state === "ready" && matchesConstraint(e, only))
    .reduce((idle, e) => idle + usableOf(e), 0);
}
