/** Getting addresses out of the store, waiting for the agent when there is none. */
import {
  type Allocation,
  allocateFromEnis,
  type EniConstraint,
  type Leased,
  type PoolCounts,
} from "../../ipam/store/allocate.ts";
import { dropDemand, isWaiting, putDemand } from "../../ipam/store/demand.ts";
import { getFact, type NodeFacts } from "../../ipam/store/facts.ts";
import type { AttachmentKey } from "../../ipam/store/key.ts";
import { type Store, storeNow } from "../../ipam/store/open.ts";
import { allocateFromRanges, type RangeSet } from "../../ipam/store/ranges.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { CniFailure, CODE } from "../../shared/cni/failure.ts";
import { familiesOf } from "../../shared/config/ip-stack.ts";
import { parseCidr } from "../../shared/net/cidr.ts";
import { AF_UNIX, SOCK_DGRAM } from "../../shared/sys/linux.ts";
import { encodeUtf8, isErrno, type Sys } from "../../shared/sys/sys.ts";
import { type ConfiguredRange, completeRange, type IpamConfig } from "./config.ts";

export const DEFAULT_COOLDOWN_MS = 30_000;
const WAKE = encodeUtf8("demand");
/** A waiter looks again by itself after this long, in case a wake-up was lost. */
const LOOK_AGAIN_MS = 1000;

export interface LeaseRequest {
  readonly key: AttachmentKey;
  readonly config: IpamConfig;
  /** Of the node, read once for the call. */
  readonly facts: Partial<NodeFacts>;
  readonly pod: { readonly namespace: string; readonly name: string } | undefined;
  /** Which ENIs will do; absent: every shared one. */
  readonly only?: EniConstraint | undefined;
  /** From ENIs, whatever the configuration's source is: the pod asks for it. */
  readonly fromEnis?: boolean;
  /** Runs in the transaction that takes the addresses. */
  readonly inSameTransaction?: (leases: readonly Leased[]) => void;
}

export interface Lease {
  readonly leases: readonly Leased[];
  /** Range of each lease, by slot; empty for the ENI pool. */
  readonly sets: readonly (readonly ConfiguredRange[])[];
}

export function cooldownMs(facts: Partial<NodeFacts>, config: Pick<IpamConfig, "cooldownMs">): number {
  return config.cooldownMs ?? Number(facts.cooldown_ms ?? DEFAULT_COOLDOWN_MS);
}

/** Ranges in force; undefined for the ENI pool. @throws {CniFailure} when the node has no pod range yet. */
export function rangeSets(
  facts: Partial<NodeFacts>,
  config: IpamConfig,
): readonly (readonly ConfiguredRange[])[] | undefined {
  if (config.source.kind === "ranges") return config.source.sets;
  if (config.source.kind === "eni") return undefined;
  const cidrs = JSON.parse(facts.pod_cidrs ?? "[]") as string[];
  if (cidrs.length === 0) {
    throw new CniFailure(
      CODE.tryAgainLater,
      "this node has no pod CIDR in the store yet",
      "the agent writes it: check that terway-agent runs, and that the Node has spec.podCIDR",
    );
  }
  return cidrs.map((text) => {
    const faults: string[] = [];
    const range = completeRange(parseCidr(text), {}, { add: (fault) => faults.push(fault) });
    if (range === undefined)
      throw new CniFailure(
        CODE.invalidConfig,
        `pod CIDR ${text} of this node cannot be used: ${faults.join("; ")}`,
        "correct the Node's spec.podCIDR",
      );
    // The first address is the pods' gateway.
    return [range];
  });
}

function toRangeSets(sets: readonly (readonly ConfiguredRange[])[]): RangeSet[] {
  return sets.map((set) => set.map(({ first, last, gateway }) => ({ first, last, excluded: gateway })));
}

/**
 * Takes addresses for an attachment.
 *
 * @throws {CniFailure} tryAgainLater when there is none and the agent cannot help in time.
 */
export function takeLease(sys: Sys, store: Store, request: LeaseRequest): Lease {
  const { key, config } = request;
  const only = onlyOf(request);
  const sets = request.fromEnis ? undefined : rangeSets(request.facts, config);
  const attempt = (waiter?: string): Allocation =>
    inTransaction(store.db, () => {
      // Whoever called may be gone, and the container with it.
      if (waiter !== undefined && !isWaiting(store.db, key, waiter))
        throw new CniFailure(
          CODE.tryAgainLater,
          `container ${key.containerId} was deleted while it waited for an address`,
          "nothing is left of it; if the runtime still wants it, it calls again",
        );
      const nowMs = storeNow(sys);
      const allocation =
        sets === undefined
          ? allocateFromEnis(
              store.db,
              key,
              {
                families: familiesOn(request.facts),
                ...(config.requested.length > 0 ? { requested: config.requested } : {}),
                ...(request.pod ? { pod: request.pod } : {}),
                ...(only ? { only } : {}),
              },
              nowMs,
            )
          : allocateFromRanges(
              store.db,
              key,
              toRangeSets(sets),
              config.requested,
              nowMs,
              cooldownMs(request.facts, config),
              request.pod,
            );
      if (allocation.kind === "assigned" || allocation.kind === "already-held") {
        if (waiter !== undefined) dropDemand(store.db, key);
        request.inSameTransaction?.(allocation.leases);
      }
      return allocation;
    });
  let allocation = attempt();
  // An address that cools down for a moment only is worth waiting for, whoever is there or not.
  for (let soon = coolsSoon(allocation); soon !== undefined; soon = coolsSoon(allocation)) {
    sys.pollIn([], soon);
    allocation = attempt();
  }
  if (allocation.kind === "pool-empty" && sets === undefined)
    allocation = waitForAgent(sys, store, request, allocation.perFamily, attempt);
  switch (allocation.kind) {
    case "assigned":
    case "already-held":
      return { leases: allocation.leases, sets: sets ?? [] };
    case "pool-empty":
      throw emptyFailure(
        key.network,
        allocation.perFamily,
        sets === undefined
          ? "attach another ENI or add a vSwitch with free addresses"
          : "extend the ranges of this network",
      );
    case "unavailable":
      throw new CniFailure(
        CODE.tryAgainLater,
        `address ${allocation.address} cannot be given to ${key.containerId}: ${allocation.why}`,
        "ask for another address or none",
      );
    default:
      return allocation satisfies never;
  }
}

