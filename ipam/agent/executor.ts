/**
 * Carries out the pool's actions. What an action does to the store and the intent to ask the cloud are one durable
 * transaction; the outcome is one with the intent's end. Killed at any point, `resume` goes on from the intent: with the
 * same ClientToken where the API takes one, by looking where it does not.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { familiesOf } from "../../shared/config/ip-stack.ts";
import type { CloudErrorClass } from "../cloud/classify.ts";
import { type CloudEni, CloudError } from "../cloud/cloud-api.ts";
import type { PoolAction } from "../pool/decide.ts";
import type { Failure } from "../pool/inhibit.ts";
import { addAddress, forgetAddresses, listAddresses, markReleasing, unmarkReleasing } from "../store/addresses.ts";
import { isSpecial } from "../store/eni-constraint.ts";
import { beginDetach, getEni, listEnis, removeEni, setEniState } from "../store/enis.ts";
import { dropIntent, type Intent, listIntents, putIntent, recordIntent } from "../store/intents.ts";
import { inDurableTransaction, inTransaction } from "../store/transaction.ts";
import { endsToken, mayBeDone } from "./client-token.ts";
import { type AgentContext, isStoreLost, journal, nowMs, type PoolKind, wallMs } from "./context.ts";
import { actionOf, intentKindOf } from "./intent-action.ts";
import { poolOf } from "./pool-state.ts";
import { TAG_CREATOR, TAG_DEDICATED, TAG_NODE, TAG_POOL } from "./settings.ts";

const POLL_MS = [200, 300, 500, 1000, 2000, 3000];
const POLL_TRIES = 30;
const RETRY_MS = 500;
const LONGEST_RETRY_MS = 600_000;

/** Refusals of an attachment that no repetition mends: the ENI is deleted again. */
const NEVER_ATTACHES: ReadonlySet<CloudErrorClass> = new Set(["eni-limit", "config", "quota", "not-ours", "bug"]);

/** Refusals of what has no ClientToken that say nothing of an earlier try: the cloud did not look that far. */
const SAYS_NOTHING: ReadonlySet<CloudErrorClass> = new Set(["throttled", "conflict"]);

type Create = Extract<PoolAction, { kind: "create" }>;
type Assign = Extract<PoolAction, { kind: "assign" }>;
type Unassign = Extract<PoolAction, { kind: "unassign" }>;
type Remove = Extract<PoolAction, { kind: "remove" }>;

/** What the executor needs besides cloud and store. */
export interface ExecutorDeps {
  /** @throws {CloudError} The vSwitch is of another zone than this node. */
  refuseOtherZone(vswitchId: string): Promise<void>;
  /** Puts an ENI that is attached nowhere yet into the store. */
  adopt(eni: CloudEni): Promise<void>;
  /** The ENI is attached: sets up the node's side and hands its addresses out. @returns false when it cannot be used. */
  putIntoService(eni: CloudEni): Promise<boolean>;
  /** The trunk ENI that members hang on; undefined: there is none yet. */
  trunkId(): string | undefined;
  /** Told of every try. @returns Until when such an action is not to be tried again, if anything says so. */
  outcome(action: PoolAction, failure: Failure | undefined): number | undefined;
}

export interface Executor {
  /** Starts an action; the promise ends when it is done, whether it went well or not. */
  run(action: PoolAction): Promise<void>;
  /** Goes on with what a former agent left. */
  resume(): Promise<void>;
  /** No further tries. A call that is under way ends by itself. */
  stop(): void;
}

type ExecutorContext = Pick<
  AgentContext,
  "store" | "cloud" | "self" | "config" | "metrics" | "lately" | "log" | "wake" | "storeLost" | "reached"
>;

