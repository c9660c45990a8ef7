/** Compiled NetworkPolicy, and which addresses of this node it holds for. */
import type { AddressSet, CompiledPolicy, EndpointSet, PodPolicy, Profile } from "../../shared/policy/compiled.ts";
import type { LocalPod, Posture } from "../../shared/policy/pod-verdicts.ts";
import type { SqlHandle, SqlRow } from "../../shared/sys/sql.ts";
import { getFact, setFacts } from "./facts.ts";
import { type AttachmentKey, keyParams } from "./key.ts";
import { textOf } from "./row.ts";

// ---- what is compiled ----

function lines(elements: readonly string[]): string {
  return elements.join("\n");
}

function unlines(text: unknown): string[] {
  return text === "" ? [] : String(text).split("\n");
}

/**
 * Makes the store's compiled policy this one; writes only what differs. Inside a transaction.
 *
 * @param written What was put there last: if the store still has it, objects that come again are not even looked at.
 * @returns How many rows were written or removed.
 */
export function putCompiled(db: SqlHandle, compiled: CompiledPolicy, written?: CompiledPolicy): number {
  const before = written !== undefined && getPolicyRevision(db) === written.revision ? written : undefined;
  const known = new Set<object>([
    ...(before?.sets ?? []),
    ...(before?.endpointSets ?? []),
    ...(before?.profiles ?? []),
    ...(before?.pods ?? []),
  ]);
  let changed = 0;
  const putSet = (id: string, kind: string, elements: readonly string[]) =>
    db.run(
      `INSERT INTO policy_set(id, kind, elements) VALUES(?,?,?)
       ON CONFLICT(kind, id) DO UPDATE SET elements = excluded.elements WHERE elements <> excluded.elements`,
      [id, kind, lines(elements)],
    );
  for (const set of compiled.sets) if (!known.has(set)) changed += putSet(set.id, "addresses", set.cidrs);
  for (const set of compiled.endpointSets) if (!known.has(set)) changed += putSet(set.id, "endpoints", set.endpoints);
  for (const profile of compiled.profiles) {
    // The id is a hash of the content: what is there is right.
    if (!known.has(profile))
      changed += db.run("INSERT OR IGNORE INTO policy_profile(id, profile) VALUES(?,?)", [
        profile.id,
        JSON.stringify(profile),
      ]);
  }
  for (const pod of compiled.pods) {
    if (known.has(pod)) continue;
    changed += db.run(
      `INSERT INTO policy_pod(namespace, name, ingress, egress) VALUES(?,?,?,?)
       ON CONFLICT(namespace, name) DO UPDATE SET ingress = excluded.ingress, egress = excluded.egress
         WHERE ingress IS NOT excluded.ingress OR egress IS NOT excluded.egress`,
      [pod.namespace, pod.name, pod.ingress ?? null, pod.egress ?? null],
    );
  }
  changed += removeOthers(db, compiled, before ?? namesOf(db));
  db.run(
    "INSERT INTO fact(name, value) VALUES('policy_revision', ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
    [String(compiled.revision)],
  );
  return changed;
}

type Named = Readonly<Record<"sets" | "endpointSets" | "profiles", readonly { readonly id: string }[]>> & {
  readonly pods: readonly Pick<PodPolicy, "namespace" | "name">[];
};

/** What there is, without what it holds. */
function namesOf(db: SqlHandle): Named {
  const ids = (sql: string) => db.all(sql).map(({ id }) => ({ id: String(id) }));
  return {
    sets: ids("SELECT id FROM policy_set WHERE kind = 'addresses'"),
    endpointSets: ids("SELECT id FROM policy_set WHERE kind = 'endpoints'"),
    profiles: ids("SELECT id FROM policy_profile"),
    pods: db
      .all("SELECT namespace, name FROM policy_pod")
      .map(({ namespace, name }) => ({ namespace: String(namespace), name: String(name) })),
  };
}

function removeOthers(db: SqlHandle, compiled: CompiledPolicy, before: Named): number {
  let removed = 0;
  if (before.pods !== compiled.pods) {
    const pods = new Set(compiled.pods.map((p) => `${p.namespace}/${p.name}`));
    for (const { namespace, name } of before.pods)
      if (!pods.has(`${namespace}/${name}`))
        removed += db.run("DELETE FROM policy_pod WHERE namespace = ? AND name = ?", [namespace, name]);
  }
  const remove = (list: "profiles" | "sets" | "endpointSets", sql: string) => {
    if (before[list] === compiled[list]) return;
    const ids = new Set(compiled[list].map(({ id }) => id));
    for (const { id } of before[list]) if (!ids.has(id)) removed += db.run(sql, [id]);
  };
  remove("profiles", "DELETE FROM policy_profile WHERE id = ?");
  remove("sets", "DELETE FROM policy_set WHERE kind = 'addresses' AND id = ?");
  remove("endpointSets", "DELETE FROM policy_set WHERE kind = 'endpoints' AND id = ?");
  return removed;
}

