/** One change asked of the kernel, as a value. */
import type { Writer } from "./wire/writer.ts";

export interface Request {
  /** RTM_… */
  readonly type: number;
  /** NLM_F_… beyond REQUEST and ACK. */
  readonly flags: number;
  /** Appends family header and attributes. */
  write(writer: Writer): void;
  /** The `ip` command that does the same; built only when something goes wrong. */
  describe(): string;
  /** Refusals that mean "already so" to whoever asked, e.g. EEXIST on add. */
  readonly accept?: readonly string[];
}

/** The same request, with refusals that count as success. */
export function accepting(request: Request, ...errnos: readonly string[]): Request {
  return { ...request, accept: errnos };
}
