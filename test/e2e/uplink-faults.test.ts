/**
 * What must not break a pod's interface, in every mode with ENIs: sizes, names, ENIs that are elsewhere, tampering, a
 * reboot. Whatever fails says what and why, and leaves nothing half-built.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type EniKind, listEnis } from "../../ipam/store/enis.ts";
import { METADATA_IP, OUTSIDE_IP } from "../cloud/fabric.ts";
import type { EniRecord } from "../cloud/model.ts";
import { createNetns, type Netns, runTool } from "../cloud/netns.ts";
import { inMode } from "../kernel/features.ts";
import { patient } from "../kernel/patience.ts";
import { createIdleWorld, type Prepared, prepareByHand } from "../lab/by-hand.ts";
import { type Baseline, baselineOf, kernelLeaks } from "../lab/leaks.ts";
import { connections, ping, serve } from "../lab/traffic.ts";
import { CNI_PATH, type LabMode, until, type World, type WorldNode, type WorldPod } from "../lab/world.ts";
import { type CniCallError, createRuntime } from "../runtime/cni-runtime.ts";

interface Case {
  readonly mode: LabMode;
  readonly kind: EniKind;
  readonly instanceType: string;
  readonly secondary: number;
  /** Hand-made damage, in the pod (P) or on the node (N), and what CHECK says of it. */
  readonly tampering: readonly (readonly [string, RegExp])[];
}

/** What every mode with an uplink has. HOST: the pod's veth on the node, IP: the pod's address. */
const UPLINK = [
  ["P link set eth0 down", /link eth0 is down in the pod/],
  ["P addr del IP dev eth0", /address IP is missing on eth0/],
  ["P route del default", /route is missing in the pod: default|route is missing in the pod: 0\.0\.0\.0\/0/],
  ["P route del 172.16.0.0/16", /route is missing in the pod: 172\.16\.0\.0\/16/],
  ["P neigh del 169.254.1.1 dev veth1", /neighbour 169\.254\.1\.1 is missing in the pod/],
  ["P link del veth1", /link (veth1 is missing in the pod|HOST is missing on the node)/],
  ["N route del IP/32 table 16999", /route is missing: IP/],
  ["N neigh del IP dev HOST", /neighbour IP is missing on the node/],
  ["N rule del pref 511", /rule is missing: .*511/],
] as const;

/** The rest is the same code as of a whole ENI, which needs no virtual machine. */
const CHILD = [
  ["P link set eth0 down", /link eth0 is down in the pod/],
  ["P link del eth0", /link eth0 is missing in the pod/],
  ["N rule del pref 511", /rule is missing: .*511/],
] as const;

const CASES: readonly Case[] = [
  {
    mode: "eniip-veth",
    kind: "shared",
    instanceType: "ecs.g7.xlarge",
    secondary: 3,
    tampering: [
      ["P route del default", /route is missing in the pod/],
      ["N rule del from IP", /rule is missing: from IP/],
      ["N route del IP/32 table 17000", /route is missing: IP/],
    ],
  },
  { mode: "eni-exclusive", kind: "exclusive", instanceType: "ecs.g7.xlarge", secondary: 0, tampering: UPLINK },
  {
    mode: "eniip-ipvlan",
    kind: "shared",
    instanceType: "ecs.g7.xlarge",
    secondary: 3,
    tampering: CHILD,
  },
  {
    mode: "trunk",
    kind: "member",
    instanceType: "ecs.c7.16xlarge",
    secondary: 0,
    tampering: CHILD,
  },
];

const MTU = 1450;
const NODE_DNS = "169.254.20.10";

async function refusal(work: Promise<unknown>): Promise<CniCallError> {
  return work.then(
    () => {
      throw new Error("it should have been refused");
    },
    (error: CniCallError) => error,
  );
}

