/** What the agent's side of the store promises: ENIs, their addresses, demand, intents, facts. */
import {
  addAddress,
  adoptAddress,
  forgetAddresses,
  listAddresses,
  markReleasing,
  syncAddresses,
  unmarkReleasing,
} from "../addresses.ts";
import { poolStatistics, storeStatistics } from "../counts.ts";
import { dropDemand, listDemand, pruneDemand, putDemand } from "../demand.ts";
import { getEni, listEnis, removeEni, setEniLink, setEniState, upsertEni } from "../enis.ts";
import { getFact, getFacts, setFacts } from "../facts.ts";
import { dropIntent, listIntents, putIntent } from "../intents.ts";
import { dropPodFacts, getPodFacts, listPodFacts, putPodFacts } from "../pod-facts.ts";
import { reserve } from "../reservations.ts";
import { inTransaction } from "../transaction.ts";
import type { Store } from "../types.ts";
import { COOLDOWN_MS, type ContractCase, equal, free, makeEni, makeKey, NOW, putEni, said, take } from "./kit.ts";

const states = (store: Store) => listAddresses(store.db).map((a) => `${a.address} ${a.state}`);

export const AGENT_CASES: readonly ContractCase[] = [
  [
    "an ENI reads back as written; what it is called on the node is written apart",
    ({ store }) => {
      const eni = makeEni(1, { kind: "member", trunkId: "eni-t", vlanId: 7, securityGroups: ["b", "a"] });
      putEni(store, eni, []);
      setEniLink(store.db, "eni-1", { ifname: "eth1", ifindex: 5, mtu: 8500, preparedBoot: "boot" });
      const { primary6: _p, cidr6: _c, gateway6: _g, ...rest } = eni;
      const read = getEni(store.db, "eni-1");
      for (const [name, value] of Object.entries({
        ...rest,
        securityGroups: ["a", "b"],
        mtu: 8500,
        ifname: "eth1",
        ifindex: 5,
        preparedBoot: "boot",
        routeSlot: 1,
      }))
        equal(read?.[name as keyof typeof read], value, name);
      equal(getEni(store.db, "eni-x"), undefined);
    },
  ],
  [
    "an update keeps state, route slot, link and its MTU",
    ({ store }) => {
      putEni(store, makeEni(1), []);
      setEniState(store.db, "eni-1", "draining");
      setEniLink(store.db, "eni-1", { ifname: "eth1", ifindex: 5, mtu: 1450, preparedBoot: "boot" });
      upsertEni(store.db, makeEni(1, { securityGroups: ["sg-new"], gateway4: "10.0.1.254" }));
      const eni = getEni(store.db, "eni-1");
      equal(
        [eni?.state, eni?.routeSlot, eni?.ifname, eni?.mtu, eni?.securityGroups, eni?.gateway4],
        ["draining", 1, "eth1", 1450, ["sg-new"], "10.0.1.254"],
      );
    },
  ],
  [
    "route slots are the lowest free ones and never shared",
    ({ store }) => {
      for (const n of [1, 2, 3]) putEni(store, makeEni(n), []);
      removeEni(store.db, "eni-2");
      for (const n of [4, 5]) putEni(store, makeEni(n), []);
      equal(
        listEnis(store.db).map((e) => `${e.id}=${e.routeSlot}`),
        ["eni-1=1", "eni-4=2", "eni-3=3", "eni-5=4"],
      );
    },
  ],
  [
    "an address that is known keeps its state, and may move to another ENI",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7"]);
      putEni(store, makeEni(2), []);
      take(store, "a");
      markReleasing(store.db, ["10.0.1.6"], NOW);
      equal(
        ["10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.1.8"].map((a) => addAddress(store.db, "eni-1", a, NOW)),
        [false, false, false, true],
      );
      equal(states(store), ["10.0.1.5 allocated", "10.0.1.6 releasing", "10.0.1.7 idle", "10.0.1.8 idle"]);
      equal(addAddress(store.db, "eni-2", "10.0.1.5", NOW), true);
      equal(
        listAddresses(store.db, "eni-2").map((a) => a.containerId),
        ["a"],
      );
    },
  ],
  [
    "a comparison with the cloud's list adds, and only names what is missing",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      take(store, "a");
      const sync = syncAddresses(store.db, "eni-1", ["10.0.1.6", "10.0.1.9"], NOW);
      equal([sync.added, sync.missing.map((a) => `${a.address} ${a.containerId}`)], [["10.0.1.9"], ["10.0.1.5 a"]]);
      equal(states(store), ["10.0.1.5 allocated", "10.0.1.6 idle", "10.0.1.9 idle"]);
    },
  ],
  [
    "only what is idle and cool is given back, and an ADD cannot get it any more (F-53)",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.1.8"]);
      for (const id of ["a", "b"]) take(store, id);
      free(store, "b", NOW);
      reserve(store.db, { podNamespace: "d", podName: "p", address: "10.0.1.8", expiresMs: undefined, reason: "" });
      const all = ["10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.1.8", "10.9.9.9"];
      equal(markReleasing(store.db, all, NOW + 1), ["10.0.1.7"]);
      equal(said(take(store, "c")), "pool-empty");
      equal(said(take(store, "c", { requested: ["10.0.1.7"] })).startsWith("unavailable"), true);
      equal(markReleasing(store.db, all, NOW + COOLDOWN_MS), ["10.0.1.6"]);
      unmarkReleasing(store.db, all);
      equal(said(take(store, "c")), "assigned 10.0.1.7");
    },
  ],
  [
    "what a container holds is never forgotten",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      take(store, "a");
      forgetAddresses(store.db, ["10.0.1.5", "10.0.1.6", "10.9.9.9"]);
      equal(states(store), ["10.0.1.5 allocated"]);
      equal(removeEni(store.db, "eni-1"), "lost");
      equal([getEni(store.db, "eni-1")?.state, states(store)], ["lost", ["10.0.1.5 allocated"]]);
      free(store, "a");
      equal(removeEni(store.db, "eni-1"), "removed");
      equal([listEnis(store.db), states(store)], [[], []]);
    },
  ],
  [
    "a reservation outlives its address and binds it again when it returns",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      reserve(store.db, { podNamespace: "d", podName: "p", address: "10.0.1.5", expiresMs: undefined, reason: "" });
      removeEni(store.db, "eni-1");
      putEni(store, makeEni(2), ["10.0.1.5"]);
      equal(said(take(store, "a")), "pool-empty");
      equal(said(take(store, "b", { pod: { namespace: "d", name: "p" } })), "assigned 10.0.1.5");
    },
  ],
  [
    "adopting writes down what a living container has, and contradicts nobody",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      const [a, b] = [makeKey("a"), makeKey("b")];
      const adopt = (address: string, key: typeof a, slot = 0) =>
        inTransaction(store.db, () => adoptAddress(store.db, "eni-1", address, key, slot, NOW));
      equal([adopt("10.0.1.5", a), adopt("10.0.1.7", a, 1), adopt("10.0.1.5", a)], [true, true, true]);
      equal([adopt("10.0.1.5", b), adopt("10.0.1.6", a)], [false, false]);
      equal(said(take(store, "a")), "already-held 10.0.1.5 10.0.1.7");
      equal(states(store), ["10.0.1.5 allocated", "10.0.1.6 idle", "10.0.1.7 allocated"]);
    },
  ],
  [
    "demand is kept oldest first until its deadline, one for each attachment",
    ({ store }) => {
      const want = (id: string, sinceMs: number, deadlineMs: number) => ({
        ...makeKey(id),
        families: "46" as const,
        waiter: `@w-${id}`,
        only: { kinds: ["exclusive" as const] },
        sinceMs,
        deadlineMs,
      });
      for (const d of [want("b", 2, 100), want("a", 1, 50), want("a", 3, 60), want("c", 1, 10)]) putDemand(store.db, d);
      equal(listDemand(store.db, 20), [want("b", 2, 100), want("a", 3, 60)].map(normalized));
      pruneDemand(store.db, 20);
      dropDemand(store.db, makeKey("b"));
      equal(
        listDemand(store.db, 0).map((d) => d.containerId),
        ["a"],
      );
      free(store, "a");
      equal(listDemand(store.db, 0), [], "DEL ends the waiting");
    },
  ],
  [
    "an intent is overwritten step by step, and ends with the outcome",
    ({ store }) => {
      const intent = { id: "1", kind: "assign" as const, eniId: "eni-1", clientToken: "t", payload: "{}", sinceMs: 5 };
      putIntent(store.db, { ...intent, step: "asked" }, 1);
      putIntent(store.db, { ...intent, step: "answered" }, 2);
      equal(
        listIntents(store.db).map((i) => [i.id, i.kind, i.eniId, i.clientToken, i.payload, i.step, i.sinceMs]),
        [["1", "assign", "eni-1", "t", "{}", "answered", 5]],
      );
      thrown(store, () => dropIntent(store.db, "1"));
      equal(listIntents(store.db).length, 1, "a transaction that failed");
      inTransaction(store.db, () => dropIntent(store.db, "1"));
      equal(listIntents(store.db), []);
    },
  ],
  [
    "facts are written when they differ",
    ({ store }) => {
      setFacts(store.db, { zone: "z-1", region: "r" });
      setFacts(store.db, { zone: "z-2", region: "r" });
      equal(
        [getFact(store.db, "zone"), getFact(store.db, "region"), getFact(store.db, "node_ip")],
        ["z-2", "r", undefined],
      );
      equal(getFacts(store.db).zone, "z-2");
    },
  ],
  [
    "pod facts: written when they differ; those of a successor by the same name stay",
    ({ store }) => {
      const facts = { namespace: "d", name: "p", uid: "u1", facts: '{"a":1}', at: 1 };
      equal([putPodFacts(store.db, facts), putPodFacts(store.db, { ...facts, at: 2 })], [true, false]);
      equal(putPodFacts(store.db, { ...facts, uid: "u2", at: 3 }), true);
      dropPodFacts(store.db, "d", "p", "u1");
      equal(getPodFacts(store.db, "d", "p"), { ...facts, uid: "u2", at: 3 });
      dropPodFacts(store.db, "d", "p", "u2");
      equal(listPodFacts(store.db), []);
    },
  ],
  [
    "statistics count every address once, for each ENI and family",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7", "fd00::1:5"]);
      putEni(store, makeEni(2), ["10.0.2.5"]);
      for (const id of ["a", "b"]) take(store, id);
      free(store, "a", NOW);
      setEniState(store.db, "eni-2", "draining");
      const row = (eniId: string, family: number, counts: object, eniState = "ready") => ({
        pool: "eni",
        eniId,
        eniState,
        family,
        ...{ idle: 0, cooling: 0, allocated: 0, reserved: 0, releasing: 0 },
        ...counts,
      });
      equal(poolStatistics(store.db, NOW + 1), [
        row("eni-1", 4, { idle: 1, cooling: 1, allocated: 1, nextFreeInMs: COOLDOWN_MS - 1 }),
        row("eni-1", 6, { idle: 1 }),
        row("eni-2", 4, { idle: 1 }, "draining"),
      ]);
      putIntent(
        store.db,
        { id: "1", kind: "assign", eniId: undefined, clientToken: undefined, payload: "", step: "", sinceMs: NOW - 7 },
        1,
      );
      const { pools: _pools, ...totals } = storeStatistics(store.db, NOW);
      equal(totals, {
        attachments: 0,
        building: 0,
        reservations: 0,
        waiting: 0,
        intents: 1,
        oldestIntentMs: 7,
        journalId: 0,
      });
    },
  ],
];

function thrown(store: Store, work: () => void): void {
  try {
    inTransaction(store.db, () => {
      work();
      throw new RangeError("on purpose");
    });
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
}

/** Members in the order in which the store reads them. */
function normalized(d: Parameters<typeof putDemand>[1]) {
  const { network, containerId, ifname, families, waiter, only, sinceMs, deadlineMs } = d;
  return { network, containerId, ifname, families, waiter, only, sinceMs, deadlineMs };
}
