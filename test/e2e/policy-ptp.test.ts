/** terway-policy behind Debian's ptp and terway-ipam, policies from the store alone: no agent runs. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { createEnforcer } from "../../ipam/policy/enforcer.ts";
import { openStore } from "../../ipam/store/open.ts";
import { listPolicyAddresses, putCompiled, setPolicyOff } from "../../ipam/store/policy.ts";
import { inTransaction } from "../../ipam/store/transaction.ts";
import { getConnections, parseConnection } from "../../shared/netlink/conntrack-entries.ts";
import { type NftSocket, openNft } from "../../shared/netlink/nft/socket.ts";
import type { CompiledPolicy, PodPolicy } from "../../shared/policy/compiled.ts";
import { leads } from "../../shared/policy/content.ts";
import { readTableAtOnce } from "../../shared/policy/read.ts";
import { nodeSys, openNodeSql } from "../../shared/sys/node.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { type PodProcess, startPodProcess } from "../lab/pod-process.ts";
import { createPtpRuntime } from "../lab/ptp-chain.ts";
import { ping } from "../lab/traffic.ts";
import { CNI_PATH, until } from "../lab/world.ts";
import { CniCallError, type CniResult, type CniRuntime, createRuntime, type Pod } from "../runtime/cni-runtime.ts";
import { inNetns } from "../runtime/exec.ts";

const prefix = `pp${process.pid % 10000}`;
const dir = mkdtempSync(join(tmpdir(), "terway-policy-"));
const storePath = join(dir, "ipam.db");
let node: Netns;
let nft: NftSocket;
let runtime: CniRuntime;

const places = { store: storePath, logDir: join(dir, "log") };

/** terway-policy alone: for verbs that Debian's ptp does not have yet, and for what comes before it. */
function policyOnly(more: Readonly<Record<string, unknown>>): CniRuntime {
  const plugin = { type: "terway-policy", ...places, ...more };
  const conflist = { cniVersion: "1.1.0", name: "net", plugins: [plugin] };
  return createRuntime({ netns: node.path, cniPath: CNI_PATH, conflist });
}

function runtimeWith(policy: Readonly<Record<string, unknown>>): CniRuntime {
  return createPtpRuntime(node.path, places, [{ type: "terway-policy", ...policy }]);
}

interface Attached {
  readonly pod: Pod;
  readonly ip4: string;
  readonly ip6: string;
  readonly ns: Netns;
  readonly process: PodProcess;
  readonly result: CniResult;
}
let serial = 0;
const alive: { readonly ns: Netns; process?: PodProcess; readonly pod: Pod; readonly by: CniRuntime }[] = [];

function newPod(name: string): { readonly ns: Netns; readonly pod: Pod } {
  serial += 1;
  const ns = createNetns(`${prefix}-${serial}`);
  const pod = { containerId: `${name}-${serial}`, netns: ns.path, ifname: "eth0", namespace: "d", name, uid: "u" };
  return { ns, pod };
}

async function attach(name: string, by = runtime): Promise<Attached> {
  const { ns, pod } = newPod(name);
  const entry: (typeof alive)[number] = { ns, pod, by };
  alive.push(entry);
  const { result } = await by.add(pod);
  // What would be there before ADD returned: nothing of the pod's own runs until then.
  const process = await startPodProcess(ns.path);
  entry.process = process;
  await process.serve([80]);
  const [ip4 = "", ip6 = ""] = (result.ips ?? []).map((ip) => ip.address.split("/")[0] ?? "");
  return { pod, ip4, ip6, ns, process, result };
}

function compiled(pods: readonly PodPolicy[], friends: readonly string[] = []): CompiledPolicy {
  return {
    revision: 1,
    sets: [{ id: "friends", cidrs: friends }],
    endpointSets: [],
    profiles: [
      {
        id: "friends-only",
        direction: "ingress",
        admin: [],
        policies: [{ verdict: "accept", peers: ["friends"], origin: "NetworkPolicy d/x ingress[0]" }],
        baseline: [],
      },
      { id: "silent", direction: "egress", admin: [], policies: [], baseline: [] },
    ],
    pods,
  };
}

function openOurStore() {
  return openStore({ sys: nodeSys, openSql: openNodeSql }, storePath);
}

function sync(policy: CompiledPolicy): void {
  const store = openOurStore();
  inTransaction(store.db, () => putCompiled(store.db, policy));
  store.db.close();
}

