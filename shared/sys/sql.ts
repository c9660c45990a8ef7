/** The part of SQLite that the store uses; `node.ts` and `quickjs.ts` each have one. */
export type SqlValue = string | number | Uint8Array | null;
export type SqlRow = Readonly<Record<string, SqlValue>>;

/** Thrown by every {@link SqlHandle} call that SQLite refuses. */
export class SqlError extends Error {
  /** SQLite's extended result code, e.g. 5 SQLITE_BUSY, 11 SQLITE_CORRUPT, 13 SQLITE_FULL, 26 SQLITE_NOTADB, 2067 SQLITE_CONSTRAINT_UNIQUE. */
  readonly code: number;

  constructor(code: number, message: string) {
    super(message);
    this.name = "SqlError";
    this.code = code;
  }

  /** The primary result code: the low byte. */
  get primary(): number {
    return this.code & 0xff;
  }
}

export interface SqlHandle {
  /** The database has the schema that this executable was built with, to the byte; never on Node, which knows none. */
  readonly schemaKnown: boolean;
  /** Runs any number of statements that return nothing. */
  exec(sql: string): void;
  /** Rows changed by one statement. */
  run(sql: string, params?: readonly SqlValue[]): number;
  /** The first row, if any. Statements with RETURNING run to their end. */
  get(sql: string, params?: readonly SqlValue[]): SqlRow | undefined;
  all(sql: string, params?: readonly SqlValue[]): readonly SqlRow[];
  close(): void;
}

/**
 * Opens (creating if absent) the database at `path`: foreign keys unchecked, synchronous=NORMAL (a commit survives the
 * process, not a power cut), a WAL checkpoint every 512 pages (recovery of a WAL that nobody holds open stays short),
 * and up to 5 s of waiting for another writer.
 *
 * @throws {SqlError}
 */
export type SqlOpen = (path: string) => SqlHandle;