const SOON_MS = 500;

/** Until the next address has cooled down, ms; undefined: it takes longer, or there is none. */
function coolsSoon(allocation: Allocation): number | undefined {
  if (allocation.kind !== "pool-empty") return undefined;
  const inMs = allocation.counts.nextFreeInMs;
  return inMs !== undefined && inMs <= SOON_MS ? Math.max(1, inMs) : undefined;
}

function onlyOf({ only, config }: LeaseRequest): EniConstraint | undefined {
  return only ?? (config.eniKind === undefined ? undefined : { kinds: [config.eniKind] });
}

/** Which addresses a pod of this node has. */
export function familiesOn({ ip_stack }: Partial<NodeFacts>): readonly (4 | 6)[] {
  return familiesOf(ip_stack ?? "ipv4");
}

/** Of each family that the pod wants. */
function describeCounts(perFamily: readonly PoolCounts[]): string {
  if (perFamily.length === 1) return perFamily.map(describeFamily).join();
  return perFamily.map((counts) => `IPv${counts.family}: ${describeFamily(counts)}`).join("; ");
}

function describeFamily(counts: PoolCounts): string {
  const soon = counts.nextFreeInMs === undefined ? "" : `, the next in ${Math.ceil(counts.nextFreeInMs / 1000)} s`;
  return `${counts.idle} idle, ${counts.allocated} allocated, ${counts.cooling} cooling${soon}${counts.reserved > 0 ? `, ${counts.reserved} reserved` : ""}`;
}

function emptyFailure(network: string, perFamily: readonly PoolCounts[], remedy: string): CniFailure {
  return new CniFailure(
    CODE.tryAgainLater,
    `network "${network}" has no free address: ${describeCounts(perFamily)}`,
    remedy,
  );
}

/** Records the demand, wakes the agent, and tries again whenever it says that there may be one. */
function waitForAgent(
  sys: Sys,
  store: Store,
  request: LeaseRequest,
  perFamily: readonly PoolCounts[],
  attempt: (waiter: string) => Allocation,
): Allocation {
  const { key, config } = request;
  const agent = getFact(store.db, "agent_socket");
  const absent = (cause: string) =>
    new CniFailure(
      CODE.tryAgainLater,
      `network "${key.network}" has no free address (${describeCounts(perFamily)}) and terway-agent ${cause}`,
      "start terway-agent on this node; the pod is retried",
    );
  if (agent === undefined) throw absent("has never run here");
  const socket = sys.socket(AF_UNIX, SOCK_DGRAM, 0);
  try {
    sys.bindUnix(socket, "");
    const waiter = sys.unixName(socket);
    const started = storeNow(sys);
    const deadlineMs = started + config.waitMs;
    const families = familiesOn(request.facts).join("") as "4" | "6" | "46";
    inTransaction(store.db, () =>
      putDemand(store.db, {
        ...key,
        families,
        waiter,
        only: onlyOf(request),
        sinceMs: started,
        deadlineMs,
      }),
    );
    const buffer = new Uint8Array(512);
    for (;;) {
      wake(sys, socket, agent, absent);
      const left = deadlineMs - storeNow(sys);
      if (left > 0 && sys.pollIn([socket], Math.min(left, LOOK_AGAIN_MS)).length > 0) {
        const reason = new TextDecoder().decode(buffer.subarray(0, sys.recv(socket, buffer)));
        const allocation = attempt(waiter);
        if (allocation.kind !== "pool-empty") return allocation;
        // The agent knows that no address will come: said at once, not after the deadline.
        if (reason.startsWith("no:"))
          throw new CniFailure(
            CODE.tryAgainLater,
            `network "${key.network}" has no free address: ${reason.slice(3).trim()}`,
            "free addresses, or give this node another vSwitch or ENI",
          );
        continue;
      }
      const allocation = attempt(waiter);
      if (allocation.kind !== "pool-empty" || left <= LOOK_AGAIN_MS) return allocation;
    }
  } finally {
    sys.close(socket);
    inTransaction(store.db, () => dropDemand(store.db, key));
  }
}

function wake(sys: Sys, socket: number, agent: string, absent: (cause: string) => CniFailure): void {
  try {
    sys.sendToUnix(socket, agent, WAKE);
  } catch (error) {
    if (isErrno(error, "ECONNREFUSED", "ENOENT")) throw absent("does not run");
    // Its queue is full: it has been woken often enough.
    if (!isErrno(error, "EAGAIN")) throw error;
  }
}

/** Whether the agent takes datagrams at this moment. */
export function agentAnswers(sys: Sys, store: Store): boolean {
  const agent = getFact(store.db, "agent_socket");
  if (agent === undefined) return false;
  const socket = sys.socket(AF_UNIX, SOCK_DGRAM, 0);
  try {
    sys.sendToUnix(socket, agent, encodeUtf8("ping"));
    return true;
  } catch (error) {
    return isErrno(error, "EAGAIN");
  } finally {
    sys.close(socket);
  }
}
