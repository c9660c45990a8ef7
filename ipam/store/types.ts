/** The store as it is handed around, and why it could not be had. */
import type { SqlOpen } from "../../shared/sys/sql.ts";
import type { Sys } from "../../shared/sys/sys.ts";
import type { StoreHandle } from "./transaction.ts";

export interface Store {
  readonly db: StoreHandle;
  readonly path: string;
  readonly bootId: string;
  /** Said loudly by whoever opened it: what was damaged or lost, and what became of it. */
  readonly notice: string | undefined;
}

export interface StoreDeps {
  readonly sys: Sys;
  readonly openSql: SqlOpen;
}

/** The store cannot be used. The message names the file, the cause and the remedy. */
export class StoreError extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause });
    this.name = "StoreError";
  }
}

/** The file under the store's path is another one than was opened: open it again. Nothing was written. */
export class StoreReplacedError extends StoreError {
  constructor(path: string) {
    super(`the store ${path} was replaced or removed since it was opened: open it again`);
    this.name = "StoreReplacedError";
  }
}
