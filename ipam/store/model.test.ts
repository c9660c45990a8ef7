/** Random sequences of everything that plugins and the agent do, against a model that is simple enough to be right. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { CLOCK_REALTIME } from "../../shared/sys/linux.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { addAddress, forgetAddresses, listAddresses, markReleasing, unmarkReleasing } from "./addresses.ts";
import type { Allocation } from "./allocate.ts";
import { releaseAttachment } from "./attachments.ts";
import { makeEni, makeKey, rangeOf, take } from "./contract/kit.ts";
import { beginDetach, setEniState, upsertEni } from "./enis.ts";
import { appendJournal } from "./journal.ts";
import type { AttachmentKey } from "./key.ts";
import { openStore } from "./open.ts";
import { allocateFromRanges } from "./ranges.ts";
import { reserve, unreserve } from "./reservations.ts";
import { inTransaction } from "./transaction.ts";
import type { Store } from "./types.ts";

const folder = mkdtempSync(join(tmpdir(), "terway-store-model-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A wall clock that jumps as it likes: nothing in the store may care (F-51). */
let wallJumpMs = 0;
const deps = {
  sys: { ...nodeSys, clock: (id: number) => nodeSys.clock(id) + (id === CLOCK_REALTIME ? wallJumpMs : 0) },
  openSql: openNodeSql,
};

const COOLDOWN_MS = 100;
const PODS = ["web-0", "web-1"] as const;
const POOL = [1, 2].flatMap((eni) => [
  ...[4, 5, 6].map((n) => ({ eni, family: 4 as const, address: `10.0.${eni}.${n}` })),
  ...[4, 5].map((n) => ({ eni, family: 6 as const, address: `fd00::${eni}:${n}` })),
]);

interface Row {
  readonly eni: number;
  readonly family: 4 | 6;
  state: "idle" | "allocated" | "reserved" | "releasing";
  coolUntilMs: number;
  owner: string | undefined;
  slot: number;
}

class Model {
  readonly rows = new Map<string, Row>();
  readonly eniState = new Map<number, string>([
    [1, "ready"],
    [2, "ready"],
  ]);
  readonly reservedFor = new Map<string, string>();
  nowMs = 1000;

  held(owner: string): string[] {
    return [...this.rows]
      .filter(([, r]) => r.owner === owner)
      .sort(([, a], [, b]) => a.slot - b.slot)
      .map(([address]) => address);
  }
  idle(eni: number, family: 4 | 6): [string, Row][] {
    return [...this.rows].filter(
      ([, r]) => r.eni === eni && r.family === family && r.state === "idle" && r.coolUntilMs <= this.nowMs,
    );
  }
  eligible(families: readonly (4 | 6)[]): number[] {
    return [1, 2].filter((n) => this.eniState.get(n) === "ready" && families.every((f) => this.idle(n, f).length > 0));
  }
  pods(eni: number): number {
    return [...this.rows.values()].filter((r) => r.eni === eni && r.state === "allocated").length;
  }
}

interface Step {
  readonly what: string;
  run(model: Model, store: Store): void;
}

const ownerOf = (key: AttachmentKey) => `${key.network}/${key.containerId}/${key.ifname}`;
const anyKey = fc
  .tuple(fc.constantFrom("n1", "n2"), fc.constantFrom("a", "b", "c", "d", "e"), fc.constantFrom("eth0", "net1"))
  .map(([network, containerId, ifname]) => makeKey(containerId, { network, ifname }));
const anyAddress = fc.constantFrom(...POOL.map((a) => a.address));
const anyFamilies = fc.constantFrom<readonly (4 | 6)[]>([4], [6], [4, 6]);

