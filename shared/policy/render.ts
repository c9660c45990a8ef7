/**
 * Compiled policy to table content. Pure.
 *
 *   forward (hook):  replies of what began allowed pass, a pod reaches itself → jump from-pod → jump to-pod → accept
 *   input (hook):    the same, from-pod only: a pod that talks to the node itself
 *   from-pod:        source address vmap → goto the profile for egress; of other sources the link that it came in by
 *   to-pod:          destination address vmap → goto the profile for ingress
 *   profile:         accept is `return` (the other direction is still to be judged), drop is `goto drop-…`
 *
 * The node's own packets pass no hook of ours: it always reaches its pods.
 */

import { hash128, toHex } from "../net/hash.ts";
import type { Expression } from "../netlink/nft/expression.ts";
import { MAX_COMMENT_BYTES } from "../netlink/nft/rule.ts";
import type { HookName } from "../netlink/nft/table.ts";
import { encodeUtf8 } from "../sys/sys.ts";
import type { AddressSet, CompiledPolicy, EndpointSet, PodPolicy, PolicyRule, PortRange, Profile } from "./compiled.ts";
import { type ChainContent, type ChainRule, familyOfText, type SetContent, type TableContent } from "./content.ts";
import {
  addressIn,
  addressMap,
  COUNTER,
  CUT,
  ESTABLISHED,
  endpointIn,
  FRAGMENTATION_NEEDED,
  icmpv6Type,
  interfaceIs,
  linkMap,
  pairIn,
  portIn,
  portRange,
  type Side,
  verdict,
} from "./match.ts";
import {
  CHAIN,
  type Direction,
  dropChain,
  LINK_MAP,
  NFLOG_GROUP,
  NODES_SET,
  POLICY_PRIORITY,
  podMap,
  profileChain,
  SERVICES_SET,
  safeName,
  selfSet,
} from "./names.ts";
import { type LocalPod, podVerdicts } from "./pod-verdicts.ts";

export interface RenderOptions {
  /** Tell the listeners of the nflog group of dropped packets, at most 10 a second. */
  readonly logDrops?: boolean;
}

/** All that is to be in force on this node. */
export interface DesiredPolicy extends RenderOptions {
  readonly compiled: CompiledPolicy;
  /** Pods that are attached here at this moment. */
  readonly pods: readonly LocalPod[];
}

const FAMILIES = [4, 6] as const;
const DIRECTIONS = ["egress", "ingress"] as const;
const ICMPV6_PACKET_TOO_BIG = 2;
/** Multicast listener discovery and neighbour discovery: queries, reports, solicitations, advertisements, redirect. */
const ICMPV6_LINK_TYPES = [130, 137] as const;
const ICMPV6_MLDV2_REPORT = 143;

// ---- sets ----

/** The compiler hands over the same object while nothing in it has changed: then what was made of it holds too. */
function remember<K extends object, V>(make: (key: K) => V): (key: K) => V {
  const made = new WeakMap<K, V>();
  return (key) => {
    const known = made.get(key);
    if (known !== undefined) return known;
    const value = make(key);
    made.set(key, value);
    return value;
  };
}

type NamedSets = readonly (readonly [name: string, content: SetContent])[];

/** Names of what one address set becomes, by family. */
export const addressSets = remember(
  (set: AddressSet): NamedSets =>
    FAMILIES.map((family) => {
      const elements = set.cidrs.filter((text) => familyOfText(text) === family);
      const single = family === 4 ? "/32" : "/128";
      const kind = elements.every((text) => text.endsWith(single)) ? "addresses" : "networks";
      return [`${kind === "addresses" ? "a" : "n"}${family}-${safeName(set.id)}`, { kind, family, elements }];
    }),
);

export const endpointSets = remember(
  (set: EndpointSet): NamedSets =>
    FAMILIES.map((family) => [
      `e${family}-${safeName(set.id)}`,
      { kind: "endpoints", family, elements: set.endpoints.filter((text) => familyOfText(text) === family) },
    ]),
);

/** One rule matches several ranges through a set; its name is its content, so that rules share it. */
function portSet(ports: readonly PortRange[]): [name: string, content: SetContent] {
  const elements = disjoint(ports).map((p) => `${p.protocol} ${p.first}-${p.last}`);
  return [`p-${toHex(hash128(elements.join(","))).slice(0, 16)}`, { kind: "ports", elements }];
}

