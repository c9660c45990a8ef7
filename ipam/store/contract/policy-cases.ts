/** What the store promises for compiled policies. */
import type { CompiledPolicy } from "../../../shared/policy/compiled.ts";
import {
  dropPolicyAddresses,
  getCompiled,
  getPodPolicy,
  getPolicySets,
  getProfiles,
  listLocalPods,
  type PolicyAddress,
  planPolicyGc,
  policyAddressesOf,
  putCompiled,
  putPolicyAddress,
  setPolicyOff,
} from "../policy.ts";
import { inTransaction } from "../transaction.ts";
import { type ContractCase, equal, makeKey, NOW, reopen } from "./kit.ts";

const compiled: CompiledPolicy = {
  revision: 7,
  sets: [
    { id: "a", cidrs: ["10.0.0.1/32", "2001:db8::1/128"] },
    { id: "empty", cidrs: [] },
  ],
  endpointSets: [{ id: "a", endpoints: ["10.0.0.1 tcp 80"] }],
  profiles: [
    {
      id: "p",
      direction: "ingress",
      admin: [],
      policies: [{ verdict: "accept", peers: ["a"], origin: "NetworkPolicy d/x ingress[0]" }],
      baseline: [],
    },
  ],
  pods: [
    { namespace: "d", name: "open" },
    { namespace: "d", name: "web", ingress: "p" },
  ],
};

const address = (text: string, id: string, more: Partial<PolicyAddress> = {}): PolicyAddress => ({
  ...makeKey(id),
  address: text,
  namespace: "d",
  name: `pod-${id}`,
  posture: "allow",
  sinceMs: NOW,
  ...more,
});

export const POLICY_CASES: readonly ContractCase[] = [
  [
    "a compiled policy reads back as written, as a whole and by the parts that a pod needs",
    ({ store }) => {
      equal(getCompiled(store.db), undefined);
      inTransaction(store.db, () => putCompiled(store.db, compiled));
      equal(getCompiled(store.db), compiled);
      equal(getPodPolicy(store.db, "d", "web"), { namespace: "d", name: "web", ingress: "p" });
      equal(getPodPolicy(store.db, "d", "open"), { namespace: "d", name: "open" });
      equal(getPodPolicy(store.db, "d", "unknown"), undefined);
      setPolicyOff(store.db, true);
      equal(
        ["web", "unknown"].map((name) => getPodPolicy(store.db, "d", name)),
        ["off", "off"],
      );
      setPolicyOff(store.db, false);
      equal(getPodPolicy(store.db, "d", "web"), { namespace: "d", name: "web", ingress: "p" });
      equal(getPodPolicy(store.db, "d", "unknown"), undefined);
      equal(getProfiles(store.db, ["p", "gone"]), compiled.profiles);
      equal(getPolicySets(store.db, ["a"]), { sets: [compiled.sets[0]], endpointSets: compiled.endpointSets });
    },
  ],
  [
    "writing it again writes nothing, and a change writes what changed",
    ({ store }) => {
      const put = (c: CompiledPolicy, before?: CompiledPolicy) =>
        inTransaction(store.db, () => putCompiled(store.db, c, before));
      equal([put(compiled), put(compiled), put(compiled, compiled)], [6, 0, 0]);
      const [, empty] = compiled.sets;
      const next: CompiledPolicy = {
        ...compiled,
        revision: 8,
        sets: empty ? [{ id: "a", cidrs: ["10.0.0.2/32"] }, empty] : [],
        endpointSets: [],
        pods: [{ namespace: "d", name: "web" }],
      };
      equal(put(next, compiled), 4);
      equal(getCompiled(store.db), next);
    },
  ],
  [
    "an address is the last pod's that was attached with it, and a late DEL of the former leaves it alone",
    ({ store }) => {
      inTransaction(store.db, () => {
        putPolicyAddress(store.db, address("10.0.0.1", "old"));
        putPolicyAddress(store.db, address("2001:db8::1", "old"));
        putPolicyAddress(store.db, address("10.0.0.1", "new", { posture: "deny" }));
      });
      equal(policyAddressesOf(store.db, makeKey("old")), ["2001:db8::1"]);
      dropPolicyAddresses(store.db, makeKey("old"));
      equal(policyAddressesOf(store.db, makeKey("old")), []);
      equal(listLocalPods(store.db), [{ namespace: "d", name: "pod-new", posture: "deny", addresses: ["10.0.0.1"] }]);
    },
  ],
  [
    "GC names attachments with addresses that are in no list, of this network, and not younger than the list",
    ({ store }) => {
      const put = (id: string, n: number, more: Partial<PolicyAddress> = {}) =>
        putPolicyAddress(store.db, address(`10.0.0.${n}`, id, { sinceMs: 100, ...more }));
      put("listed", 1);
      put("dead", 2);
      put("young", 3, { sinceMs: 200 });
      put("foreign", 4, { network: "other" });
      equal(
        planPolicyGc(store.db, "net", [{ containerId: "listed", ifname: "eth0" }], 200).map((k) => k.containerId),
        ["dead"],
      );
    },
  ],
  [
    "after a reboot no address has a pod, and what is compiled is still there",
    (context) => {
      const { store } = context;
      inTransaction(store.db, () => {
        putCompiled(store.db, compiled);
        putPolicyAddress(store.db, address("10.0.0.1", "a"));
      });
      store.db.run("UPDATE fact SET value = 'another boot' WHERE name = 'boot_id'");
      store.db.close();
      const after = reopen(context);
      equal([listLocalPods(after.db), getCompiled(after.db)], [[], compiled]);
    },
  ],
];