/** undefined: none was ever compiled. */
export function getPolicyRevision(db: SqlHandle): number | undefined {
  const revision = db.get("SELECT value FROM fact WHERE name = 'policy_revision'")?.value;
  return revision === undefined ? undefined : Number(revision);
}

/** undefined: none was ever compiled. */
export function getCompiled(db: SqlHandle): CompiledPolicy | undefined {
  const revision = getPolicyRevision(db);
  if (revision === undefined) return undefined;
  return {
    revision,
    ...setsOf(db.all("SELECT id, kind, elements FROM policy_set ORDER BY kind, id")),
    profiles: db.all("SELECT profile FROM policy_profile ORDER BY id").map(profileOf),
    pods: db.all("SELECT namespace, name, ingress, egress FROM policy_pod ORDER BY namespace, name").map(podOf),
  };
}

function setsOf(rows: readonly SqlRow[]): { readonly sets: AddressSet[]; readonly endpointSets: EndpointSet[] } {
  const sets: AddressSet[] = [];
  const endpointSets: EndpointSet[] = [];
  for (const { id, kind, elements } of rows) {
    if (kind === "addresses") sets.push({ id: String(id), cidrs: unlines(elements) });
    else endpointSets.push({ id: String(id), endpoints: unlines(elements) });
  }
  return { sets, endpointSets };
}

function profileOf(row: SqlRow): Profile {
  return JSON.parse(String(row.profile)) as Profile;
}

function podOf(row: SqlRow): PodPolicy {
  const [ingress, egress] = [textOf(row.ingress), textOf(row.egress)];
  return {
    namespace: String(row.namespace),
    name: String(row.name),
    ...(ingress === undefined ? {} : { ingress }),
    ...(egress === undefined ? {} : { egress }),
  };
}

/** Whether pods are under no policy at all; what is compiled stays for when they are again. */
export function setPolicyOff(db: SqlHandle, off: boolean): void {
  if (isPolicyOff(db) !== off) setFacts(db, { policy_off: off ? "1" : "" });
}

export function isPolicyOff(db: SqlHandle): boolean {
  return getFact(db, "policy_off") === "1";
}

/** One statement: ADD waits for it. @returns undefined: the policy of this pod is not known (yet). */
export function getPodPolicy(db: SqlHandle, namespace: string, name: string): PodPolicy | "off" | undefined {
  const rows = db.all(
    `SELECT NULL AS name, NULL AS namespace, NULL AS ingress, NULL AS egress FROM fact
      WHERE fact.name = 'policy_off' AND value = '1'
     UNION ALL SELECT name, namespace, ingress, egress FROM policy_pod WHERE namespace = ? AND name = ?`,
    [namespace, name],
  );
  const [row] = rows;
  if (row === undefined) return undefined;
  return rows.some((r) => r.name === null) ? "off" : podOf(row);
}

/** These profiles, as far as they are known. */
export function getProfiles(db: SqlHandle, ids: readonly string[]): Profile[] {
  return ids.flatMap((id) => db.all("SELECT profile FROM policy_profile WHERE id = ?", [id]).map(profileOf));
}

/** The sets with these ids, of either kind. */
export function getPolicySets(
  db: SqlHandle,
  ids: readonly string[],
): { readonly sets: AddressSet[]; readonly endpointSets: EndpointSet[] } {
  return setsOf(
    ids.flatMap((id) => [
      ...db.all("SELECT id, kind, elements FROM policy_set WHERE kind = 'addresses' AND id = ?", [id]),
      ...db.all("SELECT id, kind, elements FROM policy_set WHERE kind = 'endpoints' AND id = ?", [id]),
    ]),
  );
}

// ---- whose addresses ----

export interface PolicyAddress extends AttachmentKey {
  /** Canonical text; or the node's end of a link of the pod, as `linkText` writes it. */
  readonly address: string;
  readonly namespace: string;
  readonly name: string;
  readonly posture: Posture;
  /** CLOCK_BOOTTIME. */
  readonly sinceMs: number;
}

