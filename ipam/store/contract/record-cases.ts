/** What the records promise: attachments, garbage collection, the journal, reboot. */
import { listAddresses } from "../addresses.ts";
import {
  addressOwners,
  attachmentsInNetns,
  getAttachment,
  hostIfnameTaken,
  listAttachments,
  markReady,
  putAttachment,
} from "../attachments.ts";
import { listDemand, putDemand } from "../demand.ts";
import { listEnis } from "../enis.ts";
import { planGc } from "../gc.ts";
import { appendJournal, type JournalEntry, readJournal } from "../journal.ts";
import { forgetBoot } from "../reboot.ts";
import { listReservations, reserve } from "../reservations.ts";
import { inTransaction } from "../transaction.ts";
import {
  type ContractCase,
  equal,
  free,
  makeAttachment,
  makeEni,
  makeKey,
  NOW,
  putEni,
  rangeOf,
  reopen,
  said,
  take,
  takeRange,
  thrown,
} from "./kit.ts";

const entry: JournalEntry = { at: 1, actor: "test", op: "ADD", outcome: "ok" };

export const RECORD_CASES: readonly ContractCase[] = [
  [
    "an attachment reads back as written, and is overwritten by its key",
    ({ store }) => {
      const a = makeAttachment(makeKey("a"));
      putAttachment(store.db, a);
      equal(getAttachment(store.db, makeKey("a")), a);
      const changed = makeAttachment(makeKey("a"), { state: "building", hostIfname: "calix", eniId: "eni-2", at: 9 });
      putAttachment(store.db, changed);
      equal(listAttachments(store.db), [changed]);
      equal([markReady(store.db, makeKey("a")), markReady(store.db, makeKey("b"))], [true, false]);
      equal(getAttachment(store.db, makeKey("a"))?.state, "ready");
      equal(getAttachment(store.db, makeKey("b")), undefined);
    },
  ],
  [
    "absent members are absent again",
    ({ store }) => {
      putAttachment(
        store.db,
        makeAttachment(makeKey("a"), {
          netnsDev: undefined,
          netnsIno: undefined,
          podNamespace: undefined,
          podName: undefined,
          podUid: undefined,
          eniId: undefined,
          hostIfname: undefined,
          datapath: undefined,
        }),
      );
      const read = getAttachment(store.db, makeKey("a"));
      equal([read?.netnsIno, read?.podName, read?.eniId, read?.hostIfname, read?.datapath].map(String), [
        "undefined",
        "undefined",
        "undefined",
        "undefined",
        "undefined",
      ]);
    },
  ],
  [
    "two attachments never have one host interface name, and neither is lost over it",
    ({ store }) => {
      putAttachment(store.db, makeAttachment(makeKey("a"), { hostIfname: "cali1" }));
      equal(hostIfnameTaken(store.db, "cali1", makeKey("b")), true);
      equal(hostIfnameTaken(store.db, "cali1", makeKey("a")), false);
      thrown(() => putAttachment(store.db, makeAttachment(makeKey("b"), { hostIfname: "cali1" })));
      equal(
        listAttachments(store.db).map((a) => a.containerId),
        ["a"],
      );
    },
  ],
  [
    "attachments are found by network and by network namespace",
    ({ store }) => {
      putAttachment(store.db, makeAttachment(makeKey("a")));
      putAttachment(store.db, makeAttachment(makeKey("a", { ifname: "net1" }), { hostIfname: "n1" }));
      putAttachment(store.db, makeAttachment(makeKey("b", { network: "other" }), { netnsDev: 5 }));
      equal(
        listAttachments(store.db, "other").map((a) => a.containerId),
        ["b"],
      );
      equal(
        attachmentsInNetns(store.db, 4, 4_026_532_001).map((a) => a.ifname),
        ["eth0", "net1"],
      );
      equal(
        attachmentsInNetns(store.db, 5, 4_026_532_001).map((a) => a.containerId),
        ["b"],
      );
    },
  ],
  [
    "GC names what is in no list, of this network, and not younger than the list",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5", "10.0.1.6", "10.0.1.7"]);
      const add = (id: string, createdMs: number, network = "net") =>
        putAttachment(store.db, makeAttachment(makeKey(id, { network }), { createdMs }));
      add("listed", 100);
      add("dead", 100);
      add("young", 200);
      add("foreign", 100, "other");
      take(store, "owner", {}, 100); // IPAM alone, under another CNI
      take(store, "young-owner", {}, 200);
      take(store, "young", {}, 100); // an old address row under a young attachment
      const valid = [{ containerId: "listed", ifname: "eth0" }];
      equal(
        planGc(store.db, "net", valid, 200).map((k) => k.containerId),
        ["dead", "owner"],
      );
      equal(
        planGc(store.db, "net", [{ containerId: "dead", ifname: "net1" }], 150)
          .map((k) => k.containerId)
          .sort(),
        ["dead", "listed", "owner"],
      );
      equal(
        addressOwners(store.db, "net")
          .map((o) => o.containerId)
          .sort(),
        ["owner", "young", "young-owner"],
      );
    },
  ],
  [
    "releasing ends the attachment's record with its addresses",
    ({ store }) => {
      putEni(store, makeEni(1), ["10.0.1.5"]);
      take(store, "a");
      putAttachment(store.db, makeAttachment(makeKey("a")));
      putAttachment(store.db, makeAttachment(makeKey("b")));
      equal(free(store, "a"), ["10.0.1.5"]);
      equal(
        listAttachments(store.db).map((a) => a.containerId),
        ["b"],
      );
    },
  ],
  [
    "the journal is read newest last, by pod, after an id, failures only",
    ({ store }) => {
      appendJournal(store.db, { ...entry, pod: "d/web", containerId: "a", durationMs: 1.5, detail: "x" });
      appendJournal(store.db, { ...entry, pod: "d/db", outcome: "pool-empty", code: 11 });
      appendJournal(store.db, { ...entry, pod: "e/web" });
      const ids = (filter: Parameters<typeof readJournal>[1]) => readJournal(store.db, filter).map((row) => row.id);
      equal(ids({}), [1, 2, 3]);
      equal(ids({ last: 2 }), [2, 3]);
      equal(ids({ afterId: 1 }), [2, 3]);
      equal([ids({ pod: "web" }), ids({ pod: "d/web" })], [[1, 3], [1]]);
      equal(ids({ onlyFailures: true }), [2]);
      const [first] = readJournal(store.db, { last: 3 });
      equal(
        [first?.pod, first?.containerId, first?.durationMs, first?.detail, first?.code],
        ["d/web", "a", 1.5, "x", undefined],
      );
    },
  ],
  [
    "the journal stays bounded and its ids keep growing",
    ({ store }) => {
      inTransaction(store.db, () => {
        for (let i = 0; i < 10_600; i++) appendJournal(store.db, entry);
      });
      const row = store.db.get("SELECT count(*) AS n, max(id) AS last FROM journal");
      equal(row?.last, 10_600);
      equal(Number(row?.n) >= 10_000 && Number(row?.n) < 10_256, true, `${row?.n} rows`);
    },
  ],
  [
    "after a reboot everything is free but what is reserved, deadlines are void, and late DELs succeed (F-23)",
    (context) => {
      const { store } = context;
      putEni(store, makeEni(1), ["10.0.1.4", "10.0.1.5", "10.0.1.6", "10.0.1.7"]);
      reserve(store.db, { podNamespace: "d", podName: "p", address: "10.0.1.5", expiresMs: NOW, reason: "sts" });
      const pod = { namespace: "d", name: "p" };
      take(store, "a", { pod });
      take(store, "b");
      take(store, "c");
      free(store, "c", NOW);
      takeRange(store, "local", [[rangeOf("10.1.0.0/29")]]);
      putAttachment(store.db, makeAttachment(makeKey("a")));
      putDemand(store.db, { ...makeKey("w"), families: "4", waiter: "@w", sinceMs: 1, deadlineMs: 10 * NOW });
      store.db.run("UPDATE fact SET value = 'another boot' WHERE name = 'boot_id'");
      store.db.close();

      const after = reopen(context);
      equal(
        listAddresses(after.db).map((x) => `${x.address} ${x.state} ${x.coolUntilMs}`),
        ["10.0.1.4 idle 0", "10.0.1.5 reserved 0", "10.0.1.6 idle 0", "10.0.1.7 idle 0"],
      );
      equal([listAttachments(after.db), listDemand(after.db, 0)], [[], []]);
      equal(after.db.get("SELECT count(*) AS n FROM address")?.n, 4, "local addresses are gone");
      equal(
        listReservations(after.db).map((r) => [r.address, r.expiresMs === undefined]),
        [["10.0.1.5", true]],
      );
      equal(
        listEnis(after.db).map((e) => e.state),
        ["ready"],
      );
      equal(free(after, "a"), []);
      equal(said(take(after, "new", { pod }, 5)), "assigned 10.0.1.5");
      equal(said(take(after, "other", {}, 5)), "assigned 10.0.1.4");
    },
  ],
  [
    "a reboot is noticed once",
    (context) => {
      const { store } = context;
      putEni(store, makeEni(1), ["10.0.1.5"]);
      take(store, "a");
      inTransaction(store.db, () => forgetBoot(store.db, store.bootId));
      const other = reopen(context);
      equal(said(take(other, "a")), "already-held 10.0.1.5");
      other.db.close();
    },
  ],
];