function suite({ mode, kind, instanceType, secondary, tampering }: Case): void {
  let world: World;
  let here: Prepared;
  let node: WorldNode;
  let clean: Baseline;

  const ip = (netns: string, ...args: string[]) => runTool("ip", ["-n", netns.split("/").at(-1) ?? "", ...args]);
  async function attach(with_ = node.runtime): Promise<{ readonly pod: WorldPod; readonly ip: string }> {
    const pod = node.newPod();
    const { result } = await with_.add(pod);
    return { pod, ip: result.ips?.[0]?.address.split("/")[0] ?? "" };
  }
  async function detach(...pods: readonly { readonly pod: WorldPod }[]): Promise<void> {
    for (const { pod } of pods) {
      await node.runtime.del(pod);
      pod.destroy();
    }
  }
  /** The node as without pods, and a store that holds nothing; some of it a moment later. */
  async function nothingLeft(): Promise<void> {
    const left = () => [
      ...kernelLeaks(world, node, clean).map((l) => `${l.kind}: ${l.what}`),
      ...here.store.db.all("SELECT container_id FROM attachment").map((r) => `attachment ${r.container_id}`),
      ...here.store.db.all("SELECT address FROM address WHERE state = 'allocated'").map((r) => `address ${r.address}`),
    ];
    await until("an empty node", 5000, () => left().length === 0).catch(() => undefined);
    expect(left()).toEqual([]);
  }
  const changed = (change: object) => {
    const [plugin, ...others] = node.runtime.conflist.plugins;
    if (plugin === undefined) throw new Error("an empty conflist");
    const conflist = { ...node.runtime.conflist, plugins: [{ ...plugin, ...change }, ...others] };
    return createRuntime({ conflist, cniPath: CNI_PATH, netns: node.netns });
  };
  /** The ENI whose link carries the pods': of members, the trunk. */
  const carriers = (): EniRecord[] =>
    kind === "member" ? [world.cloud.model.eniOf(here.enis[0]?.trunk?.eniId)] : [...here.enis];
  /** Members' wires go with their trunk's. */
  const wires = () => [...new Set([...here.enis, ...carriers()])];
  const linkOf = (eni: EniRecord, netns = node.netns) =>
    (JSON.parse(ip(netns, "-j", "link")) as { ifname: string; address: string }[]).find((l) => l.address === eni.mac)
      ?.ifname ?? "";

  beforeAll(async () => {
    world = await createIdleWorld({
      prefix: `f${process.pid % 10000}`,
      nodes: 1,
      mode,
      instanceType,
      cloud: { mtuBytes: MTU },
    });
    [node] = world.nodes as [WorldNode];
    here = await prepareByHand(world, node, kind, 2, secondary);
    // On each ENI one: what is there once for all of them is there from now on.
    const first = [await attach(), await attach()];
    await detach(...first);
    await until("the ENIs", 5000, () => carriers().every((eni) => linkOf(eni) !== ""));
    clean = baselineOf(world, node);
  }, patient(60_000));
  afterAll(async () => {
    here?.store.db.close();
    await world?.close();
  });

  it("has its ENI's MTU, whole packets pass, a larger one is refused, and CHECK sees the ENI shrink (F-41)", async () => {
    const words = await refusal(changed({ mtu: MTU + 1 }).add(node.newPod()));
    expect([words.code, words.message]).toEqual([
      7,
      expect.stringMatching(
        new RegExp(`mtu ${MTU + 1} is larger than the ${MTU} bytes of ENI eni-.*lower mtu in the conflist`),
      ),
    ]);
    const [a, b] = [await attach(), await attach()];
    expect(ip(a.pod.netns, "link", "show", "eth0")).toContain(` mtu ${MTU} `);
    const whole = ["-c1", "-W2", "-M", "do", "-s", String(MTU - 28), b.ip];
    expect(runTool("nsenter", [`--net=${a.pod.netns}`, "ping", ...whole])).toContain("1 received");
    // An exclusive ENI is in the pod, the others' on the node.
    const places = carriers().map((eni) => {
      const inPod = kind === "exclusive" ? [a, b].find((x) => x.ip === eni.primaryIp) : undefined;
      const netns = inPod?.pod.netns ?? node.netns;
      return { netns, name: linkOf(eni, netns) };
    });
    for (const { netns, name } of places) ip(netns, "link", "set", name, "mtu", "1400");
    expect((await refusal(node.runtime.check(a.pod))).message).toMatch(
      /has MTU 1400, (want 1450|less than the pod's 1450)/,
    );
    for (const { netns, name } of places) ip(netns, "link", "set", name, "mtu", String(MTU));
    await detach(a, b);
    await nothingLeft();
  });

  it("is refused a name that somebody else's interface has in the pod", async () => {
    const pod = node.newPod();
    ip(pod.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "foreign");
    const words = await refusal(node.runtime.add(pod));
    expect(words.message).toMatch(/already has an interface eth0 that is not ours.*choose another CNI_IFNAME/);
    expect(
      ip(pod.netns, "-o", "link")
        .split("\n")
        .filter((l) => l !== "").length,
    ).toBe(3);
    pod.destroy();
    // Neither does a second network take the name of the first one's.
    const first = await attach();
    const second = createRuntime({
      conflist: { ...node.runtime.conflist, name: "terway-second" },
      cniPath: CNI_PATH,
      netns: node.netns,
    });
    const name = mode === "eniip-veth" ? "eth0" : "veth1";
    expect((await refusal(second.add(first.pod))).message).toContain(
      `already has an interface ${name} that is not ours`,
    );
    await node.runtime.check(first.pod);
    expect(await ping(first.pod.netns, OUTSIDE_IP)).toBe(true);
    await detach(first);
    await nothingLeft();
  });

  it(
    "is refused while its ENI is gone from the instance, or in another namespace, and works again afterwards",
    async () => {
      let elsewhere: Netns | undefined;
      const away: readonly (readonly [string, () => void, () => Promise<void> | void])[] = [
        [
          "in another namespace",
          () => {
            elsewhere = createNetns(`${world.prefix}-elsewhere`);
            for (const eni of carriers()) ip(node.netns, "link", "set", linkOf(eni), "netns", elsewhere.name);
          },
          () => {
            if (elsewhere === undefined) return;
            for (const eni of carriers()) {
              const name = linkOf(eni, elsewhere.path);
              runTool("ip", ["-n", elsewhere.name, "link", "set", name, "netns", node.netns.split("/").at(-1) ?? ""]);
            }
            elsewhere.close();
          },
        ],
        [
          "gone from the instance",
          () => {
            for (const eni of wires()) world.cloud.fabric?.detach(eni);
          },
          () => {
            for (const eni of wires().reverse()) world.cloud.fabric?.attach(eni, node.instance);
          },
        ],
      ];
      for (const [what, leave, comeBack] of away) {
        leave();
        const words = await refusal(node.runtime.add(node.newPod()));
        expect([what, words.code, words.message]).toEqual([
          what,
          11,
          expect.stringMatching(/ENI .*has no link on this node \(.*another network namespace.*agent/),
        ]);
        expect(here.store.db.all("SELECT address FROM address WHERE state = 'allocated'")).toEqual([]);
        await comeBack();
        const pods = [await attach(), await attach()];
        for (const { pod } of pods) expect([what, await ping(pod.netns, OUTSIDE_IP)]).toEqual([what, true]);
        await detach(...pods);
      }
      await nothingLeft();
    },
    patient(60_000),
  );

  it(
    "has CHECK name what was changed by hand, and DEL and a new ADD put it right",
    async () => {
      for (const [damage, complaint] of tampering) {
        const { pod, ip: address } = await attach();
        await node.runtime.check(pod);
        const row = here.store.db.get("SELECT host_ifname FROM attachment WHERE container_id = ?", [pod.containerId]);
        const host = String(row?.host_ifname);
        const prefix = ip(pod.netns, "-o", "-4", "addr", "show", "dev", "eth0").match(/inet (\S+)/)?.[1] ?? "";
        const [where = "", ...args] = damage
          .replace("addr del IP", `addr del ${prefix}`)
          .replace("HOST", host)
          .replace("IP", address)
          .split(" ");
        ip(where === "P" ? pod.netns : node.netns, ...args);
        const wanted = new RegExp(
          complaint.source.replace("HOST", host).replaceAll("IP", address.replaceAll(".", "\\.")),
        );
        expect([damage, (await refusal(node.runtime.check(pod))).message]).toEqual([
          damage,
          expect.stringMatching(wanted),
        ]);
        await node.runtime.del(pod);
        const again = (await node.runtime.add(pod)).result.ips?.[0]?.address.split("/")[0] ?? "";
        await node.runtime.check(pod);
        expect([damage, await ping(pod.netns, OUTSIDE_IP), await ping(node.netns, again)]).toEqual([
          damage,
          true,
          true,
        ]);
        await detach({ pod });
      }
      await nothingLeft();
    },
    patient(90_000),
  );

  it("is made by a second ADD where the first was killed at its end", async () => {
    const { pod } = await attach();
    here.store.db.run("UPDATE attachment SET state = 'building'");
    const again = (await node.runtime.add(pod)).result.ips?.[0]?.address.split("/")[0] ?? "";
    await node.runtime.check(pod);
    expect([await ping(pod.netns, OUTSIDE_IP), await ping(node.netns, again)]).toEqual([true, true]);
    await detach({ pod });
    await nothingLeft();
  });

  it(
    "is collected by GC when the runtime does not list it, and no other",
    async () => {
      const [kept, lost] = [await attach(), await attach()];
      here.store.db.run("UPDATE attachment SET created_ms = created_ms - 60000");
      here.store.db.run("UPDATE address SET since_ms = since_ms - 60000 WHERE state = 'allocated'");
      const listed = [{ containerID: kept.pod.containerId, ifname: "eth0" }];
      await node.runtime.gc(listed);
      expect([await ping(kept.pod.netns, OUTSIDE_IP), await ping(node.netns, lost.ip, 1)]).toEqual([true, false]);
      // Made after the runtime had made its list.
      const young = await attach();
      await node.runtime.gc(listed);
      for (const { pod } of [kept, young]) await node.runtime.check(pod);
      expect(
        here.store.db.all("SELECT container_id FROM attachment ORDER BY created_ms").map((r) => r.container_id),
      ).toEqual([kept.pod.containerId, young.pod.containerId]);
      lost.pod.destroy();
      await detach(kept, young);
      await node.runtime.status();
      await nothingLeft();
    },
    patient(60_000),
  );

  it(
    "survives a reboot of the node: late DEL, first ADD and STATUS need no agent (F-23)",
    async () => {
      const before = await attach();
      here.store.db.run("UPDATE fact SET value = 'former-boot' WHERE name = 'boot_id'");
      here.store.db.run("UPDATE fact SET value = 'former-boot' WHERE name = 'prepared_boot'");
      here.store.db.run("UPDATE eni SET prepared_boot = 'former-boot'");
      before.pod.destroy();
      await until("the ENIs", 10_000, () => carriers().every((eni) => linkOf(eni) !== ""));
      for (const pref of ["511", "512", "1024", "2048", "2049"])
        runTool("sh", [
          "-c",
          `while ip -n "$0" rule del pref ${pref} 2>/dev/null; do :; done`,
          node.netns.split("/").at(-1) ?? "",
        ]);
      for (const [i, eni] of carriers().entries()) {
        const name = linkOf(eni);
        ip(node.netns, "link", "set", name, "down");
        ip(node.netns, "addr", "flush", "dev", name);
        ip(node.netns, "link", "set", name, "name", `ens${i + 5}`);
      }
      runTool("nsenter", [`--net=${node.netns}`, "sysctl", "-qw", "net.ipv4.ip_forward=0"]);
      await node.runtime.del(before.pod);
      await node.runtime.status();
      const pods = [await attach(), await attach()];
      for (const { pod, ip: address } of pods) {
        await node.runtime.check(pod);
        expect([await ping(pod.netns, OUTSIDE_IP), await ping(node.netns, address)]).toEqual([true, true]);
      }
      expect(await ping(pods[0]?.pod.netns ?? "", pods[1]?.ip ?? "")).toBe(true);
      await detach(...pods);
      expect(listEnis(here.store.db).every((e) => e.state === "ready")).toBe(true);
      await nothingLeft();
    },
    patient(60_000),
  );

  if (mode === "eni-exclusive")
    it("leaves its ENI usable when it changed the MAC of it", async () => {
      const { pod } = await attach();
      ip(pod.netns, "link", "set", "eth0", "address", "02:00:00:00:00:77");
      expect((await refusal(node.runtime.check(pod))).message).toMatch(/has MAC 02:00:00:00:00:77, want the ENI's/);
      await node.runtime.del(pod); // its namespace stays
      const pods = [await attach(), await attach()];
      for (const next of pods) expect(await ping(next.pod.netns, OUTSIDE_IP)).toBe(true);
      await detach(...pods, { pod });
      await nothingLeft();
    });

  if (mode === "trunk") {
    it("is refused a VLAN id that is none (F-47)", async () => {
      const ids = here.store.db.all("SELECT id, vlan_id FROM eni WHERE kind = 'member'");
      for (const vlan of [0, 4095, null]) {
        here.store.db.run("UPDATE eni SET vlan_id = ? WHERE kind = 'member'", [vlan]);
        const words = await refusal(node.runtime.add(node.newPod()));
        expect([words.code, words.message]).toEqual([
          101,
          expect.stringMatching(new RegExp(`member ENI eni-.* has VLAN id ${vlan ?? "none"}, want 1 to 4094.*its log`)),
        ]);
      }
      for (const { id, vlan_id } of ids)
        here.store.db.run("UPDATE eni SET vlan_id = ? WHERE id = ?", [vlan_id ?? null, id ?? null]);
      await nothingLeft();
    });

    it(
      "gets the VLAN id that another member has just left, with its first packet; the order of DELs does not matter (F-47)",
      async () => {
        const { model } = world.cloud;
        for (const order of [
          [0, 1],
          [1, 0],
        ]) {
          const pods = [await attach(), await attach()];
          for (const i of order) {
            const other = pods[1 - i];
            await node.runtime.del(pods[i]?.pod ?? node.newPod());
            if (i === order[0]) expect(await ping(other?.pod.netns ?? "", OUTSIDE_IP)).toBe(true);
          }
          for (const { pod } of pods) pod.destroy();
        }
        await nothingLeft();
        const { pod, ip: address } = await attach();
        const former = here.enis.find((e) => e.primaryIp === address);
        const vlanId = former?.trunk?.vlanId;
        const trunkId = former?.trunk?.eniId;
        await node.runtime.del(pod); // its namespace stays, and with it for a moment the VLAN
        model.detach(former?.id, node.instance.id, trunkId);
        await until("the member's end", 5000, () => former?.status === "Available");
        const added = await prepareByHand(world, node, "member", 1, 0, "ipv4", trunkId);
        added.store.db.close();
        const [next] = added.enis;
        expect(next?.trunk?.vlanId).toBe(vlanId);
        here.store.db.run("UPDATE address SET cool_until_ms = CASE eni_id WHEN ? THEN 0 ELSE 9e15 END", [
          next?.id ?? "",
        ]);
        const reused = await attach();
        expect([reused.ip, await ping(reused.pod.netns, OUTSIDE_IP)]).toEqual([next?.primaryIp, true]);
        await detach(reused);
        await nothingLeft();
      },
      patient(60_000),
    );
  }

  if (mode !== "eniip-veth")
    it("reaches a resolver on the node's link-local address, the node, and the metadata service (F-46)", async () => {
      ip(node.netns, "link", "add", "nodelocaldns", "type", "bridge");
      ip(node.netns, "addr", "add", `${NODE_DNS}/32`, "dev", "nodelocaldns");
      const server = await serve(node.netns);
      try {
        const { pod } = await attach(changed({ hostStackCIDRs: [`${NODE_DNS}/32`] }));
        const nodeIp = world.cloud.model.eniOf(node.instance.primaryEniId).primaryIp;
        const asked = [NODE_DNS, nodeIp].map((host) => connections(pod.netns, host, server.port, 1));
        expect(await Promise.all(asked)).toEqual([1, 1]);
        expect(await ping(pod.netns, METADATA_IP)).toBe(true);
        await detach({ pod });
      } finally {
        server.close();
        ip(node.netns, "link", "del", "nodelocaldns");
      }
      await nothingLeft();
    });
}

for (const c of CASES) describe(`a pod in mode ${c.mode}`, inMode(c.mode), () => suite(c));
