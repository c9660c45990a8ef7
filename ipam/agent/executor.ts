/**
 * Carries out the pool's actions. Each writes its intent to disk, asks the cloud, and records the outcome in one
 * transaction with the intent's end. Killed at any point, `resume` goes on from the intent: with the same ClientToken
 * where the API takes one, by looking where it does not.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { type CloudEni, CloudError } from "../cloud/cloud-api.ts";
import type { PoolAction } from "../pool/decide.ts";
import { blockedBy } from "../pool/inhibit.ts";
import { addAddress, forgetAddresses, listAddresses, markReleasing, unmarkReleasing } from "../store/addresses.ts";
import { beginDetach, getEni, removeEni, setEniState } from "../store/enis.ts";
import { dropIntent, type Intent, listIntents, putIntent } from "../store/intents.ts";
import { inTransaction } from "../store/transaction.ts";
import { adoptEni, putIntoService } from "./cloud-sync.ts";
import { type AgentContext, journal, nowMs, wallMs } from "./context.ts";
import { TAG_CREATOR, TAG_NODE } from "./settings.ts";

const POLL_MS = [200, 300, 500, 1000, 2000, 3000];
const POLL_TRIES = 30;

interface CreatePayload {
  readonly action: Extract<PoolAction, { kind: "create" }>;
}

export interface Executor {
  /** Starts an action; the promise ends when it is done, whether it went well or not. */
  run(action: PoolAction): Promise<void>;
  /** Goes on with what a former agent left. */
  resume(): Promise<void>;
}

