/** The agent ends at any instant of an update: what the kernel then has is the old or the new, and the next agent arrives. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { parseIp } from "../../shared/net/ip.ts";
import { deleteConntrack } from "../../shared/netlink/conntrack.ts";
import { getConnections, parseConnection } from "../../shared/netlink/conntrack-entries.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import { delTable } from "../../shared/netlink/nft/table.ts";
import { NetlinkError } from "../../shared/netlink/socket.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import { CUT_MARK, POLICY_TABLE } from "../../shared/policy/names.ts";
import { putPod } from "../../shared/policy/pod-program.ts";
import { verdictsOf } from "../../shared/policy/pod-verdicts.ts";
import { policyProblems, removePolicy } from "../../shared/policy/program.ts";
import { readTable } from "../../shared/policy/read.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../../test/cloud/netns.ts";
import { inNetns } from "../../test/runtime/exec.ts";
import { putAttachment } from "../store/attachments.ts";
import { openStore, type Store } from "../store/open.ts";
import { getCompiled, listLocalPods, putCompiled, putPolicyAddress } from "../store/policy.ts";
import { inTransaction } from "../store/transaction.ts";
import { createEnforcer, type Enforcer } from "./enforcer.ts";

let node: Netns;
let nft: NftSocket;
let root: string;
let store: Store;

beforeAll(() => {
  node = createNetns(`pe${process.pid % 10000}`);
  nft = inNetns(node.path, () => openNft(nodeSys));
});
beforeEach(() => {
  removePolicy(nft);
  if (root !== undefined) close();
  root = mkdtempSync(join(tmpdir(), "terway-enforcer-"));
  store = openStore({ sys: nodeSys, openSql: openNodeSql }, join(root, "ipam.db"));
  for (const i of [1, 2])
    inTransaction(store.db, () =>
      putPolicyAddress(store.db, {
        network: "net",
        containerId: `c${i}`,
        ifname: "eth0",
        address: `10.9.0.${i}`,
        namespace: "d",
        name: `p${i}`,
        posture: "deny",
        sinceMs: 0,
      }),
    );
});
function close(): void {
  store.db.close();
  rmSync(root, { recursive: true, force: true });
}
afterAll(() => {
  close();
  nft.close();
  node.close();
});

/** Both pods under the n-th profile, whose two sets hold the n-th addresses. */
function policy(n: number, revision: number): CompiledPolicy {
  const peers = ["left", "right"];
  return {
    revision,
    sets: peers.map((id, i) => ({ id, cidrs: [`192.0.${n}.${i}/32`, `198.51.${n}.${i}/32`] })),
    endpointSets: [],
    profiles: [
      {
        id: `profile-${n}`,
        direction: "ingress",
        admin: [],
        policies: [{ verdict: "accept", peers, origin: `NetworkPolicy d/x${n} ingress[0]` }],
        baseline: [],
      },
    ],
    pods: [1, 2].map((i) => ({ namespace: "d", name: `p${i}`, ingress: `profile-${n}` })),
  };
}

/** What packets meet: verdicts of both pods, and the members of both sets. */
function inForce(): unknown {
  const sets = readTable(nft)?.sets;
  return [sets?.get("to4")?.elements, sets?.get("a4-left")?.elements, sets?.get("a4-right")?.elements];
}
const meaning = (n: number) => [
  [1, 2].map((i) => `10.9.0.${i} : goto in-profile-${n}`),
  ...[0, 1].map((i) => [`192.0.${n}.${i}/32`, `198.51.${n}.${i}/32`]),
];

/** Ends with an exception at the n-th batch, before or after the kernel has it. Nothing comes after a death. */
function mortal(dieAt: number, after: boolean): NftSocket {
  let batches = 0;
  return {
    ...nft,
    commit(requests, generation) {
      batches += 1;
      if (batches === dieAt && !after) throw new RangeError("killed");
      nft.commit(requests, generation);
      if (batches === dieAt) throw new RangeError("killed");
    },
  };
}