/** Sorted, and joined where they overlap: the kernel refuses overlapping elements. */
function disjoint(ports: readonly PortRange[]): PortRange[] {
  const sorted = [...ports].sort((a, b) =>
    a.protocol === b.protocol ? a.first - b.first : a.protocol < b.protocol ? -1 : 1,
  );
  const out: PortRange[] = [];
  for (const range of sorted) {
    const last = out.at(-1);
    if (last !== undefined && last.protocol === range.protocol && range.first <= last.last + 1)
      out[out.length - 1] = { ...last, last: Math.max(last.last, range.last) };
    else out.push(range);
  }
  return out;
}

// ---- profiles ----

/** Says which nftables sets an id of the compiler stands for, IPv4 first. */
export type SetNames = (id: string) => readonly [string, string] | undefined;

function fitComment(text: string): string {
  let fitting = text;
  while (encodeUtf8(fitting).length > MAX_COMMENT_BYTES) fitting = fitting.slice(0, -1);
  return fitting;
}

function portMatches(rule: PolicyRule, sets: Map<string, SetContent>): (readonly Expression[])[] {
  if (rule.ports === undefined) return [[]];
  const [first, ...more] = disjoint(rule.ports);
  if (first === undefined) return [];
  if (more.length === 0) return [portRange(first)];
  const [name, content] = portSet(rule.ports);
  sets.set(name, content);
  return [portIn(name)];
}

function peerMatches(rule: PolicyRule, side: Side, names: SetNames): (readonly Expression[])[] {
  const named = (ids: readonly string[], match: (family: 4 | 6, side: Side, set: string) => Expression[]) =>
    ids.flatMap((id) => {
      const found = names(id);
      if (found === undefined) throw new TypeError(`Cannot use the compiled policy: it has no set "${id}"`);
      return FAMILIES.map((family, i) => match(family, side, found[i] ?? ""));
    });
  if (rule.endpoints !== undefined) return named(rule.endpoints, endpointIn);
  return rule.peers === undefined ? [[]] : named(rule.peers, addressIn);
}

function renderRule(
  rule: PolicyRule,
  profile: Profile,
  names: SetNames,
  sets: Map<string, SetContent>,
): readonly ChainRule[] {
  const { direction, id } = profile;
  const end: Expression =
    rule.verdict === "accept"
      ? verdict({ to: "return" })
      : verdict({
          to: "goto",
          chain: rule.verdict === "drop" ? dropChain(direction) : profileChain(direction, id, true),
        });
  const ports = rule.endpoints === undefined ? portMatches(rule, sets) : [[]];
  const peers = peerMatches(rule, direction === "ingress" ? "saddr" : "daddr", names);
  const comment = fitComment(rule.origin);
  return ports.flatMap((port) =>
    peers.map((peer): ChainRule => ({ expressions: [...port, ...peer, COUNTER, end], comment })),
  );
}

export interface RenderedProfile {
  readonly chains: readonly (readonly [name: string, content: ChainContent])[];
  readonly sets: ReadonlyMap<string, SetContent>;
}

const renderedProfiles = new WeakMap<Profile, { readonly basis: string; readonly rendered: RenderedProfile }>();

/** What was made of a profile holds as long as its sets have the same names. */
function renderProfile(profile: Profile, names: SetNames): RenderedProfile {
  const basis = `${profile.id} ${referenced(profile)
    .map((ref) => names(ref)?.join(" "))
    .join(" ")}`;
  const known = renderedProfiles.get(profile);
  if (known?.basis === basis) return known.rendered;
  const rendered = makeProfile(profile, names, basis);
  renderedProfiles.set(profile, { basis, rendered });
  return rendered;
}

