/** What local ranges promise: host-local's rules, with a cool-down. */
import { parseIp } from "../../../shared/net/ip.ts";
import { localPool } from "../ranges.ts";
import { reserve, unreserve } from "../reservations.ts";
import { COOLDOWN_MS, type ContractCase, equal, free, makeKey, NOW, rangeOf, takeRange } from "./kit.ts";

/** Addresses .2 to .6. */
const SMALL = [[rangeOf("10.1.0.0/29")]];
const LATER = { nowMs: NOW + COOLDOWN_MS };

export const RANGE_CASES: readonly ContractCase[] = [
  [
    "addresses are given in turn, the gateway never",
    ({ store }) => {
      equal(
        ["a", "b", "c", "d", "e", "f"].map((id) => takeRange(store, id, SMALL)),
        [2, 3, 4, 5, 6].map((n) => `assigned 10.1.0.${n}`).concat("pool-empty"),
      );
    },
  ],
  [
    "the same key gets the same address; another interface gets another",
    ({ store }) => {
      takeRange(store, "a", SMALL);
      equal(takeRange(store, "a", SMALL), "already-held 10.1.0.2");
      equal(takeRange(store, makeKey("a", { ifname: "net1" }), SMALL), "assigned 10.1.0.3");
    },
  ],
  [
    "a pod that restarts in a loop gets the next address each time",
    ({ store }) => {
      const given = [0, 1, 2, 3, 4].map((i) => {
        const got = takeRange(store, `a${i}`, SMALL);
        free(store, `a${i}`);
        return got;
      });
      equal(
        given,
        [2, 3, 4, 5, 6].map((n) => `assigned 10.1.0.${n}`),
      );
      equal(takeRange(store, "b", SMALL, LATER), "assigned 10.1.0.2", "round the corner, cooled down");
    },
  ],
  [
    "with nothing else left, the one that cools the longest is used, but not within its first second",
    ({ store }) => {
      for (const id of ["a", "b", "c", "d", "e"]) takeRange(store, id, SMALL);
      free(store, "c", NOW);
      free(store, "b", NOW + 400);
      equal(takeRange(store, "f", SMALL, { nowMs: NOW + 999 }), "pool-empty");
      equal(takeRange(store, "f", SMALL, { nowMs: NOW + 1400 }), "assigned 10.1.0.4");
      equal(takeRange(store, "g", SMALL, { nowMs: NOW + 1400 }), "assigned 10.1.0.3");
      equal(takeRange(store, "h", SMALL, { nowMs: NOW + 1400 }), "pool-empty");
    },
  ],
  [
    "an address that cools is passed over while another is free",
    ({ store }) => {
      for (const id of ["a", "b", "c", "d"]) takeRange(store, id, SMALL);
      free(store, "a", NOW);
      equal(takeRange(store, "e", SMALL, { nowMs: NOW + 5000 }), "assigned 10.1.0.6");
      equal(takeRange(store, "f", SMALL, { nowMs: NOW + 5000 }), "assigned 10.1.0.2");
    },
  ],
  [
    "rows of what has cooled down are removed",
    ({ store }) => {
      takeRange(store, "a", SMALL);
      takeRange(store, "b", SMALL);
      free(store, "a", NOW);
      free(store, "b", NOW + COOLDOWN_MS);
      equal(store.db.all("SELECT address FROM address"), [{ address: "10.1.0.3" }]);
    },
  ],
  [
    "one address of each set",
    ({ store }) => {
      const sets = [[rangeOf("10.1.0.0/29")], [rangeOf("fd00::/120")]];
      equal(takeRange(store, "a", sets), "assigned 10.1.0.2 fd00::2");
      equal(takeRange(store, "b", sets), "assigned 10.1.0.3 fd00::3");
      equal(takeRange(store, "a", sets), "already-held 10.1.0.2 fd00::2");
    },
  ],
  [
    "all or none: an empty set takes nothing of the others",
    ({ store }) => {
      const sets = [[rangeOf("10.1.0.0/24")], [rangeOf("10.2.0.0/30")]];
      equal(takeRange(store, "a", sets), "assigned 10.1.0.2 10.2.0.2");
      equal(takeRange(store, "b", sets), "pool-empty");
      equal(store.db.get("SELECT count(*) AS n FROM address")?.n, 2);
      equal(takeRange(store, "c", [sets[0] ?? []]), "assigned 10.1.0.3");
    },
  ],
  [
    "the ranges of a set are used one after the other",
    ({ store }) => {
      const set = [rangeOf("10.1.0.0/30"), rangeOf("10.2.0.0/29", { first: parseIp("10.2.0.5") })];
      equal(
        ["a", "b", "c", "d"].map((id) => takeRange(store, id, [set])),
        ["assigned 10.1.0.2", "assigned 10.2.0.5", "assigned 10.2.0.6", "pool-empty"],
      );
      free(store, "b", NOW);
      equal(takeRange(store, "e", [set], LATER), "assigned 10.2.0.5", "after the wrap");
    },
  ],
  [
    "sets that overlap never give one container an address twice",
    ({ store }) => {
      equal(takeRange(store, "a", [...SMALL, ...SMALL]), "assigned 10.1.0.2 10.1.0.3");
    },
  ],
  [
    "a requested address must lie in a set, and be free",
    ({ store }) => {
      equal(takeRange(store, "a", SMALL, { requested: ["10.1.0.5"] }), "assigned 10.1.0.5");
      equal(
        takeRange(store, "b", SMALL, { requested: ["10.1.0.5"] }),
        "unavailable 10.1.0.5: container a of network net has it",
      );
      equal(
        ["10.1.0.1", "10.1.0.7", "10.9.0.1"].map((ip) => takeRange(store, "b", SMALL, { requested: [ip] })),
        ["10.1.0.1", "10.1.0.7", "10.9.0.1"].map((ip) => `unavailable ${ip}: it is in no range of this network`),
      );
      equal(takeRange(store, "b", SMALL), "assigned 10.1.0.2", "a request does not move the turn");
      free(store, "a", NOW);
      equal(takeRange(store, "c", SMALL, { requested: ["10.1.0.5"] }), "assigned 10.1.0.5", "also while it cools");
    },
  ],
  [
    "a request may name one set's address and leave the other to us",
    ({ store }) => {
      const sets = [[rangeOf("10.1.0.0/29")], [rangeOf("fd00::/120")]];
      equal(takeRange(store, "a", sets, { requested: ["fd00::9"] }), "assigned 10.1.0.2 fd00::9");
    },
  ],
  [
    "two networks with the same range know nothing of each other",
    ({ store }) => {
      equal(takeRange(store, makeKey("a"), SMALL), "assigned 10.1.0.2");
      equal(takeRange(store, makeKey("a", { network: "other" }), SMALL), "assigned 10.1.0.2");
    },
  ],
  [
    "a range that shrank or moved since the last address starts anew",
    ({ store }) => {
      takeRange(store, "a", [[rangeOf("10.1.0.0/29", { first: parseIp("10.1.0.5") })]]);
      equal(takeRange(store, "b", [[rangeOf("10.1.0.0/30")]]), "assigned 10.1.0.2");
      equal(takeRange(store, "c", [[rangeOf("10.3.0.0/30")]]), "assigned 10.3.0.2");
    },
  ],
  [
    "the largest ranges work: a /8 and a /64, and the last address there is",
    ({ store }) => {
      const sets = [[rangeOf("10.0.0.0/8")], [rangeOf("fd00::/64")]];
      equal(takeRange(store, "a", sets), "assigned 10.0.0.2 fd00::2");
      const end = [[{ first: parseIp("255.255.255.254"), last: parseIp("255.255.255.255"), excluded: undefined }]];
      equal(
        ["x", "y", "z"].map((id) => takeRange(store, id, end)),
        ["assigned 255.255.255.254", "assigned 255.255.255.255", "pool-empty"],
      );
    },
  ],
  [
    "a crowded range is searched to its end",
    ({ store }) => {
      const range = [[rangeOf("10.1.0.0/26")]];
      for (let i = 0; i < 60; i++) takeRange(store, `c${i}`, range);
      equal(takeRange(store, "last", range), "assigned 10.1.0.62");
      free(store, "c30", NOW);
      equal(takeRange(store, "again", range, LATER), "assigned 10.1.0.32");
      equal(takeRange(store, "full", range, LATER), "pool-empty");
    },
  ],
  [
    "an address of a range can be reserved for a pod",
    ({ store }) => {
      const pod = { namespace: "default", name: "web-0" };
      const pool = localPool("net");
      const r = { podNamespace: "default", podName: "web-0", pool, expiresMs: undefined, reason: "sts" };
      equal(reserve(store.db, { ...r, address: "10.1.0.2" }), { kind: "reserved" });
      equal(takeRange(store, "a", SMALL), "assigned 10.1.0.3");
      equal(
        takeRange(store, "b", SMALL, { requested: ["10.1.0.2"] }),
        "unavailable 10.1.0.2: it is reserved for another pod",
      );
      equal(takeRange(store, "c", SMALL, { pod }), "assigned 10.1.0.2");
      equal(reserve(store.db, { ...r, address: "10.1.0.3" }), {
        kind: "taken",
        why: "held by container a, whose pod is not known",
      });
      free(store, "c", NOW);
      equal(takeRange(store, "d", SMALL, { pod }), "assigned 10.1.0.2");
      free(store, "d", NOW);
      unreserve(store.db, "10.1.0.2", NOW, pool);
      free(store, "a", NOW + COOLDOWN_MS);
      equal(
        store.db.get("SELECT count(*) AS n FROM address WHERE address = '10.1.0.2'")?.n,
        0,
        "no row is left behind",
      );
    },
  ],
];