/** Everything that must be true of an allocation, given the state before. */
function checkAllocation(
  model: Model,
  key: AttachmentKey,
  families: readonly (4 | 6)[],
  pod: string | undefined,
  got: Allocation,
): void {
  const held = model.held(ownerOf(key));
  if (held.length > 0) {
    expect(got).toMatchObject({ kind: "already-held", leases: held.map((address) => ({ address })) });
    return;
  }
  const reserved = [...model.reservedFor]
    .filter(([address, name]) => name === pod && model.rows.has(address))
    .map(([address]) => address)
    .filter((address) => !model.rows.get(address)?.owner?.includes(`/${key.containerId}/`));
  if (got.kind === "pool-empty") {
    if (reserved.length === 0) expect(model.eligible(families)).toEqual([]);
    return;
  }
  if (got.kind === "unavailable") {
    expect(reserved).toContain(got.address);
    return;
  }
  expect(got.kind).toBe("assigned");
  const enis = new Set(got.leases.map((l) => l.eniId));
  expect(enis.size, "one ENI").toBe(1);
  const eni = model.rows.get(got.leases[0]?.address ?? "")?.eni ?? 0;
  expect(model.eniState.get(eni)).toBe("ready");
  expect(got.leases.map((l) => l.family)).toEqual(expect.arrayContaining([...families]));
  for (const address of reserved) expect(got.leases.map((l) => l.address)).toContain(address);
  for (const lease of got.leases) {
    const row = model.rows.get(lease.address);
    expect(row?.owner, `${lease.address} had an owner`).toBeUndefined();
    if (reserved.includes(lease.address)) continue;
    expect(row?.state, lease.address).toBe("idle");
    const oldest = Math.min(...model.idle(eni, lease.family).map(([, r]) => r.coolUntilMs));
    expect(row?.coolUntilMs, "longest free first, and cool").toBe(oldest);
  }
  if (reserved.length === 0) {
    const fullest = Math.max(...model.eligible(families).map((n) => model.pods(n)));
    expect(model.pods(eni), "the fullest ENI").toBe(fullest);
  }
  got.leases.forEach((lease, slot) => {
    const row = model.rows.get(lease.address);
    if (row) Object.assign(row, { state: "allocated", owner: ownerOf(key), slot });
  });
}

const add = fc.tuple(anyKey, anyFamilies, fc.option(fc.constantFrom(...PODS), { nil: undefined })).map(
  ([key, families, pod]): Step => ({
    what: `add ${ownerOf(key)} ${families} ${pod}`,
    run(model, store) {
      const want = { families, ...(pod === undefined ? {} : { pod: { namespace: "d", name: pod } }) };
      checkAllocation(model, key, families, pod, take(store, key, want, model.nowMs));
    },
  }),
);

const del = anyKey.map(
  (key): Step => ({
    what: `del ${ownerOf(key)}`,
    run(model, store) {
      const freed = inTransaction(store.db, () => releaseAttachment(store.db, key, model.nowMs, COOLDOWN_MS));
      const held = model.held(ownerOf(key));
      expect(freed.map((l) => l.address).sort()).toEqual(held.sort());
      for (const address of held) {
        const row = model.rows.get(address);
        const state = model.reservedFor.has(address) ? "reserved" : "idle";
        if (row) Object.assign(row, { state, owner: undefined, coolUntilMs: model.nowMs + COOLDOWN_MS });
      }
    },
  }),
);

const pass = fc.integer({ min: 1, max: 80 }).map(
  (ms): Step => ({
    what: `${ms} ms pass`,
    run: (model) => {
      model.nowMs += ms;
    },
  }),
);

const wall = fc.integer({ min: -400, max: 400 }).map(
  (days): Step => ({
    what: `the wall clock jumps ${days} days`,
    run(_model, store) {
      wallJumpMs = days * 86_400_000;
      appendJournal(store.db, { at: deps.sys.clock(CLOCK_REALTIME), actor: "t", op: "t", outcome: "ok" });
    },
  }),
);

