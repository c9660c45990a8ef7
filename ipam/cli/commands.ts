/** The commands by name. */
import ConflistLint from "./commands/conflist/lint.ts";
import Journal from "./commands/journal.ts";
import Pods from "./commands/pods.ts";
import Show from "./commands/show.ts";

export const COMMANDS = { show: Show, pods: Pods, journal: Journal, "conflist:lint": ConflistLint };
