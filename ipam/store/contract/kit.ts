/** Words of the store's contract. Engine-neutral: the cases run on Node and inside a plugin's engine. */
import { type Cidr, lastOf, networkOf, parseCidr } from "../../../shared/net/cidr.ts";
import { addToIp, type Ip } from "../../../shared/net/ip.ts";
import { addAddress } from "../addresses.ts";
import { type Allocation, allocateFromEnis, type EniWant } from "../allocate.ts";
import { type Attachment, releaseAttachment } from "../attachments.ts";
import { type NewEni, upsertEni } from "../enis.ts";
import type { AttachmentKey } from "../key.ts";
import { openStore } from "../open.ts";
import { allocateFromRanges, type RangeSet } from "../ranges.ts";
import { inTransaction } from "../transaction.ts";
import type { Store, StoreDeps } from "../types.ts";

export interface ContractContext {
  readonly deps: StoreDeps;
  /** The same store, opened as this case's own, empty but for the schema. */
  readonly store: Store;
}

export type ContractCase = readonly [claim: string, run: (context: ContractContext) => void];

export const COOLDOWN_MS = 30_000;
/** Some moment of CLOCK_BOOTTIME. */
export const NOW = 1_000_000;

/** Fails the case unless both are the same as JSON; undefined members do not count. */
export function equal(got: unknown, want: unknown, what = "result"): void {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${what}: got ${a}, want ${b}`);
}

export function thrown(work: () => unknown): Error {
  try {
    work();
  } catch (error) {
    return error as Error;
  }
  throw new Error("want an error, got none");
}

export function makeKey(containerId: string, tweaks: Partial<AttachmentKey> = {}): AttachmentKey {
  return { network: "net", containerId, ifname: "eth0", ...tweaks };
}

export function makeEni(number: number, tweaks: Partial<NewEni> = {}): NewEni {
  return {
    id: `eni-${number}`,
    mac: `00:16:3e:00:00:0${number}`,
    kind: "shared",
    state: "ready",
    vswitchId: "vsw-a",
    securityGroups: ["sg-a"],
    primary4: `10.0.${number}.1`,
    cidr4: `10.0.${number}.0/24`,
    gateway4: `10.0.${number}.253`,
    primary6: undefined,
    cidr6: undefined,
    gateway6: undefined,
    mtu: 1500,
    createdMs: 0,
    ...tweaks,
  };
}

/** An ENI with these addresses. */
export function putEni(store: Store, eni: NewEni, addresses: readonly string[]): void {
  inTransaction(store.db, () => {
    upsertEni(store.db, eni);
    for (const address of addresses) addAddress(store.db, eni.id, address, 0);
  });
}

/** One letter for the case's pods: allocates as a plugin does, for IPv4 unless `want` says otherwise. */
export function take(
  store: Store,
  key: string | AttachmentKey,
  want: Partial<EniWant> = {},
  nowMs: number = NOW,
): Allocation {
  const k = typeof key === "string" ? makeKey(key) : key;
  return inTransaction(store.db, () => allocateFromEnis(store.db, k, { families: [4], ...want }, nowMs));
}

export function free(
  store: Store,
  key: string | AttachmentKey,
  nowMs: number = NOW,
  cooldownMs = COOLDOWN_MS,
): string[] {
  const k = typeof key === "string" ? makeKey(key) : key;
  return inTransaction(store.db, () => releaseAttachment(store.db, k, nowMs, cooldownMs)).map((l) => l.address);
}

/** `assigned 10.0.1.5`, `pool-empty`, `unavailable 10.0.1.5: why`. */
export function said(allocation: Allocation): string {
  switch (allocation.kind) {
    case "assigned":
    case "already-held":
      return [allocation.kind, ...allocation.leases.map((l) => l.address)].join(" ");
    case "pool-empty":
      return allocation.kind;
    case "unavailable":
      return `${allocation.kind} ${allocation.address}: ${allocation.why}`;
    default:
      return allocation satisfies never;
  }
}

/** `10.1.0.0/29`, with the first address as gateway, or `10.1.0.4-10.1.0.6` of the bytes given. */
export function rangeOf(text: string, tweaks: { readonly first?: Ip; readonly last?: Ip } = {}): RangeSet[number] {
  const cidr: Cidr = parseCidr(text);
  const gateway = addToIp(networkOf(cidr), 1);
  // host-local leaves out network and broadcast address.
  const last = cidr.ip.family === 4 ? addToIp(lastOf(cidr), -1) : lastOf(cidr);
  if (gateway === undefined || last === undefined) throw new Error(`${text} has no room`);
  return { first: tweaks.first ?? gateway, last: tweaks.last ?? last, excluded: gateway };
}

export function takeRange(
  store: Store,
  key: string | AttachmentKey,
  sets: readonly RangeSet[],
  options: {
    readonly requested?: readonly string[];
    readonly nowMs?: number;
    readonly pod?: { readonly namespace: string; readonly name: string };
  } = {},
): string {
  const k = typeof key === "string" ? makeKey(key) : key;
  const { requested = [], nowMs = NOW, pod } = options;
  return said(inTransaction(store.db, () => allocateFromRanges(store.db, k, sets, requested, nowMs, COOLDOWN_MS, pod)));
}

export function makeAttachment(key: AttachmentKey, tweaks: Partial<Attachment> = {}): Attachment {
  return {
    ...key,
    netns: `/run/netns/${key.containerId}`,
    netnsDev: 4,
    netnsIno: 4_026_532_001,
    podNamespace: "default",
    podName: `pod-${key.containerId}`,
    podUid: "u-1",
    plugin: "terway-eni",
    mode: "shared",
    eniId: "eni-1",
    hostIfname: `cali${key.containerId}`,
    datapath: "{}",
    state: "ready",
    createdMs: NOW,
    at: 1,
    ...tweaks,
  };
}

/** Opens the store once more, as another process would. */
export function reopen(context: ContractContext): Store {
  return openStore(context.deps, context.store.path);
}