describe("an agent that is killed in the middle of an update", () => {
  it.each([
    [1, false],
    [1, true],
    [2, false],
    [2, true],
  ])("at batch %i, sent: %s, leaves the old rules or the new ones, and the next one arrives", (dieAt, after) => {
    createEnforcer(store, nft).bring(policy(1, 1));
    expect(inForce()).toEqual(meaning(1));
    const agent = createEnforcer(store, mortal(dieAt, after));
    expect(() => agent.bring(policy(2, 2))).toThrow("killed");
    const done = dieAt === 2 && after;
    expect(inForce()).toEqual(meaning(done ? 2 : 1));
    // The store has it already: the next agent, without any folder, goes on from there.
    const next = createEnforcer(store, nft);
    expect(next.compiled).toEqual(policy(2, 2));
    expect(next.mend().changed.length > 0).toBe(!done);
    expect(inForce()).toEqual(meaning(2));
    expect(policyProblems(nft, { compiled: policy(2, 2), pods: listLocalPods(store.db) })).toEqual([]);
  });

  it("has all of the store's change or nothing of it", () => {
    createEnforcer(store, nft).bring(policy(1, 1));
    const db: Store["db"] = {
      ...store.db,
      exec: (sql) => store.db.exec(sql),
      all: (sql, params) => store.db.all(sql, params),
      get: (sql, params) => store.db.get(sql, params),
      run(sql, params) {
        if (sql.includes("policy_revision")) throw new RangeError("killed");
        return store.db.run(sql, params);
      },
    };
    expect(() => createEnforcer({ ...store, db }, nft).bring(policy(2, 2))).toThrow("killed");
    expect(getCompiled(store.db)).toEqual(policy(1, 1));
    expect(inForce()).toEqual(meaning(1));
  });
});

describe("what others do", () => {
  it("is seen by the generation: without it nothing is read back, with it all that pods change", () => {
    let dumps = 0;
    const counting: NftSocket = {
      ...nft,
      dump(request) {
        dumps += 1;
        return nft.dump(request);
      },
    };
    const agent = createEnforcer(store, counting);
    agent.bring(policy(1, 1));
    dumps = 0;
    agent.bring(policy(2, 2));
    expect(dumps).toBe(0);
    const other = createEnforcer(store, nft);
    expect(other.mend().changed).toEqual([]); // only looks
    agent.bring(policy(3, 3));
    expect(dumps).toBe(0);
    nft.commit([delTable(POLICY_TABLE)]);
    expect(agent.bring(policy(4, 4)).changed.join()).toContain("table inet terway-policy is missing");
    expect(inForce()).toEqual(meaning(4));
  });

  it("may take away what was listed before it is read", () => {
    createEnforcer(store, nft).bring(policy(1, 1));
    let disturbed = false;
    const racing: NftSocket = {
      ...nft,
      dump(request) {
        if (request.describe().startsWith("nft list set") && !disturbed) {
          disturbed = true;
          nft.commit([delTable(POLICY_TABLE)]);
        }
        return nft.dump(request);
      },
    };
    expect(createEnforcer(store, racing).mend().changed.join()).toContain("is missing");
    expect([disturbed, inForce()]).toEqual([true, meaning(1)]);
  });

  it("does not make the store's rows be taken for ours: what another wrote there is compared", () => {
    const agent = createEnforcer(store, nft);
    agent.bring(policy(1, 1));
    createEnforcer(store, nft).bring(policy(7, 2)); // `policy sync`, say
    agent.bring(policy(1, 3));
    expect(getCompiled(store.db)).toEqual(policy(1, 3));
    expect(inForce()).toEqual(meaning(1));
  });
});

describe("a kernel that lacks what policies need", () => {
  it.each(["EOPNOTSUPP", "EPROTONOSUPPORT"])(
    "gets one error that says what (%s), and the store keeps the policy",
    (errno) => {
      const refusing: NftSocket = {
        ...nft,
        commit() {
          throw new NetlinkError({ errno, extack: "", offset: undefined, request: "nft add rule" });
        },
      };
      expect(() => createEnforcer(store, refusing).bring(policy(1, 1))).toThrow(
        /nft add rule: .*this kernel has no nftables for that: NetworkPolicy needs CONFIG_NF_TABLES, .*Linux 5\.6 or later/,
      );
      expect(getCompiled(store.db)).toEqual(policy(1, 1));
    },
  );
});

/** As `policy`, without the second pod's object. */
function withoutSecond(n: number, revision: number): CompiledPolicy {
  const whole = policy(n, revision);
  return { ...whole, pods: whole.pods.slice(0, 1) };
}