export function createExecutor(ctx: ExecutorContext, pool: PoolKind, deps: ExecutorDeps): Executor {
  const { cloud, self, store } = ctx;
  const { db } = store;
  const tries = new Map<string, number>();
  /**
   * Intents of which an earlier try may have gone through, whatever the cloud says to the next. Not in the store: a
   * successor cannot know what was sent, and takes every intent that it finds for such.
   */
  const unsure = new Set<string>();
  const timers = new Set<NodeJS.Timeout>();
  let stopped = false;
  /** A pod has an address of this family. */
  const uses = (family: 4 | 6) => familiesOf(ctx.config.ipStack).includes(family);

  function intentOf(action: PoolAction): Intent {
    return {
      id: randomUUID(),
      kind: intentKindOf(action),
      eniId: action.kind === "create" ? undefined : action.eniId,
      clientToken: randomUUID(),
      payload: JSON.stringify(action.kind === "create" ? { ...action, pool } : action),
      step: "asked",
      sinceMs: nowMs(),
    };
  }

  function save(intent: Intent): Intent {
    putIntent(db, intent, wallMs());
    ctx.reached(`${intent.kind}:${intent.step}`);
    return intent;
  }

  /** A call that changes the ENI. A plain refusal leaves it as it was: the next look at the cloud may judge it. */
  async function changing<T>(eniId: string, call: () => Promise<T>): Promise<T> {
    let changed = true;
    try {
      return await call();
    } catch (error) {
      changed = !(error instanceof CloudError) || mayBeDone(error);
      throw error;
    } finally {
      if (changed) ctx.lately.changed.set(eniId, nowMs());
    }
  }

  /** Waits until the ENI is in one of the states; undefined when it does not exist (any more). */
  async function waitForStatus(eniId: string, states: readonly string[]): Promise<CloudEni | undefined> {
    for (let i = 0; i < POLL_TRIES; i++) {
      await sleep(POLL_MS[Math.min(i, POLL_MS.length - 1)]);
      const eni = await cloud.describeEni(eniId);
      if (eni === undefined || states.includes(eni.status)) return eni;
    }
    throw stateError("DescribeNetworkInterfaces", "StateTimeout", `ENI ${eniId} did not become ${states.join(" or ")}`);
  }

  // ---- create: create → attach → link → in service ----

  async function create(intent: Intent, action: Create): Promise<void> {
    const started = performance.now();
    let { eniId } = intent;
    if (eniId === undefined) {
      await deps.refuseOtherZone(action.vswitchId);
      const made = await cloud.createEni({
        vswitchId: action.vswitchId,
        securityGroups: action.only?.securityGroups ?? ctx.config.securityGroups,
        // A pod with an ENI of its own has its primary address.
        count4: pool === "shared" && uses(4) ? action.count : 0,
        count6: uses(6) ? (pool === "shared" ? action.count : 1) : 0,
        tags: {
          ...ctx.config.eniTags,
          [TAG_CREATOR]: "terway",
          [TAG_NODE]: self.instanceId,
          ...(pool === "shared" ? {} : { [TAG_POOL]: pool }),
          ...(isSpecial(action.only ?? {}) ? { [TAG_DEDICATED]: "true" } : {}),
        },
        name: `terway-${self.instanceId}`,
        clientToken: intent.clientToken ?? "",
      });
      unsure.add(intent.id); // until its id is written down only the token finds it
      ctx.reached("create-eni:created");
      eniId = made.id;
      await deps.adopt(made); // decisions from now on see its slot taken and its addresses coming
      save({ ...intent, eniId, step: "made" });
    }
    try {
      await attach(intent, eniId, action, started);
    } finally {
      ctx.lately.changed.set(eniId, nowMs());
    }
  }

  async function attach(intent: Intent, eniId: string, action: Create, started: number): Promise<void> {
    let eni = await cloud.describeEni(eniId);
    if (eni === undefined) return forget(eniId, intent.id); // somebody deleted it: the pool decides anew
    if (eni.status === "Available") {
      try {
        await cloud.attachEni(eniId, self.instanceId, trunkFor(eniId));
      } catch (error) {
        if (error instanceof CloudError && NEVER_ATTACHES.has(error.class)) await discard(eniId, intent.id);
        throw error;
      }
      ctx.reached("create-eni:attach-asked");
    }
    eni = await waitForStatus(eniId, ["InUse", "Available"]);
    if (eni?.status !== "InUse" || eni.instanceId !== self.instanceId) {
      // A failed attach shows as a return to Available.
      await discard(eniId, intent.id);
      throw stateError(
        "AttachNetworkInterface",
        "AttachFailed",
        `ENI ${eniId} went back to ${eni?.status ?? "nothing"}`,
      );
    }
    ctx.reached("create-eni:attached");
    const usable = await deps.putIntoService(eni);
    ctx.reached("create-eni:in-service");
    inTransaction(db, () => dropIntent(db, intent.id));
    if (!usable) {
      void run({ kind: "remove", eniId });
      // Told to the pool: one that saw a success would make the next at once, and so on for ever.
      throw stateError("AttachNetworkInterface", "NoLink", `ENI ${eniId} cannot be used on this node`, "unknown");
    }
    ctx.metrics.observeEniCreate(performance.now() - started);
    const detail = `${eniId} with ${action.count} addresses from ${action.vswitchId}`;
    journal(ctx, "create-eni", "ok", detail, performance.now() - started);
  }

  /** Of a member. @throws {CloudError} to be tried again, as long as there is no trunk. */
  function trunkFor(eniId: string): string | undefined {
    if (pool !== "member") return undefined;
    const trunkId = deps.trunkId();
    if (trunkId === undefined)
      throw stateError("AttachNetworkInterface", "NoTrunk", `ENI ${eniId} waits for this instance's trunk ENI`);
    return trunkId;
  }

  /** Deletes an ENI that could not be attached. */
  async function discard(eniId: string, intentId: string): Promise<void> {
    await ignoringGone(() => cloud.deleteEni(eniId));
    forget(eniId, intentId);
    journal(ctx, "create-eni", "given up", `${eniId} was deleted again: it could not be attached`);
  }

  function forget(eniId: string, intentId: string): void {
    inTransaction(db, () => {
      if (getEni(db, eniId) !== undefined) removeEni(db, eniId);
      dropIntent(db, intentId);
    });
  }

  // ---- assign ----

  async function assign(intent: Intent, { eniId, count, family }: Assign): Promise<void> {
    const started = performance.now();
    const token = intent.clientToken ?? "";
    const wants = (f: 4 | 6) => (family === undefined ? uses(f) : family === f);
    const four = wants(4) ? await changing(eniId, () => cloud.assign(eniId, count, token)) : [];
    const wants6 = wants(6);
    // The other family may be refused: these are ours all the same.
    if (wants6) inTransaction(db, () => addAll(eniId, four));
    const six = wants6 ? await changing(eniId, () => cloud.assign6(eniId, count, `${token}6`)) : [];
    ctx.reached("assign:done");
    inTransaction(db, () => {
      addAll(eniId, [...four, ...six]);
      dropIntent(db, intent.id);
    });
    journal(ctx, "assign", "ok", `${eniId}: ${[...four, ...six].join(" ")}`, performance.now() - started);
  }

  function addAll(eniId: string, addresses: readonly string[]): void {
    for (const address of addresses) addAddress(db, eniId, address, nowMs());
  }

  // ---- unassign ----

  async function unassign(intent: Intent, { eniId, addresses }: Unassign): Promise<void> {
    const going = stillMarked(eniId, addresses);
    try {
      await giveBack(eniId, going);
    } catch (error) {
      if (!(error instanceof CloudError && error.class === "gone")) throw error;
      // The API refuses all of them if one is gone: ask for what is there.
      doubt(intent);
      const there = listedOn(await cloud.describeEni(eniId));
      await ignoringGone(() =>
        giveBack(
          eniId,
          stillMarked(eniId, going).filter((a) => there.has(a)),
        ),
      );
    }
    ctx.reached("unassign:done");
    inTransaction(db, () => {
      forgetAddresses(db, going);
      dropIntent(db, intent.id);
    });
    journal(ctx, "unassign", "ok", `${eniId}: ${going.join(" ")}`);
  }

  async function giveBack(eniId: string, addresses: readonly string[]): Promise<void> {
    const six = addresses.filter((a) => a.includes(":"));
    const four = addresses.filter((a) => !a.includes(":"));
    if (four.length > 0) await changing(eniId, () => cloud.unassign(eniId, four));
    if (six.length === 0) return;
    // The other family may be refused: these are gone all the same.
    if (four.length > 0) inTransaction(db, () => forgetAddresses(db, four));
    await changing(eniId, () => cloud.unassign6(eniId, six));
  }

  /** Nothing that a pod could have. */
  function stillMarked(eniId: string, addresses: readonly string[]): string[] {
    const marked = new Set(releasingOn(eniId));
    return addresses.filter((a) => marked.has(a));
  }

  function releasingOn(eniId: string): string[] {
    return listAddresses(db, eniId)
      .filter((a) => a.state === "releasing")
      .map((a) => a.address);
  }

  // ---- remove: detach → delete ----

  async function remove(intent: Intent, eniId: string): Promise<void> {
    let eni = await cloud.describeEni(eniId);
    if (eni?.status === "Attaching") eni = await waitForStatus(eniId, ["Available", "InUse"]);
    if (eni?.status === "InUse" && eni.instanceId === self.instanceId)
      await ignoringGone(() => changing(eniId, () => cloud.detachEni(eniId, self.instanceId, eni?.trunkEniId)));
    // From here on there is no way back into service.
    save({ ...intent, step: "detached" });
    if (eni !== undefined && eni.status !== "Available") eni = await waitForStatus(eniId, ["Available"]);
    if (eni?.status === "Available") await ignoringGone(() => changing(eniId, () => cloud.deleteEni(eniId)));
    ctx.reached("detach-eni:deleted");
    forget(eniId, intent.id);
    journal(ctx, "delete-eni", "ok", eniId);
  }

  async function ignoringGone(work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof CloudError && error.class === "gone")) throw error;
    }
  }

  // ---- beginning ----

  /**
   * Marks in the store what the action takes away. Inside a transaction.
   *
   * @returns What can be done of it; undefined when a pod was faster.
   */
  function claim(action: PoolAction, now: number): PoolAction | undefined {
    if (action.kind === "unassign") {
      const addresses = markReleasing(db, action.addresses, now);
      return addresses.length === 0 ? undefined : { ...action, addresses };
    }
    if (action.kind === "remove") {
      return beginDetach(db, action.eniId, now).kind === "detaching" ? action : undefined;
    }
    return action;
  }

  /** The intent and the marks, both on disk or neither: an ADD had the address before, or cannot have it now (F-53). */
  function begin(action: PoolAction): Intent | undefined {
    const now = nowMs();
    const intent = inDurableTransaction(db, () => {
      const claimed = claim(action, now);
      if (claimed === undefined) return undefined;
      const wanted = intentOf(claimed);
      recordIntent(db, wanted, wallMs());
      return wanted;
    });
    if (intent === undefined) return undefined;
    if (action.kind === "unassign") ctx.lately.unassigned.set(action.eniId, now);
    ctx.reached(`${intent.kind}:asked`);
    return intent;
  }

  async function run(action: PoolAction): Promise<void> {
    let intent: Intent | undefined;
    try {
      intent = begin(action);
    } catch (error) {
      broken(error);
    }
    if (intent !== undefined) await goOn(intent);
  }

  async function carryOut(intent: Intent, action: PoolAction): Promise<void> {
    switch (action.kind) {
      case "create":
        return create(intent, action);
      case "assign":
        return assign(intent, action);
      case "unassign":
        return unassign(intent, action);
      case "remove":
        return remove(intent, action.eniId);
      default:
        return action satisfies never;
    }
  }

  // ---- outcomes ----

  async function goOn(intent: Intent): Promise<void> {
    const action = actionOf(intent);
    try {
      if (action === undefined) {
        // A route: whoever keeps the routes looks at what is there.
        inTransaction(db, () => dropIntent(db, intent.id));
        return;
      }
      try {
        await carryOut(intent, action);
        ended(intent);
        deps.outcome(action, undefined);
      } catch (error) {
        if (stopped || isStoreLost(error)) throw error;
        await failed(intent, action, error as Error);
      }
    } catch (error) {
      broken(error);
    } finally {
      ctx.wake();
    }
  }

  /** The store did not take what was to be written. */
  function broken(error: unknown): void {
    if (stopped) return;
    if (isStoreLost(error)) ctx.storeLost(error);
    else ctx.log("error", `the pool's work could not be written down: ${(error as Error).message}`);
  }

  /** Failures become inhibitions that the next decision sees. */
  async function failed(intent: Intent, action: PoolAction, error: Error): Promise<void> {
    const failure = error instanceof CloudError ? error : undefined;
    const untilMs = deps.outcome(action, {
      class: failure?.class ?? "unknown",
      code: failure?.code ?? "Error",
      retryAfterMs: failure?.retryAfterMs,
      message: error.message,
      untilNextMinuteMs: 60_000 - (wallMs() % 60_000),
    });
    ctx.log("warn", `${action.kind} failed: ${error.message}`, { requestId: failure?.requestId });
    journal(ctx, action.kind, failure?.code ?? "error", error.message);
    const now = listIntents(db).find((i) => i.id === intent.id);
    if (now === undefined) {
      ended(intent);
      return;
    }
    if (failure === undefined || failure.outcomeUnknown) doubt(now);
    let goesOn = mustGoOn(now, failure, unsure.has(now.id));
    let listed: ReadonlySet<string> | undefined;
    if (!goesOn && unsure.has(now.id) && (action.kind === "unassign" || action.kind === "remove")) {
      listed = await lookWhatIsLeft(action);
      if (stopped) return;
      goesOn = listed === undefined;
    }
    if (goesOn) {
      retryLater(now, untilMs);
      return;
    }
    ended(now);
    inTransaction(db, () => {
      restore(action, listed);
      dropIntent(db, now.id);
    });
  }

  /** What was asked may have been done, whatever the cloud says from now on. */
  function doubt(intent: Intent): void {
    unsure.add(intent.id);
    if (intent.eniId !== undefined) ctx.lately.changed.set(intent.eniId, nowMs());
  }

  function ended(intent: Intent): void {
    tries.delete(intent.id);
    unsure.delete(intent.id);
  }

  /** @returns The addresses that may go back into use; undefined when that is not known, or the ENI is on its way. */
  async function lookWhatIsLeft(action: Unassign | Remove): Promise<ReadonlySet<string> | undefined> {
    try {
      const eni = await cloud.describeEni(action.eniId);
      const stays = eni?.status === "InUse" && eni.instanceId === self.instanceId;
      return action.kind === "unassign" || stays ? listedOn(eni) : undefined;
    } catch (error) {
      ctx.log("warn", `${action.kind}: what became of it is not known: ${(error as Error).message}`);
      return undefined;
    }
  }

  function retryLater(intent: Intent, untilMs: number | undefined): void {
    const n = (tries.get(intent.id) ?? 0) + 1;
    tries.set(intent.id, n);
    const own = RETRY_MS * 2 ** Math.min(n, 6) * (0.5 + Math.random() / 2);
    const pause = Math.min(LONGEST_RETRY_MS, Math.max(own, (untilMs ?? 0) - nowMs()));
    const timer = setTimeout(() => {
      timers.delete(timer);
      void goOn(intent);
    }, pause);
    timer.unref();
    timers.add(timer);
  }

  /**
   * What was marked to go stays. Inside a transaction.
   *
   * @param listed What the cloud still has of it, where an earlier try may have gone through. Absent: all.
   */
  function restore(action: PoolAction, listed?: ReadonlySet<string>): void {
    if (action.kind !== "unassign" && action.kind !== "remove") return;
    if (action.kind === "remove") {
      const eni = getEni(db, action.eniId);
      if (eni === undefined) return;
      // One that was never set up is for the next look at the cloud.
      setEniState(db, eni.id, eni.preparedBoot === store.bootId ? "ready" : "attaching");
    }
    const { eniId } = action;
    const marked = action.kind === "unassign" ? stillMarked(eniId, action.addresses) : releasingOn(eniId);
    unmarkReleasing(
      db,
      marked.filter((a) => listed?.has(a) ?? true),
    );
    if (listed === undefined) return;
    forgetAddresses(
      db,
      marked.filter((a) => !listed.has(a)),
    );
  }

  return {
    run,
    async resume() {
      const enis = listEnis(db);
      const left = listIntents(db).filter((i) => poolOf(i, enis) === pool);
      for (const intent of left) doubt(intent);
      await Promise.all(left.map(goOn));
    },
    stop() {
      stopped = true;
      for (const timer of timers) clearTimeout(timer);
    },
  };
}

/**
 * Whether the intent must be brought to its end: what was asked may have been done, or is half done.
 *
 * @param unsure An earlier try may have gone through.
 */
export function mustGoOn(
  intent: Pick<Intent, "kind" | "eniId" | "step">,
  failure: CloudError | undefined,
  unsure = false,
): boolean {
  if (failure === undefined || mayBeDone(failure)) return true;
  if (intent.kind === "create-eni" && intent.eniId !== undefined) return true;
  if (intent.kind === "detach-eni" && intent.step === "detached") return true;
  const hasToken = intent.kind === "create-eni" || intent.kind === "assign";
  return unsure && (hasToken ? !endsToken(failure) : SAYS_NOTHING.has(failure.class));
}

function listedOn(eni: CloudEni | undefined): ReadonlySet<string> {
  return new Set([...(eni?.ips4 ?? []), ...(eni?.ips6 ?? [])]);
}

function stateError(action: string, code: string, message: string, kind: CloudErrorClass = "retry"): CloudError {
  return new CloudError({ action, code, class: kind, requestId: "", message, retryAfterMs: undefined });
}