const assign = fc.constantFrom(...POOL).map(
  (a): Step => ({
    what: `the cloud assigns ${a.address}`,
    run(model, store) {
      inTransaction(store.db, () => addAddress(store.db, `eni-${a.eni}`, a.address, model.nowMs));
      if (model.rows.has(a.address)) return;
      const state = model.reservedFor.has(a.address) ? "reserved" : "idle";
      model.rows.set(a.address, { eni: a.eni, family: a.family, state, coolUntilMs: 0, owner: undefined, slot: 0 });
    },
  }),
);

const unassign = fc.tuple(anyAddress, fc.boolean()).map(
  ([address, done]): Step => ({
    what: `unassign ${address}, ${done ? "done" : "refused"}`,
    run(model, store) {
      const marked = inTransaction(store.db, () => markReleasing(store.db, [address], model.nowMs));
      const row = model.rows.get(address);
      const free = row?.state === "idle" && row.coolUntilMs <= model.nowMs;
      expect(marked).toEqual(free ? [address] : []);
      inTransaction(store.db, () => (done ? forgetAddresses : unmarkReleasing)(store.db, marked));
      if (free && done) model.rows.delete(address);
    },
  }),
);

const eniState = fc.tuple(fc.constantFrom(1, 2), fc.constantFrom("ready", "draining")).map(
  ([n, state]): Step => ({
    what: `eni-${n} ${state}`,
    run(model, store) {
      setEniState(store.db, `eni-${n}`, state === "ready" ? "ready" : "draining");
      model.eniState.set(n, state);
    },
  }),
);

const detach = fc.constantFrom(1, 2).map(
  (n): Step => ({
    what: `detach eni-${n}, refused by the cloud`,
    run(model, store) {
      const got = inTransaction(store.db, () => beginDetach(store.db, `eni-${n}`, model.nowMs));
      const rows = [...model.rows].filter(([, r]) => r.eni === n);
      const held = rows.filter(
        ([, r]) =>
          r.state === "allocated" || r.state === "reserved" || (r.state === "idle" && r.coolUntilMs > model.nowMs),
      );
      expect(got.kind).toBe(held.length > 0 ? "in-use" : "detaching");
      if (got.kind !== "detaching") return;
      inTransaction(store.db, () => {
        unmarkReleasing(
          store.db,
          rows.map(([address]) => address),
        );
        setEniState(store.db, `eni-${n}`, "ready");
      });
      model.eniState.set(n, "ready");
    },
  }),
);

const reservation = fc.tuple(anyAddress, fc.constantFrom(...PODS)).map(
  ([address, pod]): Step => ({
    what: `reserve ${address} for ${pod}`,
    run(model, store) {
      const got = reserve(store.db, { podNamespace: "d", podName: pod, address, expiresMs: undefined, reason: "" });
      const row = model.rows.get(address);
      const other = model.reservedFor.get(address);
      const free = row !== undefined && row.state !== "allocated" && (other === undefined || other === pod);
      expect(got.kind).toBe(free ? "reserved" : "taken");
      if (!free) return;
      model.reservedFor.set(address, pod);
      row.state = "reserved";
    },
  }),
);

const noReservation = anyAddress.map(
  (address): Step => ({
    what: `unreserve ${address}`,
    run(model, store) {
      unreserve(store.db, address, model.nowMs);
      model.reservedFor.delete(address);
      const row = model.rows.get(address);
      if (row?.state === "reserved") row.state = "idle";
    },
  }),
);

const steps = fc.array(
  fc.oneof(
    { weight: 8, arbitrary: add },
    { weight: 5, arbitrary: del },
    { weight: 3, arbitrary: pass },
    { weight: 2, arbitrary: assign },
    ...[wall, unassign, eniState, detach, reservation, noReservation].map((arbitrary) => ({ weight: 1, arbitrary })),
  ),
  { minLength: 10, maxLength: 60 },
);

let count = 0;
function newStore(): Store {
  const store = openStore(deps, join(folder, `${count++}.db`));
  store.db.exec("PRAGMA synchronous=OFF");
  return store;
}