/** One chain, or two when an admin rule passes on to the tiers below. */
function makeProfile(profile: Profile, names: SetNames, basis: string): RenderedProfile {
  const sets = new Map<string, SetContent>();
  const render = (rules: readonly PolicyRule[]) => rules.flatMap((rule) => renderRule(rule, profile, names, sets));
  const { direction, id, admin, policies, baseline } = profile;
  const below: readonly ChainRule[] =
    policies === undefined
      ? render(baseline)
      : [
          ...render(policies),
          {
            expressions: [COUNTER, verdict({ to: "goto", chain: dropChain(direction) })],
            comment: `isolated: no NetworkPolicy allows this ${direction}`,
          },
        ];
  const above = render(admin);
  const first = profileChain(direction, id);
  const second = profileChain(direction, id, true);
  if (!admin.some((rule) => rule.verdict === "pass")) {
    return { chains: [[first, { rules: [...above, ...below], basis }]], sets };
  }
  const on: ChainRule = { expressions: [verdict({ to: "goto", chain: second })] };
  return {
    chains: [
      [second, { rules: below, basis }],
      [first, { rules: [...above, on], basis }],
    ],
    sets,
  };
}

/** Ids of the sets that a profile's rules name. */
export const referenced = remember((profile: Profile): readonly string[] => {
  const ids = new Set<string>();
  for (const rule of [...profile.admin, ...(profile.policies ?? []), ...profile.baseline])
    for (const id of [...(rule.peers ?? []), ...(rule.endpoints ?? [])]) ids.add(id);
  return [...ids];
});

// ---- what every node has ----

const ACCEPT = verdict({ to: "accept" });

/** What links of IPv6 need, whoever sends it. */
const LINK_RULES: readonly ChainRule[] = [
  { expressions: [...icmpv6Type(...ICMPV6_LINK_TYPES), ACCEPT] },
  { expressions: [...icmpv6Type(ICMPV6_MLDV2_REPORT), ACCEPT] },
];

function baseChain(hook: HookName, rules: readonly ChainRule[]): ChainContent {
  const always: readonly ChainRule[] = [
    { expressions: [...CUT, COUNTER, verdict({ to: "drop" })], comment: "cut: began under a policy that was changed" },
    { expressions: [...ESTABLISHED, ACCEPT] },
    // Also without a connection that we know: else large packets vanish for as long as the sender waits.
    { expressions: [...FRAGMENTATION_NEEDED, ACCEPT] },
    { expressions: [...icmpv6Type(ICMPV6_PACKET_TOO_BIG), ACCEPT] },
  ];
  return { hook: { name: hook, priority: POLICY_PRIORITY, policy: "accept" }, rules: [...always, ...rules] };
}

function jump(chain: string): ChainRule {
  return { expressions: [verdict({ to: "jump", chain })] };
}

function dropContent(direction: Direction, options: RenderOptions): ChainContent {
  const log: ChainRule = {
    expressions: [
      { kind: "limit", rate: 10, perSeconds: 1, burst: 20 },
      { kind: "nflog", group: NFLOG_GROUP, prefix: `terway-policy drop ${direction}` },
    ],
  };
  return {
    rules: [
      ...(options.logDrops ? [log] : []),
      { expressions: [COUNTER, verdict({ to: "drop" })], comment: `denied ${direction}` },
    ],
  };
}

/** Drop chains, maps without elements, and the chains around them. */
export function renderFrame(options: RenderOptions): {
  readonly chains: [name: string, content: ChainContent][];
  readonly sets: [name: string, content: SetContent][];
} {
  const self = FAMILIES.map((family): ChainRule => ({ expressions: [...pairIn(family, selfSet(family)), ACCEPT] }));
  return {
    sets: FAMILIES.flatMap((family): [string, SetContent][] => [
      ...DIRECTIONS.map((direction): [string, SetContent] => [
        podMap(direction, family),
        { kind: "verdicts", family, elements: [] },
      ]),
      [selfSet(family), { kind: "pairs", family, elements: [] }],
    ]).concat([[LINK_MAP, { kind: "links", elements: [] }]]),
    chains: [
      ...DIRECTIONS.map((d): [string, ChainContent] => [dropChain(d), dropContent(d, options)]),
      ...DIRECTIONS.map((d): [string, ChainContent] => [
        d === "egress" ? CHAIN.fromPod : CHAIN.toPod,
        {
          rules: [
            ...FAMILIES.map((family) => ({
              expressions: addressMap(family, d === "egress" ? "saddr" : "daddr", podMap(d, family)),
            })),
            ...(d === "egress" ? [{ expressions: linkMap(LINK_MAP) }] : []),
          ],
        },
      ]),
      [CHAIN.forward, baseChain("forward", [...self, jump(CHAIN.fromPod), jump(CHAIN.toPod)])],
      [CHAIN.input, baseChain("input", [...LINK_RULES, jump(CHAIN.fromPod)])],
    ],
  };
}

