/** The commands by name. */
import ConflistFromConfig from "./commands/conflist/from-config.ts";
import ConflistLint from "./commands/conflist/lint.ts";
import ConflistNew from "./commands/conflist/new.ts";
import Journal from "./commands/journal.ts";
import NodeCheck from "./commands/node/check.ts";
import Pods from "./commands/pods.ts";
import PolicyExplain from "./commands/policy/explain.ts";
import PolicyLint from "./commands/policy/lint.ts";
import PolicyShow from "./commands/policy/show.ts";
import PolicySync from "./commands/policy/sync.ts";
import Show from "./commands/show.ts";

export const COMMANDS = {
  show: Show,
  pods: Pods,
  journal: Journal,
  "conflist:from-config": ConflistFromConfig,
  "conflist:lint": ConflistLint,
  "conflist:new": ConflistNew,
  "node:check": NodeCheck,
  "policy:sync": PolicySync,
  "policy:show": PolicyShow,
  "policy:explain": PolicyExplain,
  "policy:lint": PolicyLint,
};
