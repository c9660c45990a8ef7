/** What asking for particular addresses promises, by request or by reservation. */
import { markReleasing } from "../addresses.ts";
import { putAttachment } from "../attachments.ts";
import { setEniState } from "../enis.ts";
import { expireReservations, listReservations, reserve, unreserve } from "../reservations.ts";
import { inTransaction } from "../transaction.ts";
import {
  COOLDOWN_MS,
  type ContractCase,
  equal,
  free,
  makeAttachment,
  makeEni,
  makeKey,
  NOW,
  putEni,
  said,
  take,
} from "./kit.ts";

const WEB = { namespace: "default", name: "web-0" };
const OTHER = { namespace: "default", name: "other" };

function reservation(address: string, pod = WEB, expiresMs?: number) {
  return { podNamespace: pod.namespace, podName: pod.name, address, expiresMs, reason: "sts" };
}

export const REQUEST_CASES: readonly ContractCase[] = [
  [
    "a requested address is given, and no other in its place",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      equal(said(take(store, "a", { requested: ["10.0.1.6"] })), "assigned 10.0.1.6");
      equal(
        said(take(store, "b", { requested: ["10.0.1.6"] })),
        "unavailable 10.0.1.6: container a of network net has it as eth0",
      );
      equal(said(take(store, "b")), "assigned 10.0.1.5");
    },
  ],
  [
    "every reason against a requested address is said",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7"]);
      putEni(store, makeEni(2, { kind: "exclusive" }), ["10.0.2.5"]);
      putEni(store, makeEni(3), ["10.0.3.5"]);
      setEniState(store.db, "eni-3", "draining");
      take(store, "a", { requested: ["10.0.1.5"] });
      free(store, "a");
      inTransaction(store.db, () => markReleasing(store.db, ["10.0.1.6"], NOW));
      reserve(store.db, reservation("10.0.1.7"));
      const why = (address: string) =>
        said(take(store, "b", { requested: [address], pod: OTHER }, NOW + 500)).split(": ")[1];
      equal(["10.9.9.9", "10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.2.5", "10.0.3.5"].map(why), [
        "it is not an address of this node's ENIs",
        "it cools down for another 30 s",
        "it is being given back to the vSwitch",
        "it is reserved for another pod",
        "its ENI eni-2 (exclusive) is not one that will do here",
        "its ENI eni-3 is draining",
      ]);
    },
  ],
  [
    "a request that cannot be met whole takes nothing",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "fd00::1:5"]);
      putEni(store, makeEni(2), ["fd00::2:5"]);
      equal(
        said(take(store, "a", { families: [4, 6], requested: ["10.0.1.5", "fd00::2:5"] })),
        "unavailable fd00::2:5: it is of ENI eni-2, 10.0.1.5 is of ENI eni-1",
      );
      equal(said(take(store, "a", { families: [4, 6], requested: ["10.0.1.5"] })), "assigned 10.0.1.5 fd00::1:5");
      equal(said(take(store, "b", { families: [4, 6], requested: ["fd00::2:5"] })), "pool-empty");
      equal(said(take(store, "b", { families: [6] })), "assigned fd00::2:5");
    },
  ],
  [
    "a reserved address goes to its pod and to nobody else",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      equal(reserve(store.db, reservation("10.0.1.5")), { kind: "reserved" });
      equal([take(store, "a", { pod: OTHER }), take(store, "b")].map(said), ["assigned 10.0.1.6", "pool-empty"]);
      equal(said(take(store, "c", { pod: WEB })), "assigned 10.0.1.5");
    },
  ],
  [
    "released, it is reserved again: at once for its pod, never for another",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      reserve(store.db, reservation("10.0.1.5"));
      take(store, "a", { pod: WEB });
      equal(free(store, "a"), ["10.0.1.5"]);
      equal(said(take(store, "b", { pod: OTHER }, NOW + 10 * COOLDOWN_MS)), "pool-empty");
      equal(said(take(store, "c", { pod: WEB })), "assigned 10.0.1.5");
    },
  ],
  [
    "while the old sandbox has it, the new one is told who, and gets no other",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      reserve(store.db, reservation("10.0.1.5"));
      take(store, "old", { pod: WEB });
      equal(
        said(take(store, "new", { pod: WEB })),
        "unavailable 10.0.1.5: container old of network net has it as eth0",
      );
      free(store, "old");
      equal(said(take(store, "new", { pod: WEB })), "assigned 10.0.1.5");
    },
  ],
  [
    "a second interface of the pod gets an ordinary address",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      reserve(store.db, reservation("10.0.1.5"));
      equal(said(take(store, "a", { pod: WEB })), "assigned 10.0.1.5");
      equal(said(take(store, makeKey("a", { ifname: "net1" }), { pod: WEB })), "assigned 10.0.1.6");
    },
  ],
  [
    "a reserved IPv4 address comes with any IPv6 address of its ENI",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.4", "fd00::1:5"]);
      putEni(store, makeEni(2), ["10.0.2.5", "fd00::2:5"]);
      reserve(store.db, reservation("10.0.2.5"));
      equal(said(take(store, "a", { families: [4, 6], pod: WEB })), "assigned 10.0.2.5 fd00::2:5");
    },
  ],
  [
    "a pod with a reservation cannot ask for another address",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      reserve(store.db, reservation("10.0.1.5"));
      equal(
        said(take(store, "a", { pod: WEB, requested: ["10.0.1.6"] })),
        "unavailable 10.0.1.6: its pod has 10.0.1.5 reserved",
      );
    },
  ],
  [
    "what a running pod has can be reserved for it, and not for another",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      take(store, "a");
      equal(reserve(store.db, reservation("10.0.1.5")), {
        kind: "taken",
        why: "held by container a, whose pod is not known",
      });
      const pod = { podNamespace: WEB.namespace, podName: WEB.name };
      inTransaction(store.db, () => putAttachment(store.db, makeAttachment(makeKey("a"), pod)));
      equal(reserve(store.db, reservation("10.0.1.5", OTHER)), { kind: "taken", why: "held by default/web-0" });
      equal(reserve(store.db, reservation("10.0.1.5")), { kind: "reserved" });
      equal(reserve(store.db, reservation("10.0.1.5", OTHER)), { kind: "taken", why: "reserved for default/web-0" });
      equal(reserve(store.db, reservation("10.0.9.9")), {
        kind: "taken",
        why: "it is not an address of this node's ENIs",
      });
      free(store, "a");
      equal(said(take(store, "b", { pod: WEB })), "assigned 10.0.1.5");
    },
  ],
  [
    "ending a reservation makes the address idle, after the cool-down of its last use",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      reserve(store.db, reservation("10.0.1.5"));
      take(store, "a", { pod: WEB });
      free(store, "a");
      unreserve(store.db, "10.0.1.5", NOW);
      equal(said(take(store, "b", { pod: OTHER })), "pool-empty");
      equal(said(take(store, "b", { pod: OTHER }, NOW + COOLDOWN_MS)), "assigned 10.0.1.5");
    },
  ],
  [
    "ending the reservation of a running pod leaves the pod its address",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      reserve(store.db, reservation("10.0.1.5"));
      take(store, "a", { pod: WEB });
      unreserve(store.db, "10.0.1.5", NOW);
      equal(said(take(store, "a", { pod: WEB })), "already-held 10.0.1.5");
      free(store, "a");
      equal(said(take(store, "b", { pod: OTHER }, NOW + COOLDOWN_MS)), "assigned 10.0.1.5");
    },
  ],
  [
    "reservations end when their time has come, not before",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6"]);
      reserve(store.db, reservation("10.0.1.5", WEB, NOW + 10));
      reserve(store.db, reservation("10.0.1.6", OTHER));
      equal(expireReservations(store.db, NOW + 9), []);
      equal(
        expireReservations(store.db, NOW + 10).map((r) => r.address),
        ["10.0.1.5"],
      );
      equal(
        listReservations(store.db).map((r) => r.address),
        ["10.0.1.6"],
      );
      equal(said(take(store, "a")), "assigned 10.0.1.5");
    },
  ],
];
