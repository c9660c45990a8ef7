/**
 * ClientTokens of ENIs that are made without an intent. They are kept in the store until their ENI is seen, beyond the
 * agent's end: a create that is repeated makes no second one, and tags find what was made.
 */
import { randomUUID } from "node:crypto";
import type { SqlHandle } from "../../shared/sys/sql.ts";
import type { EniEntry } from "../policy/objects.ts";
import { getFact, setFacts } from "../store/facts.ts";
import type { Store } from "../store/open.ts";
import { inDurableTransaction, inTransaction } from "../store/transaction.ts";

/** What is made: the trunk ENI, or the node's own ENI of an entry. */
export type Making = "trunk" | Pick<EniEntry, "name">;

/** The same until it is dropped. */
export function tokenOf({ db }: Pick<Store, "db">, what: Making): string {
  const known = read(db, what);
  if (known !== undefined) return known;
  const token = randomUUID();
  inDurableTransaction(db, () => write(db, what, token));
  return token;
}

/** Kept longer than it is needed, it would bring its ENI also after somebody deleted that. */
export function dropToken({ db }: Pick<Store, "db">, what: Making): void {
  if (read(db, what) !== undefined) inTransaction(db, () => write(db, what, undefined));
}

function read(db: SqlHandle, what: Making): string | undefined {
  return what === "trunk" ? getFact(db, "trunk_token") || undefined : entryTokens(db)[what.name];
}

function write(db: SqlHandle, what: Making, token: string | undefined): void {
  if (what === "trunk") setFacts(db, { trunk_token: token ?? "" });
  else setFacts(db, { node_eni_tokens: JSON.stringify({ ...entryTokens(db), [what.name]: token }) });
}

function entryTokens(db: SqlHandle): Readonly<Record<string, string>> {
  return JSON.parse(getFact(db, "node_eni_tokens") || "{}");
}
