/** What handing out addresses of the ENI pool promises. */

import { markReleasing } from "../addresses.ts";
import { poolCounts } from "../allocate.ts";
import { beginDetach, setEniState } from "../enis.ts";
import { setFacts } from "../facts.ts";
import { inTransaction } from "../transaction.ts";
import { COOLDOWN_MS, type ContractCase, equal, free, makeEni, makeKey, NOW, putEni, said, take } from "./kit.ts";

const DUAL = { families: [4, 6] } as const;

export const ALLOCATE_CASES: readonly ContractCase[] = [
  [
    "an idle address of a ready shared ENI is assigned, with its ENI",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      equal(take(store, "a"), {
        kind: "assigned",
        leases: [{ address: "10.0.1.5", family: 4, eniId: "eni-1" }],
      });
    },
  ],
  [
    "the same key gets the same address again, also when nothing is idle",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      take(store, "a");
      equal(said(take(store, "a")), "already-held 10.0.1.5");
      equal(said(take(store, "b")), "pool-empty");
    },
  ],
  [
    "network, container id and ifname each make another attachment",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.1.8"]);
      const keys = [makeKey("a"), makeKey("b"), makeKey("a", { ifname: "net1" }), makeKey("a", { network: "other" })];
      equal(
        keys.map((key) => said(take(store, key))),
        ["assigned 10.0.1.5", "assigned 10.0.1.6", "assigned 10.0.1.7", "assigned 10.0.1.8"],
      );
    },
  ],
  [
    "pods are packed onto the fullest ENI, so that the others drain",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      putEni(store, makeEni(2), ["10.0.2.5", "10.0.2.6", "10.0.2.7"]);
      take(store, "a", { only: { eniIds: ["eni-2"] } });
      equal([take(store, "b"), take(store, "c"), take(store, "d")].map(said), [
        "assigned 10.0.2.6",
        "assigned 10.0.2.7",
        "assigned 10.0.1.5",
      ]);
    },
  ],
  [
    "with the fact eni_pick=fewest pods are spread",
    ({ store }) => {
      setFacts(store.db, { eni_pick: "fewest" });
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      putEni(store, makeEni(2), ["10.0.2.5", "10.0.2.6"]);
      equal([take(store, "a"), take(store, "b"), take(store, "c")].map(said), [
        "assigned 10.0.1.5",
        "assigned 10.0.2.5",
        "assigned 10.0.1.6",
      ]);
    },
  ],
  [
    "an ENI that is not ready gives none, and its addresses do not count as idle",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      for (const state of ["attaching", "draining", "detaching", "deleting", "lost"] as const) {
        setEniState(store.db, "eni-1", state);
        equal(said(take(store, "a")), "pool-empty", state);
        equal(poolCounts(store.db, "eni", 4, NOW).idle, 0, state);
      }
      setEniState(store.db, "eni-1", "ready");
      equal(said(take(store, "a")), "assigned 10.0.1.5");
    },
  ],
  [
    "ordinary pods get no address of ENIs of another kind",
    ({ store }) => {
      (["primary", "exclusive", "trunk", "member"] as const).forEach((kind, i) => {
        putEni(store, makeEni(i + 1, { kind }), [`10.0.${i + 1}.5`]);
      });
      equal(said(take(store, "a")), "pool-empty");
      equal(said(take(store, "a", { only: { kinds: ["exclusive"] } })), "assigned 10.0.2.5");
      equal(said(take(store, "b", { only: { kinds: ["trunk", "member"] } })), "assigned 10.0.3.5");
    },
  ],
  [
    "vSwitch, security groups (in any order) and ENI can be asked for",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      putEni(store, makeEni(2, { vswitchId: "vsw-b" }), ["10.0.2.5"]);
      putEni(store, makeEni(3, { securityGroups: ["sg-c", "sg-b"] }), ["10.0.3.5"]);
      equal(said(take(store, "a", { only: { vswitchIds: ["vsw-x"] } })), "pool-empty");
      equal(said(take(store, "a", { only: { vswitchIds: ["vsw-x", "vsw-b"] } })), "assigned 10.0.2.5");
      equal(said(take(store, "b", { only: { securityGroups: ["sg-b"] } })), "pool-empty");
      equal(said(take(store, "b", { only: { securityGroups: ["sg-b", "sg-c"] } })), "assigned 10.0.3.5");
      equal(said(take(store, "c", { only: { eniIds: ["eni-2", "eni-3"] } })), "pool-empty");
      equal(said(take(store, "c", { only: { eniIds: ["eni-1"], vswitchIds: ["vsw-a"] } })), "assigned 10.0.1.5");
    },
  ],
  [
    "a freed address cools down to the millisecond before it is given again",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      take(store, "a");
      equal(free(store, "a"), ["10.0.1.5"]);
      equal(said(take(store, "b", {}, NOW + COOLDOWN_MS - 1)), "pool-empty");
      equal(said(take(store, "b", {}, NOW + COOLDOWN_MS)), "assigned 10.0.1.5");
    },
  ],
  [
    "never used goes before used, and long free before lately freed",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7"]);
      take(store, "a");
      take(store, "b");
      free(store, "b", NOW);
      free(store, "a", NOW + 5);
      const later = NOW + COOLDOWN_MS + 5;
      equal([take(store, "c", {}, later), take(store, "d", {}, later), take(store, "e", {}, later)].map(said), [
        "assigned 10.0.1.7",
        "assigned 10.0.1.6",
        "assigned 10.0.1.5",
      ]);
    },
  ],
  [
    "a second DEL, or one of the unknown, frees nothing and succeeds",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      take(store, "a");
      equal([free(store, "never"), free(store, "a"), free(store, "a")], [[], ["10.0.1.5"], []]);
    },
  ],
  [
    "a late DEL of the old sandbox leaves the new one its address",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      const pod = { namespace: "default", name: "web-0" };
      take(store, "old", { pod });
      take(store, "new", { pod });
      free(store, "old");
      free(store, "old");
      equal(said(take(store, "new", { pod })), "already-held 10.0.1.6");
    },
  ],
  [
    "a dual-stack pod has both addresses of one ENI, in the order asked for",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      putEni(store, makeEni(2), ["10.0.2.5", "fd00::2:5"]);
      equal(said(take(store, "a", DUAL)), "assigned 10.0.2.5 fd00::2:5");
      equal(said(take(store, "a", DUAL)), "already-held 10.0.2.5 fd00::2:5");
      equal(free(store, "a"), ["10.0.2.5", "fd00::2:5"]);
      equal(said(take(store, "b", { families: [6, 4] }, NOW + COOLDOWN_MS)), "assigned fd00::2:5 10.0.2.5");
    },
  ],
  [
    "both or none: no ENI with both free takes nothing",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      putEni(store, makeEni(2), ["fd00::2:5"]);
      equal(said(take(store, "a", DUAL)), "pool-empty");
      equal(
        [4, 6].map((family) => poolCounts(store.db, "eni", family as 4 | 6, NOW).idle),
        [1, 1],
      );
      equal(said(take(store, "a", { families: [6] })), "assigned fd00::2:5");
    },
  ],
  [
    "a whole ENI is one pod's, whatever families the pod before and the next one have",
    ({ store }) => {
      putEni(store, makeEni(1, { kind: "exclusive" }), ["10.0.1.1", "fd00::1:5"]);
      putEni(store, makeEni(2, { kind: "exclusive" }), ["10.0.2.1", "fd00::2:5"]);
      const only = { kinds: ["exclusive"] } as const;
      equal(said(take(store, "a", { only })), "assigned 10.0.1.1");
      equal(said(take(store, "b", { only, families: [6] })), "assigned fd00::2:5");
      equal(said(take(store, "c", { only, families: [6] })), "pool-empty");
    },
  ],
  [
    "an empty pool is explained in numbers, for each family",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.1.8", "fd00::1:5"]);
      take(store, "a");
      take(store, "b");
      take(store, "c");
      free(store, "b", NOW);
      free(store, "c", NOW + 5000);
      inTransaction(store.db, () => markReleasing(store.db, ["10.0.1.8"], NOW));
      const empty = take(store, "d", DUAL, NOW + 10_000);
      const common = { releasing: 0, nextFreeInMs: undefined };
      const four = {
        family: 4,
        idle: 0,
        cooling: 2,
        allocated: 1,
        reserved: 0,
        releasing: 1,
        nextFreeInMs: COOLDOWN_MS - 10_000,
      };
      const six = { family: 6, idle: 1, cooling: 0, allocated: 0, reserved: 0, ...common };
      equal(empty, { kind: "pool-empty", counts: four, perFamily: [four, six] });
    },
  ],
  [
    "an ENI that is being detached gives none; one in use, or with addresses that cool down, is not detached (F-53)",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      take(store, "a");
      equal(
        inTransaction(store.db, () => beginDetach(store.db, "eni-1", NOW)),
        { kind: "in-use", addresses: ["10.0.1.5"] },
      );
      equal(said(take(store, "b")), "assigned 10.0.1.6");
      free(store, "a");
      free(store, "b");
      equal(
        inTransaction(store.db, () => beginDetach(store.db, "eni-1", NOW)),
        { kind: "in-use", addresses: ["10.0.1.5", "10.0.1.6"] },
      );
      equal(
        inTransaction(store.db, () => beginDetach(store.db, "eni-1", NOW + COOLDOWN_MS)),
        { kind: "detaching" },
      );
      equal(said(take(store, "c", {}, NOW + COOLDOWN_MS)), "pool-empty");
      equal(
        inTransaction(store.db, () => beginDetach(store.db, "eni-9", NOW)),
        { kind: "unknown" },
      );
    },
  ],
];