// ---- the whole ----

/** Sets of a compiled policy and what ids they stand for. */
function renderSets(compiled: Pick<CompiledPolicy, "sets" | "endpointSets">): {
  readonly sets: Map<string, SetContent>;
  readonly names: SetNames;
} {
  const sets = new Map<string, SetContent>();
  const names = new Map<string, readonly [string, string]>();
  const add = (id: string, made: NamedSets) => {
    for (const [name, content] of made) sets.set(name, content);
    names.set(id, [made[0]?.[0] ?? "", made[1]?.[0] ?? ""]);
  };
  for (const set of compiled.sets) add(set.id, addressSets(set));
  for (const set of compiled.endpointSets) add(set.id, endpointSets(set));
  return { sets, names: (id) => names.get(id) };
}

/** Everything for a node. @throws {TypeError} When a rule or a pod names what the compiled policy does not have. */
export function renderNode(desired: DesiredPolicy): TableContent {
  const { sets, names } = renderSets(desired.compiled);
  const chains = new Map<string, ChainContent>();
  const frame = renderFrame(desired);
  for (const profile of desired.compiled.profiles) {
    const rendered = renderProfile(profile, names);
    for (const [name, content] of rendered.sets) sets.set(name, content);
    for (const [name, content] of rendered.chains) chains.set(name, content);
  }
  for (const [name, content] of frame.chains) chains.set(name, content);
  const verdicts = podVerdicts(desired.compiled.pods, desired.pods);
  for (const [name, content] of frame.sets) sets.set(name, { ...content, elements: verdicts.get(name) ?? [] });
  return { sets, chains };
}

/** What a pod's own namespace needs, where its packets pass no hook of the node (IPvlan, exclusive and trunk ENIs). */
export interface InsidePolicy extends RenderOptions {
  readonly compiled: Pick<CompiledPolicy, "sets" | "endpointSets" | "profiles">;
  readonly pod: Pick<PodPolicy, "ingress" | "egress">;
  /** CIDRs of the node itself: always let in. */
  readonly nodes: readonly string[];
  /** CIDRs of services: let out, for the node judges them by the real backend. */
  readonly services: readonly string[];
}

/** The same profile chains under input and output of the pod's namespace. */
export function renderInside(inside: InsidePolicy): TableContent {
  const { compiled, pod } = inside;
  const mine = compiled.profiles.filter((p) => p.id === pod.ingress || p.id === pod.egress);
  const wanted = new Set(mine.flatMap(referenced));
  const { sets, names } = renderSets({
    sets: compiled.sets.filter((s) => wanted.has(s.id)),
    endpointSets: compiled.endpointSets.filter((s) => wanted.has(s.id)),
  });
  const chains = new Map<string, ChainContent>();
  for (const direction of DIRECTIONS) chains.set(dropChain(direction), dropContent(direction, inside));
  for (const profile of mine) {
    const rendered = renderProfile(profile, names);
    for (const [name, content] of rendered.sets) sets.set(name, content);
    for (const [name, content] of rendered.chains) chains.set(name, content);
  }
  const excepted = (base: string, cidrs: readonly string[], side: Side): ChainRule[] =>
    addressSets({ id: base, cidrs }).map(([name, content], i) => {
      sets.set(name, content);
      return { expressions: [...addressIn(FAMILIES[i] ?? 4, side, name), ACCEPT] };
    });
  const own = (id: string | undefined, direction: Direction): ChainRule[] =>
    id === undefined ? [] : [{ expressions: [verdict({ to: "goto", chain: profileChain(direction, id) })] }];
  chains.set(
    CHAIN.input,
    baseChain("input", [
      { expressions: [...interfaceIs("iifname", "lo"), ACCEPT] },
      ...LINK_RULES,
      ...excepted(NODES_SET, inside.nodes, "saddr"),
      ...own(pod.ingress, "ingress"),
    ]),
  );
  chains.set(
    CHAIN.output,
    baseChain("output", [
      { expressions: [...interfaceIs("oifname", "lo"), ACCEPT] },
      ...LINK_RULES,
      ...excepted(SERVICES_SET, inside.services, "daddr"),
      ...own(pod.egress, "egress"),
    ]),
  );
  return { sets, chains };
}