describe("a pod whose object ended before its container", () => {
  it("keeps its policy while it is attached, also over a restart of the agent", () => {
    const agent = createEnforcer(store, nft);
    agent.bring(policy(1, 1));
    // Whatever else changes: the first pod has another profile now, the second only what it had.
    agent.bring(withoutSecond(2, 2));
    const verdicts = () => readTable(nft)?.sets.get("to4")?.elements;
    const kept = ["10.9.0.1 : goto in-profile-2", "10.9.0.2 : goto in-profile-1"];
    expect([verdicts(), agent.keepsEnded]).toEqual([kept, true]);
    expect(agent.bring(withoutSecond(2, 2)).changed).toEqual([]);
    const next = createEnforcer(store, nft);
    expect(next.mend().changed).toEqual([]);
    next.bring(withoutSecond(3, 3));
    expect(verdicts()).toEqual(["10.9.0.1 : goto in-profile-3", "10.9.0.2 : goto in-profile-1"]);
    inTransaction(store.db, () => store.db.run("DELETE FROM policy_address WHERE name = 'p2'"));
    next.bring(withoutSecond(3, 3));
    expect([verdicts(), next.keepsEnded]).toEqual([["10.9.0.1 : goto in-profile-3"], false]);
    expect(getCompiled(store.db)).toEqual(withoutSecond(3, 3));
    expect(readTable(nft)?.chains.has("in-profile-1")).toBe(false);
  });

  it("is under no policy when that is what is asked for", () => {
    const agent = createEnforcer(store, nft);
    agent.bring(policy(1, 1));
    agent.bring({ revision: 2, sets: [], endpointSets: [], profiles: [], pods: [] }, false);
    expect(agent.keepsEnded).toBe(false);
    expect(readTable(nft)?.chains.has("in-profile-1")).toBe(false);
  });
});

describe("an ADD between the agent's write of the store and that of the kernel", () => {
  it("does not double the rules of the profile that it makes", () => {
    const agent = createEnforcer(store, nft);
    agent.bring(policy(1, 1));
    const rules = () => readTable(nft)?.chains.get("in-profile-2")?.rules.length;
    putPod(
      nft,
      () => ({ verdicts: verdictsOf(["10.9.0.1"], { ingress: "profile-2" }), parts: () => policy(2, 2) }),
      {},
    );
    const made = rules();
    expect(made).toBeGreaterThan(0);
    agent.bring(policy(2, 2));
    expect(rules()).toBe(made);
    expect(agent.mend().changed).toEqual([]);
  });
});

describe("a pod whose own namespace refuses its table", () => {
  beforeEach(() => {
    const { dev, ino } = nodeSys.stat(node.path) ?? { dev: 0, ino: 0 };
    inTransaction(store.db, () =>
      putAttachment(store.db, {
        network: "net",
        containerId: "c2",
        ifname: "eth0",
        netns: node.path,
        netnsDev: dev,
        netnsIno: ino,
        podNamespace: "d",
        podName: "p2",
        podUid: "u",
        plugin: "terway-eni",
        mode: "exclusive",
        eniId: undefined,
        hostIfname: undefined,
        datapath: '{"uplink":', // fails as early as anything can
        state: "ready",
        createdMs: 0,
        at: 0,
      }),
    );
    const onNode = (...args: string[]) => runTool("ip", ["-n", node.name, ...args]);
    onNode("link", "set", "lo", "up");
    for (const address of ["10.9.0.1", "192.0.1.0"]) onNode("addr", "replace", `${address}/32`, "dev", "lo");
    nft.apply([deleteConntrack(parseIp("10.9.0.1"), "reply")]);
  });
  const repair = () => store.db.run("DELETE FROM attachment");
  const begin = () => runTool("ip", ["netns", "exec", node.name, "ping", "-c1", "-W2", "-I", "192.0.1.0", "10.9.0.1"]);
  const isCut = () =>
    nft
      .dump(getConnections())
      .map(parseConnection)
      .some((c) => c.to === "10.9.0.1" && (c.mark & CUT_MARK) !== 0);

  it.each([
    ["that a changed policy no longer allows", true, (agent: Enforcer) => agent.bring(policy(2, 2))],
    [
      "that began while nothing was judged",
      false,
      (agent: Enforcer) => {
        inTransaction(store.db, () => putCompiled(store.db, policy(2, 2)));
        agent.reread();
        nft.commit([delTable(POLICY_TABLE)]);
        return agent.mend();
      },
    ],
  ] as const)(
    "keeps no connection of the node alive %s, and what was done is told",
    (_what, cutEstablished, change) => {
      const agent = createEnforcer(store, nft, { cutEstablished });
      const refused = [expect.objectContaining({ message: expect.stringMatching(/^in pod d\/p2: /) })];
      expect(agent.bring(policy(1, 1)).failures).toEqual(refused);
      begin();
      expect(isCut()).toBe(false);
      const { changed, failures } = change(agent);
      expect(failures).toEqual(refused);
      expect(changed.join()).toMatch(/.,cut 192\.0\.1\.0 to 10\.9\.0\.1/);
      expect([inForce(), isCut()]).toEqual([meaning(2), true]);
      repair();
      expect(agent.bring(policy(2, 2))).toMatchObject({ changed: [], failures: [] });
    },
  );
});
