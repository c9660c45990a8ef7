/** Which ENIs an address may come from. */
import type { SqlValue } from "../../shared/sys/sql.ts";
import type { EniKind } from "./enis.ts";

/** All that are given must hold. */
export interface EniConstraint {
  /** Absent: shared ones. */
  readonly kinds?: readonly EniKind[];
  readonly eniIds?: readonly string[];
  readonly vswitchIds?: readonly string[];
  /** Exactly these groups, in any order. */
  readonly securityGroups?: readonly string[];
}

/** Whether ENIs made for this are for nobody else. */
export function isSpecial({ vswitchIds, securityGroups }: EniConstraint): boolean {
  return (vswitchIds ?? securityGroups) !== undefined;
}

/** As a condition on the table alias `e`. */
export function conditionOf(only: EniConstraint = {}): { readonly sql: string; readonly params: readonly SqlValue[] } {
  const terms: string[] = [];
  const params: SqlValue[] = [];
  const oneOf = (column: string, values: readonly string[] | undefined) => {
    if (values === undefined) return;
    terms.push(`e.${column} IN (${values.map(() => "?").join(",")})`);
    params.push(...values);
  };
  oneOf("kind", only.kinds ?? ["shared"]);
  oneOf("id", only.eniIds);
  oneOf("vswitch_id", only.vswitchIds);
  if (only.securityGroups !== undefined) {
    terms.push("e.security_groups = ?");
    params.push(JSON.stringify([...only.securityGroups].sort()));
  }
  if (!isSpecial(only) && only.eniIds === undefined) terms.push("e.dedicated = 0");
  return { sql: terms.join(" AND "), params };
}