export function createExecutor(ctx: AgentContext): Executor {
  const { cloud, self, store } = ctx;
  let failuresInARow = 0;

  function intentOf(kind: Intent["kind"], eniId: string | undefined, payload: unknown): Intent {
    return {
      id: randomUUID(),
      kind,
      eniId,
      clientToken: randomUUID(),
      payload: JSON.stringify(payload),
      step: "asked",
      sinceMs: nowMs(),
    };
  }

  const save = (intent: Intent): Intent => {
    putIntent(store.db, intent, wallMs());
    ctx.reached(`${intent.kind}:${intent.step}`);
    return intent;
  };

  /** Waits until the ENI is in one of the states; undefined when it does not exist (any more). */
  async function waitForStatus(eniId: string, states: readonly string[]): Promise<CloudEni | undefined> {
    for (let i = 0; i < POLL_TRIES; i++) {
      await sleep(POLL_MS[Math.min(i, POLL_MS.length - 1)]);
      const eni = await cloud.describeEni(eniId);
      if (eni === undefined || states.includes(eni.status)) return eni;
    }
    throw new CloudError({
      action: "DescribeNetworkInterfaces",
      code: "StateTimeout",
      class: "retry",
      requestId: "",
      message: `ENI ${eniId} did not become ${states.join(" or ")}`,
      retryAfterMs: undefined,
    });
  }

  // ---- create: create → attach → link → in service ----

  async function create(intent: Intent): Promise<void> {
    const { action } = JSON.parse(intent.payload) as CreatePayload;
    const started = performance.now();
    let current = intent;
    if (current.eniId === undefined) {
      const eni = await cloud.createEni({
        vswitchId: action.vswitchId,
        securityGroups: ctx.config.securityGroups,
        count4: action.count,
        count6: ctx.config.pool.dualStack ? action.count : 0,
        tags: { ...ctx.config.eniTags, [TAG_CREATOR]: "terway", [TAG_NODE]: self.instanceId },
        name: `terway-${self.instanceId}`,
        clientToken: intent.clientToken ?? "",
      });
      ctx.reached("create-eni:created");
      await adoptEni(ctx, eni, "attaching"); // decisions from now on see its slot taken and its addresses coming
      current = save({ ...current, eniId: eni.id, step: "created" });
    }
    const eniId = current.eniId ?? "";
    let eni = await cloud.describeEni(eniId);
    if (eni === undefined) {
      // Somebody deleted it: the pool decides anew.
      inTransaction(store.db, () => {
        if (getEni(store.db, eniId) !== undefined) removeEni(store.db, eniId);
        dropIntent(store.db, intent.id);
      });
      return;
    }
    if (eni.status === "Available") {
      try {
        await cloud.attachEni(eniId, self.instanceId);
      } catch (error) {
        if (error instanceof CloudError && error.class === "eni-limit") await discard(eniId, intent.id);
        throw error;
      }
      ctx.reached("create-eni:attach-asked");
    }
    eni = await waitForStatus(eniId, ["InUse", "Available"]);
    if (eni?.status !== "InUse" || eni.instanceId !== self.instanceId) {
      // A failed attach shows as a return to Available.
      await discard(eniId, intent.id);
      throw new CloudError({
        action: "AttachNetworkInterface",
        code: "AttachFailed",
        class: "retry",
        requestId: "",
        message: `ENI ${eniId} went back to ${eni?.status ?? "nothing"}`,
        retryAfterMs: undefined,
      });
    }
    ctx.reached("create-eni:attached");
    const inService = await putIntoService(ctx, eni);
    ctx.reached("create-eni:in-service");
    inTransaction(store.db, () => dropIntent(store.db, intent.id));
    if (!inService) {
      const removal = beginRemove(eniId);
      if (removal) await guarded("remove", "", removal, () => finishRemove(removal));
    } else {
      ctx.metrics.observeEniCreate(performance.now() - started);
      journal(
        ctx,
        "create-eni",
        "ok",
        `${eniId} with ${action.count} addresses from ${action.vswitchId}`,
        performance.now() - started,
      );
    }
  }

  /** Deletes an ENI that could not be attached. */
  async function discard(eniId: string, intentId: string): Promise<void> {
    await ignoring(["gone"], () => cloud.deleteEni(eniId));
    inTransaction(store.db, () => {
      if (getEni(store.db, eniId) !== undefined) removeEni(store.db, eniId);
      dropIntent(store.db, intentId);
    });
    journal(ctx, "create-eni", "given up", `${eniId} was deleted again: it could not be attached`);
  }

  // ---- assign ----

  async function assign(intent: Intent): Promise<void> {
    const { eniId, count } = JSON.parse(intent.payload) as { eniId: string; count: number };
    const started = performance.now();
    const four = await cloud.assign(eniId, count, intent.clientToken ?? "");
    const six = ctx.config.pool.dualStack ? await cloud.assign6(eniId, count, `${intent.clientToken}6`) : [];
    ctx.reached("assign:done");
    inTransaction(store.db, () => {
      for (const address of [...four, ...six]) addAddress(store.db, eniId, address, nowMs());
      dropIntent(store.db, intent.id);
    });
    journal(ctx, "assign", "ok", `${eniId}: ${[...four, ...six].join(" ")}`, performance.now() - started);
  }

  // ---- unassign ----

  async function unassign(intent: Intent): Promise<void> {
    const { eniId, addresses } = JSON.parse(intent.payload) as { eniId: string; addresses: string[] };
    // The API refuses all of them if one is gone: ask for what is there.
    const eni = await cloud.describeEni(eniId);
    const there = new Set([...(eni?.ips4 ?? []), ...(eni?.ips6 ?? [])]);
    const four = addresses.filter((a) => there.has(a) && !a.includes(":"));
    const six = addresses.filter((a) => there.has(a) && a.includes(":"));
    if (four.length > 0) await ignoring(["gone"], () => cloud.unassign(eniId, four));
    if (six.length > 0) await ignoring(["gone"], () => cloud.unassign6(eniId, six));
    ctx.reached("unassign:done");
    inTransaction(store.db, () => {
      forgetAddresses(store.db, addresses);
      dropIntent(store.db, intent.id);
    });
    journal(ctx, "unassign", "ok", `${eniId}: ${addresses.join(" ")}`);
  }

  function beginUnassign(action: Extract<PoolAction, { kind: "unassign" }>): Intent | undefined {
    const now = nowMs();
    const companions = ctx.config.pool.dualStack
      ? listAddresses(store.db, action.eniId)
          .filter((a) => a.family === 6 && a.state === "idle" && a.coolUntilMs <= now)
          .slice(0, action.addresses.length)
          .map((a) => a.address)
      : [];
    const intent = intentOf("unassign", action.eniId, {
      eniId: action.eniId,
      addresses: [...action.addresses, ...companions],
    });
    save(intent); // before the addresses are marked: marked ones without an intent would be nobody's
    const marked = inTransaction(store.db, () => markReleasing(store.db, [...action.addresses, ...companions], now));
    ctx.reached("unassign:marked");
    if (marked.length === 0) {
      inTransaction(store.db, () => dropIntent(store.db, intent.id));
      return undefined;
    }
    // Pods took some of them in between: those are not given back.
    return save({ ...intent, payload: JSON.stringify({ eniId: action.eniId, addresses: marked }), step: "marked" });
  }

  // ---- remove: detach → delete ----

  function beginRemove(eniId: string): Intent | undefined {
    const intent = save(intentOf("detach-eni", eniId, { eniId }));
    const begun = inTransaction(store.db, () => {
      const outcome = beginDetach(store.db, eniId, nowMs());
      if (outcome.kind === "in-use") dropIntent(store.db, intent.id); // a pod was faster
      return outcome;
    });
    ctx.reached("detach-eni:marked");
    return begun.kind === "in-use" ? undefined : intent;
  }

  async function finishRemove(intent: Intent): Promise<void> {
    const eniId = intent.eniId ?? "";
    let eni = await cloud.describeEni(eniId);
    if (eni?.status === "InUse") {
      await ignoring(["gone"], () => cloud.detachEni(eniId, self.instanceId));
      ctx.reached("detach-eni:asked");
      eni = await waitForStatus(eniId, ["Available"]);
    } else if (eni?.status === "Detaching" || eni?.status === "Attaching") {
      eni = await waitForStatus(eniId, ["Available", "InUse"]);
    }
    if (eni?.status === "Available") await ignoring(["gone"], () => cloud.deleteEni(eniId));
    ctx.reached("detach-eni:deleted");
    inTransaction(store.db, () => {
      if (getEni(store.db, eniId) !== undefined) removeEni(store.db, eniId);
      dropIntent(store.db, intent.id);
    });
    journal(ctx, "delete-eni", "ok", eniId);
  }

  async function ignoring(classes: readonly string[], work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof CloudError && classes.includes(error.class))) throw error;
    }
  }

  // ---- outcomes ----

  /** Failures become inhibitions that the next decision sees. */
  async function guarded(
    kind: PoolAction["kind"],
    vswitchId: string,
    intent: Intent | undefined,
    work: () => Promise<void>,
  ): Promise<void> {
    try {
      await work();
      failuresInARow = 0;
    } catch (error) {
      failuresInARow += 1;
      const failure = error instanceof CloudError ? error : undefined;
      const blocked = blockedBy(
        {
          class: failure?.class ?? "unknown",
          code: failure?.code ?? "Error",
          retryAfterMs: failure?.retryAfterMs,
          message: (error as Error).message,
        },
        kind,
        vswitchId,
        nowMs(),
        failuresInARow,
        Math.random(),
      );
      if (blocked) ctx.inhibitions[blocked.key] = blocked.inhibition;
      ctx.log("warn", `${kind} failed: ${(error as Error).message}`, { requestId: failure?.requestId });
      journal(ctx, kind, failure?.code ?? "error", (error as Error).message);
      if (intent !== undefined) giveUpOrKeep(intent, failure);
    } finally {
      ctx.wake();
    }
  }

  /** An intent whose outcome is not known stays, with its token; one that was refused for good goes. */
  function giveUpOrKeep(intent: Intent, failure: CloudError | undefined): void {
    const unknownOutcome =
      failure === undefined ||
      failure.class === "retry" ||
      failure.class === "conflict" ||
      failure.class === "throttled" ||
      failure.class === "state" ||
      failure.class === "auth";
    const now = listIntents(store.db).find((i) => i.id === intent.id);
    if (now === undefined) return;
    if (unknownOutcome || now.eniId !== intent.eniId) {
      retryLater(now);
      return;
    }
    inTransaction(store.db, () => {
      if (intent.kind === "unassign")
        unmarkReleasing(store.db, (JSON.parse(now.payload) as { addresses: string[] }).addresses);
      if (intent.kind === "detach-eni" && now.eniId) setEniState(store.db, now.eniId, "ready");
      dropIntent(store.db, now.id);
    });
  }

  function retryLater(intent: Intent): void {
    const pause = Math.min(30_000, 500 * 2 ** Math.min(failuresInARow, 6)) * (0.5 + Math.random() / 2);
    setTimeout(() => void goOn(intent), pause).unref();
  }

  async function goOn(intent: Intent): Promise<void> {
    const vswitchId =
      intent.kind === "create-eni"
        ? (JSON.parse(intent.payload) as CreatePayload).action.vswitchId
        : (getEni(store.db, intent.eniId ?? "")?.vswitchId ?? "");
    switch (intent.kind) {
      case "create-eni":
        return guarded("create", vswitchId, intent, () => create(intent));
      case "assign":
        return guarded("assign", vswitchId, intent, () => assign(intent));
      case "unassign": {
        if (intent.step !== "marked") {
          // Died between intent and mark, or right after: what is marked goes back into use.
          inTransaction(store.db, () => {
            unmarkReleasing(store.db, (JSON.parse(intent.payload) as { addresses: string[] }).addresses);
            dropIntent(store.db, intent.id);
          });
          return;
        }
        return guarded("unassign", vswitchId, intent, () => unassign(intent));
      }
      case "detach-eni": {
        const begun = inTransaction(store.db, () => beginDetach(store.db, intent.eniId ?? "", nowMs()));
        if (begun.kind === "in-use") {
          inTransaction(store.db, () => dropIntent(store.db, intent.id));
          return;
        }
        return guarded("remove", vswitchId, intent, () => finishRemove(intent));
      }
      default:
        inTransaction(store.db, () => dropIntent(store.db, intent.id));
    }
  }

  return {
    async run(action) {
      switch (action.kind) {
        case "create": {
          const intent = save(intentOf("create-eni", undefined, { action }));
          return guarded("create", action.vswitchId, intent, () => create(intent));
        }
        case "assign": {
          const intent = save(intentOf("assign", action.eniId, action));
          return guarded("assign", getEni(store.db, action.eniId)?.vswitchId ?? "", intent, () => assign(intent));
        }
        case "unassign": {
          const intent = beginUnassign(action);
          if (intent === undefined) return;
          return guarded("unassign", "", intent, () => unassign(intent));
        }
        case "remove": {
          const intent = beginRemove(action.eniId);
          if (intent === undefined) return;
          return guarded("remove", "", intent, () => finishRemove(intent));
        }
        default:
          return action satisfies never;
      }
    },
    async resume() {
      await Promise.all(listIntents(store.db).map(goOn));
    },
  };
}
