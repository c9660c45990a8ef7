/** HTTP in front of the operations: protocol, signature, throttling, latency, faults, audit. */
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { ApiError, type Model } from "./model.ts";
import { ECS_OPERATIONS, Params, VPC_OPERATIONS } from "./operations.ts";
import { authenticate, type Credential } from "./signature.ts";

export interface AuditEntry {
  readonly at: number;
  readonly caller: string;
  readonly action: string;
  readonly token: string | undefined;
  readonly params: Readonly<Record<string, string>>;
  /** `ok` or the error code. */
  readonly outcome: string;
}

export type FaultEffect =
  | { readonly kind: "delay"; readonly ms: number }
  | { readonly kind: "error"; readonly status: number; readonly code: string }
  /** The connection breaks before anything happened. */
  | { readonly kind: "drop-before" }
  /** It is done, and the answer is lost. */
  | { readonly kind: "drop-after" };

export interface Fault {
  readonly action: string;
  times: number;
  readonly effect: FaultEffect;
}

export interface ApiOptions {
  readonly model: Model;
  readonly credentials: () => readonly Credential[];
  readonly latencyMs: number;
  /** Calls in one minute's window, by action; `*` for the others. Absent: no limit. */
  readonly budgets: Readonly<Record<string, number>>;
  readonly throttlingCode: "Throttling" | "Throttling.User" | "Throttling.Api";
}

export interface ApiServer {
  readonly server: Server;
  readonly audit: readonly AuditEntry[];
  readonly faults: Fault[];
  /** The cloud's clock goes this much ahead of the machine's. */
  clockSkewMs: number;
  /** Calls by action. */
  counts(): Record<string, number>;
}

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export function createApiServer(options: ApiOptions): ApiServer {
  const audit: AuditEntry[] = [];
  const faults: Fault[] = [];
  const windows = new Map<string, { readonly minute: number; count: number }>();

  function throttle(action: string): void {
    const budget = options.budgets[action] ?? options.budgets["*"];
    if (budget === undefined) return;
    const minute = Math.floor(Date.now() / 60_000);
    const known = windows.get(action);
    const current = known?.minute === minute ? known : { minute, count: 0 };
    windows.set(action, current);
    current.count += 1;
    if (current.count > budget)
      throw new ApiError(400, options.throttlingCode, "Request was denied due to request throttling.");
  }

  function takeFault(action: string): FaultEffect | undefined {
    const fault = faults.find((f) => (f.action === action || f.action === "*") && f.times > 0);
    if (fault === undefined) return undefined;
    fault.times -= 1;
    return fault.effect;
  }

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    const url = new URL(request.url ?? "/", "http://emulator");
    const values = new Map([...url.searchParams]);
    if (String(request.headers["content-type"] ?? "").includes("form"))
      for (const [k, v] of new URLSearchParams(body.toString())) values.set(k, v);
    const action = String(request.headers["x-acs-action"] ?? values.get("Action") ?? "");
    const version = String(request.headers["x-acs-version"] ?? values.get("Version") ?? "");
    let caller = "";
    let outcome = "ok";
    const requestId = randomUUID().toUpperCase();
    try {
      await sleep(options.latencyMs);
      const find = (id: string) => options.credentials().find((c) => c.accessKeyId === id);
      caller = authenticate(
        {
          method: request.method ?? "GET",
          path: url.pathname,
          headers: request.headers,
          query: url.searchParams,
          body,
        },
        find,
        Date.now() + api.clockSkewMs,
      );
      const operation = (version === "2016-04-28" ? VPC_OPERATIONS : ECS_OPERATIONS)[action];
      if (operation === undefined)
        throw new ApiError(404, "InvalidAction.NotFound", `Specified api is not found: ${action}`);
      const effect = takeFault(action);
      if (effect?.kind === "delay") await sleep(effect.ms);
      if (effect?.kind === "error") throw new ApiError(effect.status, effect.code, "injected");
      if (effect?.kind === "drop-before") {
        outcome = "dropped before effect";
        request.socket.destroy();
        return;
      }
      throttle(action);
      const result = operation(options.model, new Params(values));
      if (effect?.kind === "drop-after") {
        outcome = "dropped after effect";
        request.socket.destroy();
        return;
      }
      response
        .writeHead(200, { "content-type": "application/json" })
        .end(JSON.stringify({ RequestId: requestId, ...result }));
    } catch (error) {
      const failure = error instanceof ApiError ? error : new ApiError(500, "InternalError", String(error));
      outcome = failure.code;
      response
        .writeHead(failure.status, { "content-type": "application/json" })
        .end(
          JSON.stringify({ RequestId: requestId, HostId: "emulator", Code: failure.code, Message: failure.message }),
        );
    } finally {
      audit.push({
        at: Date.now(),
        caller,
        action,
        token: values.get("ClientToken"),
        params: Object.fromEntries(values),
        outcome,
      });
    }
  }

  const server = createServer((request, response) => {
    serve(request, response).catch((error: unknown) => response.destroy(error as Error));
  });
  const api: ApiServer = {
    server,
    audit,
    faults,
    clockSkewMs: 0,
    counts() {
      const all: Record<string, number> = {};
      for (const { action } of audit) all[action] = (all[action] ?? 0) + 1;
      return all;
    },
  };
  return api;
}
