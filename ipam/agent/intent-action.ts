/** Intents and the actions that they stand for. Pure. */
import type { PoolAction } from "../pool/decide.ts";
import type { Intent, IntentKind } from "../store/intents.ts";

const KINDS: Readonly<Record<PoolAction["kind"], IntentKind>> = {
  create: "create-eni",
  assign: "assign",
  unassign: "unassign",
  remove: "detach-eni",
};

export function intentKindOf(action: PoolAction): IntentKind {
  return KINDS[action.kind];
}

/** undefined for what is not the pool's: routes. */
export function actionOf(intent: Intent): PoolAction | undefined {
  switch (intent.kind) {
    case "create-eni":
    case "assign":
    case "unassign":
      return JSON.parse(intent.payload) as PoolAction;
    case "detach-eni":
      return { kind: "remove", eniId: intent.eniId ?? "" };
    default:
      return undefined;
  }
}
