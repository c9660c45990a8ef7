/** What a simulated node asks of a simulated cloud. */
import type { CloudErrorClass } from "../../cloud/classify.ts";

/** Thrown by the cloud's operations. */
export interface SimFailure {
  readonly class: CloudErrorClass;
  readonly code: string;
  readonly message: string;
  /** The cloud's hint on when to come back. */
  readonly retryAfterMs?: number;
}

export type Reply<T> =
  | { readonly kind: "ok"; readonly value: T }
  | { readonly kind: "failed"; readonly failure: SimFailure };

export interface SimEniInfo {
  readonly id: string;
  readonly status: string;
  readonly vswitchId: string;
  /** Without the primary one. */
  readonly addresses: readonly string[];
}

/** Every operation runs some time later, within the account's budget, and answers with `done`. */
export interface SimCloud {
  describeEnis(done: (reply: Reply<readonly SimEniInfo[]>) => void): void;
  describeEni(id: string, done: (reply: Reply<SimEniInfo | undefined>) => void): void;
  describeVSwitches(done: (reply: Reply<readonly { readonly id: string; readonly available: number }[]>) => void): void;
  describeLimits(done: (reply: Reply<{ readonly enis: number; readonly perEni: number }>) => void): void;
  createEni(vswitchId: string, count: number, done: (reply: Reply<SimEniInfo>) => void): void;
  attachEni(id: string, done: (reply: Reply<void>) => void): void;
  detachEni(id: string, done: (reply: Reply<void>) => void): void;
  deleteEni(id: string, done: (reply: Reply<void>) => void): void;
  assign(id: string, count: number, done: (reply: Reply<readonly string[]>) => void): void;
  unassign(id: string, addresses: readonly string[], done: (reply: Reply<void>) => void): void;
}
