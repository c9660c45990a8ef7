import { Flags } from "@oclif/core";
import { type JournalRow, readJournal } from "../../store/journal.ts";
import { BaseCommand } from "../base-command.ts";
import { formatJournal } from "../format.ts";

export default class Journal extends BaseCommand {
  static override description = "Show what plugins and agent did on this node, newest last.";
  static override flags = {
    last: Flags.integer({ description: "how many entries", default: 50, min: 1 }),
    pod: Flags.string({ description: "of one pod: NAME or NAMESPACE/NAME" }),
    failed: Flags.boolean({ description: "failures only" }),
  };

  async run(): Promise<readonly JournalRow[]> {
    const { flags } = await this.parse(Journal);
    return this.withStore(flags.store, (store) => {
      const rows = readJournal(store.db, {
        last: flags.last,
        onlyFailures: flags.failed,
        ...(flags.pod === undefined ? {} : { pod: flags.pod }),
      });
      this.log(rows.length === 0 ? "the journal has no such entry" : formatJournal(rows));
      return rows;
    });
  }
}