describe("the store and its model", () => {
  it("agree on every allocation, and on the whole state, after any sequence of steps", () => {
    let allocations = 0;
    fc.assert(
      fc.property(steps, (sequence) => {
        const store = newStore();
        const model = new Model();
        inTransaction(store.db, () => {
          for (const n of [1, 2]) upsertEni(store.db, makeEni(n));
        });
        for (const a of POOL.slice(0, 7)) {
          addAddress(store.db, `eni-${a.eni}`, a.address, 0);
          model.rows.set(a.address, { ...a, state: "idle", coolUntilMs: 0, owner: undefined, slot: 0 });
        }
        for (const step of sequence) step.run(model, store);
        const got = listAddresses(store.db).map((a) => {
          const owner = a.containerId === undefined ? "" : `${a.network}/${a.containerId}/${a.ifname}`;
          return `${a.address} ${a.state} ${owner} ${a.coolUntilMs}`;
        });
        const want = [...model.rows].map(([a, r]) => `${a} ${r.state} ${r.owner ?? ""} ${r.coolUntilMs}`);
        expect(got.sort()).toEqual(want.sort());
        allocations += [...model.rows.values()].filter((r) => r.owner !== undefined).length;
        store.db.close();
      }),
      { numRuns: 150 },
    );
    expect(allocations, "the sequences do something").toBeGreaterThan(100);
  });

  it("agree on local ranges: no two owners, the gateway never, cool-down kept while anything else is free", () => {
    // .2 to .6 and .10 to .14
    const sets = [[rangeOf("10.1.0.0/29"), rangeOf("10.1.0.8/29")]];
    const all = [2, 3, 4, 5, 6, 10, 11, 12, 13, 14].map((n) => `10.1.0.${n}`);
    const step = fc.record({
      id: fc.integer({ min: 0, max: 13 }).map(String),
      adds: fc.boolean(),
      passMs: fc.integer({ min: 0, max: 900 }),
    });
    fc.assert(
      fc.property(fc.array(step, { minLength: 20, maxLength: 80 }), (sequence) => {
        const store = newStore();
        const owner = new Map<string, string>();
        const freedMs = new Map<string, number>();
        let nowMs = 10_000;
        const coolingAt = (address: string) => nowMs < (freedMs.get(address) ?? -1e9) + 3000;
        for (const { id, adds, passMs } of sequence) {
          nowMs += passMs;
          const key = makeKey(id);
          const mine = all.find((address) => owner.get(address) === id);
          if (!adds) {
            const freed = inTransaction(store.db, () => releaseAttachment(store.db, key, nowMs, 3000));
            expect(freed.map((l) => l.address)).toEqual(mine === undefined ? [] : [mine]);
            if (mine === undefined) continue;
            owner.delete(mine);
            freedMs.set(mine, nowMs);
            continue;
          }
          const got = inTransaction(store.db, () => allocateFromRanges(store.db, key, sets, [], nowMs, 3000));
          const free = all.filter((address) => !owner.has(address));
          if (mine !== undefined) expect(got).toMatchObject({ kind: "already-held", leases: [{ address: mine }] });
          else if (got.kind === "pool-empty")
            expect(free.every((a) => nowMs - (freedMs.get(a) ?? -1e9) < 1000)).toBe(true);
          else {
            expect(got.kind).toBe("assigned");
            const address = got.kind === "assigned" ? (got.leases[0]?.address ?? "") : "";
            expect(free).toContain(address);
            if (coolingAt(address)) {
              expect(
                free.filter((a) => !coolingAt(a)),
                "others were free",
              ).toEqual([]);
              expect(nowMs - (freedMs.get(address) ?? 0)).toBeGreaterThanOrEqual(1000);
            }
            owner.set(address, id);
          }
        }
        store.db.close();
      }),
      { numRuns: 150 },
    );
  });
});
