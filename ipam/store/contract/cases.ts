/** The whole contract. */
import { AGENT_CASES } from "./agent-cases.ts";
import { ALLOCATE_CASES } from "./allocate-cases.ts";
import type { ContractCase } from "./kit.ts";
import { POLICY_CASES } from "./policy-cases.ts";
import { RANGE_CASES } from "./range-cases.ts";
import { RECORD_CASES } from "./record-cases.ts";
import { REQUEST_CASES } from "./request-cases.ts";

export const CASES: readonly (readonly [group: string, cases: readonly ContractCase[]])[] = [
  ["ENI pool", ALLOCATE_CASES],
  ["particular addresses", REQUEST_CASES],
  ["local ranges", RANGE_CASES],
  ["the agent's side", AGENT_CASES],
  ["records", RECORD_CASES],
  ["compiled policy", POLICY_CASES],
];
