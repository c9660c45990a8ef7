/** What the commands share: where the store is, `--json`, errors with a remedy. */
import { Command, Flags } from "@oclif/core";
import { DEFAULT_STORE, type Store } from "../store/open.ts";
import { openForLooking } from "./node-view.ts";

export abstract class BaseCommand extends Command {
  static override enableJsonFlag = true;
  static override baseFlags = {
    store: Flags.string({ description: "path of the IPAM store", env: "TERWAY_STORE", default: DEFAULT_STORE }),
  };

  /** Runs `look` on the store; a store that cannot be used ends the command with status 2. */
  protected withStore<T>(path: string, look: (store: Store) => T): T {
    let store: Store;
    try {
      store = openForLooking(path);
    } catch (error) {
      this.error((error as Error).message, {
        exit: 2,
        suggestions: [
          "name another store with --store or TERWAY_STORE",
          "see whether terway-agent or a plugin has run on this node",
        ],
      });
    }
    try {
      return look(store);
    } finally {
      store.db.close();
    }
  }
}