/** From now on the address is this attachment's, whoever had it before. Inside a transaction. */
export function putPolicyAddress(db: SqlHandle, a: PolicyAddress): void {
  db.run(
    `INSERT OR REPLACE INTO policy_address(address, network, container_id, ifname, namespace, name, posture, since_ms)
     VALUES(?,?,?,?,?,?,?,?)`,
    [a.address, ...keyParams(a), a.namespace, a.name, a.posture, a.sinceMs],
  );
}

/** Forgets the attachment's addresses, but for those that are another's by now. */
export function dropPolicyAddresses(db: SqlHandle, key: AttachmentKey): void {
  db.run("DELETE FROM policy_address WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key));
}

/** Those that are still the attachment's. */
export function policyAddressesOf(db: SqlHandle, key: AttachmentKey): string[] {
  return db
    .all("SELECT address FROM policy_address WHERE network = ? AND container_id = ? AND ifname = ?", keyParams(key))
    .map(({ address }) => String(address));
}

export function listPolicyAddresses(db: SqlHandle): PolicyAddress[] {
  return db.all("SELECT * FROM policy_address ORDER BY address").map(addressOf);
}

function addressOf(row: SqlRow): PolicyAddress {
  return {
    address: String(row.address),
    network: String(row.network),
    containerId: String(row.container_id),
    ifname: String(row.ifname),
    namespace: String(row.namespace),
    name: String(row.name),
    posture: row.posture === "deny" ? "deny" : "allow",
    sinceMs: Number(row.since_ms),
  };
}

/** All that `listLocalPods` reads, as one text: the same text, the same pods. */
export function localPodsText(db: SqlHandle): string {
  const row = db.get(
    `SELECT group_concat(address || ' ' || namespace || '/' || name || ' ' || posture, char(10)) AS text
       FROM (SELECT * FROM policy_address ORDER BY address)`,
  );
  return String(row?.text ?? "");
}

/** The pods that are attached here, for `programPolicy`: one entry a pod and posture. */
export function listLocalPods(db: SqlHandle): LocalPod[] {
  const pods = new Map<string, LocalPod & { readonly addresses: string[] }>();
  for (const { address, namespace, name, posture } of listPolicyAddresses(db)) {
    const key = `${namespace}/${name}/${posture}`;
    const pod = pods.get(key);
    if (pod === undefined) pods.set(key, { namespace, name, posture, addresses: [address] });
    else pod.addresses.push(address);
  }
  return [...pods.values()];
}

/** A pod whose packets do not pass the node, and that terway-policy was run for. */
export interface UplinkPod extends AttachmentKey {
  readonly namespace: string;
  readonly name: string;
  readonly posture: Posture;
  readonly netns: string;
  readonly netnsDev: number;
  readonly netnsIno: number;
  /** JSON of its `PodLink`. */
  readonly datapath: string;
}

/** Of a pod with several interfaces each that has an uplink: the chain ran for the first. */
export function listUplinkPods(db: SqlHandle): UplinkPod[] {
  return db
    .all(
      `SELECT a.network, a.container_id, a.ifname, a.netns, a.netns_dev, a.netns_ino, a.datapath,
              p.namespace, p.name, max(p.posture) AS posture
         FROM attachment a JOIN policy_address p USING (network, container_id)
        WHERE a.datapath LIKE '%"uplink":%' AND a.netns_ino IS NOT NULL
        GROUP BY a.network, a.container_id, a.ifname`,
    )
    .map((row) => ({
      network: String(row.network),
      containerId: String(row.container_id),
      ifname: String(row.ifname),
      namespace: String(row.namespace),
      name: String(row.name),
      posture: row.posture === "deny" ? "deny" : "allow",
      netns: String(row.netns),
      netnsDev: Number(row.netns_dev),
      netnsIno: Number(row.netns_ino),
      datapath: String(row.datapath),
    }));
}

/** Attachments of `network` with addresses here that are not in the runtime's list. Like `planGc`. */
export function planPolicyGc(
  db: SqlHandle,
  network: string,
  valid: readonly { readonly containerId: string; readonly ifname: string }[],
  madeBeforeMs: number,
): AttachmentKey[] {
  const alive = new Set(valid.map((a) => `${a.containerId}/${a.ifname}`));
  return db
    .all(
      `SELECT network, container_id, ifname, max(since_ms) AS since FROM policy_address WHERE network = ?
        GROUP BY network, container_id, ifname HAVING since < ?`,
      [network, madeBeforeMs],
    )
    .map((row) => ({
      network: String(row.network),
      containerId: String(row.container_id),
      ifname: String(row.ifname),
    }))
    .filter((key) => !alive.has(`${key.containerId}/${key.ifname}`));
}