async function failure(work: Promise<unknown>): Promise<CniCallError> {
  const error = await work.then(
    () => undefined,
    (e: unknown) => e,
  );
  if (error instanceof CniCallError) return error;
  throw error ?? new Error("it should have failed");
}

const mapElements = () =>
  [...(readTableAtOnce(nft)?.sets ?? [])].flatMap(([name, set]) =>
    leads(set) ? set.elements.map((e) => `${name} ${e}`) : [],
  );
/** The node's end of its veth. */
const hostLink = ({ result }: Attached) => result.interfaces?.find((i) => (i.sandbox ?? "") === "")?.name ?? "";
/** The removal follows DEL within a moment. */
const untilGone = (pod: Attached) =>
  until(
    `${pod.ip4} gone`,
    5000,
    () => !mapElements().some((e) => e.split(" ").some((word) => word === pod.ip4 || word === pod.ip6)),
  );
const nftDo = (...args: string[]) => runTool("ip", ["netns", "exec", node.name, "nft", ...args]);

beforeAll(() => {
  node = createNetns(`${prefix}-node`);
  for (const s of ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    runTool("ip", ["netns", "exec", node.name, "sysctl", "-qw", s]);
  nft = inNetns(node.path, () => openNft(nodeSys));
  runtime = runtimeWith({});
});
afterEach(async () => {
  for (const { ns, process, pod, by } of alive.splice(0)) {
    await by.del(pod).catch(() => undefined);
    await process?.close();
    ns.close();
  }
  nftDo("flush", "ruleset");
});
afterAll(() => {
  nft.close();
  node.close();
  rmSync(dir, { recursive: true, force: true });
});

describe("terway-policy after ptp and terway-ipam", () => {
  it("puts a pod under its policy from a store and a kernel that knew nothing, and takes it out again", async () => {
    sync(
      compiled([
        { namespace: "d", name: "web", ingress: "friends-only" },
        { namespace: "d", name: "client" },
      ]),
    );
    const [web, client] = [await attach("web"), await attach("client")];
    expect(web.result.ips?.length).toBe(2);
    expect(web.result.interfaces?.map((i) => i.name)).toContain("eth0"); // prevResult is passed on
    const tries = await Promise.all([
      client.process.probe("tcp", web.ip4, 80),
      client.process.probe("udp", web.ip6, 80),
      ping(client.ns.path, web.ip4, 0.3),
      web.process.reaches("tcp", client.ip4, 80),
      ping(node.path, web.ip4),
      ping(node.path, web.ip6),
    ]);
    expect(tries).toEqual([false, false, false, true, true, true]);
    await runtime.check(web.pod);
    await runtime.del(web.pod);
    await runtime.del(web.pod);
    await untilGone(web);
    expect(mapElements().sort()).toEqual(
      [
        `from4 ${client.ip4} : return`,
        `to4 ${client.ip4} : return`,
        `from6 ${client.ip6} : return`,
        `to6 ${client.ip6} : return`,
        `self4 ${client.ip4}`,
        `self6 ${client.ip6}`,
        `from-link %${hostLink(client)} : return`,
      ].sort(),
    );
    const log = readFileSync(join(dir, "log/terway-policy.log"), "utf8");
    expect(log).toContain("table inet terway-policy is missing");
  });

  it("lets in whom the policy names", async () => {
    const friends = ["10.77.0.0/24", "fd77::/64"];
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }], friends));
    const [client, web] = [await attach("client"), await attach("web")];
    expect(await client.process.reaches("tcp", web.ip4, 80)).toBe(true);
    // ptp leaves duplicate address detection of its gateway running: the first packets may be lost.
    expect(await client.process.reaches("tcp", web.ip6, 80)).toBe(true);
  });

  it.each([
    ["allow", true],
    ["deny", false],
  ] as const)("gives a pod that no policy knows the posture %s", async (posture, reached) => {
    sync(compiled([]));
    const by = runtimeWith({ default: posture });
    const [a, b] = [await attach("a", by), await attach("b", by)];
    expect(await (reached ? a.process.reaches : a.process.probe)("tcp", b.ip4, 80)).toBe(reached);
    expect(await ping(node.path, a.ip4)).toBe(true);
  });

  it.each(["allow", "deny", "wait"])(
    "leaves pods alone while policy is switched off, with default %s",
    async (posture) => {
      sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
      const store = openOurStore();
      setPolicyOff(store.db, true);
      const by = runtimeWith({ default: posture });
      await policyOnly({ store: storePath, default: posture }).status();
      const [client, web] = [await attach("client", by), await attach("web", by)];
      expect(await client.process.reaches("tcp", web.ip4, 80)).toBe(true);
      expect(readTableAtOnce(nft)).toBeUndefined();
      await by.check(web.pod);
      // Whose the addresses are is known all the same, for when it is switched on again.
      setPolicyOff(store.db, false);
      createEnforcer(store, nft).mend();
      expect(await client.process.probe("tcp", web.ip4, 80)).toBe(false);
      await by.check(web.pod);
      store.db.close();
    },
  );

  it("waits for a policy, takes it when it comes, and fails with code 11 when it does not", async () => {
    sync(compiled([]));
    const by = runtimeWith({ default: "wait", waitSeconds: 5 });
    const waiting = attach("late", by);
    setTimeout(() => sync(compiled([{ namespace: "d", name: "late", egress: "silent" }])), 150);
    const late = await waiting;
    expect(mapElements()).toContain(`from4 ${late.ip4} : goto out-silent`);
    expect(await ping(late.ns.path, "10.77.0.1", 0.3)).toBe(false);
    const { ns, pod } = newPod("never");
    const impatient = runtimeWith({ default: "wait", waitSeconds: 0.1 });
    const error = await failure(impatient.add(pod));
    expect([error.code, error.message]).toEqual([11, expect.stringContaining("d/never did not become known")]);
    await impatient.del(pod);
    ns.close();
    const store = openOurStore();
    expect(listPolicyAddresses(store.db).map((a) => a.name)).toEqual(["late", "late", "late"]);
    store.db.close();
  });

  it("says in STATUS what ADD would say", async () => {
    await policyOnly({}).status();
    const fresh = policyOnly({ store: join(dir, "fresh.db"), default: "wait" });
    expect((await failure(fresh.status())).code).toBe(50);
  });

  it("wins over an element that the address's last pod left", async () => {
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
    const first = await attach("other");
    nftDo("flush", "map", "inet", "terway-policy", "to4");
    for (let n = 2; n < 30; n++) nftDo("add", "element", "inet", "terway-policy", "to4", `{ 10.77.0.${n} : drop }`);
    const web = await attach("web");
    expect(mapElements()).toContain(`to4 ${web.ip4} : goto in-friends-only`);
    expect(await first.process.probe("tcp", web.ip4, 80)).toBe(false);
    expect(await ping(node.path, web.ip4)).toBe(true);
  });

  it("leaves no verdict to the address's next pod when it is taken out of the conflist while a pod lives", async () => {
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
    const web = await attach("web");
    expect(mapElements()).toContain(`to4 ${web.ip4} : goto in-friends-only`);
    await createPtpRuntime(node.path, places, []).del(web.pod);
    expect(mapElements()).toEqual([]);
    const store = openOurStore();
    expect(listPolicyAddresses(store.db)).toEqual([]);
    store.db.close();
  });

  it("holds a pod to its egress policy whatever address it uses, a link-local one too", async () => {
    sync(compiled([{ namespace: "d", name: "quiet", egress: "silent" }]));
    const [quiet, open] = [await attach("quiet"), await attach("open")];
    for (const pod of [quiet, open])
      runTool("ip", ["-n", pod.ns.name, "addr", "add", "fe80::a/64", "dev", "eth0", "nodad"]);
    const gateway = (pod: Attached) =>
      /inet6 (fe80::[0-9a-f:]+)/.exec(
        runTool("ip", ["-n", node.name, "-6", "addr", "show", "dev", hostLink(pod)]),
      )?.[1];
    expect(await ping(open.ns.path, `${gateway(open)}%eth0`)).toBe(true);
    expect(await ping(quiet.ns.path, `${gateway(quiet)}%eth0`, 0.5)).toBe(false);
    expect(await ping(node.path, `fe80::a%${hostLink(quiet)}`)).toBe(true);
    expect(await ping(node.path, quiet.ip6)).toBe(true);
    await runtime.check(quiet.pod);
    expect(mapElements()).toContain(`from-link %${hostLink(quiet)} : goto out-silent`);
    await runtime.del(quiet.pod);
    expect(mapElements().filter((e) => e.includes(`%${hostLink(quiet)} `))).toEqual([]);
  });

  it("is judged anew: what the address had open before does not stay open", async () => {
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
    const client = await attach("client");
    const web = await attach("web");
    // As if the flow were from before ADD: it begins while nothing is judged.
    nftDo("flush", "map", "inet", "terway-policy", "to4");
    const stream = await client.process.stream("udp", web.ip4, 80);
    await until("an echo", 10_000, async () => (await stream.count()).echoed > 0);
    expect((await stream.stop()).echoed).toBeGreaterThan(0);
    const flows = () =>
      nft
        .dump(getConnections())
        .map(parseConnection)
        .filter((c) => c.to === web.ip4);
    expect(flows().length).toBeGreaterThan(0);
    await policyOnly({ prevResult: web.result }).add(web.pod);
    expect(flows()).toEqual([]);
    const again = await client.process.stream("udp", web.ip4, 80);
    await until("something is sent", 10_000, async () => (await again.count()).sent > 20);
    expect((await again.stop()).echoed).toBe(0);
  });

  it("names in CHECK what is missing", async () => {
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
    const web = await attach("web");
    const said = async (...command: string[]) => {
      nftDo(...command);
      const error = await failure(runtime.check(web.pod));
      return [error.code, error.message];
    };
    expect(await said("delete", "element", "inet", "terway-policy", "to4", `{ ${web.ip4} }`)).toEqual([
      102,
      expect.stringContaining(`to4 lacks ${web.ip4} : goto in-friends-only`),
    ]);
    expect(await said("flush", "chain", "inet", "terway-policy", "in-friends-only")).toEqual([
      102,
      expect.stringContaining("chain in-friends-only was changed"),
    ]);
    expect(await said("flush", "ruleset")).toEqual([
      102,
      expect.stringContaining("table inet terway-policy is missing"),
    ]);
  });

  it("collects what the runtime no longer knows, and DEL works whatever is left to go by", async () => {
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
    const [kept, lost, bare] = [await attach("kept"), await attach("web"), await attach("web")];
    const store = openOurStore();
    store.db.run("UPDATE policy_address SET since_ms = since_ms - 60000");
    store.db.run("UPDATE address SET since_ms = since_ms - 60000");
    store.db.close();
    await policyOnly({}).gc([kept, bare].map((x) => ({ containerID: x.pod.containerId, ifname: "eth0" })));
    await untilGone(lost);
    expect(mapElements().filter((e) => e.split(" ").includes(kept.ip4)).length).toBe(3);
    // One element is gone already; neither result nor namespace is known any more.
    nftDo("delete", "element", "inet", "terway-policy", "to4", `{ ${bare.ip4} }`);
    runtime.cache.delete(`${bare.pod.containerId}/eth0`);
    await runtime.del({ ...bare.pod, netns: "" }).catch(() => undefined); // ptp and its own needs
    await untilGone(bare);
    nftDo("flush", "ruleset");
    await runtime.del(kept.pod);
  });

  it("keeps nobody waiting in a DEL that comes again, and takes out what a lost store left in the kernel", async () => {
    sync(compiled([{ namespace: "d", name: "web", ingress: "friends-only" }]));
    const web = await attach("web");
    const again = (address: string) =>
      policyOnly({ prevResult: { cniVersion: "1.1.0", ips: [{ address }] } }).del({
        ...web.pod,
        containerId: "before",
      });
    const store = openOurStore();
    store.db.exec("BEGIN IMMEDIATE");
    await again("10.96.0.1/24");
    store.db.exec("COMMIT");
    await again(`${web.ip4}/24`);
    expect(mapElements().filter((e) => e.split(" ").includes(web.ip4)).length).toBe(3);
    store.db.run("DELETE FROM policy_address");
    store.db.close();
    await again(`${web.ip4}/24`);
    expect(mapElements().filter((e) => e.split(" ").includes(web.ip4))).toEqual([]);
  });

  it("refuses to be first in the chain, and a configuration that it does not understand", async () => {
    const { ns, pod } = newPod("x");
    const first = await failure(policyOnly({}).add(pod));
    expect([first.code, first.message]).toEqual([7, expect.stringContaining("no prevResult")]);
    const odd = await failure(policyOnly({ default: "maybe", waitSeconds: -1, logDrops: 1 }).add(pod));
    expect(odd.message).toContain('default is "maybe"');
    expect(odd.message).toContain("waitSeconds is -1");
    expect(odd.message).toContain("logDrops is 1");
    ns.close();
  });
});
